"""All adversarial images of an evaluation in one file, as a leaderboard asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.data import ImageSet
from empir_plugin.evaluation.files import replacing
from empir_plugin.evaluation.shards import Shard
from empir_plugin.evaluation.store import Fallen


def worst_images(data: ImageSet, clean: str, fallen: Iterable[tuple[Shard, Fallen]]) -> Tensor:
    """For every image, what breaks the model.

    Args:
        data: The images.
        clean: One character per image: 1 if the model classifies it correctly.
        fallen: Images that fell, attack by attack; the first that broke an image counts.

    Returns:
        ``(N, C, H, W)``, float32; clean where the clean image is misclassified, and where every attack was withstood.
    """
    images = data.as_float()
    standing = torch.tensor([verdict == "1" for verdict in clean])
    for shard, found in fallen:
        rows = found.rows + shard.start
        new = standing[rows]
        images[rows[new]] = found.images[new]
        standing[rows] = False
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
        raise EvaluationError(f"the adversarial images cannot be written to {path} ({error}): make space") from error


def needed_bytes(data: ImageSet, attacks: Sequence[object]) -> int:
    """Disk space that keeping the images may take: those of every attack, and the file made of them."""
    return 4 * data.images.numel() * (len(attacks) + 1)
