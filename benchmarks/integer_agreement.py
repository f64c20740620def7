"""Agreement of logits on integers and in float: ``python benchmarks/integer_agreement.py --data-dir DIR``.

Compares forms of shipped networks with batch normalisation, in which every rounding may move an activation to the
neighbouring level, on the test set: simulated in float32 and on integers, as shipped, and both with float64 in place of
float32. The last two show whether the integer arithmetic is exact; the others show the error of float32, and the effect
of rounding the levels of the weights to float32. Set ``OMP_NUM_THREADS=1``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from integer import machine
from integer_forms import EXACT, FORMS, INTEGER, SIMULATED
from torch import Tensor, nn

import empir_plugin
from empir_plugin._files.atomic import write_atomically
from empir_plugin.errors import EmpirError
from empir_plugin.evaluation.identity import code_sha256, now, versions

NETWORKS = ("wrn-10-1-w4a4", "wrn-10-1-w2a2")
TOLERANCE = 1e-4
"""Largest accepted difference of logits."""
PAIRS = [*((EXACT, form) for form in FORMS if form != EXACT), (SIMULATED, INTEGER)]


@dataclass(frozen=True)
class Gap:
    """Difference between the logits of two forms of a network.

    Args:
        images: N.
        beyond_tolerance: Images with a logit that differs by more than :data:`TOLERANCE`.
        differing_decisions: Images with different decisions.
        max_logit_difference: The largest difference between two logits.
        median_logit_difference: Median over the images of the largest difference on each.
        largest_lead: Largest margin of the second form's decision over its next class among images with different
            decisions; 0 if there are none.
    """

    images: int
    beyond_tolerance: int
    differing_decisions: int
    max_logit_difference: float
    median_logit_difference: float
    largest_lead: float

    @classmethod
    def between(cls, one: Tensor, other: Tensor) -> Gap:
        """Compare two forms' logits ``(N, K)``.

        Example:
            >>> Gap.between(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.5]])).largest_lead
            0.5
        """
        gaps = (one.double() - other.double()).abs().amax(1)
        differing = one.argmax(1) != other.argmax(1)
        first, second = other.double().topk(2, 1).values.unbind(1)
        lead = max([0.0, *(first - second)[differing].tolist()])
        beyond = int((gaps > TOLERANCE).sum())
        return cls(len(one), beyond, int(differing.sum()), gaps.max().item(), gaps.median().item(), lead)

    def __str__(self) -> str:
        logits = f"{self.beyond_tolerance} of {self.images} images off by more than {TOLERANCE:g}"
        size = f"at most {self.max_logit_difference:.2g}, median {self.median_logit_difference:.2g}"
        return f"{logits} ({size}), {self.differing_decisions} decisions differ"


@torch.no_grad()
def gaps(forms: Mapping[str, nn.Module], images: Tensor, batch_size: int) -> dict[tuple[str, str], Gap]:
    """Compare the forms of a network on images ``(N, C, H, W)``, for all pairs in :data:`PAIRS`."""
    batches = images.split(batch_size)
    logits = {name: torch.cat([network(batch) for batch in batches]) for name, network in forms.items()}
    return {pair: Gap.between(*(logits[name] for name in pair)) for pair in PAIRS}


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of CIFAR-10; by default its bundled images.")
@click.option("--model", "chosen", multiple=True, help="Only this (repeatable).")
@click.option("--n-examples", type=click.IntRange(1), help="Only the first images; by default all.")
@click.option("--batch-size", type=click.IntRange(1), default=200, show_default=True, help="Images per forward pass.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON file for all measurements.")
def main(
    data_dir: Path | None, chosen: tuple[str, ...], n_examples: int | None, batch_size: int, out: Path | None
) -> None:
    """Compare the forms of quantized networks, image by image."""
    if out is not None and not out.parent.is_dir():
        raise click.ClickException(f"no folder {out.parent} for --out: make it first")
    try:
        images = empir_plugin.load_images("cifar10", data_dir=data_dir).as_float()[:n_examples]
    except EmpirError as error:
        raise click.ClickException(str(error)) from error
    settings = {"images": len(images), "batch_size": batch_size, "threads": torch.get_num_threads()}
    about = {**versions(), "code_sha256": code_sha256()}
    report: dict[str, Any] = {"machine": machine(), "versions": about, "settings": settings, "models": {}}
    for name in chosen or NETWORKS:
        model = empir_plugin.load_model(name, dataset="cifar10")
        found = gaps({form: make(model) for form, make in FORMS.items()}, images, batch_size)
        report["models"][name] = [{"between": pair, **asdict(gap)} for pair, gap in found.items()]
        for pair, gap in found.items():
            click.echo(f"{name}: {' / '.join(pair)}: {gap}")
        if out is not None:
            content = json.dumps({**report, "finished": now()}, indent=1)
            write_atomically(out, f"{content}\n".encode())


if __name__ == "__main__":
    main()
