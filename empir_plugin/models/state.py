"""Loading a state dict into a model of the same architecture, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from empir_plugin.errors import WeightsError

_LEARNED = "activation_bound"
Shapes = Mapping[str, tuple[int, ...]]


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict into a model; ``path`` is where it came from, for the error.

    Learned ranges of activations may be missing, as in a full-precision checkpoint; they stay what they are.

    Raises:
        WeightsError: If a name or a shape differs; the model is then left as it was.
    """
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    needed = {key: shape for key, shape in own.items() if key in found or key.rpartition(".")[2] != _LEARNED}
    if needed != found:
        differing = sorted(dict(needed.items() ^ found.items()))[0]
        details = _difference(needed, found)
        raise WeightsError(f"{path} was made for another architecture: it differs in {differing!r} ({details})")
    model.load_state_dict(dict(state))


def _difference(own: Shapes, found: Shapes) -> str:
    kinds = {
        "it lacks": [key for key in own if key not in found],
        "it has besides": [key for key in found if key not in own],
        "of another shape are": [
            f"{key} {found[key]} instead of {shape}" for key, shape in own.items() if found.get(key, shape) != shape
        ],
    }
    return "; ".join(f"{what} {_first(keys)}" for what, keys in kinds.items() if keys)


def _first(keys: list[str], shown: int = 5) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(sorted(keys)[:shown]) + more
