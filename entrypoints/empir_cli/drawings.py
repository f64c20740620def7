"""What ``empir evaluate`` draws: curves over eps, and grids of adversarial images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empir_cli.console import console, table

if TYPE_CHECKING:
    from torch import nn

    from empir_plugin.data.image_set import ImageSet
    from empir_plugin.evaluation.curve import Curve
    from empir_plugin.evaluation.record import Record

EPS_CURVE = click.option(
    "--eps-curve",
    metavar="RADII",
    help="Evaluate at several radii, such as 0,1/255,...,8/255, and plot robust accuracy over eps; see below.",
)
PICTURES = click.option(
    "--pictures",
    type=click.IntRange(min=1),
    metavar="N",
    help="Draw N broken images: clean, adversarial, difference times 10, with the members' votes.",
)


def report_curve(curve: Curve, target: Path) -> None:
    """Write a curve and its plots beside it, and print its worst case."""
    from empir_plugin.errors import CompatibilityError
    from empir_plugin.evaluation.intervals import interval_text
    from empir_plugin.evaluation.plots import plot_curve, plot_minimal_eps, save_plot

    curve.write(target)
    out, first = console(), curve.records[0]
    images = f"{len(first.clean):,} images of {first.data['name']} ({first.data['source']})"
    out.print(f"{first.model['name']} under {curve.norm}, {images}", style="bold", markup=False)
    rows = table(["eps"], ["worst case", "95 % interval", *curve.attacks])
    columns = [curve.accuracy(name) for name in curve.attacks]
    for index, (radius, verdicts) in enumerate(zip(("0", *curve.radii), curve.verdicts(), strict=True)):
        worst, attacks = curve.accuracy()[index], (f"{column[index]:.2f} %" for column in columns)
        rows.add_row(radius, f"{worst:.2f} %", interval_text(verdicts), *attacks)
    out.print(rows)
    out.print(f"Curve: {target}", markup=False, soft_wrap=True)
    try:
        paths = save_plot(plot_curve(curve), target.with_suffix(""))
        paths += save_plot(plot_minimal_eps(curve), target.with_name(f"{target.stem}-minimal-eps"))
    except CompatibilityError as error:
        click.echo(f"No plot: {error}", err=True)
    else:
        out.print(f"Plots: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)


@contextmanager
def adversarial_images(
    wanted: bool, store: Path | None, images: Path | None
) -> Iterator[tuple[Path | None, Path | None]]:
    """The store and the file of adversarial images of an evaluation; temporary ones if only pictures need them."""
    from empir_plugin.evaluation.plots import require_plots

    if not wanted or (store is not None and images is not None):
        yield store, images
        return
    require_plots()
    with tempfile.TemporaryDirectory() as folder:
        yield store or Path(folder, "store"), images or Path(folder, "adversarial.safetensors")


def draw_pictures(
    network: nn.Module, data: ImageSet, record: Record, images: Path | None, count: int, target: Path
) -> None:
    """Draw the first ``count`` images that attacks broke; beside the record, as SVG and PNG."""
    if not count or images is None:
        return
    import torch
    from safetensors.torch import load_file

    from empir_plugin.evaluation.plots import plot_pictures, save_plot

    pairs = enumerate(zip(record.clean, record.worst_case, strict=True))
    broken = [index for index, (clean, robust) in pairs if clean == "1" and robust == "0"][:count]
    if not broken:
        click.echo("No pictures: no image was broken.", err=True)
        return
    rows = torch.tensor(broken)
    adversarial = load_file(images)["images"][rows]
    figure = plot_pictures(
        network.cpu().eval(), data.as_float()[rows], adversarial, data.labels[rows], data.class_names
    )
    paths = save_plot(figure, target.with_name(f"{target.stem}-pictures"))
    click.echo(f"Pictures: {', '.join(map(str, paths))}", err=True)
