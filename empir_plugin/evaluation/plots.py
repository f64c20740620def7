"""Plots of records and curves, and grids of adversarial images, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from empir_plugin.attacks.surrogates import has_member_logits
from empir_plugin.errors import CompatibilityError, InputError
from empir_plugin.evaluation.curve import Curve
from empir_plugin.evaluation.intervals import wilson_interval
from empir_plugin.evaluation.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666"
"""Of Okabe and Ito: told apart with any colour vision."""
_MARKERS = "osD^vPX"
_AMPLIFIED = 10


def require_plots() -> None:
    """Check that matplotlib can be imported.

    Raises:
        CompatibilityError: If it cannot.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        cure = "pip install 'empir-plugin[plots]'"
        raise CompatibilityError(f"plots are drawn with matplotlib, which cannot be imported: {cure}") from error


def plot_record(record: Record) -> Figure:
    """A bar for each accuracy of a record, with its 95 % interval.

    Raises:
        CompatibilityError: If matplotlib is not installed.
    """
    rows = [("none (clean)", record.clean), *((attack.name, attack.robust) for attack in record.attacks)]
    rows.append(("worst case per image", record.worst_case))
    figure, axes = _figure(6.4, 1.1 + 0.34 * len(rows))
    colors = ["#BBBBBB", *[_COLORS[0]] * len(record.attacks), "#222222"]
    for place, ((_, verdicts), color) in enumerate(zip(rows, colors, strict=True)):
        share = 100 * verdicts.count("1") / len(verdicts)
        low, high = (100 * end for end in wilson_interval(verdicts.count("1"), len(verdicts)))
        error = [[max(0.0, share - low)], [max(0.0, high - share)]]
        axes.barh(place, share, color=color, height=0.62, xerr=error, error_kw={"elinewidth": 1, "ecolor": "#888888"})
        axes.annotate(f"{share:.1f}", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, % (95 % interval)")
    axes.set_title(_title(record, record.threat), loc="left", fontsize=9)
    return figure


def plot_curve(curve: Curve) -> Figure:
    """Robust accuracy over eps: a line for each attack, and the worst case with its 95 % interval.

    Raises:
        CompatibilityError: If matplotlib is not installed.
    """
    figure, axes = _figure(6.4, 4.2)
    eps, unit = _scaled(curve)
    for index, name in enumerate(curve.attacks):
        style = {"color": _COLORS[index % len(_COLORS)], "marker": _MARKERS[index % len(_MARKERS)], "markersize": 4}
        axes.plot(eps, curve.accuracy(name), label=name, linewidth=1.4, clip_on=False, **style)
    ends = [wilson_interval(verdicts.count("1"), len(verdicts)) for verdicts in curve.verdicts()]
    axes.fill_between(
        eps, [100 * low for low, _ in ends], [100 * high for _, high in ends], color="#222222", alpha=0.12
    )
    axes.plot(eps, curve.accuracy(), color="#222222", linewidth=2.2, label="worst case per image (95 % interval)")
    axes.set_ylim(0, 100)
    axes.set_xlim(0, max(eps))
    axes.set_xlabel(f"eps{unit} ({curve.norm})")
    axes.set_ylabel("robust accuracy, %")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(_title(curve.records[0], curve.norm), loc="left", fontsize=9)
    return figure


def plot_minimal_eps(curve: Curve) -> Figure:
    """A histogram of the smallest radius that breaks an image; misclassified and unbroken images at the ends.

    Raises:
        CompatibilityError: If matplotlib is not installed.
    """
    figure, axes = _figure(6.4, 3.6)
    minimal = curve.minimal_eps()
    eps: list[float | None] = [*curve.eps, None]
    names = ["misclassified", *curve.radii, "unbroken"]
    colors = ["#BBBBBB", *[_COLORS[0]] * len(curve.radii), _COLORS[2]]
    counts = [sum(each == value for each in minimal) for value in eps]
    axes.bar(range(len(names)), counts, color=colors, width=0.85)
    for place, count in enumerate(counts):
        if count:
            axes.annotate(str(count), (place, count), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("images")
    axes.set_xlabel(f"smallest eps ({curve.norm}) that breaks the image")
    axes.set_title(_title(curve.records[0], curve.norm), loc="left", fontsize=9)
    return figure


@torch.no_grad()
def plot_pictures(
    model: nn.Module, clean: Tensor, adversarial: Tensor, labels: Tensor, class_names: Sequence[str]
) -> Figure:
    """A grid: for each image the clean one, the adversarial one, and their difference times 10, around grey.

    Above the images stand the true class and the model's decisions, and for an ensemble its members' votes.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        clean: ``(N, C, H, W)`` in [0, 1].
        adversarial: The same.
        labels: True classes ``(N,)``.
        class_names: K names.

    Raises:
        InputError: If there are no images, or the two have different shapes.
        CompatibilityError: If matplotlib is not installed.
    """
    if clean.shape != adversarial.shape or not len(clean):
        raise InputError(f"pictures need as many images twice, got {tuple(clean.shape)} and {tuple(adversarial.shape)}")
    require_plots()
    from matplotlib.figure import Figure

    decisions = [model(images).argmax(1).tolist() for images in (clean, adversarial)]
    votes = [_votes(model, images, class_names) for images in (clean, adversarial)]
    figure = Figure(figsize=(6.4, 0.35 + 2.15 * len(clean)), dpi=160, layout="constrained")
    grid: Any = figure.subplots(len(clean), 3, squeeze=False)
    difference = (0.5 + _AMPLIFIED * (adversarial - clean)).clamp(0, 1)
    for row, label in enumerate(labels.tolist()):
        largest = 255 * (adversarial[row] - clean[row]).abs().max().item()
        titles = [
            f"{class_names[label]}, seen as {class_names[decisions[0][row]]}{votes[0][row]}",
            f"adversarial: {class_names[decisions[1][row]]}{votes[1][row]}",
            f"difference x {_AMPLIFIED}\nat most {largest:.1f}/255",
        ]
        for axes, image, title in zip(grid[row], (clean[row], adversarial[row], difference[row]), titles, strict=True):
            pixels = image.permute(1, 2, 0).cpu().numpy()
            axes.imshow(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, fontsize=7)
            axes.set_axis_off()
    return figure


def save_plot(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as SVG and PNG.

    Args:
        figure: The figure.
        path: Of the files, without the ending.

    Returns:
        The two paths.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [path.with_name(f"{path.name}.{ending}") for ending in ("svg", "png")]
    for each in paths:
        figure.savefig(each, bbox_inches="tight", facecolor="white")
    return paths


def _votes(model: nn.Module, images: Tensor, class_names: Sequence[str]) -> list[str]:
    """The members' decisions on each image, as a second line; empty without members."""
    if not has_member_logits(model):
        return [""] * len(images)
    votes: list[list[int]] = model.member_logits(images).argmax(2).T.tolist()
    return ["\nvotes: " + ", ".join(str(class_names[vote]) for vote in each) for each in votes]


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    require_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _title(record: Record, threat: str) -> str:
    return f"{record.model.get('name')} under {threat}, {len(record.clean):,} images of {record.data.get('name')}"


def _scaled(curve: Curve) -> tuple[list[float], str]:
    """The radii as people write them: in 255ths if they are given so."""
    if all(radius.endswith("/255") for radius in curve.radii):
        return [round(255 * eps, 6) for eps in curve.eps], " in 1/255"
    return list(curve.eps), ""
