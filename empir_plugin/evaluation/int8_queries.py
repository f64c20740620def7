"""Int8 queries: a copy of the model on integer kernels that answers attacks which never ask for a gradient.

The copy gives the model's logits up to the rounding of float32, faster. It has no gradient, so it is used only for
clean images and for attacks that query the model. The model itself always has the last word: an image that is broken on
the copy is shown to the model, and if the model still classifies it correctly, it is attacked again on the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType

import torch
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackResult, AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.gradient import GradientAttack
from empir_plugin.attacks.surrogates import OverMembers, Plain
from empir_plugin.attacks.threat import Threat
from empir_plugin.attacks.transfer import Transfer
from empir_plugin.evaluation.distributed import Round
from empir_plugin.evaluation.judge import correct, decisions
from empir_plugin.evaluation.prepare import exact_float32
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.report import IntegerReport

FLOAT32 = "float32"

RunOn = Callable[[nn.Module, Tensor], Tensor]
"""From a model and the rows ``(n,)`` to attack to adversarial images made on that model."""

_QUERY_PARTS = frozenset({"square"})
"""Parts of AutoAttack that never ask for a gradient."""


@dataclass(frozen=True, eq=False)
class Queries:
    """What answers queries that ask for no gradient; by default the model itself.

    Args:
        backend: ``"float32"``, or ``"int8"`` and the kernel.
        copy: The model on that backend; None for the model itself.
        reason: Why it is the model itself although a copy was asked for; empty otherwise.
    """

    backend: str = FLOAT32
    copy: nn.Module | None = None
    reason: str = ""

    def to_table(self) -> dict[str, str]:
        """As a mapping for records: the copy answers clean images and queries, the model gives the verdicts."""
        return {"verdicts": FLOAT32, "queries": self.backend, "reason": self.reason}


def integer_queries(model: nn.Module, images: Tensor | None = None) -> Queries:
    """Queries answered by a copy of a model on integers, or by the model itself and the reason for it.

    Args:
        model: In evaluation mode.
        images: ``(N, C, H, W)`` in [0, 1], on which the copy must decide as the model does; not checked by default.

    Raises:
        InputError: If the model runs on integers already.

    Example:
        >>> integer_queries(nn.Flatten().eval()).reason
        'no layer of the model is quantized'
    """
    with exact_float32():
        integer = to_integer(model, like=images)
    report = integer.report
    if not report.on_integers:
        return Queries(reason=_reason_for_float(report))
    agreement = report.agreement
    if agreement is not None and agreement.differing_decisions:
        return Queries(reason=f"on integers, {agreement.differing_decisions} of {agreement.images} decisions differ")
    kernels = dict.fromkeys(layer.reason for layer in report.layers if layer.on_integers)
    return Queries(f"int8 ({', '.join(kernels)})", integer.network)


def _reason_for_float(report: IntegerReport) -> str:
    reasons = [layer.reason for layer in report.layers if layer.precision != "fp"]
    return reasons[0] if reasons else "no layer of the model is quantized"


def agree_on_backend(queries: Queries, round: Round) -> Queries:
    """The queries of this process if every process of the team has the same backend; else the model itself.

    Raises:
        EvaluationError: If another process failed.
    """
    backends = set(round.gather(queries.backend))
    if len(backends) == 1:
        return queries
    return Queries(reason=f"the processes differ in what they can run: {', '.join(sorted(backends))}")


def never_differentiates(attack: Attack) -> bool:
    """Whether an attack asks its model for decisions and logits only, never for a gradient.

    Attacks of other packages say so by an attribute ``queries_only`` that is true.

    Example:
        >>> from empir_plugin.attacks import pgd, uniform_noise
        >>> never_differentiates(uniform_noise()), never_differentiates(pgd())
        (True, False)
    """
    if isinstance(attack, GradientAttack):
        return attack.steps == 0
    return isinstance(attack, Transfer) or getattr(attack, "queries_only", False) is True


def attack_copy_first(
    run: RunOn, model: nn.Module, copy: nn.Module, rows: Tensor, labels: Tensor, *, batch_size: int = 500
) -> Tensor:
    """Adversarial images made on the copy, and on the model where only the copy is fooled.

    Args:
        run: Attacks some of the rows on one of the two.
        model: Has the last word.
        copy: The model on integer kernels.
        rows: Which images ``(n,)``.
        labels: The labels ``(n,)`` the attack pushes away from.
        batch_size: Images per forward pass.
    """
    adversarial = run(copy, rows)
    broken = (decisions(copy, adversarial, batch_size=batch_size) != labels).nonzero().squeeze(1)
    if not len(broken):
        return adversarial
    still_robust = decisions(model, adversarial[broken], batch_size=batch_size) == labels[broken]
    only_on_copy = broken[still_robust]
    if len(only_on_copy):
        adversarial = adversarial.index_copy(0, only_on_copy, run(model, rows[only_on_copy]))
    return adversarial


@dataclass(frozen=True, eq=False)
class AutoAttackInput:
    """What AutoAttack is run on.

    Args:
        model: Decides.
        copy: Answers the queries of Square; None for the model itself.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: True labels ``(N,)``.
        threat: The budget.
        seed: Seed of every part.
    """

    model: nn.Module
    copy: nn.Module | None
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int = 0

    def run(self, suite: AutoAttackSuite, on: nn.Module, rows: Tensor) -> AutoAttackResult:
        """Run a suite on the images of some rows ``(n,)``, with the model or its copy."""
        return suite.run(on, self.x[rows], self.y[rows], self.threat, seed=self.seed)


def run_autoattack(suite: AutoAttackSuite, given: AutoAttackInput) -> AutoAttackResult:
    """Run AutoAttack, with the copy, if there is one, for the parts that ask for no gradient.

    The parts that differentiate give the same bits with a copy as without. An image is broken only if it fools the
    model. A surrogate that looks into layers is always given the model.
    """
    copy, looks_inside = given.copy, not isinstance(suite.surrogate, (Plain, OverMembers))
    if copy is None or looks_inside or not _QUERY_PARTS & set(suite.parts):
        return suite.run(given.model, given.x, given.y, given.threat, seed=given.seed)
    robust = correct(given.model, given.x, given.y, batch_size=suite.batch_size)
    images = given.x.detach().clone(memory_format=torch.contiguous_format)
    robust_after, flags = {"clean": robust}, []
    for queries_only, parts in groupby(suite.parts, key=_QUERY_PARTS.__contains__):
        group, rows = replace(suite, attacks=tuple(parts)), robust.nonzero().squeeze(1)
        if not len(rows):
            robust_after.update(dict.fromkeys(group.parts, robust))
            continue
        result = _run_on_copy(group, given, copy, rows) if queries_only else given.run(group, given.model, rows)
        images[rows] = result.images
        robust_after.update({part: robust.index_copy(0, rows, result.robust[part]) for part in group.parts})
        robust = robust_after[group.parts[-1]]
        flags += result.flags
    return AutoAttackResult(images, MappingProxyType(robust_after), tuple(dict.fromkeys(flags)))


def _run_on_copy(suite: AutoAttackSuite, given: AutoAttackInput, copy: nn.Module, rows: Tensor) -> AutoAttackResult:
    """Run parts that ask for no gradient on the copy; the model decides which images are robust."""
    labels, size, flags = given.y[rows], suite.batch_size, []

    def run(on: nn.Module, chosen: Tensor) -> Tensor:
        result = given.run(suite, on, chosen)
        flags.extend(result.flags)
        return result.images

    adversarial = attack_copy_first(run, given.model, copy, rows, labels, batch_size=size)
    robust = correct(given.model, adversarial, labels, batch_size=size)
    return AutoAttackResult(adversarial, dict.fromkeys(suite.parts, robust), tuple(flags))
