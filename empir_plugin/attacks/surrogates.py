"""What an attacker may differentiate in place of the model.

A surrogate supplies the gradients, the model keeps the decision: nothing counts unless the model itself is fooled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from empir_plugin.attacks.member_rules import MeanLogits, Reweighted, SharpenedVote, Weighted
from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import MaxVote, MeanProbability, Rule

Model = Callable[[Tensor], Tensor]
"""Images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``."""


class HasMemberLogits(Protocol):
    """An ensemble, as far as an attacker looks into it."""

    @property
    def members(self) -> Iterable[Model]:
        """The networks that decide together."""
        ...

    @property
    def rule(self) -> Rule:
        """How they decide."""
        ...

    @property
    def leader(self) -> int | None:
        """The index of the first full-precision member."""
        ...

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits ``(M, N, K)`` of all members."""
        ...


class View(NamedTuple):
    """What an attack sees at one point.

    Args:
        logits: What it climbs, ``(N, K)``, differentiable.
        decide: Gives the classes ``(N,)`` the model itself decides for, computed when called.
    """

    logits: Tensor
    decide: Callable[[], Tensor]


class Surrogate(Protocol):
    """What a surrogate must offer."""

    def __call__(self, model: Model, x: Tensor) -> View:
        """Look at images ``(N, C, H, W)``."""
        ...


def has_member_logits(model: object) -> TypeGuard[HasMemberLogits]:
    """Whether a model offers :class:`HasMemberLogits`.

    Asked attribute by attribute: from Python 3.12 on, ``isinstance`` with a runtime-checkable protocol looks members up
    statically and misses the submodules, parameters and buffers of an ``nn.Module``, which come from ``__getattr__``.

    Example:
        >>> from torch import nn
        >>> from empir_plugin.models.ensemble import Ensemble
        >>> has_member_logits(Ensemble([nn.Flatten(), nn.Flatten()])), has_member_logits(nn.Flatten())
        (True, False)
    """
    return all(hasattr(model, name) for name in ("members", "rule", "leader", "member_logits"))


def _ensemble(model: Model, surrogate: object) -> HasMemberLogits:
    if not has_member_logits(model):
        raise InputError(
            f"the surrogate {surrogate} reads the members of an ensemble, but {type(model).__name__} has none: "
            "attack it with the surrogate 'plain', or unwrap the ensemble"
        )
    return model


def member_of(model: Model, index: int, who: object) -> Model:
    """One member of an ensemble, from 0; negative numbers count from the end. ``who`` asks, for the message.

    Raises:
        InputError: If the model has no such member.
    """
    members = list(_ensemble(model, who).members)
    if not -len(members) <= index < len(members):
        raise InputError(f"member must be 0 to {len(members) - 1}, got {index}")
    return members[index]


@dataclass(frozen=True)
class Plain:
    """The model's own output: no surrogate at all.

    Example:
        >>> plain(lambda x: x.flatten(1), torch.tensor([[[[0.2, 0.7]]]])).decide()
        tensor([1])
    """

    def __call__(self, model: Model, x: Tensor) -> View:
        """Look at images ``(N, C, H, W)``."""
        logits = model(x)
        return View(logits, lambda: logits.detach().argmax(1))

    def __str__(self) -> str:
        return "plain"


@dataclass(frozen=True)
class OverMembers:
    """Any rule over the members' logits: what the ensemble would say if it decided by that rule.

    Args:
        rule: From member logits ``(M, N, K)`` and the leader's index to ``(N, K)``; its text names the surrogate.

    Raises:
        InputError: When called with a model that has no members.

    Example:
        >>> from torch import nn
        >>> from empir_plugin.models.ensemble import Ensemble
        >>> ensemble = Ensemble([nn.Flatten(), nn.Flatten()])
        >>> mean_logits(ensemble, torch.tensor([[[[0.2, 0.7]]]])).logits
        tensor([[0.2000, 0.7000]])
    """

    rule: Rule

    def __call__(self, model: Model, x: Tensor) -> View:
        """Look at images ``(N, C, H, W)``."""
        ensemble = _ensemble(model, self)
        logits = ensemble.member_logits(x)
        leader = ensemble.leader
        return View(self.rule(logits, leader), lambda: ensemble.rule(logits.detach(), leader).argmax(1))

    def __str__(self) -> str:
        return _RULE_NAMES.get(self.rule) or str(self.rule)


@dataclass(frozen=True)
class Member:
    """One member alone; the others are asked for their vote only.

    Args:
        index: Which member, from 0; negative numbers count from the end.

    Raises:
        InputError: When called with a model that has no such member.

    Example:
        >>> from torch import nn
        >>> from empir_plugin.models.ensemble import Ensemble
        >>> ensemble = Ensemble([nn.Flatten(), nn.Flatten()])
        >>> member(1)(ensemble, torch.tensor([[[[0.2, 0.7]]]])).logits
        tensor([[0.2000, 0.7000]])
    """

    index: int

    def __call__(self, model: Model, x: Tensor) -> View:
        """Look at images ``(N, C, H, W)``."""
        ensemble, own = _ensemble(model, self), member_of(model, self.index, self)
        logits = own(x)

        def decide() -> Tensor:
            with torch.no_grad():
                everybody = torch.stack([logits.detach() if other is own else other(x) for other in ensemble.members])
                return ensemble.rule(everybody, ensemble.leader).argmax(1)

        return View(logits, decide)

    def __str__(self) -> str:
        return f"member:{self.index}"


@dataclass(frozen=True)
class Source:
    """Another model, from images ``(N, C, H, W)`` to logits ``(N, K)``, whose gradients are hoped to transfer.

    Example:
        >>> view = Source(lambda x: x.flatten(1))(lambda x: -x.flatten(1), torch.tensor([[[[0.2, 0.7]]]]))
        >>> view.logits.argmax(1), view.decide()
        (tensor([1]), tensor([0]))
    """

    model: Model

    def __call__(self, model: Model, x: Tensor) -> View:
        """Look at images ``(N, C, H, W)``."""

        def decide() -> Tensor:
            with torch.no_grad():
                return model(x).argmax(1)

        return View(self.model(x), decide)


plain = Plain()
voters = OverMembers(MaxVote())
mean_probability = OverMembers(MeanProbability())
mean_logits = OverMembers(MeanLogits())


def member(index: int) -> Member:
    """The member of this number alone, as a surrogate."""
    return Member(index)


def sharpened_vote(temperature: float) -> OverMembers:
    """The mean of the members' probabilities at a temperature, as a surrogate."""
    return OverMembers(SharpenedVote(temperature))


def weighted(weights: Iterable[float]) -> OverMembers:
    """The mean of the members' probabilities under fixed weights, as a surrogate."""
    return OverMembers(Weighted(tuple(weights)))


def reweighted(temperature: float = 1.0) -> OverMembers:
    """The winner's weakest voters first, as a surrogate."""
    return OverMembers(Reweighted(temperature))


_RULE_NAMES: Mapping[Rule, str] = MappingProxyType(
    {MaxVote(): "voters", MeanProbability(): "mean_probability", MeanLogits(): "mean_logits"}
)
