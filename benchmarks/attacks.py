"""Benchmark of attack speed against other libraries, on the same network and images: ``python benchmarks/attacks.py``.

Each case interleaves runs of this package, of the same attack in other libraries, on the network as written and on the
network prepared by this package, and, for PGD, of the bare forward and backward passes. This package's time includes
the preparation of the network.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import torch
from attack_contenders import CPU, PEERS, autoattack_contenders, pgd_contenders
from attack_timing import Contender, Role, Timed, race
from machine import machine
from torch import Tensor, nn

from empir_plugin._files.atomic import write_atomically
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import load_images
from empir_plugin.evaluation.identity import code_sha256, now, versions
from empir_plugin.evaluation.judge import correct, decisions
from empir_plugin.evaluation.prepare import prepare
from empir_plugin.zoo.registry import load_model
from empir_plugin.zoo.show import dataset_of

OWN = (Role.OURS, Role.OURS_BF16)
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks in seconds; other processes affect processor time, over all threads, less than wall-clock time."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        title: Title in tables and records.
        threat: The threat model.
        n_images: Default number of images.
        target: Targeted speedup over the fastest library on the network as written.
        target_bf16: The same with bf16 gradients; none by default.
        contenders: The contenders for a model, a threat and a seed.
        own_labels: Attack the network's own decisions, so that no image is broken before the first step.
    """

    title: str
    threat: Threat
    n_images: int
    target: float
    contenders: Callable[[nn.Module, Threat, int], Sequence[Contender]]
    own_labels: bool = False
    target_bf16: float | None = None


CASES = {
    "pgd-standing": Case(
        "PGD-40, no image falls",
        Threat.parse("Linf:1e-6"),
        100,
        2.0,
        pgd_contenders,
        own_labels=True,
        target_bf16=2.5,
    ),
    "pgd": Case("PGD-40", Threat.parse("Linf:8/255"), 100, 6.0, pgd_contenders),
    "autoattack": Case("AutoAttack, standard", Threat.parse("Linf:8/255"), 64, 2.5, autoattack_contenders),
}


@click.command()
@click.option("--case", "chosen", multiple=True, type=click.Choice(list(CASES)), help="Only this one (repeatable).")
@click.option("--model", default="empir-cifar", show_default=True, help="Model to attack.")
@click.option("--n-images", type=click.IntRange(1), help="Number of test images.  [100 for PGD, 64 for AutoAttack]")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of torch.")
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Runs per contender, interleaved."
)
@click.option(
    "--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help="Use cpu on a busy machine."
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file for all measurements.")
def main(
    chosen: tuple[str, ...],
    model: str,
    n_images: int | None,
    threads: int,
    repeats: int,
    clock: str,
    seed: int,
    out: Path | None,
) -> None:
    """Time this package's attacks against torchattacks, foolbox, cleverhans and pyautoattack."""
    _require_peers()
    if out is not None and not out.parent.is_dir():
        raise click.ClickException(f"no folder {out.parent} for --out: make it first")
    torch.set_num_threads(threads)
    settings = {"model": model, "threads": threads, "repeats": repeats, "clock": clock, "seed": seed}
    report: dict[str, Any] = {"machine": machine(), "versions": _versions(), "settings": settings, "cases": {}}
    network, data = load_model(model), load_images(dataset_of(model))
    for name in chosen or CASES:
        case = CASES[name]
        x, y = data.first(n_images or case.n_images).batch(0, n_images or case.n_images)
        report["cases"][name] = measure(case, network, x, y, repeats, seed, CLOCKS[clock])
        click.echo(table(report["cases"][name]))
        if out is not None:  # Written after each case, as the next one may take long.
            content = json.dumps({**report, "finished": now()}, indent=1)
            write_atomically(out, f"{content}\n".encode())


def measure(
    case: Case,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    repeats: int,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Run a case on a model, images ``(N, C, H, W)`` and labels ``(N,)``; all measurements, ready for JSON."""
    ready = prepare(model, CPU)
    if case.own_labels:
        y = decisions(ready, x)
    timed = race(case.contenders(model, case.threat, seed), x, y, repeats, clock=clock, on_run=_print_run)
    # Attacks on the network as written are judged by it: rounding in another memory layout can change a decision.
    judges = [each.contender.network if each.contender.role is Role.PLAIN_PEER else ready for each in timed]
    robust = [correct(judge, each.images, y) for judge, each in zip(judges, timed, strict=True)]
    (mine,) = (number for number, each in enumerate(timed) if each.contender.role is Role.OURS)
    rounded = [each for each in timed if each.contender.role is Role.OURS_BF16]
    return {
        "title": case.title,
        "threat": str(case.threat),
        "n_images": len(x),
        "labels": "the network's own decisions" if case.own_labels else "true labels",
        "target": case.target,
        "speedup_over_fastest": _speedups(timed, timed[mine]),
        "target_bf16": case.target_bf16,
        "speedup_over_fastest_bf16": _speedups(timed, rounded[0]) if rounded else None,
        "contenders": [_row(each, timed[mine], its, robust[mine]) for each, its in zip(timed, robust, strict=True)],
    }


def _speedups(timed: Sequence[Timed], ours: Timed) -> dict[str, float]:
    """Speedup of a contender of this package over the fastest of each role of others, by the medians."""
    roles = dict.fromkeys(each.contender.role for each in timed if each.contender.role not in OWN)
    of_role = {role: [each.ratio_to(ours) for each in timed if each.contender.role is role] for role in roles}
    return {role.value: round(min(ratios), 3) for role, ratios in of_role.items()}


def _row(each: Timed, ours: Timed, robust: Tensor, robust_by_ours: Tensor) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": each.contender.name,
        "role": each.contender.role.value,
        "seconds": [round(seconds, 4) for seconds in each.seconds],
        "cpu_seconds": [round(seconds, 4) for seconds in each.cpu_seconds],
        "median": round(each.median, 4),
        "times_ours": round(each.ratio_to(ours), 3),
        "times_ours_by_round": [round(ratio, 3) for ratio in each.ratios_to(ours)],
        "image_passes": asdict(each.tally),
    }
    if each.contender.role is not Role.BARE:
        row["robust_accuracy"] = round(100 * robust.double().mean().item(), 2)
        row["verdicts_unlike_ours"] = int((robust != robust_by_ours).sum())
    return row


def table(case: dict[str, Any]) -> str:
    """A case as a text table."""
    width = max(len(row["name"]) for row in case["contenders"])
    title = f"{case['title']}, {case['threat']}, {case['n_images']} images, {case['labels']}"
    columns = (f"{'seconds (range)':>24}", "  CPU s", f"{'times ours (by round)':>24}", " robust", "unlike ours")
    head = "  ".join(["", *columns, f"{'passes: all, with gradient':>28}"])
    rows = [_line(row, width) for row in case["contenders"]]
    ends = list(_verdict(case["speedup_over_fastest"], case["target"]))
    if case["speedup_over_fastest_bf16"]:
        ends += ["with bf16 gradients:", *_verdict(case["speedup_over_fastest_bf16"], case["target_bf16"])]
    return "\n".join(["", title, " " * width + head, *rows, *ends])


def _verdict(speedups: dict[str, float], target: float | None) -> Iterator[str]:
    yield from (f"{value:.2f} times as fast as the fastest {role}" for role, value in speedups.items())
    if target is not None:
        yield f"target {target:g}: {'met' if speedups[Role.PLAIN_PEER.value] >= target else 'missed'}"


def _line(row: dict[str, Any], width: int) -> str:
    seconds = f"{row['median']:.2f} ({min(row['seconds']):.2f} to {max(row['seconds']):.2f})"
    cpu = statistics.median(row["cpu_seconds"])
    low, high = row["times_ours_by_round"]
    ratio = f"{row['times_ours']:.2f} ({low:.2f} to {high:.2f})"
    robust = f"{row['robust_accuracy']:.2f} %" if "robust_accuracy" in row else ""
    passes = row["image_passes"]
    counts = f"{passes['forward'] + passes['gradient']:,}, {passes['gradient']:,}"
    unlike = str(row.get("verdicts_unlike_ours", ""))
    return f"{row['name']:{width}}  {seconds:>24}  {cpu:>7.2f}  {ratio:>24}  {robust:>7}  {unlike:>11}  {counts:>28}"


def _versions() -> dict[str, str]:
    return {**versions(), **{peer: version(peer) for peer in PEERS}, "code_sha256": code_sha256()}


def _require_peers() -> None:
    lacking = [peer for peer in PEERS if find_spec(peer) is None]
    if lacking:
        cure = "install them by the two commands at the top of benchmarks/peers.txt"
        raise click.ClickException(f"{', '.join(lacking)} must be installed for the comparison: {cure}")


def _print_run(number: int, contender: Contender, seconds: float) -> None:
    click.echo(f"round {number + 1}: {contender.name} took {seconds:.2f} s", err=True)


if __name__ == "__main__":
    main()
