"""Forms of a quantized network whose logits should be equal: layouts, threads, bfloat16 math, int8 kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.integer.codes import StaysFloat
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.kernels import OneDNN
from empir_plugin.models.integer.layers import IntegerLayer, integer_layer
from empir_plugin.models.layers import QuantizedLayer, quantized_layers

CPU = torch.device("cpu")


@contextmanager
def bf16_math() -> Iterator[None]:
    """Let float32 convolutions and matrix products take their operands in bfloat16, as far as PyTorch can."""
    switches: list[Any] = [torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul]
    found = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "bf16"
        yield
    finally:
        for switch, value in zip(switches, found, strict=True):
            switch.fp32_precision = value


def no_bf16_math() -> str:
    """Why float32 convolutions cannot run in bfloat16 here; empty if they can."""
    if not hasattr(getattr(torch.backends.mkldnn, "conv", None), "fp32_precision"):
        return f"torch {torch.__version__} has no switch for it"
    x, weight = torch.full((1, 16, 8, 8), 1 + 2**-12), torch.ones(16, 16, 3, 3)
    exact = nn.functional.conv2d(x, weight)
    with bf16_math():
        rounded = nn.functional.conv2d(x, weight)
    return "" if bool((exact != rounded).all()) else "the processor multiplies in float32 all the same"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use a number of threads of torch inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Form:
    """A way to run the quantized layers of a network; whatever is not quantized is computed in float32.

    Args:
        layout: Memory layout of images, weights and activations.
        threads: Threads of torch.
        bf16: Whether the integers are multiplied in bfloat16.
        int8: Whether int8 kernels run the layers that they can.
    """

    layout: torch.memory_format = torch.channels_last
    threads: int = 1
    bf16: bool = False
    int8: bool = False

    def unusable(self) -> str:
        """Why the form cannot run here; empty if it can."""
        if self.bf16:
            return no_bf16_math()
        return (OneDNN().unusable(CPU) or "") if self.int8 else ""

    def network(self, model: nn.Module) -> nn.Module:
        """A copy of a model in this form, with folded batch normalization."""
        base = prepare(model, CPU).to(memory_format=self.layout)  # type: ignore[call-overload]
        if self.int8:
            return to_integer(base)
        for _, layer in quantized_layers(base):
            if self.bf16 and layer.integer_weights() is not None:
                _compute_in_bf16_(layer)
        return base

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Logits ``(N, K)`` of a network in this form."""
        with threads(self.threads):
            return network(images.contiguous(memory_format=self.layout))

    def sums(self, layer: QuantizedLayer, x: Tensor) -> Tensor | None:
        """The integer sums of a layer on its float input, without scale and bias; None if this form has none."""
        x = x.contiguous(memory_format=self.layout) if x.dim() == 4 else x
        integers = layer.integer_weights()
        if integers is None:
            return None
        if self.int8:
            return _int8_sums(layer, x)
        with threads(self.threads), bf16_math() if self.bf16 else ExitStack():
            return operation(layer)(layer.integer_input(x), integers.values, None)


def operation(layer: QuantizedLayer) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The convolution or product of a layer, of input, weights and bias."""
    return layer._conv_forward if isinstance(layer, nn.Conv2d) else nn.functional.linear


def exact_sums(layer: QuantizedLayer, x: Tensor) -> Tensor | None:
    """The same sums in float64, which is exact up to 2**53; None if the layer does not sum integers."""
    integers = layer.integer_weights()
    if integers is None:
        return None
    return operation(layer)(layer.integer_input(x).double(), integers.values.double(), None)


def _int8_sums(layer: QuantizedLayer, x: Tensor) -> Tensor | None:
    try:
        integer = integer_layer(layer, OneDNN())
    except StaysFloat:
        return None
    op = replace(integer.op, scale=torch.ones_like(integer.op.scale), bias=None)
    return IntegerLayer(integer.precision, integer.grid, op, integer.kernel)(x)


def _compute_in_bf16_(layer: QuantizedLayer) -> None:
    open_blocks: list[ExitStack] = []

    def enter(*_: object) -> None:
        open_blocks.append(ExitStack())
        open_blocks[-1].enter_context(bf16_math())

    def leave(*_: object) -> None:
        open_blocks.pop().close()

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave, always_call=True)


FLOAT32 = "float32, channels last"
"""The form that runs where a gradient is asked."""
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        FLOAT32: Form(),
        "float32, NCHW": Form(torch.contiguous_format),
        "float32, two threads": Form(threads=2),
        "bfloat16 math": Form(bf16=True),
        "int8 kernels": Form(int8=True),
    }
)
