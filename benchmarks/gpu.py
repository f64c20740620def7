"""Benchmark of one GPU, under 8 minutes: ``python benchmarks/gpu.py --out gpu.json``.

First the exactness of sums of integers by kernel choice (``gpu_sums.py``), then times: a low-precision member and an
ensemble over one full-precision network, and one PGD step of the ensemble, with gradients in float32 and bfloat16, as a
CUDA graph and compiled. ``--device cpu`` runs the same as far as a CPU can.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from gpu_sums import CHOICES, cases, compare
from integer_networks import resnet18
from machine import machine
from torch import Tensor, nn

from empir_plugin._files.atomic import write_atomically
from empir_plugin.errors import cause
from empir_plugin.evaluation.identity import code_sha256, now, versions
from empir_plugin.evaluation.overhead.latency import Spread, take_turns
from empir_plugin.evaluation.prepare import exact_float32, parse_device, prepare
from empir_plugin.models.architectures import CIFARConv
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer.convert import BF16, run_on_integers
from empir_plugin.models.quantize import Precision

EPS, STEP = 8 / 255, 2 / 255
_SECONDS_TO_COMPILE = 120
BASELINE = "fp"
STEP_BASELINE = "PGD step, own convolutions"

Run = Callable[[], object]


@click.command()
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:N or cpu.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=8.0, show_default=True, help="Time limit.")
@click.option(
    "--channels", type=click.IntRange(1), multiple=True, default=(16, 64, 256, 1024), show_default=True,
    help="Input channels of the convolutions whose sums are compared (repeatable).",
)  # fmt: skip
@click.option("--bound/--no-bound", default=True, show_default=True, help="Compare sums up to 2**24, too.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Images per timed pass.")
@click.option("--width", type=click.IntRange(8), default=64, show_default=True, help="Channels of ResNet-18.")
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Rounds.")
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True, help="Time compiled steps, too.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file for all results.")
def main(
    device: str,
    minutes: float,
    channels: tuple[int, ...],
    bound: bool,
    batch_size: int,
    width: int,
    repeats: int,
    compiled: bool,
    out: Path | None,
) -> None:
    """Record which kernels of a GPU are exact on integers, and what low precision costs on it."""
    if out is not None and not out.parent.is_dir():
        raise click.ClickException(f"no folder {out.parent} for --out: make it first")
    where, end = parse_device(device), time.monotonic() + 60 * minutes
    settings = {
        "device": device, "minutes": minutes, "channels": channels, "bound": bound, "batch_size": batch_size,
        "width": width, "repeats": repeats, "compile": compiled,
    }  # fmt: skip
    about = {**versions(), "code_sha256": code_sha256()}
    report: dict[str, Any] = {"machine": machine(where), "gpu": gpu(where), "versions": about, "settings": settings}
    todo = list(cases(channels, bound=bound))
    # Half of the time is for the second part.
    report["exactness"] = compare(
        CHOICES, todo, where, in_time=lambda: time.monotonic() < end - 30 * minutes
    )  # fmt: skip
    click.echo(exactness_table(report["exactness"]))
    _write(out, report)
    report["times"] = {}
    for name, make in {"CIFARconv": cifarconv, "ResNet-18": partial(resnet18, width=width)}.items():
        if time.monotonic() > end:
            report["times"][name] = {"left_out": "no time left"}
            continue
        networks = {text: make(text) for text in ("fp", "w4a4", "w2a2")}
        report["times"][name] = measure(networks, where, batch_size, repeats, compiled=compiled, end=end)
        click.echo(times_table(name, report["times"][name]))
        _write(out, report)


def _write(out: Path | None, report: dict[str, Any]) -> None:
    if out is not None:  # Written after each part, as the next one may fail on another device.
        content = json.dumps({**report, "finished": now()}, indent=1)
        write_atomically(out, f"{content}\n".encode())


def gpu(device: torch.device) -> dict[str, Any] | None:
    """Driver and libraries of a GPU; None for the CPU."""
    if device.type != "cuda":
        return None
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines()[0].strip() if answer.stdout else None


def cifarconv(text: str) -> nn.Module:
    """CIFARconv with random weights."""
    torch.manual_seed(0)
    return CIFARConv(Precision.parse(text)).eval()


def measure(
    networks: Mapping[str, nn.Module],
    device: torch.device,
    batch_size: int,
    repeats: int,
    *,
    compiled: bool,
    end: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Times of passes and of PGD steps of networks by precision, ready for JSON.

    Args:
        networks: ``"fp"``, ``"w4a4"`` and ``"w2a2"``.
        device: Where to run.
        batch_size: Images ``(N, 3, 32, 32)`` per pass.
        repeats: Rounds.
        compiled: Whether to time compiled steps as well.
        end: When to start nothing more, in seconds of ``time.monotonic``.
        clock: Returns the time in seconds.
    """
    x = torch.rand(batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x = x.to(device, memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch_size,), generator=torch.Generator().manual_seed(2)).to(device)
    left_out: dict[str, str] = {}
    found: dict[str, Any] = {}
    for part, tf32 in (("passes", False), ("passes, TF32", True), ("steps", False)):
        if tf32 and device.type == "cpu":
            left_out[part] = "a choice of GPUs only"
            continue
        if time.monotonic() > end:
            left_out[part] = "no time left"
            continue
        with exact_float32():
            is_step = part == "steps"
            in_time = time.monotonic() < end - _SECONDS_TO_COMPILE
            how = "" if compiled and in_time else "no time left to compile" if compiled else "turned off"
            runs = _steps(networks, x, y, left_out, not_compiled=how) if is_step else _passes(networks, x, left_out)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            usable = {name: run for name, run in runs.items() if _works(name, run, left_out)}
            times = take_turns({name: _finished(run, device) for name, run in usable.items()}, repeats, clock)
        base = times[STEP_BASELINE if is_step else BASELINE]
        found[part] = {name: _row(seconds, base) for name, seconds in times.items()}
    return {"batch_size": batch_size, "rows": found, "left_out": left_out}


def _ensemble(networks: Mapping[str, nn.Module], device: torch.device) -> nn.Module:
    return prepare(Ensemble([networks["w4a4"], networks["w2a2"], networks["fp"]]).eval(), device)


def _passes(networks: Mapping[str, nn.Module], x: Tensor, left_out: dict[str, str]) -> dict[str, Run]:
    runs: dict[str, Run] = {BASELINE: partial(_forward, prepare(networks["fp"], x.device), x)}
    for name, make in {
        "w4a4": lambda: prepare(networks["w4a4"], x.device),
        "fp + w4a4 + w2a2": lambda: _ensemble(networks, x.device),
    }.items():
        runs[f"{name}, own convolutions"] = partial(_forward, make(), x)
        for kernels, int8 in (("int8 kernels", True), ("float32 kernels", False)):
            model, backend = run_on_integers(make(), x[:8], int8=int8)
            if int8 and not backend.name.startswith("int8"):
                left_out[f"{name}, {kernels}"] = backend.reason
                continue
            runs[f"{name}, {kernels}"] = partial(_forward, model, x)
    return runs


def _steps(
    networks: Mapping[str, nn.Module], x: Tensor, y: Tensor, left_out: dict[str, str], *, not_compiled: str
) -> dict[str, Run]:
    own = _ensemble(networks, x.device)
    runs: dict[str, Run] = {STEP_BASELINE: partial(step, own, x, x, y)}
    for gradients in ("float32", BF16):
        name = f"PGD step, int8 kernels, {gradients} gradients"
        model, backend = run_on_integers(_ensemble(networks, x.device), x[:8], gradients=gradients)
        if backend.backward != gradients or not backend.name.startswith("int8"):
            left_out[name] = backend.reason
            continue
        runs[name] = partial(step, model, x, x, y)
    if x.is_cuda:
        try:
            runs["PGD step, CUDA graph"] = _graph(own, x, y)
        except RuntimeError as error:
            left_out["PGD step, CUDA graph"] = cause(error)
    else:
        left_out["PGD step, CUDA graph"] = "a choice of GPUs only"
    if not_compiled:
        left_out["PGD step, torch.compile"] = not_compiled
    else:
        runs["PGD step, torch.compile"] = partial(torch.compile(step), own, x, x, y)
    return runs


def _forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def step(model: nn.Module, x: Tensor, clean: Tensor, y: Tensor) -> Tensor:
    """One step of PGD under Linf from images ``x``: both passes, and the projection."""
    start = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(start), y, reduction="sum"), start)
    moved = x + STEP * gradient.sign()
    return torch.clamp(torch.minimum(torch.maximum(moved, clean - EPS), clean + EPS), 0, 1)


def _graph(model: nn.Module, x: Tensor, y: Tensor) -> Run:
    """A step captured once and replayed."""
    side = torch.cuda.Stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(side):
        for _ in range(3):
            step(model, x, x, y)
    torch.cuda.current_stream(x.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(model, x, x, y)
    return graph.replay


def _works(name: str, run: Run, left_out: dict[str, str]) -> bool:
    """Whether a run ends without an error, which is the reason to leave it out."""
    try:
        run()
    except Exception as error:  # Compilers and devices fail in any way; the other rows are of use without it.
        left_out[name] = cause(error)
        return False
    return True


def _finished(run: Run, device: torch.device) -> Run:
    """A run that is finished when it returns."""
    if device.type != "cuda":
        return run

    def wait() -> None:
        run()
        torch.cuda.synchronize(device)

    return wait


def _row(seconds: list[float], baseline: list[float]) -> dict[str, Any]:
    ratios = [own / full for own, full in zip(seconds, baseline, strict=True)]
    return {"ms": asdict(Spread.of([1000 * each for each in seconds])), "ratio": asdict(Spread.of(ratios))}


def exactness_table(found: dict[str, Any]) -> str:
    """The summary of exactness as a text table."""
    lines = [f"{'sums of integers':36}  inexact cases  smallest such fan-in  largest error"]
    for name, row in found["summary"].items():
        cells = f"{row['inexact_cases']} of {row['cases']}", row["smallest_inexact_fan_in"], row["largest_error"]
        lines.append(
            f"{name:36}  {cells[0]:>13}  {cells[1] or '-':>20}  {'-' if cells[2] is None else f'{cells[2]:g}':>13}"
        )
    lines += [f"{name} is left out: {reason}" for name, reason in found["left_out"].items()]
    if found["cases_without_time"]:
        lines.append(f"{found['cases_without_time']} cases are left out: no time left")
    return "\n".join(lines)


def times_table(title: str, found: dict[str, Any]) -> str:
    """The times of a network as a text table."""
    lines = ["", f"{title}, batch {found['batch_size']}"]
    for part, rows in found["rows"].items():
        lines.append(f"{part:44}  {'ms':>10}  ratio (p10 to p90)")
        for name, row in rows.items():
            ratio = "{median:.3f} ({p10:.3f} to {p90:.3f})".format(**row["ratio"])
            lines.append(f"{name:44}  {row['ms']['median']:>10.3f}  {ratio}")
    lines += [f"{name} is left out: {reason}" for name, reason in found["left_out"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
