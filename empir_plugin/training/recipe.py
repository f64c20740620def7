"""Training recipes as data: what is trained, on what, how; read from TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from empir_plugin import _toml
from empir_plugin.errors import InputError
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import Scale


@dataclass(frozen=True)
class MemberRecipe:
    """How one network is trained; every randomness in it follows from ``seed``.

    Args:
        name: Name of the network and of its files.
        precision: Bits of its quantized layers.
        seed: Of the initial weights, the order of the images and their augmentation.
        epochs: Passes over the training set.
        scale: Scale of the quantized weights.
        batch_size: Images per step; the last, incomplete batch of an epoch is dropped.
        learning_rate: Of Adam, the highest of the schedule.
        warmup: Share of all steps in which the learning rate rises linearly; it then falls along a cosine to zero.
        weight_decay: Of AdamW, decoupled.
        label_smoothing: Share of the target that is spread evenly over all classes.
        shift: Training images are moved by up to so many pixels in each direction, zeros coming in.
        flip: Whether half of the training images are mirrored.
        ema: Decay of the exponential moving average of the weights that is kept as the result; 0 keeps the last ones.

    Raises:
        InputError: If a number is out of its range.
    """

    name: str
    precision: Precision
    seed: int
    epochs: int
    scale: Scale = "none"
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    ema: float = 0.0

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        for key, value in positive.items():
            if not value > 0:
                raise InputError(f"{key} of member {self.name!r} must be positive, got {value!r}")
        for key in ("warmup", "label_smoothing", "ema"):
            if not 0 <= getattr(self, key) < 1:
                raise InputError(f"{key} of member {self.name!r} must lie in [0, 1), got {getattr(self, key)!r}")
        if self.shift < 0 or self.weight_decay < 0:
            raise InputError(f"shift and weight_decay of member {self.name!r} must not be negative")


@dataclass(frozen=True)
class Recipe:
    """Networks of one architecture, trained one after the other on one data set.

    Args:
        name: The ensemble's name.
        architecture: A key of :data:`empir_plugin.zoo.architectures.ARCHITECTURES`.
        dataset: ``"mnist"``, ``"cifar10"`` or another name :func:`empir_plugin.evaluation.load_images` knows.
        members: In the ensemble's order.

    Example:
        >>> recipe = Recipe.parse(
        ...     '''
        ... name = "tiny"
        ... architecture = "mnistconv"
        ... dataset = "mnist"
        ... [defaults]
        ... epochs = 1
        ... [[members]]
        ... name = "tiny-w2a4"
        ... precision = "w2a4"
        ... seed = 7
        ... '''
        ... )
        >>> recipe.members[0].precision, recipe.members[0].epochs
        (Precision(weight_bits=2, activation_bits=4), 1)
    """

    name: str
    architecture: str
    dataset: str
    members: tuple[MemberRecipe, ...]

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read a recipe from TOML text.

        Raises:
            InputError: If the text is no TOML, or a key is missing, unknown or of the wrong kind.
        """
        try:
            table = _toml.loads(text)
        except _toml.TOMLDecodeError as error:
            raise InputError(f"a recipe must be TOML: {error}") from error
        _check_keys(table, required={"name", "architecture", "dataset", "members"}, known={"defaults"}, where="recipe")
        defaults = table.get("defaults", {})
        members = tuple(_member({**defaults, **member}) for member in table["members"])
        if not members:
            raise InputError("a recipe must have at least one [[members]] table, got none")
        return cls(table["name"], table["architecture"], table["dataset"], members)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe from a file.

        Raises:
            InputError: If there is no such file, or what is in it is no recipe.
        """
        if not path.is_file():
            raise InputError(f"no recipe file at {path}")
        return cls.parse(path.read_text(encoding="utf-8"))


def _member(table: Mapping[str, Any]) -> MemberRecipe:
    known = {field.name for field in fields(MemberRecipe)}
    required = {"name", "precision", "seed", "epochs"}
    _check_keys(table, required=required, known=known, where=f"member {table.get('name', '?')!r}")
    return MemberRecipe(**{**table, "precision": Precision.parse(str(table["precision"]))})


def _check_keys(table: Mapping[str, Any], *, required: set[str], known: set[str], where: str) -> None:
    missing = sorted(required - table.keys())
    unknown = sorted(table.keys() - required - known)
    if missing:
        raise InputError(f"{where} lacks the key(s) {', '.join(missing)}")
    if unknown:
        raise InputError(
            f"{where} has unknown key(s) {', '.join(unknown)}; known are {', '.join(sorted(known | required))}"
        )
