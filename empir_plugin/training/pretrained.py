"""Full-precision weights that somebody trained before, from the kinds of files they come in."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from empir_plugin.errors import WeightsError
from empir_plugin.models.packing import is_packed, load_packed, packed_names
from empir_plugin.models.state import load_strictly

_PICKLES = frozenset({".pt", ".pth", ".tar", ".ckpt", ".bin"})
_PARALLEL = "module."


def load_pretrained(model: nn.Module, path: Path) -> None:
    """Load the weights of a full-precision checkpoint into a network of the same architecture.

    A file of torch is read without running code from it; its state dict may be wrapped as ``state_dict``, and its keys
    may all begin with the ``module.`` of ``DataParallel``.

    Args:
        model: In full precision.
        path: A packed file of this package, a safetensors state dict, or one of torch (``.pt``, ``.pth``, ``.tar``,
            ``.ckpt``, ``.bin``).

    Raises:
        WeightsError: If the file is missing, damaged, of few bits already, or made for another architecture; the
            network is then left as it was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "linear.pt")
        >>> torch.save({"state_dict": {"module.weight": torch.ones(1, 1)}}, path)
        >>> load_pretrained(linear := nn.Linear(1, 1, bias=False), path)
        >>> linear.weight.item()
        1.0
    """
    if path.suffix.lower() in _PICKLES:
        state = _from_torch(path)
    elif is_packed(path):
        if names := packed_names(path):
            some = f"{len(names)} of its weights, such as {names[0]!r}, are quantized"
            raise WeightsError(f"{path} is of few bits already ({some}): start from full-precision weights")
        return load_packed(model, path)
    else:
        state = _from_safetensors(path)
    _check_finite(state, path)
    return load_strictly(model, state, path)


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is truncated or no safetensors file ({error}): get it again") from error


def _from_torch(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    try:
        # The user's own full-precision weights, which mostly come as .pth; weights_only reads tensors and runs no code.
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, struct.error) as error:
        # A text under the name of a checkpoint fails in one of these ways or another, depending on its first letters.
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{path} cannot be read without running code from it ({reason}): save a state dict"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict: save model.state_dict(), as it is or as 'state_dict'")
    parallel = all(key.startswith(_PARALLEL) for key in state)
    return {key.removeprefix(_PARALLEL) if parallel else key: value for key, value in state.items()}


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(f"{path} is damaged: {key!r} has values that are not finite")
