"""Bytes a model's weights take."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from empir_plugin.errors import EvaluationError
from empir_plugin.models.packing import save_packed


def packed_bytes(model: nn.Module) -> int:
    """Size of the file that :func:`~empir_plugin.models.packing.save_packed` writes of a model, header included.

    Raises:
        EvaluationError: If the model cannot be packed.
        WeightsError: If there is no room for the file.

    Example:
        >>> packed_bytes(nn.Linear(100, 10, bias=False))
        4112
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        try:
            save_packed(model, path)
        except (RuntimeError, NotImplementedError) as error:
            raise EvaluationError(f"the model's weights cannot be packed ({error}): share no tensors in it") from error
        return path.stat().st_size
