"""What answers an attack's queries: the model under evaluation, or a copy of it that runs on integers.

The copy gives the model's logits up to the rounding of float32, and gives them sooner. It has no gradient, so only
attacks that never ask for one are given it, and the last word is the model's: an image that falls on the copy is shown
to the model, and one that stands there is attacked again, on the model.
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
from empir_plugin.models.integer.convert import IntegerReport, to_integer

FLOAT32 = "float32"

Run = Callable[[nn.Module, Tensor], Tensor]
"""From a model and the rows ``(n,)`` to attack to what an attack on that model makes of their images."""


@dataclass(frozen=True, eq=False)
class Queries:
    """What answers queries that ask for no gradient; by default the model itself.

    Args:
        backend: ``"float32"``, or ``"int8"`` and the kernel.
        copy: The model in that form; None for the model itself.
        reason: Why it is the model itself although a copy was asked for; empty otherwise.
    """

    backend: str = FLOAT32
    copy: nn.Module | None = None
    reason: str = ""

    def to_table(self) -> dict[str, str]:
        """What a record says of it: clean images are queries, too; verdicts are those on what attacks return."""
        return {"verdicts": FLOAT32, "queries": self.backend, "reason": self.reason}


def integer_queries(model: nn.Module, images: Tensor | None = None) -> Queries:
    """A copy of a model on integers, or why there is none.

    Args:
        model: In evaluation mode.
        images: ``(N, C, H, W)`` in [0, 1], on which every decision has to be the model's; unchecked if left out.

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
        return Queries(reason=_why_float(report))
    found = report.agreement
    if found is not None and found.differing_decisions:
        return Queries(reason=f"on integers, {found.differing_decisions} of {found.images} decisions differ")
    kernels = dict.fromkeys(layer.reason for layer in report.layers if layer.on_integers)
    return Queries(f"int8 ({', '.join(kernels)})", integer.network)


def _why_float(report: IntegerReport) -> str:
    reasons = [layer.reason for layer in report.layers if layer.precision != "fp"]
    return reasons[0] if reasons else "no layer of the model is quantized"


def shared(found: Queries, round: Round) -> Queries:
    """What all processes of a team can have, each of which brings its own.

    Raises:
        EvaluationError: If another process failed.
    """
    backends = set(round.gather(found.backend))
    if len(backends) == 1:
        return found
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


def confirmed(
    run: Run, model: nn.Module, copy: nn.Module, rows: Tensor, labels: Tensor, *, batch_size: int = 500
) -> Tensor:
    """What an attack on a copy makes of images, and an attack on the model of those that fell on the copy alone.

    Args:
        run: Attacks some of them.
        model: Has the last word.
        copy: Asked in its place.
        rows: Which images ``(n,)``.
        labels: What the attack pushes them away from ``(n,)``.
        batch_size: Images per forward pass.
    """
    made = run(copy, rows)
    fell = (decisions(copy, made, batch_size=batch_size) != labels).nonzero().squeeze(1)
    if not len(fell):
        return made
    stands = decisions(model, made[fell], batch_size=batch_size) == labels[fell]
    doubtful = fell[stands]
    if len(doubtful):
        made = made.index_copy(0, doubtful, run(model, rows[doubtful]))
    return made


_QUERIES_ONLY = frozenset({"square"})


@dataclass(frozen=True, eq=False)
class Attacked:
    """What a suite attacks.

    Args:
        model: Decides.
        copy: Answers the queries of Square; the model does where it is None.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: True labels ``(N,)``.
        threat: How far to go.
        seed: Of every part.
    """

    model: nn.Module
    copy: nn.Module | None
    x: Tensor
    y: Tensor
    threat: Threat
    seed: int = 0

    def by(self, suite: AutoAttackSuite, on: nn.Module, rows: Tensor) -> AutoAttackResult:
        """What a suite makes of the images of some rows ``(n,)``, with one of the two in the model's place."""
        return suite.run(on, self.x[rows], self.y[rows], self.threat, seed=self.seed)


def run_suite(suite: AutoAttackSuite, attacked: Attacked) -> AutoAttackResult:
    """Run AutoAttack, with the copy, if there is one, in the model's place where no gradient is asked for.

    The parts that differentiate give the same bits with a copy as without. An image has fallen only if it fools the
    model. A surrogate that looks into layers is given the model.
    """
    copy, looks_inside = attacked.copy, not isinstance(suite.surrogate, (Plain, OverMembers))
    if copy is None or looks_inside or not _QUERIES_ONLY & set(suite.parts):
        return suite.run(attacked.model, attacked.x, attacked.y, attacked.threat, seed=attacked.seed)
    standing = correct(attacked.model, attacked.x, attacked.y, batch_size=suite.batch_size)
    images = attacked.x.detach().clone(memory_format=torch.contiguous_format)
    after, flags = {"clean": standing}, []
    for queries_only, parts in groupby(suite.parts, key=_QUERIES_ONLY.__contains__):
        group, rows = replace(suite, attacks=tuple(parts)), standing.nonzero().squeeze(1)
        if not len(rows):
            after.update(dict.fromkeys(group.parts, standing))
            continue
        found = _asking(group, attacked, copy, rows) if queries_only else attacked.by(group, attacked.model, rows)
        images[rows] = found.images
        after.update({part: standing.index_copy(0, rows, found.robust[part]) for part in group.parts})
        standing = after[group.parts[-1]]
        flags += found.flags
    return AutoAttackResult(images, MappingProxyType(after), tuple(dict.fromkeys(flags)))


def _asking(suite: AutoAttackSuite, attacked: Attacked, copy: nn.Module, rows: Tensor) -> AutoAttackResult:
    """Run parts that ask for no gradient on the copy; the model says which images withstood."""
    labels, size, flags = attacked.y[rows], suite.batch_size, []

    def run(on: nn.Module, chosen: Tensor) -> Tensor:
        result = attacked.by(suite, on, chosen)
        flags.extend(result.flags)
        return result.images

    made = confirmed(run, attacked.model, copy, rows, labels, batch_size=size)
    withstood = correct(attacked.model, made, labels, batch_size=size)
    return AutoAttackResult(made, dict.fromkeys(suite.parts, withstood), tuple(flags))
