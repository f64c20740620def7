"""Convolutions and linear layers that quantize their input and their weights.

The *input* of a layer is quantized, not the output of the activation before it, as in EMPIR's release. The operands of
every quantized layer then have k bits, whatever pooling, residual sum or non-linearity comes before.

A quantized layer is integer arithmetic (DoReFa, https://arxiv.org/abs/1606.06160, Section 2.1): it adds up products of
small integers, and one scale behind the sum gives the sum its unit. Sums below 2**24 are exact in float32 whatever the
order of adding, the memory format, the number of threads or the kernel, in bfloat16 or 8-bit operands included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from empir_plugin.errors import EvaluationError, InputError, cause
from empir_plugin.models.activations import (
    InputQuantizer,
    integers_in_learned_range,
    learned_width,
    quantize_in_learned_range,
)
from empir_plugin.models.backward import BackwardRule
from empir_plugin.models.quantize import (
    FULL_BITS,
    ActivationQuantizer,
    Precision,
    Scale,
    WeightQuantizer,
    in_float32,
    is_half,
    round_to_integers,
)
from empir_plugin.models.weight_quantizers import AnyWeightQuantizer

EXACT_IN_FLOAT32 = 2**24
"""Integers up to this one, and their sums, are exact in float32."""

_OFF_GRID = 1e-3
"""Largest distance of a quantized weight from its integer, in units of one."""


class IntegerWeights(NamedTuple):
    """Quantized weights as integers.

    Args:
        values: The integers, as floats of the weights' shape; they carry the gradient of the weights.
        unit: The weight of the integer ``steps``: a detached scalar, or one number for each filter ``(out, 1, ...)``.
    """

    values: Tensor
    unit: Tensor


class _Baked(NamedTuple):
    """Quantized weights, and the state of the latent weights they stand for.

    Args:
        value: The quantized weights.
        integers: The same as integers; None if they are none.
        latent: The latent weights themselves, not a copy.
        version: Count of the changes that autograd has seen; None for inference tensors, which have none.
        address: Of their values in memory.
        copy: Their values, where changes may go uncounted; None for frozen weights.
    """

    value: Tensor
    integers: IntegerWeights | None
    latent: Tensor
    version: int | None
    address: int
    copy: Tensor | None

    @classmethod
    def of(cls, value: Tensor, integers: IntegerWeights | None, latent: Tensor, *, watched: bool = False) -> _Baked:
        version = None if latent.is_inference() else latent._version
        # Fused optimizers, `.data` and NumPy views change values without a count. They change weights in training; a
        # frozen network, which is what the evaluation attacks, is not worth a comparison in every forward pass.
        copied = (watched or latent.requires_grad or version is None) and not latent.is_meta
        copy = latent.detach().clone() if copied else None
        return cls(value, integers, latent, version, latent.data_ptr(), copy)

    def for_copies(self, value: Tensor, integers: IntegerWeights | None, latent: Tensor) -> _Baked:
        """The same for copies of all tensors, which start to count their changes anew."""
        return _Baked.of(value, integers, latent, watched=self.copy is not None)

    def is_current(self, latent: Tensor) -> bool:
        """Whether the latent weights are the same tensor with the same values."""
        if torch.compiler.is_dynamo_compiling():  # A graph can hold neither the count nor a comparison.
            return latent is self.latent and not latent.requires_grad
        if _is_exporting():  # The network is called with stand-ins for its parameters.
            return self._is_unchanged()
        if latent is not self.latent or not self._is_unchanged():
            return False
        return self.copy is None or torch.equal(latent, self.copy)

    def _is_unchanged(self) -> bool:
        counted = self.version is None or self.latent._version == self.version
        return counted and self.latent.data_ptr() == self.address


def _divide(values: Tensor, unit: Tensor) -> Tensor:
    """Values over a unit; all of them are zero where it is."""
    return values / torch.where(unit == 0, torch.ones_like(unit), unit)


def _is_tracing() -> bool:
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def _is_exporting() -> bool:
    return getattr(torch.compiler, "is_exporting", bool)()


class QuantizedLayer(nn.Module):
    """Base of quantized layers: latent float weights, two quantizers and, for evaluation, weights quantized in advance.

    Weights quantized in advance ("baked") are used in evaluation mode while the latent weights are the same tensor with
    the same values; after any change of theirs the layer computes with the new ones, as an ordinary layer does. Two
    changes of frozen weights are not seen: one that bypasses autograd (``weight.data.mul_(2)``), and one in place after
    ``torch.compile``. Call :meth:`bake_` again after these.

    ``on_integers`` computes the layer's output by other means, where these can; see
    :func:`empir_plugin.models.integer.layers.use_kernels_`.

    The state dict holds the latent weights under the names of the full-precision layer, so weights load strictly from
    one into the other, both ways. Only a learned range has a name of its own, ``activation_bound``; a state dict
    without it still loads, and does not change it.
    """

    weight: Tensor
    bias: Any
    weight_quantizer: AnyWeightQuantizer
    activation_quantizer: InputQuantizer
    activation_bound: nn.Parameter | None
    _baked: _Baked | None = None
    _folded: tuple[Tensor, Tensor] | None = None
    on_integers: Callable[[QuantizedLayer, Tensor], Tensor | None] | None = None

    def _set_quantizers(self, precision: Precision, scale: Scale) -> None:
        weights = WeightQuantizer(precision.weight_bits, scale)
        self.use_quantizers_(weights, ActivationQuantizer(precision.activation_bits))

    def use_quantizers_(
        self, weights: AnyWeightQuantizer, activations: InputQuantizer, bound: float | None = None
    ) -> None:
        """Set the quantizers.

        Args:
            weights: Quantizer of the latent weights.
            activations: Quantizer of the input.
            bound: Start of a learned range of the input; by default none is learned.
        """
        self.weight_quantizer, self.activation_quantizer = weights, activations
        learned = None if bound is None else nn.Parameter(self.weight.new_tensor(bound))
        self.register_parameter("activation_bound", learned)
        self._baked = None

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter; new latent weights drop the baked ones."""
        super().register_parameter(name, param)
        self._baked = None if name == "weight" else self._baked

    @property
    def precision(self) -> Precision:
        """Bits of this layer's weights and input."""
        return Precision(self.weight_quantizer.bits, self.activation_quantizer.bits)

    @property
    def baked_weight(self) -> Tensor | None:
        """Weights quantized in advance; None if there are none, or the latent weights have changed since."""
        if self._baked is None or "weight" not in self._parameters or not self._baked.is_current(self.weight):
            return None
        return self._baked.value

    @baked_weight.setter
    def baked_weight(self, value: Tensor | None) -> None:
        self._baked = None if value is None else _Baked.of(value, self._integers_of(value), self.weight)

    def quantized_weight(self) -> Tensor:
        """The quantized weights, of the latent weights' shape; the baked ones only in evaluation mode."""
        # A new network is in training mode and may be baked then; its latent weights must still get gradients.
        baked = None if self.training else self.baked_weight
        if baked is None:
            return self.weight_quantizer(self.weight)
        asked = self.weight.requires_grad and torch.is_grad_enabled()
        if not asked or _is_tracing() or _is_exporting():  # A traced graph has no gradients of weights.
            return baked
        # The gradient of the quantizer, and exactly the baked numbers, whose scale can differ in the last bit.
        quantized = self.weight_quantizer(self.weight)
        return quantized + (baked - quantized).detach()

    def multiply(self, operation: Callable[[Tensor, Tensor, Any], Tensor], input: Tensor) -> Tensor:
        """Apply the layer's operation, such as a convolution, to the quantized input and weights.

        With ``W`` the integers of the weights and ``A`` those of the input, the result is ``operation(A, W) * scale +
        bias``, in this order. A layer that has no exact sums (see :attr:`inexact_reason`) multiplies the levels.

        Args:
            operation: From input, weights and bias, which may be None, to the output; it is linear in the first two.
            input: The input, not quantized.
        """
        if self.on_integers is not None and (output := self.on_integers(self, input)) is not None:
            return output
        integers = self.integer_weights()
        if integers is None:
            return self.in_own_type(operation(*self.operands(input)))
        scale, bias = self.scale_and_bias(integers)
        output = operation(self.integer_input(input), integers.values, None) * scale
        return self.in_own_type(output if bias is None else output + bias)

    def scale_and_bias(self, integers: IntegerWeights) -> tuple[Tensor, Tensor | None]:
        """What follows the sum of products of integers, with the batch normalization folded into the layer.

        Both are floats, a scalar or in a shape that broadcasts with the output.
        """
        unit = integers.unit if self.activation_bound is None else integers.unit * learned_width(self.activation_bound)
        scale = unit / (self.weight_quantizer.steps * self.activation_quantizer.steps)
        scale = self._for_channels(scale) if scale.dim() else scale
        bias = None if self.bias is None else self._for_channels(in_float32(self.bias))
        if self._folded is None:
            return scale, bias
        gain, shift = (each.to(scale.device) for each in self._folded)
        # In float64, so that both numbers are rounded once.
        shift = shift if bias is None else bias.double() * gain + shift
        return (scale.double() * gain).to(scale.dtype), shift.to(scale.dtype)

    def fold_(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Let the layer compute the batch normalization that follows it as well, by its scale and bias.

        Args:
            norm: In evaluation mode, with statistics. They must not change afterwards.
        """
        mean, variance = norm.running_mean, norm.running_var
        if norm.training or mean is None or variance is None:
            raise InputError("only a batch normalization with fixed statistics can be folded: call eval() first")
        gain = 1 / (variance.double() + norm.eps).sqrt()
        gain = gain if norm.weight is None else gain * norm.weight.detach().double()
        shift = -mean.double() * gain
        shift = shift if norm.bias is None else shift + norm.bias.detach().double()
        self._folded = self._for_channels(gain), self._for_channels(shift)
        self.on_integers = None

    def integer_weights(self) -> IntegerWeights | None:
        """The integers of the quantized weights, the baked ones only in evaluation mode; None if sums are not exact."""
        if self.inexact_reason:
            return None
        baked = None if self.training or self.baked_weight is None else self._baked
        if baked is not None and baked.integers is None:
            return None
        if baked is not None and not (self.weight.requires_grad and torch.is_grad_enabled()):
            return baked.integers
        quantized = self.quantized_weight()
        unit = self.weight_quantizer.unit(quantized)
        return IntegerWeights(round_to_integers(_divide(quantized, unit), self.weight_quantizer.steps), unit)

    def _integers_of(self, quantized: Tensor) -> IntegerWeights | None:
        """The integers of quantized weights that may come from elsewhere; None if they are on no grid."""
        if self.inexact_reason:
            return None
        with torch.no_grad():
            unit, steps = self.weight_quantizer.unit(quantized), self.weight_quantizer.steps
            values = in_float32(quantized)
            exact = _divide(values, unit) * steps
            integers = exact.round()
            if not quantized.is_meta and not (
                (exact - integers).abs().max() < _OFF_GRID and integers.abs().max() <= steps
            ):
                return None
            return IntegerWeights(integers, unit)

    def integer_input(self, input: Tensor) -> Tensor:
        """The integers of the quantized input, as floats of the same shape."""
        if self.activation_bound is None:
            return self.activation_quantizer.integers(in_float32(input))
        return integers_in_learned_range(self.activation_quantizer, input, self.activation_bound)

    def _for_channels(self, values: Tensor) -> Tensor:
        """Values per output channel ``(out, ...)`` in a shape that broadcasts with the output."""
        return values.view(-1, *[1] * (self.weight.dim() - 2))

    @property
    def inexact_reason(self) -> str:
        """Why the layer's sums are not exact integers; empty if they are."""
        if FULL_BITS in (self.precision.weight_bits, self.precision.activation_bits):
            return "its weights and its input are not both quantized"
        largest = self.weight[0].numel() * self.weight_quantizer.steps * self.activation_quantizer.steps
        if largest > EXACT_IN_FLOAT32:
            return f"its sums of {self.weight[0].numel()} products reach {largest:,}, beyond the 2**24 exact in float32"
        return ""

    def operands(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Quantized input, quantized weights and bias, in float32 if the layer has half precision."""
        bias: Tensor | None = self.bias
        inputs, weights = self.quantized_input(input), self.quantized_weight()
        return in_float32(inputs), in_float32(weights), None if bias is None else in_float32(bias)

    def in_own_type(self, output: Tensor) -> Tensor:
        """An output in half precision if the layer has it, for the layers that follow."""
        return output.to(self.weight.dtype) if is_half(self.weight) else output

    def quantized_input(self, input: Tensor) -> Tensor:
        """The quantized input, of the same shape."""
        if self.activation_bound is None:
            return self.activation_quantizer(input)
        return quantize_in_learned_range(self.activation_quantizer, input, self.activation_bound)

    def bake_(self) -> None:
        """Quantize the weights once, for evaluation mode; training mode or loading weights undoes it."""
        with torch.no_grad():
            self.baked_weight = self.weight_quantizer(self.weight).detach().clone()

    def train(self, mode: bool = True) -> Any:
        """Set the mode; training mode drops baked weights, as the latent weights are about to change."""
        if mode:
            self._baked = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or convert the layer, and its baked weights with it."""
        baked, value = self._baked, self.baked_weight
        super()._apply(fn, recurse)
        if baked is None or value is None:
            self._baked = None
            return self
        moved: Tensor = fn(value)
        moved = value.to(moved.device) if is_half(moved) else moved  # Levels are exact in float32 only.
        self._baked = baked.for_copies(moved, self._integers_of(moved), self.weight)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_baked": self._baked if self.baked_weight is not None else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._baked is not None:
            self._baked = self._baked.for_copies(self._baked.value, self._baked.integers, self.weight)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if self.activation_bound is not None:
            state_dict.setdefault(f"{prefix}activation_bound", self.activation_bound.detach())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._baked = None

    def extra_repr(self) -> str:
        """The parent's description, the precision, and any quantizers other than EMPIR's."""
        # Published hashes cover this text: it must stay the same for EMPIR's quantizers.
        text = f"{super().extra_repr()}, precision={self.precision}"
        if not isinstance(self.weight_quantizer, WeightQuantizer):
            text += f", weights={self.weight_quantizer}"
        if not isinstance(self.activation_quantizer, ActivationQuantizer):
            text += f", activations={self.activation_quantizer}"
        return text if self.activation_bound is None else f"{text}, range=learned"


class QuantConv2d(QuantizedLayer, nn.Conv2d):
    """A 2-d convolution on k-bit weights and k-bit inputs.

    Args:
        precision: Bits of the weights and of the input.
        scale: See :class:`~empir_plugin.models.quantize.WeightQuantizer`.

    The other arguments are those of :class:`torch.nn.Conv2d`.

    Example:
        >>> layer = QuantConv2d(3, 8, 5, bias=False, precision=Precision.parse("w2a4"))
        >>> layer(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 8, 28, 28])
    """

    def __init__(self, *args: Any, precision: Precision, scale: Scale = "none", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_quantizers(precision, scale)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        return self.multiply(self._conv_forward, input)


class QuantLinear(QuantizedLayer, nn.Linear):
    """A linear layer on k-bit weights and k-bit inputs; the bias stays in floating point.

    Args:
        precision: Bits of the weights and of the input.
        scale: See :class:`~empir_plugin.models.quantize.WeightQuantizer`.

    The other arguments are those of :class:`torch.nn.Linear`.

    Example:
        >>> QuantLinear(4, 2, precision=Precision.parse("w4a4"))(torch.rand(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(self, *args: Any, precision: Precision, scale: Scale = "none", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_quantizers(precision, scale)

    def forward(self, input: Tensor) -> Tensor:
        """Map features ``(..., in_features)``."""
        return self.multiply(nn.functional.linear, input)


def input_of_call(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The input of a layer, from the arguments of its call: the first one, or the first tensor given by keyword.

    Example:
        >>> input_of_call((), {"output_size": [3], "input": torch.zeros(2)})
        tensor([0., 0.])
    """
    return args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """The quantized layers of a model with their names, in order of registration."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, QuantizedLayer))


WRITES_TO_INPUT = (
    "the model writes to its input, which would change the images for everyone after it: replace in-place operations "
    "on it (x -= mean, a first layer with inplace=True) by others (x = x - mean)"
)
"""The error about such a model, which attacks, evaluations and conversions share."""


def refuse_script(model: nn.Module) -> None:
    """Refuse TorchScript: its layers cannot be told apart or replaced, and what it computes cannot be identified.

    Raises:
        InputError: If the model, or a part of it, was scripted or traced.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"part {name!r} of the model" if name else "the model"
            raise InputError(f"{where} is TorchScript, got a {type(module).__name__}: pass the module it was made from")


def is_inference_tensor(tensor: Tensor) -> bool:
    """Whether a tensor was made inside inference mode, so that no gradient passes it and it cannot be changed.

    Example:
        >>> with torch.inference_mode():
        ...     weight = torch.zeros(3)
        >>> is_inference_tensor(weight), is_inference_tensor(torch.zeros(3))
        (True, False)
    """
    return not nn.parameter.is_lazy(tensor) and tensor.is_inference()


def frozen_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a model in evaluation mode, without gradients of its parameters.

    Tensors that hang on the graph of an earlier forward pass are copied without it: weights that pruning, and weight or
    spectral normalisation by hooks, recompute in every pass, and results that a model keeps.

    Raises:
        InputError: If the model is TorchScript, or a part of it.
        EvaluationError: If it has a part that cannot be copied.

    Example:
        >>> frozen_copy(nn.Linear(3, 2)).weight.requires_grad
        False
    """
    refuse_script(model)
    memo = {id(each): each.detach().clone() for each in _tensors_with_a_graph(model)}
    try:
        return copy.deepcopy(model, memo).eval().requires_grad_(False)
    except Exception as error:  # Whatever a part of the model raises that cannot be copied.
        if found := _special_tensor_without_copy(model):
            raise EvaluationError(
                f"the model cannot be copied, because its {found} cannot ({cause(error)}): dequantize it, or make it "
                "a plain tensor first"
            ) from error
        raise EvaluationError(
            f"the model cannot be copied ({cause(error)}): keep nothing in it that copy.deepcopy cannot copy"
        ) from error


def _special_tensor_without_copy(model: nn.Module) -> str:
    """Name and kind of a model's first tensor that is no plain one and cannot be copied; empty if there is none."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_special(tensor):
            try:
                copy.deepcopy(tensor)
            except Exception:  # a subclass's own code, which may fail in any way
                return f"{name!r}, {describe_kind(tensor)},"
    return ""


def is_special(tensor: Tensor) -> bool:
    """Whether a tensor is not one array of numbers: sparse, quantized, or of a subclass that other libraries make.

    Example:
        >>> is_special(torch.eye(2)), is_special(torch.eye(2).to_sparse())
        (False, True)
    """
    plain = type(tensor) in (Tensor, nn.Parameter) or type(tensor.data) is Tensor
    return tensor.layout != torch.strided or tensor.is_quantized or not plain


def describe_kind(tensor: Tensor) -> str:
    """What a tensor is, for messages: its class, and its layout or type if that is special.

    Example:
        >>> describe_kind(torch.eye(2).to_sparse())
        'a Tensor (torch.sparse_coo)'
    """
    special = [tensor.layout] if tensor.layout != torch.strided else [tensor.dtype] if tensor.is_quantized else []
    return f"a {type(tensor.data).__name__}" + "".join(f" ({each})" for each in special)


def _tensors_with_a_graph(model: nn.Module) -> Iterator[Tensor]:
    def search(value: object, depth: int = 4) -> Iterator[Tensor]:
        if isinstance(value, Tensor) and not value.is_leaf:
            yield value
        elif isinstance(value, (list, tuple, set, Mapping)) and depth:
            for each in value.values() if isinstance(value, Mapping) else value:
                yield from search(each, depth - 1)

    for module in model.modules():
        yield from search(list(vars(module).values()))


def bake_(model: nn.Module) -> None:
    """Quantize every quantized layer's weights once, for evaluation."""
    for _, layer in quantized_layers(model):
        layer.bake_()


@contextmanager
def use_backward_rule(model: nn.Module, rule: BackwardRule) -> Iterator[None]:
    """Give every quantizer of activations or images another gradient; outputs stay the same, bit for bit.

    Tensors computed inside the context keep the rule when they are differentiated later.

    Example:
        >>> from empir_plugin.models.backward import identity
        >>> layer, x = QuantLinear(1, 1, precision=Precision.parse("w2a2")), torch.tensor([[2.0]], requires_grad=True)
        >>> with use_backward_rule(layer, identity):
        ...     y = layer(x)
        >>> torch.autograd.grad(y.abs().sum(), x)
        (tensor([[1.]]),)
    """
    modules: list[tuple[Any, Any]] = [
        (module, getattr(module, "activation_quantizer", None)) for module in model.modules()
    ]
    found = [(module, quantizer) for module, quantizer in modules if hasattr(quantizer, "clip")]
    try:
        for module, quantizer in found:
            module.activation_quantizer = replace(quantizer, clip=rule)
        yield
    finally:
        for module, quantizer in found:
            module.activation_quantizer = quantizer


def is_full_precision(model: nn.Module) -> bool:
    """Whether no layer of the model is quantized."""
    return all(layer.precision.is_full for _, layer in quantized_layers(model))
