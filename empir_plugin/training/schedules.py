"""How one network, or all members of an ensemble together, are taken through a training set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, get_args

from empir_plugin._files.tables import build, table_of
from empir_plugin.errors import InputError
from empir_plugin.evaluation.identity import describe
from empir_plugin.models.activations import Activations
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import Scale
from empir_plugin.training.adversary import Adversary, fgsm, nfgsm, pgd, rfgsm
from empir_plugin.training.batch import Criterion, check_gce_q
from empir_plugin.training.boundary import BoundaryRetrain
from empir_plugin.training.objectives import (
    Adversarial,
    Clean,
    DistilledFrom,
    GradientPenalty,
    Objective,
    Trades,
    WeightPerturbed,
    clean,
)
from empir_plugin.zoo.card import RULES

Compute = Literal["float32", "bfloat16"]
"""What networks are trained in. Evaluation is always in float32."""


def check_compute(compute: str, of: str) -> None:
    """Refuse an arithmetic there is none of.

    Raises:
        InputError: If it is neither float32 nor bfloat16.
    """
    if compute not in get_args(Compute):
        raise InputError(f"compute of {of} must be one of {', '.join(get_args(Compute))}, got {compute!r}")


RecipeObjective = Objective | DistilledFrom
"""An objective, or what becomes one once its teacher is trained."""

_ADVERSARIES: Mapping[str, Callable[..., Adversary]] = MappingProxyType(
    {"fgsm": fgsm, "rfgsm": rfgsm, "nfgsm": nfgsm, "pgd": pgd}
)


def parse_objective(table: Any, where: str = "[objective]") -> RecipeObjective:
    """Read an objective from its table.

    ``kind`` is ``clean``, ``adversarial``, ``trades``, ``gradient_penalty``, ``distilled`` or ``boundary_retrain``;
    ``adversarial`` and ``trades`` have a table ``adversary``, whose ``kind`` is ``fgsm``, ``rfgsm``, ``nfgsm`` or
    ``pgd``, and may have a table ``awp`` with the arguments of
    :class:`~empir_plugin.training.objectives.WeightPerturbed`. All other keys are the arguments of what the kinds name.

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


def _plain_objective(target: Callable[..., Any], table: Mapping[str, Any], where: str) -> Any:
    return build(target, table, where)


def _attacked(target: Callable[..., Any], table: Mapping[str, Any], where: str) -> Any:
    settings = dict(table)
    adversary = _by_kind(_READERS, settings.pop("adversary", {}), f"{where}, adversary")
    awp = settings.pop("awp", None)
    objective = build(target, settings, where, adversary=adversary)
    if awp is None:
        return objective
    return build(WeightPerturbed, table_of(awp, f"{where}, awp"), f"{where}, awp", objective=objective)


_READERS = MappingProxyType({kind: partial(_plain_objective, target) for kind, target in _ADVERSARIES.items()})

_OBJECTIVES = MappingProxyType(
    {
        "clean": partial(_plain_objective, Clean),
        "adversarial": partial(_attacked, Adversarial),
        "trades": partial(_attacked, Trades),
        "gradient_penalty": partial(_plain_objective, GradientPenalty),
        "distilled": partial(_plain_objective, DistilledFrom),
        "boundary_retrain": partial(_plain_objective, BoundaryRetrain),
    }
)


@dataclass(frozen=True)
class Schedule:
    """How a network, or an ensemble, is taken through the training set; all randomness in it follows from ``seed``.

    Args:
        name: Of what is trained.
        seed: Of the initial weights, the order of the images, their augmentation, and an objective's random numbers.
        epochs: Passes over the training set.
        batch_size: Images per step; the last, incomplete batch of an epoch is dropped.
        learning_rate: Of Adam, the highest of the schedule.
        warmup: Share of all steps in which the learning rate rises linearly; it then falls along a cosine to zero.
        weight_decay: Of AdamW, decoupled.
        label_smoothing: Share of the target that is spread evenly over all classes.
        gce_q: Makes the loss on labels the generalized cross-entropy: see
            :class:`~empir_plugin.training.batch.Criterion`.
        compute: Arithmetic of the networks: see :func:`~empir_plugin.training.loop.computing`.
        shift: Training images are moved by up to so many pixels in each direction, zeros coming in.
        flip: Whether half of the training images are mirrored.
        objective: What is lowered.

    Raises:
        InputError: If a number is out of its range.
    """

    name: str
    seed: int
    epochs: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    objective: RecipeObjective = clean
    gce_q: float = field(default=0.0, kw_only=True)
    compute: Compute = field(default="float32", kw_only=True)

    def __post_init__(self) -> None:
        for key in ("batch_size", "learning_rate"):
            if not getattr(self, key) > 0:
                raise InputError(f"{key} of {self._who} must be positive, got {getattr(self, key)!r}")
        for key in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, key) < 1:
                raise InputError(f"{key} of {self._who} must lie in [0, 1), got {getattr(self, key)!r}")
        if self.epochs < 0 or self.shift < 0 or not self.weight_decay >= 0:
            raise InputError(f"epochs, shift and weight_decay of {self._who} must not be negative")
        check_gce_q(self.gce_q, self.label_smoothing)
        check_compute(self.compute, self._who)
        self._check_labels_are_used()

    def _check_labels_are_used(self) -> None:
        """A student that never sees a label has no use for what shapes the loss on labels."""
        if not isinstance(self.objective, DistilledFrom) or self.objective.label_share:
            return
        for key in ("label_smoothing", "member_share", "gce_q"):
            if value := getattr(self, key, 0):
                cure = f"leave {key} out (or set it to 0), or give the objective a label_share"
                raise InputError(f"{key} of {self._who} is {value!r}, which its objective 'distilled' ignores: {cure}")

    @property
    def run(self) -> str:
        """What the files of this run are called."""
        return self.name

    @property
    def criterion(self) -> Criterion:
        """How far an output is from the labels."""
        return Criterion(self.label_smoothing, gce_q=self.gce_q)

    @property
    def _who(self) -> str:
        return f"member {self.name!r}"


@dataclass(frozen=True)
class MemberRecipe(Schedule):
    """How one network is trained.

    Args:
        precision: Bits of its quantized layers.
        scale: Scale of the quantized weights.
        activations: Range of the quantized layers' inputs; DoReFa's [0, 1] by default, and always that in EMPIR's own
            architectures.
        ema: Decay of the exponential moving average of the weights that is kept as the result; 0 keeps the last ones.
            It also holds while all members are trained together.
        start: Name of an earlier member whose trained weights this one starts from, instead of random ones.
        in_ensemble: Whether it is a member in the end; a mere teacher is not.

    Raises:
        InputError: If a number is out of its range.
    """

    precision: Precision = field(kw_only=True)
    scale: Scale = "none"
    activations: Activations = Activations.UNSIGNED
    ema: float = 0.0
    start: str = ""
    in_ensemble: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ema < 1:
            raise InputError(f"ema of {self._who} must lie in [0, 1), got {self.ema!r}")


@dataclass(frozen=True)
class JointRecipe(Schedule):
    """How all members are trained together, through their common decision, after each was trained alone.

    Args:
        member_share: Share of the loss that is the mean of the members' own: see
            :class:`~empir_plugin.training.batch.Criterion`.
        rule: How they decide: a key of :data:`~empir_plugin.zoo.card.RULES`.

    Raises:
        InputError: If a number is out of its range.
    """

    member_share: float = 0.0
    rule: str = field(default="mean_probability", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.member_share <= 1:
            raise InputError(f"member_share of {self._who} must lie in [0, 1], got {self.member_share!r}")
        if not self.epochs:
            raise InputError(f"epochs of {self._who} must be positive, got 0: leave {self._who} out")
        if self.rule not in RULES:
            raise InputError(f"rule of {self._who} must be one of {', '.join(RULES)}, got {self.rule!r}")

    @property
    def run(self) -> str:
        """What the files of this run are called."""
        return f"{self.name}.together"

    @property
    def criterion(self) -> Criterion:
        """How far an output is from the labels, and the members' own from them."""
        return replace(super().criterion, member_share=self.member_share)

    @property
    def _who(self) -> str:
        return "[joint]"


@dataclass(frozen=True)
class FinishRecipe(JointRecipe):
    """How all members are trained together once more, in another way, from the weights ``[joint]`` left."""

    @property
    def run(self) -> str:
        """What the files of this run are called."""
        return f"{self.name}.finish"

    @property
    def _who(self) -> str:
        return "[finish]"


def settings_of(schedule: Schedule) -> dict[str, object]:
    """A schedule as plain values, for files.

    The keys younger than the first checkpoints are left out at their default, so that those can still be resumed.

    Example:
        >>> sorted(settings_of(Schedule("m", seed=1, epochs=2)))[-3:]
        ['shift', 'warmup', 'weight_decay']
    """
    plain = [item for item in fields(schedule) if item.name != "objective"]
    young = {item.name for item in plain if item.name in _YOUNG and getattr(schedule, item.name) == item.default}
    found = {item.name: getattr(schedule, item.name) for item in plain if item.name not in young}
    objective = {} if schedule.objective == clean else {"objective": describe(schedule.objective)}
    return {**{key: _plain(value) for key, value in found.items()}, **objective}


def reported(member: MemberRecipe) -> dict[str, object]:
    """A member's settings as its report has them: its precision as text.

    Example:
        >>> reported(MemberRecipe("m", seed=1, epochs=2, precision=Precision(2, 4)))["precision"]
        'w2a4'
    """
    return {**settings_of(member), "precision": str(member.precision)}


def _plain(value: object) -> object:
    if isinstance(value, Precision):
        return asdict(value)
    return value.value if isinstance(value, Activations) else value


_YOUNG = frozenset({"start", "in_ensemble", "activations", "gce_q", "compute", "rule"})
