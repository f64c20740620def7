"""Benchmark of how the cost of an attack grows: ``OMP_NUM_THREADS=1 python benchmarks/scaling.py``.

PGD with ten steps on more images, on ensembles of more members, and on one network at several precisions. Broken images
stay in the batch, so the amount of computation does not depend on the outcome. Runs of a series are interleaved, and
ratios are those of processor times within a round, so that machine noise affects both sides equally.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from attack_contenders import CPU
from attack_timing import Contender, Make, Role, Timed, race
from machine import machine
from torch import Tensor, nn

from empir_plugin._files.atomic import write_atomically
from empir_plugin.attacks.gradient import pgd
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import load_images
from empir_plugin.evaluation.identity import code_sha256, now, versions
from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.architectures import CIFARConv
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.quantize import Precision
from empir_plugin.zoo.registry import load_model

STEPS = 10
THREAT = Threat.parse("Linf:8/255")
IMAGES = (8, 16, 32, 64)
MEMBERS = (1, 2, 3, 4)
PRECISIONS = ("fp", "w8a8", "w4a4", "w2a2")
MOST = max(IMAGES)


@dataclass(frozen=True, eq=False)
class Series:
    """Contenders that are compared with the first one.

    Args:
        name: Its key in records.
        title: Title in tables and records.
        contenders: In the order of the table.
        n_images: Number of images passed to each contender, which may use fewer.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    n_images: int


def images_series() -> Series:
    """One ensemble, more and more images."""
    network = prepare(load_model("empir-cifar"), CPU)
    contenders = tuple(Contender(str(n), Role.OURS, network, _attack(n)) for n in IMAGES)
    return Series("images", "images, of empir-cifar", contenders, MOST)


def members_series(n_images: int) -> Series:
    """One batch, more and more members."""
    member = load_model("cifarconv-fp")
    networks = {str(m): prepare(Ensemble([member] * m), CPU) for m in MEMBERS}
    contenders = tuple(Contender(name, Role.OURS, each, _attack(n_images)) for name, each in networks.items())
    return Series("members", "full-precision members of one ensemble", contenders, n_images)


def precision_series(n_images: int, seed: int) -> Series:
    """One batch, one network at several precisions; its weights are random, which does not affect the time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {text: prepare(CIFARConv(Precision.parse(text)), CPU) for text in PRECISIONS}
    contenders = tuple(Contender(name, Role.OURS, each, _attack(n_images)) for name, each in networks.items())
    return Series("precision", "precision of one CIFARconv, quantization simulated in float32", contenders, n_images)


def _attack(n: int) -> Make:
    """An attack on the first ``n`` images that keeps broken images in the batch."""
    attack = replace(pgd(STEPS), return_last=True)

    def make(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return attack(network, x[:n], y[:n], THREAT)

    return make


def measure(series: Series, x: Tensor, y: Tensor, repeats: int) -> dict[str, Any]:
    """Run a series on images ``(N, C, H, W)`` and labels ``(N,)``; all measurements, ready for JSON."""
    timed = race(series.contenders, x[: series.n_images], y[: series.n_images], repeats)
    rows = [_row(each, timed[0]) for each in timed]
    return {"title": series.title, "threat": str(THREAT), "n_images": series.n_images, "steps": STEPS, "rows": rows}


def _row(each: Timed, base: Timed) -> dict[str, Any]:
    ratios = [own / its for own, its in zip(each.cpu_seconds, base.cpu_seconds, strict=True)]
    return {
        "name": each.contender.name,
        "seconds": [round(seconds, 4) for seconds in each.seconds],
        "cpu_seconds": [round(seconds, 4) for seconds in each.cpu_seconds],
        "ratio": round(statistics.median(ratios), 3),
        "ratio_by_round": [round(min(ratios), 3), round(max(ratios), 3)],
        "image_passes": asdict(each.tally),
    }


@click.command()
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of torch.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Rounds.")
@click.option(
    "--n-images",
    type=click.IntRange(1, MOST),
    default=32,
    show_default=True,
    help="In the other series.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of random weights.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file for all measurements.")
def main(threads: int, repeats: int, n_images: int, seed: int, out: Path | None) -> None:
    """Time one attack on more images, more members and other precisions."""
    if out is not None and not out.parent.is_dir():
        raise click.ClickException(f"no folder {out.parent} for --out: make it first")
    torch.set_num_threads(threads)
    x, y = load_images("cifar10").batch(0, MOST)
    settings = {"threads": threads, "repeats": repeats, "seed": seed}
    about = {"machine": machine(), "versions": {**versions(), "code_sha256": code_sha256()}, "settings": settings}
    measured: dict[str, Any] = {}
    for series in (images_series(), members_series(n_images), precision_series(n_images, seed)):
        measured[series.name] = measure(series, x, y, repeats)
        click.echo(table(measured[series.name]))
    if out is not None:
        content = json.dumps({**about, "series": measured, "finished": now()}, indent=1)
        write_atomically(out, f"{content}\n".encode())


def table(series: dict[str, Any]) -> str:
    """A series as a text table."""
    head = f"{'':12}  {'CPU s':>8}  {'ratio (by round)':>22}  {'passes':>8}"
    return "\n".join(["", series["title"], head, *map(_line, series["rows"])])


def _line(row: dict[str, Any]) -> str:
    low, high = row["ratio_by_round"]
    ratio = f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
    passes: Sequence[int] = list(row["image_passes"].values())
    return f"{row['name']:12}  {statistics.median(row['cpu_seconds']):>8.3f}  {ratio:>22}  {sum(passes):>8,}"


if __name__ == "__main__":
    main()
