"""What came of one attack on one shard, in the form in which it is stored and sent between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from empir_plugin.errors import EvaluationError

NOT_ATTACKED = -1
"""Stands for the decision on an image the attack was not given."""


@dataclass(frozen=True)
class Outcome:
    """What came of an attack, or of showing the clean images, on the n images of a shard.

    Args:
        decisions: The class the model decides for on what the attack made of each image, n numbers;
            :data:`NOT_ATTACKED` for an image the attack was not given.
        seconds: Time it took, the judge's included.
        threads: CPU threads it was computed with: another number of them can round other bits.
        flags: Warnings of AutoAttack about the model or the evaluation.
        parts: For each part of a suite its name and, image by image, 1 if the image was still classified correctly.
        images_sha256: Of the file with the images that fell, if it was asked for.

    Raises:
        EvaluationError: If the fields are not of these forms.

    Example:
        >>> Outcome.from_table(Outcome((3, -1), 0.5, 2).to_table()).decisions
        (3, -1)
    """

    decisions: tuple[int, ...]
    seconds: float
    threads: int
    flags: tuple[str, ...] = ()
    parts: tuple[tuple[str, str], ...] = ()
    images_sha256: str = ""

    def __post_init__(self) -> None:
        whole = all(type(number) is int and number >= NOT_ATTACKED for number in (*self.decisions, self.threads))
        if not (whole and self.decisions and self.seconds >= 0):
            raise EvaluationError("an outcome has a class number for each image, threads, and seconds of 0 or more")
        if any(len(bits) != len(self.decisions) or not set(bits) <= {"0", "1"} for _, bits in self.parts):
            raise EvaluationError("a part of an outcome has one 0 or 1 for each image")

    def to_table(self) -> dict[str, Any]:
        """As what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Outcome:
        """Back from what JSON held.

        Raises:
            EvaluationError: If it is not an outcome.
        """
        try:
            parts = tuple((str(name), str(bits)) for name, bits in table["parts"])
            lists = {"decisions": tuple(table["decisions"]), "flags": tuple(map(str, table["flags"])), "parts": parts}
            return cls(**{**table, **lists})
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"this is no outcome of a shard ({error})") from error
