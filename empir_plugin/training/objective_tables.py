"""Objectives as a recipe writes them: TOML tables with a ``kind``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from empir_plugin.errors import InputError
from empir_plugin.training.adversary import Adversary, fgsm, nfgsm, pgd, rfgsm
from empir_plugin.training.awp import WeightPerturbed
from empir_plugin.training.boundary import BoundaryRetrain
from empir_plugin.training.distillation import DistilledFrom
from empir_plugin.training.objectives import Adversarial, Clean, GradientPenalty, Objective, Trades
from empir_plugin.training.tables import made, table_of

RecipeObjective = Objective | DistilledFrom
"""An objective, or what becomes one once its teacher is trained."""

_ADVERSARIES: Mapping[str, Callable[..., Adversary]] = MappingProxyType(
    {"fgsm": fgsm, "rfgsm": rfgsm, "nfgsm": nfgsm, "pgd": pgd}
)


def parse_objective(table: Any, where: str = "[objective]") -> RecipeObjective:
    """Read an objective from its table.

    ``kind`` is ``clean``, ``adversarial``, ``trades``, ``gradient_penalty``, ``distilled`` or ``boundary_retrain``;
    ``adversarial`` and ``trades`` have a table ``adversary``, whose ``kind`` is ``fgsm``, ``rfgsm``, ``nfgsm`` or
    ``pgd``, and may have a table ``awp`` with the arguments of :class:`~empir_plugin.training.awp.WeightPerturbed`. All
    other keys are the arguments of what the kinds name.

    Raises:
        InputError: If the table names no objective, or a wrong one.

    Example:
        >>> parse_objective({"kind": "gradient_penalty", "weight": 100})
        GradientPenalty(weight=100)
    """
    return _by_kind(_OBJECTIVES, table, where)


def _by_kind(kinds: Mapping[str, Callable[..., Any]], table: Any, where: str) -> Any:
    settings = dict(table_of(table, where))
    kind = settings.pop("kind", None)
    if kind not in kinds:
        raise InputError(f"kind of {where} must be one of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind](settings, where)


def _plain(target: Callable[..., Any], table: Mapping[str, Any], where: str) -> Any:
    return made(target, table, where)


def _attacked(target: Callable[..., Any], table: Mapping[str, Any], where: str) -> Any:
    settings = dict(table)
    adversary = _by_kind(_READERS, settings.pop("adversary", {}), f"{where}, adversary")
    awp = settings.pop("awp", None)
    objective = made(target, settings, where, adversary=adversary)
    if awp is None:
        return objective
    return made(WeightPerturbed, table_of(awp, f"{where}, awp"), f"{where}, awp", objective=objective)


_READERS = MappingProxyType({kind: partial(_plain, target) for kind, target in _ADVERSARIES.items()})

_OBJECTIVES = MappingProxyType(
    {
        "clean": partial(_plain, Clean),
        "adversarial": partial(_attacked, Adversarial),
        "trades": partial(_attacked, Trades),
        "gradient_penalty": partial(_plain, GradientPenalty),
        "distilled": partial(_plain, DistilledFrom),
        "boundary_retrain": partial(_plain, BoundaryRetrain),
    }
)
