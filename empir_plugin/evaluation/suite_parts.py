"""AutoAttack in two kinds of parts: those that differentiate the model, and Square, which a copy of it can answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType, SimpleNamespace

import torch
from pyautoattack.checks import check_square_sr
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackResult, AutoAttackSuite
from empir_plugin.attacks.surrogates import OverMembers, Plain
from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.judge import correct
from empir_plugin.evaluation.queries import confirmed

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


def square_flags(accuracy: Mapping[str, float]) -> tuple[str, ...]:
    """AutoAttack's warning that its black-box part found what its white-box parts missed, if it has to be given.

    It speaks of a share of all images, so it is asked once for an evaluation and not of every shard.

    Args:
        accuracy: Share of images classified correctly, ``"clean"`` and after each part.

    Example:
        >>> len(square_flags({"clean": 0.9, "apgd-ce": 0.5, "square": 0.4}))
        1
    """
    texts: list[str] = []
    check_square_sr(dict(accuracy), logger=SimpleNamespace(warning=texts.append))
    return tuple(texts)
