"""Codes: the integers of a quantized layer's input in one byte each, as integer kernels take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.models.activations import is_signed
from empir_plugin.models.backward import BackwardRule, Identity, Soft, as_trained
from empir_plugin.models.layers import QuantizedLayer
from empir_plugin.models.quantize import ActivationQuantizer, in_float32

_PIECE = 2**17
"""Elements: 0.5 MB of float32, which fits into the L2 cache of a core with a copy."""

_CLIPS: tuple[type[BackwardRule], ...] = (type(as_trained), Identity, Soft)
"""Clips to [0, 1] that differ in their gradient only."""

_LARGEST_INT8 = 127

NO_GRADIENT = "integers have no gradient: differentiate the fake-quantized model instead"


class StaysFloat(Exception):  # noqa: N818 - an ordinary outcome, not an error; its text is the reason in a report
    """Why a layer cannot run on integers."""


class Inexact(StaysFloat):
    """By how much the outputs of a kernel differ from those of exact sums."""


class NotANumber(EvaluationError):  # noqa: N818 - what the input is
    """An input of a quantized layer is NaN, which float32 passes on to the logits and no code stands for."""

    def __init__(self) -> None:
        super().__init__(
            "an input of a quantized layer is NaN, which is no integer: check the images and the layers before it, or "
            "run the model itself, which gives NaN"
        )


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors of equal length into views of the same rows, small enough for the cache; one piece if they fit.

    Example:
        >>> [part.shape[0] for part, _ in pieces(torch.zeros(3, 2), torch.zeros(3))]
        [3]
    """
    first = tensors[0]
    # Several threads wait for each other after each step; on a busy machine this costs more than the memory.
    if first.device.type != "cpu" or torch.get_num_threads() > 1 or first.numel() <= _PIECE:
        yield tensors
        return
    rows = max(1, len(first) * _PIECE // first.numel())
    yield from zip(*(tensor.split(rows) for tensor in tensors), strict=True)


class Scratch:
    """Memory for one piece after the other: fresh memory costs more than the calculation.

    Example:
        >>> scratch = Scratch()
        >>> first = scratch.like(torch.zeros(3, 2))
        >>> scratch.like(torch.ones(3, 2)) is first
        True
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def like(self, x: Tensor) -> Tensor:
        """Uninitialised memory of a tensor's shape, strides, type and device."""
        memory = self._memory
        if memory is None or memory.shape != x.shape or memory.stride() != x.stride():
            memory = self._memory = torch.empty_like(x)
        return memory


@dataclass(frozen=True)
class Grid:
    """The codes 0 .. ``top`` of a layer's input; a code stands for the integer ``code - zero``.

    Args:
        zero: The code of the value 0.
        top: The largest code, at most 255.
        integers: From an input to its integers, as floats; by default inputs are clipped and rounded as by DoReFa.

    Example:
        >>> Grid(0, 3).codes(torch.tensor([-1.0, 0.3, 0.7, 2.0]))
        tensor([0, 1, 2, 3], dtype=torch.uint8)
    """

    zero: int
    top: int
    integers: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def codes(self, x: Tensor) -> Tensor:
        """The codes, uint8, of inputs of any shape.

        Raises:
            InputError: If a gradient is required.
            NotANumber: If an input is NaN.
        """
        codes, scratch = self.empty_codes(x), Scratch()
        for values, out in pieces(x, codes):
            self.round_into(values, out, scratch)
        return codes.view(torch.uint8)

    def empty_codes(self, x: Tensor) -> Tensor:
        """Uninitialised memory for the codes of some inputs, to be viewed as uint8.

        Raises:
            InputError: If a gradient is required.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(NO_GRADIENT)
        # The bytes are the same, and PyTorch converts floats to int8 in half the time.
        return torch.empty_like(x, dtype=torch.int8 if self.top <= _LARGEST_INT8 else torch.uint8)

    def round_into(self, x: Tensor, out: Tensor, scratch: Scratch, *, check: bool = True) -> None:
        """Write the codes of some inputs into their part of :meth:`empty_codes`.

        Args:
            x: Inputs of any shape.
            out: Their codes, of the same shape.
            scratch: Memory for the calculation, of which the next piece makes use again.
            check: Whether an input may be NaN.

        Raises:
            NotANumber: If an input is NaN.
        """
        if self.integers is None:
            x = in_float32(x)
            # Rounding keeps the order of values, so that the clip gives the same integers after it.
            rounded = torch.mul(x, self.top, out=scratch.like(x)).round_().clamp_(0, self.top)
        else:
            rounded = self.integers(x) + self.zero
        # The sum of finite numbers is NaN only if one of them is, and takes one pass; a graph cannot hold the branch.
        if check and not torch.compiler.is_compiling() and bool(rounded.sum().isnan()):
            raise NotANumber
        out.copy_(rounded)

    @property
    def is_default(self) -> bool:
        """Whether inputs are clipped to [0, 1] and rounded to ``top`` equal steps, as by DoReFa."""
        return self.integers is None


def input_grid(layer: QuantizedLayer) -> Grid:
    """The codes of a layer's input.

    Raises:
        StaysFloat: If they do not fit into one byte.

    Example:
        >>> from empir_plugin.models.layers import QuantLinear
        >>> from empir_plugin.models.quantize import Precision
        >>> input_grid(QuantLinear(1, 1, precision=Precision.parse("w2a4"))).top
        15
    """
    quantizer = layer.activation_quantizer
    zero = quantizer.steps if is_signed(quantizer) else 0
    top = quantizer.steps + zero
    if top > 255:
        raise StaysFloat(f"the codes of its {quantizer.bits}-bit input reach {top}, more than one byte holds")
    default = isinstance(quantizer, ActivationQuantizer) and isinstance(quantizer.clip, _CLIPS)
    return Grid(zero, top, None if default and layer.activation_bound is None else layer.integer_input)
