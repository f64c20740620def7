"""Run a quantized network on int8 kernels: the same logits, bit for bit, in less time.

A DoReFa network (https://arxiv.org/abs/1606.06160) is integer arithmetic, which float32 computes exactly and int8
kernels faster. Layers without an exact kernel stay in float32, and the report says why.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError, cause
from empir_plugin.models.backward import is_transformed
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer.codes import NO_GRADIENT, Inexact, NotANumber, StaysFloat
from empir_plugin.models.integer.fold import fold_norms_, random_state_kept
from empir_plugin.models.integer.fuse import fuse
from empir_plugin.models.integer.kernels import Kernel, Unfolded, float32_kernels, kernel_for
from empir_plugin.models.integer.layers import IntegerLayer, integer_layer, use_kernels_
from empir_plugin.models.integer.selftest import Agreement, agree, check_layer
from empir_plugin.models.layers import QuantizedLayer, frozen_copy, quantized_layers


@dataclass(frozen=True)
class LayerOutcome:
    """Report on one convolution or linear layer.

    Args:
        name: As in ``named_modules``.
        precision: ``"w2a4"``, or ``"fp"``.
        on_integers: Whether it runs on integers.
        reason: The kernel's name, or why the layer stays in float.
    """

    name: str
    precision: str
    on_integers: bool
    reason: str

    def __str__(self) -> str:
        where = "integers" if self.on_integers else "float"
        return f"{self.name} ({self.precision}): {where}, {self.reason}"


@dataclass(frozen=True)
class IntegerReport:
    """Report on the conversion of a network.

    Args:
        layers: In order of registration.
        notes: Optimizations that could not be applied, such as passing codes from layer to layer.
        agreement: With the fake-quantized model on the images given for a check, if any were.
    """

    layers: tuple[LayerOutcome, ...]
    notes: tuple[str, ...] = ()
    agreement: Agreement | None = None

    @property
    def on_integers(self) -> tuple[str, ...]:
        """Names of the layers that run on integers."""
        return tuple(layer.name for layer in self.layers if layer.on_integers)

    @property
    def in_float(self) -> tuple[str, ...]:
        """Names of the layers that stay in floating point."""
        return tuple(layer.name for layer in self.layers if not layer.on_integers)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.layers), *self.notes])


class IntegerModel(nn.Module):
    """A network that runs on integers where it can: for inference, without gradients, on one device.

    Args:
        network: The converted network.
        report: Which layers run on integers and which do not, and why.
    """

    def __init__(self, network: nn.Module, report: IntegerReport) -> None:
        super().__init__()
        self.network = network
        self.report = report
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)`` in [0, 1].

        Raises:
            InputError: If a gradient is required.
            EvaluationError: If an input of a quantized layer is NaN.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(NO_GRADIENT)
        with torch.no_grad():
            return self.network(x)


def to_integer(model: nn.Module, *, like: Tensor | None = None, kernel: Kernel | None = None) -> IntegerModel:
    """Return the integer form of a model; the model itself is not changed.

    Every layer is compared with the layer it stands for, bit for bit, before it is used; a layer that differs stays in
    float32. Layers pass each other codes of one byte where the network's graph can be traced. Batch normalization is
    folded into the layer before it, which may change the last bits of the logits: fold it in the model as well
    (:func:`~empir_plugin.models.integer.fold.fold_norms_`), and they are equal.

    Args:
        model: A network of quantized layers, or an ensemble of such networks. It is converted in evaluation mode.
        like: Images ``(N, C, H, W)`` on which to compare the whole network as well; if it differs from the model with
            folded normalization in a bit, it stays in float32.
        kernel: The kernel that computes the layers; the device's own by default.

    Raises:
        InputError: If it runs on integers already.
        EvaluationError: If it cannot be copied.

    Example:
        >>> from empir_plugin.models.layers import QuantLinear
        >>> from empir_plugin.models.quantize import Precision
        >>> model = nn.Sequential(nn.Flatten(), QuantLinear(4, 2, precision=Precision.parse("w2a4"))).eval()
        >>> integer = to_integer(model)
        >>> integer.report.on_integers
        ('1',)
        >>> agree(model, integer, torch.rand(8, 1, 2, 2)).differing_decisions
        0
    """
    if any(isinstance(module, (IntegerModel, IntegerLayer)) for module in model.modules()):
        raise InputError("the model runs on integers already: convert the one it was made from")
    base = _copy_baked(model)
    swapped, outcomes = _swap_layers(base, kernel)
    linked, notes = fuse(copy.deepcopy(swapped))
    report = IntegerReport(tuple(_all_outcomes(base, outcomes)), tuple(notes))
    if like is None:
        return IntegerModel(linked, report)
    for _, layer in quantized_layers(base):
        if layer.weight.device.type != "cpu":  # Its own convolutions may round there.
            _use_exact_kernel_(layer, torch.float32, int8=False)
    return _first_in_agreement(base, [linked, swapped], report, like)


def _copy_baked(model: nn.Module) -> nn.Module:
    base = frozen_copy(model)
    for _, layer in quantized_layers(base):
        if layer.baked_weight is None:
            layer.bake_()
    fold_norms_(base)
    _lay_out_(base)
    return base


def _lay_out_(model: nn.Module) -> None:
    """Store quantized networks as the kernels take them; full-precision members of an ensemble stay as they are."""
    if isinstance(model, Ensemble):
        for member in model.members:
            _lay_out_(member)
    elif any(True for _ in quantized_layers(model)):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _swap_layers(base: nn.Module, kernel: Kernel | None) -> tuple[nn.Module, dict[str, LayerOutcome]]:
    """A copy with integer layers in place of quantized ones where possible, and the outcome of each layer by name."""
    root = nn.Sequential(copy.deepcopy(base))  # a parent for a model that is itself one layer
    converted: dict[QuantizedLayer, IntegerLayer | StaysFloat] = {}
    outcomes: dict[str, LayerOutcome] = {}
    for path, layer in list(root.named_modules(remove_duplicate=False)):
        if not isinstance(layer, QuantizedLayer):
            continue
        if layer not in converted:
            converted[layer] = _convert_layer(layer, kernel or kernel_for(layer.weight.device))
        name = path.partition(".")[2]
        outcomes[name] = _outcome(name, layer, converted[layer])
        if isinstance(integer := converted[layer], IntegerLayer):
            root.set_submodule(path, integer)
    return root[0], outcomes


def _convert_layer(layer: QuantizedLayer, kernel: Kernel) -> IntegerLayer | StaysFloat:
    try:
        integer = integer_layer(layer, kernel)
        check_layer(layer, integer)
    except StaysFloat as reason:
        return reason
    return integer


def _outcome(name: str, layer: QuantizedLayer, result: IntegerLayer | StaysFloat) -> LayerOutcome:
    on_integers = isinstance(result, IntegerLayer)
    return LayerOutcome(name, str(layer.precision), on_integers, result.kernel.name if on_integers else str(result))


def _all_outcomes(network: nn.Module, outcomes: dict[str, LayerOutcome]) -> Iterator[LayerOutcome]:
    """The outcomes of the quantized layers and of the other layers with weights, in order of registration."""
    for name, module in network.named_modules():
        if name in outcomes:
            yield outcomes[name]
        elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)):
            yield LayerOutcome(name, "fp", False, "its weights and its input have full precision")


def _first_in_agreement(
    base: nn.Module, attempts: list[nn.Module], report: IntegerReport, images: Tensor
) -> IntegerModel:
    """The first attempt whose logits on some images are the model's; the model itself if there is none."""
    notes = report.notes
    for network in attempts:
        try:
            agreement = agree(base, network, images)
        except Exception as error:  # A model may differentiate inside its forward pass, or fail in any other way.
            notes += (f"the whole network fails on integers: {cause(error)}",)
            continue
        if agreement.max_logit_difference == 0:
            return IntegerModel(network, IntegerReport(report.layers, notes, agreement))
        notes += (f"the whole network's logits differ by up to {agreement.max_logit_difference:.3g}",)
    in_float = tuple(
        LayerOutcome(layer.name, layer.precision, False, "the whole network's logits differ from the model's")
        for layer in report.layers
    )
    return IntegerModel(base, IntegerReport(in_float, notes, agree(base, base, images)))


FLOAT32 = "float32"
BF16 = "bf16"


class _Seen(NamedTuple):
    """What a module was when its integer form was made."""

    module: nn.Module
    tensors: tuple[tuple[str, Tensor, int | None, int], ...]
    baked: object
    inputs: tuple[object, ...]
    hooks: int

    @classmethod
    def of(cls, module: nn.Module) -> _Seen:
        found = [(name, each) for name, each in _own_tensors(module) if each is not None]
        tensors = tuple((name, each, _version(each), each.data_ptr()) for name, each in found)
        return cls(module, tensors, getattr(module, "_baked", None), _inputs(module), _count_hooks(module))

    def is_current(self) -> bool:
        """Whether the module is still the same, in evaluation mode."""
        module = self.module
        if module.training or getattr(module, "_baked", None) is not self.baked:
            return False
        if _count_hooks(module) != self.hooks or _inputs(module) != self.inputs:
            return False
        found = [each for each in _own_tensors(module) if each[1] is not None]
        return len(found) == len(self.tensors) and all(
            name == other and each is tensor and _version(tensor) == version and tensor.data_ptr() == address
            for (name, each), (other, tensor, version, address) in zip(found, self.tensors, strict=True)
        )


class _State(tuple[_Seen, ...]):
    """All modules of a model as they were when its integer form was made; empty if they had changed before."""

    @classmethod
    def of(cls, model: nn.Module) -> _State:
        return cls(_Seen.of(module) for module in model.modules())

    def is_current(self) -> bool:
        """Whether the model computes the same as then."""
        return bool(self) and all(seen.is_current() for seen in self)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    yield from module._parameters.items()
    yield from module._buffers.items()


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _inputs(module: nn.Module) -> tuple[object, ...]:
    """Kind and bits of a layer's input, which another backward rule does not change."""
    quantizer = getattr(module, "activation_quantizer", None)
    return type(quantizer), getattr(quantizer, "bits", None)


def _count_hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


class ModelWrapper(nn.Module):
    """Base of models that hold another one as ``model``, whose attributes, such as ``members``, are theirs as well."""

    model: nn.Module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


class IntegerInference(ModelWrapper):
    """A model that runs on integers as a whole wherever no gradient is asked, with the same logits bit for bit.

    The model itself runs where the integer form would give other logits or none: after a change of its parameters or
    buffers, in training mode, with forward hooks added since, in autocast, in a graph of ``torch.compile``, for inputs
    of another type and where a quantized layer's input is NaN. Attributes such as ``members`` are those of the model,
    which is its only submodule.

    Args:
        model: In evaluation mode.
        integer: Its integer form.
    """

    def __init__(self, model: nn.Module, integer: IntegerModel) -> None:
        super().__init__()
        self.model = model
        self._integer = (integer,)  # in a tuple, as it is no part of what the model is
        self.eval()
        self._state = _State.of(model)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)`` in [0, 1]."""
        # Forward-mode derivatives are computed without gradients enabled, too.
        if torch.is_grad_enabled() or is_transformed() or torch.compiler.is_compiling():
            return self.model(x)
        if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type) or not self._state.is_current():
            return self.model(x)
        try:
            return self._integer[0](x)
        except NotANumber:
            return self.model(x)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_state": self._state.is_current()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._state = _State.of(self.model) if state["_state"] else _State(())


@dataclass(frozen=True)
class Backend:
    """What runs the forward passes of quantized layers.

    Args:
        name: ``"float32"``, or ``"int8"`` and the kernel.
        reason: Why int8 kernels, or bfloat16 gradients, are not used, and why float32 convolutions are not, where they
            round; empty if there is nothing to say.
        backward: The arithmetic of their backward passes: ``"float32"`` or ``"bf16"``.
        forward: The same as ``name`` if int8 kernels run forward passes with a gradient, too; they do not on inputs of
            other levels than DoReFa's.
    """

    name: str
    reason: str = ""
    backward: str = FLOAT32
    forward: str = FLOAT32

    @property
    def gradients(self) -> str:
        """What computes gradients."""
        used = self.forward, self.backward
        return FLOAT32 if set(used) == {FLOAT32} else f"{self.forward} forward, {self.backward} backward"


def run_on_integers(
    model: nn.Module, images: Tensor | None = None, *, gradients: str = FLOAT32, int8: bool = True
) -> tuple[nn.Module, Backend]:
    """A model that runs on integers, as a whole where no gradient is asked, else layer by layer in the forward pass.

    Layers without an exact int8 kernel sum their integers in float32. Logits and gradients are the same bit for bit
    whichever kernels run.

    Args:
        model: A prepared copy: in evaluation mode, with baked weights and folded batch normalization, channels last.
            Its layers are changed: see :func:`~empir_plugin.models.integer.layers.use_kernels_`.
        images: ``(N, C, H, W)`` in [0, 1], on which its logits must be the model's; not checked by default.
        gradients: ``"bf16"`` rounds the operands of the backward passes of quantized layers to bfloat16, where the
            processor has instructions for it. Logits and decisions do not change.
        int8: Whether int8 kernels may be used.

    Raises:
        InputError: If ``gradients`` is neither ``"float32"`` nor ``"bf16"``.

    Example:
        >>> _, backend = run_on_integers(nn.Flatten().eval(), torch.rand(2, 1, 1, 2))
        >>> backend.name, backend.reason
        ('float32', 'no layer of the model is quantized')
    """
    if gradients not in (FLOAT32, BF16):
        raise InputError(f"gradients must be {FLOAT32!r} or {BF16!r}, got {gradients!r}")
    layers = [layer for _, layer in quantized_layers(model)]
    if not layers:
        return model, Backend(FLOAT32, "no layer of the model is quantized")
    integer, name, reason = None, FLOAT32, "int8 kernels are turned off"
    if int8:
        with random_state_kept(model):
            integer = to_integer(model, like=images)
        name, reason = _kernels_of(integer.report)
    without_bf16 = "" if gradients == FLOAT32 else _without_bf16(layers[0].weight.device)
    rounded = gradients == BF16 and not without_bf16
    dtype = torch.bfloat16 if rounded else torch.float32
    found = [_use_exact_kernel_(layer, dtype, int8=name != FLOAT32) for layer in layers]
    used = {kernel for kernel, _ in found}
    whole = model if integer is None or name == FLOAT32 else IntegerInference(model, integer)
    if rounded and used == {""}:
        rounded, without_bf16 = False, "no layer of the model has a gradient on integer kernels"
    in_float32 = {kernel.name for kernel in float32_kernels(layers[0].weight.device)}
    forward = name if used - {"", *in_float32} else FLOAT32
    reasons = [reason or without_bf16, *dict.fromkeys(rounding for _, rounding in found)]
    backend = Backend(name, "; ".join(filter(None, reasons)), BF16 if rounded else FLOAT32, forward)
    return whole, backend


def _kernels_of(report: IntegerReport) -> tuple[str, str]:
    """Name of the backend, and the reason if it is float32."""
    kernels = dict.fromkeys(layer.reason for layer in report.layers if layer.on_integers)
    reasons = [layer.reason for layer in report.layers if layer.precision != "fp"]
    return (f"int8 ({', '.join(kernels)})", "") if kernels else (FLOAT32, reasons[0])


def _use_exact_kernel_(layer: QuantizedLayer, gradients: torch.dtype, *, int8: bool) -> tuple[str, str]:
    """Run a layer with its gradient on the first kernel that is exact for it.

    Returns:
        The kernel's name, empty if none is used; and what is to be said of float32 sums, empty if nothing is.
    """
    device = layer.weight.device
    in_float32 = float32_kernels(device)
    rounding = ""
    for kernel in (kernel_for(device), *in_float32) if int8 else in_float32:
        alike = _convert_layer(layer, kernel)
        if isinstance(alike, IntegerLayer):
            use_kernels_(layer, alike, gradients)
            if layer.on_integers is None:
                break
            if isinstance(kernel, Unfolded):
                rounding = rounding or f"float32 convolutions may round on {device.type}"
            return kernel.name, f"{rounding}: {kernel.name} instead" if rounding else ""
        rounding = str(alike) if kernel in in_float32 and isinstance(alike, Inexact) else rounding
    if layer.inexact_reason or (device.type == "cpu" and not rounding):
        return "", ""
    return "", rounding or "the device's own float32 convolutions, which may round, run layers without a kernel"


def _without_bf16(device: torch.device) -> str:
    """Why a device has no bfloat16 arithmetic; empty if it has."""
    if device.type == "cuda":
        return "" if torch.cuda.is_bf16_supported() else "the GPU has no instructions for bfloat16"
    fast: Any = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return "" if fast() else "the processor has no instructions for bfloat16"
