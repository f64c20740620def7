"""Surrogates: what an attack differentiates in place of the model, such as the mean logits of an ensemble's members.

A surrogate supplies logits and gradients; success is always the model's own decision. The rules over the members'
logits come first, then the surrogates, then their text forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.backward import BackwardRule, parse_backward
from empir_plugin.models.ensemble import MaxVote, MeanLogits, MeanProbability, Rule
from empir_plugin.models.layers import quantized_layers, use_backward_rule


@dataclass(frozen=True)
class SharpenedVote:
    """Log of the mean over members of ``softmax(logits / temperature)``, ``(N, K)``.

    At low temperatures it approaches the share of votes; high temperatures restore the gradients of saturated members.

    Args:
        temperature: Above 0.

    Raises:
        InputError: If the temperature is not positive.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")

    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        """Log of the mean sharpened probability."""
        return MeanProbability()(logits / self.temperature, leader)

    def __str__(self) -> str:
        return f"sharpened_vote:{self.temperature:g}"


@dataclass(frozen=True)
class Weighted:
    """Log of the weighted mean of the members' probabilities ``(N, K)``.

    Args:
        weights: One per member, not negative, with a positive sum.

    Raises:
        InputError: If no weight is positive or one is negative, or when the ensemble has another number of members.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not sum(self.weights) > 0 or min(self.weights) < 0:
            raise InputError(f"weights must not be negative and not all zero, got {self.weights}")

    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        """Log of the weighted mean probability."""
        if len(self.weights) != len(logits):
            raise InputError(f"weights must be one per member, {len(logits)}, got {len(self.weights)}")
        weights = logits.new_tensor(self.weights)
        return _log_weighted_mean(logits.log_softmax(-1), (weights / weights.sum())[:, None])

    def __str__(self) -> str:
        return "weighted:" + ",".join(f"{weight:g}" for weight in self.weights)


@dataclass(frozen=True)
class Reweighted:
    """Log of a mean of the members' probabilities ``(N, K)``, reweighted at every step, https://arxiv.org/abs/2211.08008.

    A vote is broken member by member. Members that vote for the winning class get the weight
    ``softmax(-margin / temperature)``, which is largest for the smallest margin; outvoted members get none. The weights
    are constants in the gradient. This is the idea of MORA; its own weights follow from its smoothed vote.

    Args:
        temperature: Above 0, in units of a margin between log-probabilities. Low: only the voter with the smallest
            margin counts; high: all voters count alike.

    Raises:
        InputError: If the temperature is not positive.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")

    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        """Log of the weighted mean probability."""
        log_p = logits.log_softmax(-1)
        winner = MaxVote()(logits.detach(), leader).argmax(1)  # (N,)
        best, second = log_p.detach().topk(2, dim=-1).values.unbind(-1)  # (M, N) each
        # topk may break ties differently from argmax, which is what decides who voted for the winner.
        margin = (best - second).masked_fill(logits.argmax(-1) != winner, float("inf"))
        weights = (-margin / self.temperature).softmax(0)
        return _log_weighted_mean(log_p, weights)

    def __str__(self) -> str:
        return f"reweighted:{self.temperature:g}"


def _log_weighted_mean(log_p: Tensor, weights: Tensor) -> Tensor:
    """Log of the members' mean probability; the weights ``(M, N)`` or ``(M, 1)`` sum to 1 over the members."""
    return (log_p + weights.log().unsqueeze(-1)).logsumexp(0)


Model = Callable[[Tensor], Tensor]
"""A function from images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``."""


class HasMemberLogits(Protocol):
    """The interface of an ensemble that surrogates need."""

    @property
    def members(self) -> Iterable[Model]:
        """The member networks."""
        ...

    @property
    def rule(self) -> Rule:
        """The rule that combines the members' logits."""
        ...

    @property
    def leader(self) -> int | None:
        """The index of the first full-precision member; None if there is none."""
        ...

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits ``(M, N, K)`` of all members."""
        ...


def has_member_logits(model: object) -> TypeGuard[HasMemberLogits]:
    """Whether a model has the attributes of :class:`HasMemberLogits`.

    This is not ``isinstance`` with a runtime-checkable protocol: from Python 3.12 on, that looks attributes up
    statically and misses the submodules, parameters and buffers of an ``nn.Module``, which come from ``__getattr__``.

    Example:
        >>> from torch import nn
        >>> from empir_plugin.models.ensemble import Ensemble
        >>> has_member_logits(Ensemble([nn.Flatten(), nn.Flatten()])), has_member_logits(nn.Flatten())
        (True, False)
    """
    return all(hasattr(model, name) for name in ("members", "rule", "leader", "member_logits"))


class View(NamedTuple):
    """What a surrogate returns for a batch of images.

    Args:
        logits: The logits the attack differentiates, ``(N, K)``.
        decide: Returns the classes ``(N,)`` the model itself decides for, computed when called.
    """

    logits: Tensor
    decide: Callable[[], Tensor]


class Surrogate(Protocol):
    """The interface of a surrogate."""

    def __call__(self, model: Model, x: Tensor) -> View:
        """Logits to differentiate and the model's decision, for images ``(N, C, H, W)``."""
        ...


def _as_ensemble(model: Model, surrogate: object) -> HasMemberLogits:
    if not has_member_logits(model):
        raise InputError(
            f"the surrogate {surrogate} reads the members of an ensemble, but {type(model).__name__} has none: "
            "attack it with the surrogate 'plain', or unwrap the ensemble"
        )
    return model


def member_of(model: Model, index: int, user: object) -> Model:
    """One member of an ensemble.

    Args:
        model: The ensemble.
        index: Index of the member, from 0; negative numbers count from the end.
        user: The surrogate or attack that needs the member, for the error message.

    Raises:
        InputError: If the model has no such member.
    """
    members = list(_as_ensemble(model, user).members)
    if not -len(members) <= index < len(members):
        raise InputError(f"member must be 0 to {len(members) - 1}, got {index}")
    return members[index]


@dataclass(frozen=True)
class Plain:
    """The model itself: no surrogate.

    Example:
        >>> plain(lambda x: x.flatten(1), torch.tensor([[[[0.2, 0.7]]]])).decide()
        tensor([1])
    """

    def __call__(self, model: Model, x: Tensor) -> View:
        """Logits to differentiate and the model's decision, for images ``(N, C, H, W)``."""
        logits = model(x)
        return View(logits, lambda: logits.detach().argmax(1))

    def __str__(self) -> str:
        return "plain"


@dataclass(frozen=True)
class OverMembers:
    """An ensemble whose members' logits are combined by another rule.

    Args:
        rule: From member logits ``(M, N, K)`` and the leader's index to ``(N, K)``; its text form names the surrogate.

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
        """Logits to differentiate and the model's decision, for images ``(N, C, H, W)``."""
        ensemble = _as_ensemble(model, self)
        logits = ensemble.member_logits(x)
        leader = ensemble.leader
        return View(self.rule(logits, leader), lambda: ensemble.rule(logits.detach(), leader).argmax(1))

    def __str__(self) -> str:
        return _RULE_NAMES.get(self.rule) or str(self.rule)


@dataclass(frozen=True)
class Member:
    """One member of an ensemble; the other members only vote.

    Args:
        index: Index of the member, from 0; negative numbers count from the end.

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
        """Logits to differentiate and the model's decision, for images ``(N, C, H, W)``."""
        ensemble, chosen = _as_ensemble(model, self), member_of(model, self.index, self)
        logits = chosen(x)

        def decide() -> Tensor:
            with torch.no_grad():
                all_logits = [logits.detach() if other is chosen else other(x) for other in ensemble.members]
                return ensemble.rule(torch.stack(all_logits), ensemble.leader).argmax(1)

        return View(logits, decide)

    def __str__(self) -> str:
        return f"member:{self.index}"


@dataclass(frozen=True)
class Source:
    """Another model, from images ``(N, C, H, W)`` to logits ``(N, K)``, whose gradients may transfer.

    Args:
        model: The source of logits and gradients.

    Example:
        >>> view = Source(lambda x: x.flatten(1))(lambda x: -x.flatten(1), torch.tensor([[[[0.2, 0.7]]]]))
        >>> view.logits.argmax(1), view.decide()
        (tensor([1]), tensor([0]))
    """

    model: Model

    def __call__(self, model: Model, x: Tensor) -> View:
        """Logits to differentiate and the model's decision, for images ``(N, C, H, W)``."""

        def decide() -> Tensor:
            with torch.no_grad():
                return model(x).argmax(1)

        return View(self.model(x), decide)


@dataclass(frozen=True)
class Through:
    """A surrogate with another backward rule for the model's activation quantizers.

    Logits and decisions stay bit for bit the same; only gradients change (BPDA, https://arxiv.org/abs/1802.00420).

    Args:
        surrogate: The surrogate to differentiate.
        rule: The gradient of the clip to [0, 1] before rounding.

    Raises:
        InputError: When called with a model in which nothing is quantized.

    Example:
        >>> import torch
        >>> from empir_plugin.attacks.surrogates import plain
        >>> from empir_plugin.models.backward import identity
        >>> from empir_plugin.models.layers import QuantLinear
        >>> from empir_plugin.models.quantize import Precision
        >>> model = nn.Sequential(nn.Flatten(), QuantLinear(2, 2, precision=Precision.parse("w2a2")))
        >>> print(Through(plain, identity), Through(plain, identity)(model, torch.rand(4, 1, 1, 2)).logits.shape)
        plain/identity torch.Size([4, 2])
    """

    surrogate: Surrogate
    rule: BackwardRule

    def __call__(self, model: Model, x: Tensor) -> View:
        """Logits to differentiate and the model's decision, for images ``(N, C, H, W)``."""
        if not isinstance(model, nn.Module) or next(quantized_layers(model), None) is None:
            raise InputError(
                f"the surrogate {self} changes gradients of quantized layers, but {type(model).__name__} has none: "
                f"attack it with {self.surrogate}"
            )
        with use_backward_rule(model, self.rule):
            return self.surrogate(model, x)

    def __str__(self) -> str:
        return f"{self.surrogate}/{self.rule}"


plain = Plain()
voters = OverMembers(MaxVote())
mean_probability = OverMembers(MeanProbability())
mean_logits = OverMembers(MeanLogits())


def member(index: int) -> Member:
    """The member with this index, as a surrogate."""
    return Member(index)


def sharpened_vote(temperature: float) -> OverMembers:
    """The mean of the members' probabilities at this temperature, as a surrogate."""
    return OverMembers(SharpenedVote(temperature))


def weighted(weights: Iterable[float]) -> OverMembers:
    """The weighted mean of the members' probabilities, as a surrogate."""
    return OverMembers(Weighted(tuple(weights)))


def reweighted(temperature: float = 1.0) -> OverMembers:
    """The mean of the members' probabilities, weighted towards the weakest voters of the winner, as a surrogate."""
    return OverMembers(Reweighted(temperature))


_RULE_NAMES: Mapping[Rule, str] = MappingProxyType(
    {MaxVote(): "voters", MeanProbability(): "mean_probability", MeanLogits(): "mean_logits"}
)
_NAMED: Mapping[str, Surrogate] = MappingProxyType(
    {str(surrogate): surrogate for surrogate in (plain, voters, mean_probability, mean_logits)}
)
_WITH_NUMBER: Mapping[str, Callable[[str], Surrogate]] = MappingProxyType(
    {
        "member": lambda text: member(int(text)),
        "sharpened_vote": lambda text: sharpened_vote(float(text)),
        "weighted": lambda text: weighted(map(float, text.split(","))),
        "reweighted": lambda text: reweighted(float(text)),
    }
)


def parse_surrogate(text: str) -> Surrogate:
    """Read the text form of a surrogate, as ``str`` returns it.

    Args:
        text: ``plain``, ``voters``, ``mean_probability``, ``mean_logits``, ``member:0``, ``sharpened_vote:0.1``,
            ``weighted:0.5,0.5,1`` or ``reweighted:1``; optionally followed by a backward rule for quantizers:
            ``/clip``, ``/identity``, ``/soft`` or ``/soft:0.25``.

    Raises:
        InputError: If the text has another form.

    Example:
        >>> print(parse_surrogate("weighted:1,1,2/identity"))
        weighted:1,1,2/identity
    """
    name, slash, rule = text.partition("/")
    surrogate = _parse_name(name, text)
    return Through(surrogate, parse_backward(rule)) if slash else surrogate


def _parse_name(text: str, whole_text: str) -> Surrogate:
    name, _, number = text.partition(":")
    try:
        return _WITH_NUMBER[name](number) if number else _NAMED[name]
    except (KeyError, ValueError) as error:
        forms = ", ".join([*_NAMED, "member:0", "sharpened_vote:0.1", "weighted:0.5,0.5,1", "reweighted:1"])
        raise InputError(f"a surrogate is written as one of {forms}, got {whole_text!r}") from error
