"""Plots: they show the numbers of records and curves, and are written as SVG and PNG."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from empir_plugin.attacks import fgsm
from empir_plugin.attacks.threat import Linf
from empir_plugin.errors import CompatibilityError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.curve import Curve, evaluate_curve
from empir_plugin.evaluation.plots import plot_curve, plot_minimal_eps, plot_pictures, save_plot
from empir_plugin.models.ensemble import Ensemble, MaxVote

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def curve(toys: ModuleType) -> Curve:
    data = toys.pairs([2, 5, 7, 12, 20], [0, 0, 0, 0, 1])
    specs = [AttackSpec("FGSM", fgsm()), AttackSpec("again", fgsm())]
    return evaluate_curve(toys.Compare(), data, Linf(), ("3/255", "8/255"), specs, name="toy")


def test_the_lines_are_the_accuracies(curve: Curve) -> None:
    (axes,) = plot_curve(curve).axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines["FGSM"].get_ydata()) == list(curve.accuracy("FGSM")) == [80.0, 60.0, 20.0]
    assert list(lines["FGSM"].get_xdata()) == [0, 3, 8]
    assert "1/255" in axes.get_xlabel()
    assert any(label.startswith("worst case") for label in lines)


def test_the_histogram_counts_every_image_once(curve: Curve) -> None:
    (axes,) = plot_minimal_eps(curve).axes
    assert [bar.get_height() for bar in axes.patches] == [1, 1, 2, 1]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["misclassified", "3/255", "8/255", "unbroken"]


def test_a_record_has_a_bar_for_each_accuracy(curve: Curve) -> None:
    (axes,) = curve.records[0].plot().axes
    assert [bar.get_width() for bar in axes.patches] == [80.0, 60.0, 60.0, 60.0]


def test_pictures_show_labels_votes_and_the_difference() -> None:
    x = torch.tensor([0.6, 0.4]).view(1, 1, 1, 2)
    model = Ensemble([nn.Flatten(), nn.Flatten()], MaxVote())
    figure = plot_pictures(model, x, x.flip(3), torch.tensor([0]), ("left", "right"))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "left, seen as left\nvotes: left, left",
        "adversarial: right\nvotes: right, right",
        "difference x 10\nat most 51.0/255",
    ]
    assert figure.axes[2].get_images()[0].get_array().ravel().tolist() == [0.0, 1.0]
    plain = plot_pictures(nn.Flatten(), x, x, torch.tensor([0]), ("left", "right"))
    assert plain.axes[0].get_title() == "left, seen as left"


def test_pictures_need_pairs() -> None:
    with pytest.raises(InputError, match=r"\(0, 1, 1, 2\)"):
        plot_pictures(nn.Flatten(), torch.ones(0, 1, 1, 2), torch.ones(0, 1, 1, 2), torch.ones(0), ("a",))


def test_two_files_are_written(curve: Curve, tmp_path: Path) -> None:
    svg, png = save_plot(plot_minimal_eps(curve), tmp_path / "new" / "a.b")
    assert (svg.name, png.name) == ("a.b.svg", "a.b.png")
    assert b"<svg" in svg.read_bytes()
    assert png.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(curve: Curve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CompatibilityError, match=r"empir-plugin\[plots\]"):
        plot_curve(curve)
