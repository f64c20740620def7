"""Cases of the benchmark of integer execution: convolutions, convolutions in a row, a network, an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from integer_forms import CPU
from integer_networks import resnet18
from integer_peers import onnxruntime_stack
from torch import Tensor, nn

from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.kernels import kernel_for
from empir_plugin.models.integer.layers import IntegerLayer, integer_layer
from empir_plugin.models.integer.selftest import agree
from empir_plugin.models.layers import QuantConv2d, quantized_layers
from empir_plugin.models.quantize import Precision

LAYOUTS = {"float32, NCHW": torch.contiguous_format, "float32, channels last": torch.channels_last}
SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Channels and side of ResNet-18's 3x3 convolutions on 32x32 images."""

Measure = Callable[[str, Mapping[str, Callable[[], object]], tuple["Target", ...]], dict[str, Any]]
"""From a title, functions to run by name, and targets, to a case ready for JSON."""


@dataclass(frozen=True)
class Target:
    """Upper limit of a row's ratio."""

    row: str
    ratio: float


MEMBER = Target("w4a4 on integers", 0.12)
ENSEMBLE = Target("fp + w4a4 + w2a2 on integers", 1.25)
STACK = Target("w4a8 on integers", 0.45)
DEPTH = 4
"""Convolutions of the stack."""


@torch.no_grad()
def _convs(batch_size: int, width: int, measure: Measure) -> dict[str, dict[str, Any]]:
    """One convolution of each shape: from float to float, from codes to float, and from codes to codes."""
    scaled = [(channels * width // 64, side) for channels, side in SHAPES]
    return {f"conv-{channels}": _conv(channels, side, batch_size, measure) for channels, side in scaled}


def _conv(channels: int, side: int, batch_size: int, measure: Measure) -> dict[str, Any]:
    torch.manual_seed(0)
    low = QuantConv2d(channels, channels, 3, padding=1, bias=False, precision=Precision(4, 4), scale="max").eval()
    full = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    network = to_integer(low).network
    (integer,) = (module for module in network.modules() if isinstance(module, IntegerLayer))
    between = integer.with_changes(emits=integer.grid)
    x = torch.rand(batch_size, channels, side, side).to(memory_format=torch.channels_last)
    codes = integer.grid.codes(x)
    runs = {name: _pass(full, x, layout) for name, layout in LAYOUTS.items()}
    runs["w4a4 simulated"] = _pass(prepare(low, CPU), x)
    runs["w4a4 on integers, float to float"] = partial(integer, x)
    runs["w4a4 on integers, codes to float"] = partial(integer, codes)
    runs["w4a4 on integers"] = partial(between, codes)
    title = f"3x3 convolution, {channels} channels, {side}x{side}, batch {batch_size}; the last row from codes to codes"
    return measure(title, runs, (MEMBER,))


@torch.no_grad()
def _stack(batch_size: int, width: int, measure: Measure) -> dict[str, dict[str, Any]]:
    """Convolutions in a row, from codes to codes, here and in onnxruntime: at 8 bits, saturation is DoReFa's clip."""
    torch.manual_seed(0)
    channels, side = 2 * width, 16
    how: dict[str, Any] = {"padding": 1, "bias": False, "precision": Precision(4, 8), "scale": "max"}
    low = nn.Sequential(*(QuantConv2d(channels, channels, 3, **how) for _ in range(DEPTH))).eval()
    full = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(DEPTH)))
    layers = [integer_layer(layer, kernel_for(CPU)) for _, layer in quantized_layers(low)]
    layers = [layer.with_changes(emits=layer.grid) for layer in layers]
    x = torch.rand(batch_size, channels, side, side).to(memory_format=torch.channels_last)
    codes, own = layers[0].grid.codes(x), nn.Sequential(*layers)
    runs = {name: _pass(full, x, layout) for name, layout in LAYOUTS.items()}
    runs["w4a8 simulated"] = _pass(prepare(low, CPU), x)
    runs[STACK.row] = partial(own, codes)
    peer = onnxruntime_stack(layers, codes, torch.get_num_threads())
    if peer.run is not None:
        runs["onnxruntime, the same integers"] = peer.run
    case = measure(f"{DEPTH} 3x3 convolutions, {channels} channels, {side}x{side}, batch {batch_size}", runs, (STACK,))
    case["left_out"] = {} if peer.run is not None else {"onnxruntime": peer.reason}
    if peer.run is not None:
        case["codes_unlike_onnxruntime"] = (own(codes) != peer.run()).double().mean().item()
    return {"stack": case}


@torch.no_grad()
def _network(batch_size: int, width: int, measure: Measure) -> dict[str, dict[str, Any]]:
    """ResNet-18: the member, and the ensemble of three."""
    full, four, two = (prepare(resnet18(text, width), CPU) for text in ("fp", "w4a4", "w2a2"))
    # Float convolutions of this network are faster on contiguous memory; only integer kernels need channels last.
    contiguous: nn.Module = full.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    ensemble = Ensemble([four, two, contiguous]).eval()
    x = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    runs = {name: _pass(full, x, layout) for name, layout in LAYOUTS.items()}
    on_integers = {MEMBER.row: to_integer(four), ENSEMBLE.row: to_integer(ensemble)}
    runs["w4a4 simulated"] = partial(four, x)
    runs["fp + w4a4 + w2a2 simulated"] = partial(ensemble, x)
    runs |= {name: partial(model, x) for name, model in on_integers.items()}
    case = measure(f"ResNet-18, width {width}, batch {batch_size}", runs, (MEMBER, ENSEMBLE))
    case["agreement"] = _agreement(four, on_integers[MEMBER.row], x[:16])
    case["in_float"] = {name: model.report.in_float for name, model in on_integers.items()}
    return {"network": case}


CASES: Mapping[str, Callable[[int, int, Measure], dict[str, dict[str, Any]]]] = {
    "convs": _convs,
    "stack": _stack,
    "network": _network,
}


def _agreement(four: nn.Module, integer: nn.Module, x: Tensor) -> dict[str, Any]:
    """Compare the member on int8 kernels, and in another layout, with the member as it is prepared."""
    contiguous = prepare(four, CPU).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return {name: asdict(agree(four, form, x)) for name, form in (("on int8", integer), ("in NCHW", contiguous))}


def _pass(network: nn.Module, x: Tensor, layout: torch.memory_format = torch.channels_last) -> Callable[[], object]:
    ready = prepare(network, CPU).to(memory_format=layout)  # type: ignore[call-overload]
    return partial(ready, x.contiguous(memory_format=layout))
