"""The outcome of one attack on one shard, in the form in which it is cached and sent between processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from empir_plugin._files.atomic import replacing
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError

NOT_ATTACKED = -1
"""Stands for the decision on an image the attack was not given."""


@dataclass(frozen=True)
class Shard:
    """Images ``start`` to ``stop - 1`` of a data set.

    Args:
        number: From 0.
        start: First image.
        stop: First image that no longer belongs to it.
    """

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"shard {self.number} (images {self.start} to {self.stop - 1})"


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attack, or of the clean images, on the n images of a shard.

    Args:
        decisions: The model's decision on each image the attack returned, n class numbers; :data:`NOT_ATTACKED` for an
            image the attack was not given.
        seconds: Time the attack took, including the check of its results.
        threads: CPU threads it was computed with: another number of them can round other bits.
        flags: AutoAttack's warnings about the model or the evaluation.
        parts: For each part of AutoAttack its name and, per image, 1 if the image was still classified correctly.
        images_sha256: Of the file with the broken images, if they are kept.
        unstable: Of the clean images, those for which the output depends on the other images of the batch, by their
            positions in the shard.
        zero_gradients: How many of the attacked images had a gradient of exactly zero in the first step; None if the
            attack does not tell.

    Raises:
        EvaluationError: If a field has another form.

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
    unstable: tuple[int, ...] = ()
    zero_gradients: int | None = None

    def __post_init__(self) -> None:
        whole = all(type(number) is int and number >= NOT_ATTACKED for number in (*self.decisions, self.threads))
        if not (whole and self.decisions and self.seconds >= 0):
            raise EvaluationError("an outcome has a class number for each image, threads, and seconds of 0 or more")
        if any(len(bits) != len(self.decisions) or not set(bits) <= {"0", "1"} for _, bits in self.parts):
            raise EvaluationError("a part of an outcome has one 0 or 1 for each image")

    def to_table(self) -> dict[str, Any]:
        """As a mapping that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Outcome:
        """Read back what :meth:`to_table` returned.

        Raises:
            EvaluationError: If the table is not an outcome.
        """
        try:
            parts = tuple((str(name), str(bits)) for name, bits in table["parts"])
            lists = {
                "decisions": tuple(table["decisions"]),
                "flags": tuple(map(str, table["flags"])),
                "parts": parts,
                "unstable": tuple(table.get("unstable", ())),
            }
            return cls(**{**table, **lists})
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"this is not the outcome of a shard ({error})") from error


@dataclass(frozen=True)
class BrokenImages:
    """Adversarial images of a shard that the model misclassifies.

    Args:
        rows: Their positions in the shard, ``(n,)``.
        images: ``(n, C, H, W)``, float32 in [0, 1].
    """

    rows: Tensor
    images: Tensor


def worst_images(data: ImageSet, clean: str, broken: Iterable[tuple[Shard, BrokenImages]]) -> Tensor:
    """For every image, one that the model misclassifies, where an attack found one.

    Args:
        data: The clean images.
        clean: One character per image: 1 if the model classifies it correctly.
        broken: The broken images, attack by attack; the first attack that broke an image counts.

    Returns:
        ``(N, C, H, W)``, float32 in [0, 1]; the clean image where that is misclassified already, and where every attack
        failed.
    """
    images = data.as_float()
    robust = torch.tensor([verdict == "1" for verdict in clean])
    for shard, found in broken:
        rows = found.rows + shard.start
        new = robust[rows]
        images[rows[new]] = found.images[new]
        robust[rows] = False
    return images


def write_images(path: Path, images: Tensor, labels: Tensor, about: Mapping[str, str]) -> None:
    """Write ``images`` ``(N, C, H, W)`` and ``labels`` ``(N,)`` as safetensors, with ``about`` as metadata.

    Raises:
        EvaluationError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "adversarial.safetensors")
        >>> write_images(path, torch.zeros(2, 1, 4, 4), torch.tensor([3, 5]), {"threat": "Linf:0.3"})
        >>> safetensors.torch.load_file(path)["labels"]
        tensor([3, 5])
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            tensors = {"images": images.contiguous(), "labels": labels.contiguous()}
            safetensors.torch.save_file(tensors, partial, metadata=dict(about))
    except (OSError, safetensors.SafetensorError) as error:
        raise EvaluationError(
            f"the adversarial images cannot be written to {path} ({error}): free some space"
        ) from error


def needed_bytes(data: ImageSet, attacks: Sequence[object]) -> int:
    """Disk space that keeping the images may take: those of every attack, and the file made from them."""
    return 4 * data.images.numel() * (len(attacks) + 1)
