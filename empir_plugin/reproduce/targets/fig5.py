"""Figure 5 of the EMPIR paper: FGSM of growing radius, CW with more and more iterations."""

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
from empir_plugin.reproduce.attacks import TOLD, strong
from empir_plugin.reproduce.document import Block, Picture, Table, Text, points
from empir_plugin.reproduce.figures import draw, lines, panels, percent_axis
from empir_plugin.reproduce.parts import Evaluation, only
from empir_plugin.reproduce.results import Results, Target, attack_accuracy
from empir_plugin.reproduce.subjects import SUBJECTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
ITERATIONS = (10, 20, 30, 40, 50, 60, 70, 80, 90)
_MODELS = "baseline", "empir"
_CW = Threat(Linf(), 0.3)
"""CW itself has no budget; a run needs one all the same."""


def _iterations(protocol: Protocol, counts: Sequence[int], model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """CW of a protocol, once for every number of iterations."""
    (spec,) = (each for each in protocol.attacks(model, dataset) if each.name == "CW")
    return tuple(replace(spec, name=f"CW-{count}", attack=_with(spec.attack, count)) for count in counts)


def _with(attack: object, iterations: int) -> CarliniWagner | OnMember:
    if isinstance(attack, OnMember):
        return replace(attack, attack=_with(attack.attack, iterations))
    if isinstance(attack, CarliniWagner):
        return replace(attack, iterations=iterations)
    raise InputError(f"iterations can be set of CarliniWagner only, got {type(attack).__name__}")


def sweep(protocol: Protocol) -> Protocol:
    """A protocol's CW with 10 to 90 iterations, in place of its attacks.

    Example:
        >>> [spec.name for spec in sweep(paper).attacks(nn.Flatten())][:2]
        ['CW-10', 'CW-20']
    """
    name = f"{protocol.name}: CW with {ITERATIONS[0]} to {ITERATIONS[-1]} iterations"
    return replace(protocol, name=name, plan=partial(_iterations, protocol, ITERATIONS))


_FGSM = {protocol.name: only(protocol, "FGSM") for protocol in (released, paper)}
_SWEEPS = {protocol.name: sweep(protocol) for protocol in (released, paper)}


def _slug(defence: str, protocol: str, attack: str) -> str:
    return f"mnist-{defence}-{protocol}-{attack}"


def _radii(defence: str, eps: float) -> tuple[Evaluation, ...]:
    subject, threat = SUBJECTS["mnist", defence], Threat(Linf(), eps)
    weak = (
        Evaluation(subject, "mnist", protocol, threat, _slug(defence, name, f"fgsm-{eps}"))
        for name, protocol in _FGSM.items()
    )
    hard = Evaluation(subject, "mnist", strong, threat, _slug(defence, strong.name, str(eps)), cascade=True)
    return (*weak, hard)


def _parts() -> tuple[Evaluation, ...]:
    radii = (part for defence in _MODELS for eps in EPS for part in _radii(defence, eps))
    iterations = (
        Evaluation(SUBJECTS["mnist", defence], "mnist", protocol, _CW, _slug(defence, name, "cw-iterations"))
        for defence in _MODELS
        for name, protocol in _SWEEPS.items()
    )
    return (*radii, *iterations)


_Series = tuple[tuple[str, tuple[float, ...]], ...]


def _by_radius(results: Results) -> _Series:
    found = [
        (f"{_short(defence)}, FGSM {name}", tuple(_fgsm(results, defence, name, eps) for eps in EPS))
        for defence in _MODELS
        for name in _FGSM
    ]
    hard = [
        (f"{_short(defence)}, strong attacks", tuple(_worst(results, defence, eps) for eps in EPS))
        for defence in _MODELS
    ]
    return (*found, *hard)


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


def _fgsm(results: Results, defence: str, name: str, eps: float) -> float:
    return attack_accuracy(results.record(_slug(defence, name, f"fgsm-{eps}")), "FGSM")


def _worst(results: Results, defence: str, eps: float) -> float:
    return results.record(_slug(defence, strong.name, str(eps))).worst_case_accuracy


def _short(defence: str) -> str:
    return "EMPIR" if defence == "empir" else "baseline"


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    radius, iterations = _by_radius(results), _by_iterations(results)
    draw(folder, "fig5", (7.2, 4.4), lambda figure: _paint(figure, radius, iterations))
    n = results.record(_slug("empir", "released", "cw-iterations")).data["n"]
    return (
        Text(_READING),
        _PICTURE,
        _table(f"MNIST, accuracy in % against eps of FGSM, {n:,} images.", "eps", EPS, radius),
        _table(f"MNIST, accuracy in % against iterations of CW, {n:,} images.", "iterations", ITERATIONS, iterations),
    )


_READING = (
    "The paper draws the full-precision baseline and EMPIR, and publishes no numbers with the figure; its claim "
    "is that EMPIR keeps more throughout. 'released' is its own code, 'paper' has true labels and attacks the "
    f"vote, and under 'strong attacks' every image counts with the worst of {TOLD} "
    "within the same eps. Accuracy has to fall as eps grows: where it rises, the attack fails."
)
_PICTURE = Picture(
    "fig5",
    "Accuracy on MNIST in percent against the radius of FGSM in units of the image (left) and against the iterations "
    "of CW (right).",
    "Two panels with lines for the baseline and for EMPIR by several protocols, told apart by marker and dash; the "
    "numbers are in the tables.",
)


def _table(caption: str, name: str, columns: Sequence[float], series: _Series) -> Table:
    rows = tuple((told, *map(points, numbers)) for told, numbers in series)
    return Table(caption, (f"Network, attack / {name}", *(f"{value:g}" for value in columns)), rows)


def _paint(figure: Figure, radius: _Series, iterations: _Series) -> None:
    left, right = panels(figure, 1, 2)
    lines(left, EPS, radius)
    left.set_xlabel("eps of FGSM (images in [0, 1])")
    lines(right, ITERATIONS, iterations)
    right.set_xlabel("iterations of CW")
    for axis in (left, right):
        percent_axis(axis, "accuracy, %")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7.5, handlelength=4)


FIG5 = Target("fig5", "Figure 5: attacks of growing strength", _parts(), _show)
"""The figure."""
