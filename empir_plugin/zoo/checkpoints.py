"""Checkpoints of named models: only tensors are read from them, whichever library was asked for the model.

RobustBench's ``load_model`` passes ``custom_checkpoint`` to timm's ``create_model``, which builds the model and then
reads the file itself: timm 1.0.9 unpickles it, and a pickle can run any program. So timm's loader is told which models
are named here, and hands their files to :func:`~empir_plugin.models.weight_files.load_checkpoint`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import ref

from torch import nn

from empir_plugin._compat.hooks import silence_harmless_warnings
from empir_plugin.errors import CompatibilityError, InputError
from empir_plugin.models.weight_files import load_checkpoint

with silence_harmless_warnings():
    import timm.models._factory

_TIMM: Any = timm.models._factory
_LOADER = "load_checkpoint"
_SOURCES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""Keywords of timm that can name a file."""


# By the number of the object: a class of others may be without a hash.
_NAMED: dict[int, ref[nn.Module]] = {}


def read_tensors_only(model: nn.Module) -> None:
    """Keep timm's ``create_model`` from unpickling checkpoints for this model.

    It reads them with :func:`~empir_plugin.models.weight_files.load_checkpoint`, instead of with its own loader.

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
