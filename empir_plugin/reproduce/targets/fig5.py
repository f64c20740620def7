"""Figure 5 of the EMPIR paper: accuracy against the radius of FGSM, and against the iterations of CW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from empir_plugin.attacks.carlini_wagner import CarliniWagner
from empir_plugin.attacks.threat import Linf, Threat
from empir_plugin.attacks.transfer import OnMember
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.protocols import Protocol, paper, released
from empir_plugin.reproduce.attacks import STRONG_ATTACKS, strong
from empir_plugin.reproduce.document import Block, Picture, Table, Text, points
from empir_plugin.reproduce.figures import draw_lines, panels, percent_axis, save_figure
from empir_plugin.reproduce.parts import Evaluation, select_attacks
from empir_plugin.reproduce.results import Results, Target, attack_accuracy
from empir_plugin.reproduce.subjects import SUBJECTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
ITERATIONS = (10, 20, 30, 40, 50, 60, 70, 80, 90)
_MODELS = "baseline", "empir"
_CW_THREAT = Threat(Linf(), 0.3)
"""CW is unbounded, but an evaluation needs a threat."""


def _iterations(protocol: Protocol, counts: Sequence[int], model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """The CW attack of a protocol, once for each number of iterations."""
    (spec,) = (each for each in protocol.attacks(model, dataset) if each.name == "CW")
    return tuple(replace(spec, name=f"CW-{count}", attack=_set_iterations(spec.attack, count)) for count in counts)


def _set_iterations(attack: object, iterations: int) -> CarliniWagner | OnMember:
    if isinstance(attack, OnMember):
        return replace(attack, attack=_set_iterations(attack.attack, iterations))
    if isinstance(attack, CarliniWagner):
        return replace(attack, iterations=iterations)
    raise InputError(f"attack must be CarliniWagner, the only one with iterations to set, got {type(attack).__name__}")


def sweep(protocol: Protocol) -> Protocol:
    """Replace the attacks of a protocol by its CW attack with 10, 20, ... 90 iterations.

    Example:
        >>> [spec.name for spec in sweep(paper).attacks(nn.Flatten())][:2]
        ['CW-10', 'CW-20']
    """
    name = f"{protocol.name}: CW with {ITERATIONS[0]} to {ITERATIONS[-1]} iterations"
    return replace(protocol, name=name, plan=partial(_iterations, protocol, ITERATIONS))


_FGSM = {protocol.name: select_attacks(protocol, "FGSM") for protocol in (released, paper)}
_SWEEPS = {protocol.name: sweep(protocol) for protocol in (released, paper)}


def _slug(defence: str, protocol: str, attack: str) -> str:
    return f"mnist-{defence}-{protocol}-{attack}"


def _fgsm_parts(defence: str, eps: float) -> tuple[Evaluation, ...]:
    subject, threat = SUBJECTS["mnist", defence], Threat(Linf(), eps)
    fgsm = (
        Evaluation(subject, "mnist", protocol, threat, _slug(defence, name, f"fgsm-{eps}"))
        for name, protocol in _FGSM.items()
    )
    worst = Evaluation(subject, "mnist", strong, threat, _slug(defence, strong.name, str(eps)), cascade=True)
    return (*fgsm, worst)


def _parts() -> tuple[Evaluation, ...]:
    radii = (part for defence in _MODELS for eps in EPS for part in _fgsm_parts(defence, eps))
    iterations = (
        Evaluation(SUBJECTS["mnist", defence], "mnist", protocol, _CW_THREAT, _slug(defence, name, "cw-iterations"))
        for defence in _MODELS
        for name, protocol in _SWEEPS.items()
    )
    return (*radii, *iterations)


_Series = tuple[tuple[str, tuple[float, ...]], ...]


def _by_radius(results: Results) -> _Series:
    fgsm = [
        (f"{_short(defence)}, FGSM {name}", tuple(_fgsm_accuracy(results, defence, name, eps) for eps in EPS))
        for defence in _MODELS
        for name in _FGSM
    ]
    worst = [
        (f"{_short(defence)}, strong attacks", tuple(_worst_case(results, defence, eps) for eps in EPS))
        for defence in _MODELS
    ]
    return (*fgsm, *worst)


def _by_iterations(results: Results) -> _Series:
    records = {
        f"{_short(defence)}, CW {name}": results.record(_slug(defence, name, "cw-iterations"))
        for defence in _MODELS
        for name in _SWEEPS
    }
    return tuple(
        (name, tuple(attack_accuracy(record, f"CW-{count}") for count in ITERATIONS))
        for name, record in records.items()
    )


def _fgsm_accuracy(results: Results, defence: str, name: str, eps: float) -> float:
    return attack_accuracy(results.record(_slug(defence, name, f"fgsm-{eps}")), "FGSM")


def _worst_case(results: Results, defence: str, eps: float) -> float:
    return results.record(_slug(defence, strong.name, str(eps))).worst_case_accuracy


def _short(defence: str) -> str:
    return "EMPIR" if defence == "empir" else "baseline"


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    radius, iterations = _by_radius(results), _by_iterations(results)
    save_figure(folder, "fig5", (7.2, 4.4), lambda figure: _plot(figure, radius, iterations))
    n = results.record(_slug("empir", "released", "cw-iterations")).data["n"]
    return (
        Text(_TEXT),
        _PICTURE,
        _table(f"MNIST, accuracy in % against eps of FGSM, {n:,} images.", "eps", EPS, radius),
        _table(f"MNIST, accuracy in % against iterations of CW, {n:,} images.", "iterations", ITERATIONS, iterations),
    )


_TEXT = (
    "The paper plots the full-precision baseline and EMPIR, and publishes no numbers with the figure; its claim is "
    "that EMPIR is the more accurate of the two throughout. 'released' is the published code; 'paper' uses true "
    f"labels and attacks the vote; 'strong attacks' is the worst case over {STRONG_ATTACKS} within the same eps. "
    "Accuracy must fall as eps grows: where it rises, the attack fails."
)
_PICTURE = Picture(
    "fig5",
    "Accuracy on MNIST in percent against the radius of FGSM in units of the image (left) and against the iterations "
    "of CW (right).",
    "Two panels with lines for the baseline and for EMPIR by several protocols, told apart by marker and dash; the "
    "numbers are in the tables.",
)


def _table(caption: str, name: str, columns: Sequence[float], series: _Series) -> Table:
    rows = tuple((title, *map(points, numbers)) for title, numbers in series)
    return Table(caption, (f"Network, attack / {name}", *(f"{value:g}" for value in columns)), rows)


def _plot(figure: Figure, radius: _Series, iterations: _Series) -> None:
    left, right = panels(figure, 1, 2)
    draw_lines(left, EPS, radius)
    left.set_xlabel("eps of FGSM (images in [0, 1])")
    draw_lines(right, ITERATIONS, iterations)
    right.set_xlabel("iterations of CW")
    for axis in (left, right):
        percent_axis(axis, "accuracy, %")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7.5, handlelength=4)


FIG5 = Target("fig5", "Figure 5: attacks of growing strength", _parts(), _show)
"""Figure 5."""
