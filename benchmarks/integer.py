"""Benchmark of integer execution: ``OMP_NUM_THREADS=1 python benchmarks/integer.py``.

Runs are interleaved, and compared within each round with the full-precision float32 network in its faster memory
layout. The cases are single convolutions of ResNet-18's shapes, four in a row, its low-precision member, and the
ensemble of a full-precision and two low-precision members, each simulated in float32 and on integers.

Processors with VNNI instructions multiply bytes about twice as fast as those with AVX2 alone; the report says which one
it ran on. It also compares the logits of the member on int8 kernels, and in another memory layout, with those in
float32; ``benchmarks/integer_agreement.py`` does so on trained networks.

The four convolutions also run in onnxruntime, on the same integers, if it is installed (``pip install onnx
onnxruntime``); its own quantization would round to other levels than DoReFa's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch
from integer_cases import CASES, LAYOUTS, Target
from machine import machine

from empir_plugin._files.atomic import write_atomically
from empir_plugin.evaluation.identity import code_sha256, now, versions
from empir_plugin.evaluation.overhead.latency import Spread, take_turns

CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks in seconds; other processes affect processor time, over all threads, less than wall-clock time."""


@click.command()
@click.option("--case", "chosen", multiple=True, type=click.Choice(list(CASES)), help="Only this (repeatable).")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images per forward pass.")
@click.option("--width", type=click.IntRange(8), default=64, show_default=True, help="Channels of the first stage.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of torch.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Rounds.")
@click.option(
    "--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help="Use cpu on a busy machine."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file for all measurements.")
def main(
    chosen: tuple[str, ...], batch_size: int, width: int, threads: int, repeats: int, clock: str, out: Path | None
) -> None:
    """Time int8 execution against float32 and against simulated quantization."""
    if out is not None and not out.parent.is_dir():
        raise click.ClickException(f"no folder {out.parent} for --out: make it first")
    torch.set_num_threads(threads)
    settings = {"batch_size": batch_size, "width": width, "threads": threads, "repeats": repeats, "clock": clock}
    measure = partial(_measure, repeats=repeats, clock=CLOCKS[clock])
    about = {**versions(), **_peers(), "code_sha256": code_sha256()}
    report: dict[str, Any] = {"machine": machine(), "versions": about, "settings": settings, "cases": {}}
    for name in chosen or CASES:
        for key, case in CASES[name](batch_size, width, measure).items():
            report["cases"][key] = case
            click.echo(table(case))
        if out is not None:  # Written after each case, as the next one may take long.
            content = json.dumps({**report, "finished": now()}, indent=1)
            write_atomically(out, f"{content}\n".encode())


def _peers() -> dict[str, str]:
    return {name: version(name) for name in ("onnx", "onnxruntime") if find_spec(name) is not None}


def _measure(
    title: str,
    runs: Mapping[str, Callable[[], object]],
    targets: tuple[Target, ...],
    *,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Times in milliseconds and ratios to the faster float32 layout, ready for JSON."""
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
    """A case as a text table."""
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


def _notes(case: dict[str, Any]) -> Iterator[str]:
    for name, reason in case.get("left_out", {}).items():
        yield f"{name} is left out: {reason}"
    if "codes_unlike_onnxruntime" in case:
        yield f"codes unlike onnxruntime's: {case['codes_unlike_onnxruntime']:.2g} of all"
    for name, found in case.get("agreement", {}).items():
        logits = f"{found['max_logit_difference']:.2g} (median {found['median_logit_difference']:.2g})"
        decisions = f"{found['differing_decisions']} of {found['images']} decisions differ"
        yield f"w4a4 {name}, beside float32: logits within {logits}, {decisions}"


if __name__ == "__main__":
    main()
