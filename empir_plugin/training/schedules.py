"""Training schedules of single members and of whole ensembles, and the objectives recipes name in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from empir_plugin._files.names import check_name
from empir_plugin._files.tables import build, build_kind, read_with, table_of
from empir_plugin.errors import InputError
from empir_plugin.evaluation.identity import describe
from empir_plugin.models.activations import Activations
from empir_plugin.models.quantize import Precision, Scale
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
"""Arithmetic of the networks during training. Evaluation is always in float32."""


def check_compute(compute: str, of: str) -> None:
    """Check the name of an arithmetic.

    Raises:
        InputError: If it is neither float32 nor bfloat16.
    """
    if compute not in get_args(Compute):
        raise InputError(f"compute of {of} must be one of {', '.join(get_args(Compute))}, got {compute!r}")


RecipeObjective = Objective | DistilledFrom
"""An objective, or a distillation whose teacher is still to be trained."""

_OBJECTIVES: Mapping[str, Callable[..., RecipeObjective]] = MappingProxyType(
    {
        "clean": Clean,
        "adversarial": Adversarial,
        "trades": Trades,
        "gradient_penalty": GradientPenalty,
        "distilled": DistilledFrom,
        "boundary_retrain": BoundaryRetrain,
    }
)


def parse_objective(table: Any, where: str = "[objective]") -> RecipeObjective:
    """Read an objective from its table in a recipe.

    Args:
        table: Its ``kind`` is ``clean``, ``adversarial``, ``trades``, ``gradient_penalty``, ``distilled`` or
            ``boundary_retrain``; the other keys are the arguments of that objective. ``adversarial`` and ``trades``
            have a table ``adversary``, see :func:`~empir_plugin.training.adversary.parse_adversary`, and may have a
            table ``awp`` with the arguments of :class:`~empir_plugin.training.objectives.WeightPerturbed`.
        where: What error messages call the table.

    Raises:
        InputError: If the kind is unknown, or an argument is missing, unknown or impossible.

    Example:
        >>> parse_objective({"kind": "gradient_penalty", "weight": 100})
        GradientPenalty(weight=100)
    """
    settings = dict(table_of(table, where))
    awp = settings.pop("awp", None)
    objective = build_kind(_OBJECTIVES, settings, where)
    if awp is None:
        return objective
    if not isinstance(objective, (Adversarial, Trades)):
        kind = settings["kind"]
        raise InputError(f"awp of {where} needs the kind 'adversarial' or 'trades', got {kind!r}: leave awp out")
    return build(WeightPerturbed, table_of(awp, f"awp of {where}"), f"awp of {where}", objective=objective)


@dataclass(frozen=True)
class Schedule:
    """Schedule of one training run, of a network or an ensemble; ``seed`` determines all its randomness.

    Args:
        name: Name of what is trained, and of its files: see :func:`~empir_plugin._files.names.check_name`.
        seed: Seed of the initial weights, the order of the images, their augmentation, and the objective's randomness.
        epochs: Passes over the training set.
        batch_size: Images per step; the last, incomplete batch of an epoch is dropped.
        learning_rate: Peak learning rate of AdamW.
        warmup: Share of all steps over which the learning rate rises linearly, before it decays to zero along a cosine.
        weight_decay: Decoupled weight decay of AdamW.
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
        gce_q: Above 0, the loss on labels is the generalized cross-entropy: see
            :class:`~empir_plugin.training.batch.Criterion`.
        compute: Arithmetic of the networks: see :func:`~empir_plugin.training.loop.compute_in`.
        shift: Largest random shift of the training images in pixels, padded with zeros.
        flip: Whether half of the training images are flipped horizontally.
        objective: The objective whose loss is minimized.

    Raises:
        InputError: If a setting is out of its range.
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
    objective: RecipeObjective = field(default=clean, metadata=read_with(parse_objective))
    gce_q: float = field(default=0.0, kw_only=True)
    compute: Compute = field(default="float32", kw_only=True)

    def __post_init__(self) -> None:
        check_name("a member or a recipe", self.name)
        for key in ("batch_size", "learning_rate"):
            if not getattr(self, key) > 0:
                raise InputError(f"{key} of {self._who} must be positive, got {getattr(self, key)!r}")
        for key in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, key) < 1:
                raise InputError(f"{key} of {self._who} must lie in [0, 1), got {getattr(self, key)!r}")
        for key in ("epochs", "shift", "weight_decay"):
            if not getattr(self, key) >= 0:
                raise InputError(f"{key} of {self._who} must be 0 or more, got {getattr(self, key)!r}")
        check_gce_q(self.gce_q, self.label_smoothing)
        check_compute(self.compute, self._who)
        self._check_labels_are_used()

    def _check_labels_are_used(self) -> None:
        """Check that settings of the loss on labels are unset for a distillation without labels, which ignores them."""
        if not isinstance(self.objective, DistilledFrom) or self.objective.label_share:
            return
        for key in ("label_smoothing", "member_share", "gce_q"):
            if value := getattr(self, key, 0):
                cure = f"leave {key} out (or set it to 0), or give the objective a label_share"
                raise InputError(f"{key} of {self._who} is {value!r}, which its objective 'distilled' ignores: {cure}")

    @property
    def run(self) -> str:
        """Stem of the run's file names."""
        return self.name

    @property
    def criterion(self) -> Criterion:
        """The loss on the labels."""
        return Criterion(self.label_smoothing, gce_q=self.gce_q)

    @property
    def _who(self) -> str:
        return f"member {self.name!r}"


@dataclass(frozen=True)
class MemberRecipe(Schedule):
    """Schedule and precision of one member.

    Args:
        precision: Bits of its quantized layers.
        scale: Scale of the quantized weights.
        activations: Range of the quantized layers' inputs: DoReFa's [0, 1] by default, the only one in EMPIR's own
            architectures.
        ema: Decay of the exponential moving average of the weights that is kept as the result, in [0, 1); 0 keeps the
            last weights. It also applies while all members are trained together.
        start: Name of an earlier member whose trained weights are the initial weights; random ones if empty.
        in_ensemble: Whether it becomes a member of the ensemble; a teacher does not.

    Raises:
        InputError: If a setting is out of its range.
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
    """Schedule of training all members together, through their common decision, after each was trained alone.

    Args:
        member_share: Share of the loss that is the mean of the members' own losses: see
            :class:`~empir_plugin.training.batch.Criterion`.
        rule: Decision rule of the ensemble: a key of :data:`~empir_plugin.zoo.card.RULES`.

    Raises:
        InputError: If a setting is out of its range.
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
        """Stem of the run's file names."""
        return f"{self.name}.together"

    @property
    def criterion(self) -> Criterion:
        """The loss on the labels, shared between the ensemble's decision and its members."""
        return replace(super().criterion, member_share=self.member_share)

    @property
    def _who(self) -> str:
        return "[joint]"


@dataclass(frozen=True)
class FinishRecipe(JointRecipe):
    """Schedule of a second training of all members together, starting from the weights ``[joint]`` produced."""

    @property
    def run(self) -> str:
        """Stem of the run's file names."""
        return f"{self.name}.finish"

    @property
    def _who(self) -> str:
        return "[finish]"


def settings_of(schedule: Schedule) -> dict[str, object]:
    """A schedule as plain values, for reports and checkpoints.

    Keys added after the first checkpoints are omitted at their default, so that old checkpoints can still be resumed.

    Example:
        >>> sorted(settings_of(Schedule("m", seed=1, epochs=2)))[-3:]
        ['shift', 'warmup', 'weight_decay']
    """
    plain = [item for item in fields(schedule) if item.name != "objective"]
    omitted = {item.name for item in plain if item.name in _ADDED and getattr(schedule, item.name) == item.default}
    settings = {item.name: _plain(getattr(schedule, item.name)) for item in plain if item.name not in omitted}
    objective = {} if schedule.objective == clean else {"objective": describe(schedule.objective)}
    return {**settings, **objective}


def report_settings(member: MemberRecipe) -> dict[str, object]:
    """A member's settings as written in its report, with the precision as text.

    Example:
        >>> report_settings(MemberRecipe("m", seed=1, epochs=2, precision=Precision(2, 4)))["precision"]
        'w2a4'
    """
    return {**settings_of(member), "precision": str(member.precision)}


def _plain(value: object) -> object:
    if isinstance(value, Precision):
        return asdict(value)
    return value.value if isinstance(value, Activations) else value


_ADDED = frozenset({"start", "in_ensemble", "activations", "gce_q", "compute", "rule"})
"""Keys that the first checkpoints did not have."""
