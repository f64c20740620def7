"""How fast is a quantized network on integers? ``OMP_NUM_THREADS=1 python benchmarks/integer.py``.

Everything is timed in turns and compared, within each round, with the full-precision float32 network in the memory
layout in which that is faster. There are single convolutions of ResNet-18's shapes, its low-precision member, and the
ensemble of a full-precision and two low-precision members, each simulated in float32 and on integers.

Processors with VNNI instructions multiply bytes about twice as fast as those with AVX2 alone; the report says which
one it ran on. Beside the times stands how far each form of the member is from the same network in float64: behind a
batch normalisation every change of float32's rounding, another memory layout as well, moves a rare activation to the
neighbouring level. onnxruntime is not compared: its own quantization rounds to other levels than DoReFa's.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from integer_networks import resnet18
from torch import Tensor, nn

from empir_plugin.evaluation.files import write_atomically
from empir_plugin.evaluation.overhead_latency import Spread, take_turns
from empir_plugin.evaluation.provenance import code_sha256, now, versions
from empir_plugin.evaluation.subject import prepared
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer import agree, to_integer
from empir_plugin.models.integer_layers import IntegerLayer
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.precision import Precision

CPU = torch.device("cpu")
LAYOUTS = {"float32, NCHW": torch.contiguous_format, "float32, channels last": torch.channels_last}
SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Channels and side of ResNet-18's 3x3 convolutions on images of 32x32."""

Measure = Callable[[str, Mapping[str, Callable[[], object]], tuple["Target", ...]], dict[str, Any]]
"""From a title, what to run by name, and targets, to a case ready for JSON."""


@dataclass(frozen=True)
class Target:
    """What a row's ratio should be at most."""

    row: str
    ratio: float


CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds; those of the processor, all threads together, are disturbed less by what else the machine does."""

MEMBER = Target("w4a4 on integers", 0.45)
ENSEMBLE = Target("fp + w4a4 + w2a2 on integers", 2.0)


@click.command()
@click.option(
    "--case", "chosen", multiple=True, type=click.Choice(["convs", "network"]), help="Only this (repeatable)."
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images per forward pass.")
@click.option("--width", type=click.IntRange(8), default=64, show_default=True, help="Channels of the first stage.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of torch.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Rounds; everyone runs in each.")
@click.option(
    "--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help="cpu on a busy machine."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File (JSON) for all that was measured.")
def main(
    chosen: tuple[str, ...], batch_size: int, width: int, threads: int, repeats: int, clock: str, out: Path | None
) -> None:
    """Time int8 execution against float32 and against simulated quantization."""
    if out is not None and not out.parent.is_dir():
        raise click.ClickException(f"no folder {out.parent} for --out: make it first")
    torch.set_num_threads(threads)
    settings = {"batch_size": batch_size, "width": width, "threads": threads, "repeats": repeats, "clock": clock}
    measure = partial(_measured, repeats=repeats, clock=CLOCKS[clock])
    cases: list[dict[str, Any]] = []
    for name in chosen or ("convs", "network"):
        for case in {"convs": _convs, "network": _network}[name](batch_size, width, measure):
            click.echo(table(case))
            cases.append(case)
            if out is not None:  # After each case: the next one may take long.
                _write(out, settings, cases)


def _write(out: Path, settings: dict[str, Any], cases: list[dict[str, Any]]) -> None:
    about = {"machine": machine(), "versions": {**versions(), "code_sha256": code_sha256()}, "finished": now()}
    content = {**about, "settings": settings, "cases": cases}
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())


@torch.no_grad()
def _convs(batch_size: int, width: int, measure: Measure) -> list[dict[str, Any]]:
    """One convolution of each shape: alone, with the rounding of its input, and between two others."""
    return [_conv(channels * width // 64, side, batch_size, measure) for channels, side in SHAPES]


def _conv(channels: int, side: int, batch_size: int, measure: Measure) -> dict[str, Any]:
    torch.manual_seed(0)
    low = QuantConv2d(channels, channels, 3, padding=1, bias=False, precision=Precision(4, 4), scale="max").eval()
    full = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    network = to_integer(low).network
    (integer,) = (module for module in network.modules() if isinstance(module, IntegerLayer))
    between = integer.reworked(emits=integer.grid)
    x = torch.rand(batch_size, channels, side, side).to(memory_format=torch.channels_last)
    codes = integer.grid.codes(x)
    runs = {name: _pass(full, x, layout) for name, layout in LAYOUTS.items()}
    runs["w4a4 simulated"] = _pass(prepared(low, CPU), x)
    runs["w4a4 on integers, float to float"] = partial(integer, x)
    runs["w4a4 on integers, codes to float"] = partial(integer, codes)
    runs["w4a4 on integers"] = partial(between, codes)
    title = f"3x3 convolution, {channels} channels, {side}x{side}, batch {batch_size}; the last row from codes to codes"
    return measure(title, runs, (MEMBER,))


@torch.no_grad()
def _network(batch_size: int, width: int, measure: Measure) -> list[dict[str, Any]]:
    """ResNet-18: the member, and the ensemble of three."""
    full, four, two = (prepared(resnet18(text, width), CPU) for text in ("fp", "w4a4", "w2a2"))
    ensemble = Ensemble([four, two, full]).eval()
    x = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    runs = {name: _pass(full, x, layout) for name, layout in LAYOUTS.items()}
    on_integers = {MEMBER.row: to_integer(four), ENSEMBLE.row: to_integer(ensemble)}
    runs["w4a4 simulated"] = partial(four, x)
    runs["fp + w4a4 + w2a2 simulated"] = partial(ensemble, x)
    runs |= {name: partial(model, x) for name, model in on_integers.items()}
    case = measure(f"ResNet-18, width {width}, batch {batch_size}", runs, (MEMBER, ENSEMBLE))
    case["agreement"] = _agreement(four, on_integers[MEMBER.row], x[:16])
    case["in_float"] = {name: model.report.in_float for name, model in on_integers.items()}
    return [case]


def _agreement(simulated: nn.Module, integer: nn.Module, x: Tensor) -> dict[str, Any]:
    """How far the member on integers and two layouts of the simulated one are from the same network in float64."""
    exact = _Doubled(simulated)
    contiguous = prepared(simulated, CPU).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    forms = {"on integers": integer, "simulated, channels last": simulated, "simulated, NCHW": contiguous}
    return {name: asdict(agree(exact, form, x)) for name, form in forms.items()}


class _Doubled(nn.Module):
    """A network in float64."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = prepared(network, CPU).double()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.double())


def _pass(network: nn.Module, x: Tensor, layout: torch.memory_format = torch.channels_last) -> Callable[[], object]:
    ready = prepared(network, CPU).to(memory_format=layout)  # type: ignore[call-overload]
    return partial(ready, x.contiguous(memory_format=layout))


def _measured(
    title: str,
    runs: Mapping[str, Callable[[], object]],
    targets: tuple[Target, ...],
    *,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Times in milliseconds and ratios to the better float32 layout, ready for JSON."""
    with torch.no_grad():
        times = take_turns(runs, repeats, clock, warm_up=1)
    best = min(LAYOUTS, key=lambda name: Spread.of(times[name]).median)
    rows = {name: _row(seconds, times[best]) for name, seconds in times.items()}
    met = {target.row: rows[target.row]["ratio"]["median"] <= target.ratio for target in targets}
    return {
        "title": title,
        "baseline": best,
        "rows": rows,
        "targets": {target.row: {"at_most": target.ratio, "met": met[target.row]} for target in targets},
    }


def _row(seconds: list[float], baseline: list[float]) -> dict[str, Any]:
    ratios = [own / full for own, full in zip(seconds, baseline, strict=True)]
    return {"ms": asdict(Spread.of([1000 * s for s in seconds])), "ratio": asdict(Spread.of(ratios))}


def table(case: dict[str, Any]) -> str:
    """A case in words and columns."""
    width = max(map(len, case["rows"]))
    lines = [_line(name.ljust(width), row) for name, row in case["rows"].items()]
    head = f"{'':{width}}  {'ms (p10 to p90)':>28}  {'ratio (p10 to p90)':>22}"
    ends = [
        f"{name}: target {target['at_most']:g} {'met' if target['met'] else 'missed'}"
        for name, target in case["targets"].items()
    ]
    return "\n".join(["", f"{case['title']}; ratio to {case['baseline']}", head, *lines, *ends, *_notes(case)])


def _line(name: str, row: dict[str, Any]) -> str:
    ms, ratio = row["ms"], row["ratio"]
    times = f"{ms['median']:.2f} ({ms['p10']:.2f} to {ms['p90']:.2f})"
    return f"{name}  {times:>28}  {ratio['median']:>6.3f} ({ratio['p10']:.3f} to {ratio['p90']:.3f})"


def _notes(case: dict[str, Any]) -> list[str]:
    return [
        f"w4a4 {name}, beside float64: logits within {found['max_logit_difference']:.2g} (median "
        f"{found['median_logit_difference']:.2g}), {found['differing_decisions']} of {found['images']} decisions differ"
        for name, found in case.get("agreement", {}).items()
    ]


def machine() -> dict[str, Any]:
    """What the times are times of, as far as Python can tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "processor": named.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "vnni": any("vnni" in flag for flag in named.get("flags", "").split()),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


if __name__ == "__main__":
    main()
