"""Checkpoints of named models: only tensors are read from them, whichever library was asked for the model.

RobustBench's ``load_model`` passes ``custom_checkpoint`` to timm's ``create_model``, which builds the model and then
reads the file itself: timm 1.0.9 unpickles it, and a pickle can run any program. So timm's loader is told which models
are named here, and hands their files to :func:`load_checkpoint`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import ref

from torch import Tensor, nn

from empir_plugin._compat.hooks import silence_harmless_warnings
from empir_plugin._files.tensor_files import sha256
from empir_plugin.errors import CompatibilityError, InputError, WeightsError
from empir_plugin.models.weight_files import load_weights

with silence_harmless_warnings():
    import timm.models._factory

_LOG = logging.getLogger(__name__)
_TIMM: Any = timm.models._factory
_LOADER = "load_checkpoint"
_SOURCES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""Keywords of timm that can name a file."""


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A model, and the file its weights are from."""

    model: ref[nn.Module]
    sha256: str
    versions: tuple[int, ...]


# By the number of the object: a class of others may be without a hash.
_NAMED: dict[int, ref[nn.Module]] = {}
_LOADED: dict[int, _Loaded] = {}


def load_checkpoint(model: nn.Module, path: Path, *, ema: bool | None = None) -> None:
    """Load a weight file into a model, strictly; note on the model that it has weights, and log the file's SHA-256.

    Raises:
        WeightsError: See :func:`~empir_plugin.models.weight_files.load_weights`; or if the file changes meanwhile.
    """
    before = sha256(path)
    load_weights(model, path, ema=ema)
    if sha256(path) != before:
        raise WeightsError(f"{path} changed while it was read: load it again when nothing writes to it")
    setattr(model, "weights_loaded", True)  # noqa: B010 - a module attribute unknown to nn.Module's type
    _LOADED[id(model)] = _Loaded(ref(model), before, _versions(model))
    _LOG.info("%s: sha256 %s", path, before)


def checkpoint_sha256(model: nn.Module) -> str | None:
    """The SHA-256 of the file that a model's weights are from.

    Returns:
        Of the file that :func:`load_checkpoint` read last; None if there was none, or the weights changed since.

    Example:
        >>> checkpoint_sha256(nn.Linear(1, 1)) is None
        True
    """
    loaded = _LOADED.get(id(model))
    if loaded is None or loaded.model() is not model or loaded.versions != _versions(model):
        return None
    return loaded.sha256


def _versions(model: nn.Module) -> tuple[int, ...]:
    """How often each tensor was changed in place."""
    return tuple(value._version for value in model.state_dict().values() if isinstance(value, Tensor))


def read_tensors_only(model: nn.Module) -> None:
    """Let timm's ``create_model`` read checkpoints for this model with :func:`load_checkpoint`, instead of its own.

    Raises:
        CompatibilityError: If this release of timm loads checkpoints in another way.
    """
    if not callable(getattr(_TIMM, _LOADER, None)):
        raise CompatibilityError(
            f"timm.models._factory must have {_LOADER}, which {timm.__version__} has not: checkpoints of named models "
            "could not be kept from executing code, so install timm 1.0.9 to 1.0.31"
        )
    if _TIMM.load_checkpoint is not _load_for_timm:
        _TIMMS[:] = [_TIMM.load_checkpoint]
        _TIMM.load_checkpoint = _load_for_timm
    _NAMED[id(model)] = ref(model)


_TIMMS: list[Callable[..., Any]] = []
"""Timm's own loader of checkpoints."""


def _load_for_timm(model: nn.Module, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> Any:
    named = _NAMED.get(id(model))
    if named is None or named() is not model:
        return _TIMMS[0](model, checkpoint_path, *args, **kwargs)
    return load_checkpoint(model, Path(checkpoint_path))


def refuse_other_sources(name: str, keywords: Mapping[str, Any]) -> None:
    """Refuse timm's keywords that name a file which timm would read itself.

    Args:
        name: Of the model, for the message.
        keywords: Of timm's ``create_model``; the name of a configuration of timm is no file.

    Raises:
        InputError: If there is one.

    Example:
        >>> refuse_other_sources("resnet18", {"pretrained_cfg_overlay": None, "drop_rate": 0.1})
    """
    for key in _SOURCES:
        value = keywords.get(key)
        if value and not (key == "pretrained_cfg" and isinstance(value, str)):
            raise InputError(
                f"{name} takes no {key}: timm would read a file in it, and execute code from it; load the file with "
                "custom_checkpoint= (--checkpoint), or with load_weights"
            )


@contextmanager
def without_pickles() -> Iterator[None]:
    """Let other libraries read only tensors from the files they load in the block, whatever they ask ``torch`` for.

    It lasts for all threads of this process.
    """
    forced = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": None}
    found = {key: os.environ.get(key) for key in forced}
    _set_environment(forced)
    try:
        yield
    finally:
        _set_environment(found)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for key, value in values.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
