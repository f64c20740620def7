"""Weights from files of any project: which tensors of a checkpoint are the weights of a network, and under what names.

Training scripts save a state dict inside a dict of other values, from inside a wrapper that adds to its names, or
beside a moving average of the same weights. What fits a network is decided by its own names and shapes, so no list of
keys has to be complete.
"""

from __future__ import annotations

import logging
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tarfile import is_tarfile
from typing import Any
from weakref import ref
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor, nn

from empir_plugin._files.tensor_files import read_tensors, read_weights, sha256
from empir_plugin.errors import WeightsError
from empir_plugin.models.layers import describe_kind, is_special
from empir_plugin.models.packing import LEARNED, check_types, is_packed, load_packed, load_strictly

_LOG = logging.getLogger(__name__)

_PICKLES = frozenset({".pt", ".pth", ".tar", ".ckpt", ".bin", ".pkl"})
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names added by ``DataParallel``, ``torch.compile``, FSDP and activation checkpointing, at any depth."""
_COUNTER = "num_batches_tracked"
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|shadow|polyak)(?![a-z])")
_DEPTH = 4
_SHOWN = 5
"""Names of tensors shown in an error."""


def load_weights(model: nn.Module, path: Path, *, ema: bool | None = None) -> None:
    """Load weights from a packed, safetensors or PyTorch file into a network with the same names and shapes.

    A packed file is loaded by :func:`~empir_plugin.models.packing.load_packed`. No code of a PyTorch file is executed;
    objects in it that are no tensors are ignored. The state dict may lie at any key of the file, and its names may have
    a prefix, such as the ``module.`` of ``DataParallel`` or the ``_orig_mod.`` of ``torch.compile``; both are logged.
    Counters of batch normalization may be missing.

    Args:
        model: The network.
        path: The file; its content decides how it is read.
        ema: Whether to load a moving average of the weights; None if the file has only one of the two.

    Raises:
        WeightsError: If the file is missing, damaged, or made for another architecture, holds several sets of weights
            that fit, or weights and a moving average and ``ema`` does not say which; the network is left unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "linear.pt")
        >>> torch.save({"net": {"module.weight": torch.ones(1, 1)}, "epoch": 7}, path)
        >>> load_weights(linear := nn.Linear(1, 1, bias=False), path)
        >>> linear.weight.item()
        1.0
    """
    if holds_codes(path):
        if ema:
            raise WeightsError(f"{path} holds packed weights and no moving average: leave out ema (--ema)")
        return load_packed(model, path)
    content = _read_torch(path) if _is_torch(path) else read_weights(path, read_tensors)[0]
    own = dict(model.state_dict())
    parts = [part for each in _state_dicts(content) for part in _fitting_parts(each, own)]
    if not parts:
        return _load_closest(model, content, path)
    chosen = _select_part(parts, _averages(content, parts), ema, path)
    check_types(model, chosen.state, str(path))
    _check_plain(chosen.state, path)
    load_strictly(model, chosen.state, path)
    if chosen.where or chosen.prefix:
        _LOG.info("%s: loaded %s", path, chosen)
    return None


def load_checkpoint(model: nn.Module, path: Path, *, ema: bool | None = None) -> None:
    """Load a weight file into a model, strictly; note on the model that it has weights, and log the file's SHA-256.

    Raises:
        WeightsError: See :func:`load_weights`; or if the file changes meanwhile.
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


@dataclass(frozen=True, eq=False)
class _Loaded:
    """A model, and the file its weights are from."""

    model: ref[nn.Module]
    sha256: str
    versions: tuple[int, ...]


_LOADED: dict[int, _Loaded] = {}
"""By the number of the object: a class of others may be without a hash."""


@dataclass(frozen=True)
class _Part:
    """A state dict in a file.

    Args:
        state: Tensors by name.
        where: Keys that lead to it.
        prefix: What its names have in the file and not in ``state``.
        is_added: Whether ``state`` has the prefix, and the file does not.
    """

    state: Mapping[str, Tensor]
    where: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    is_added: bool = False

    @property
    def is_average(self) -> bool:
        return any(_is_average(name) for name in (*self.where, *self.prefix))

    def __str__(self) -> str:
        under = f"the weights under {'.'.join(self.where)!r}" if self.where else "the weights"
        change = "adding" if self.is_added else "without"
        return f"{under}, {change} the prefix {'.'.join(self.prefix) + '.'!r}" if self.prefix else under


def _is_average(name: str) -> bool:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("_", " ")
    return _AVERAGED.search(words) is not None


def _state_dicts(content: Any, where: tuple[str, ...] = ()) -> Iterator[_Part]:
    """Every mapping from names to tensors in a file, at any depth; what is no tensor in it is ignored."""
    inner = _items(content)
    if isinstance(content, Mapping) and (found := {key: each for key, each in inner if isinstance(each, Tensor)}):
        yield _Part({key: value.detach() for key, value in found.items()}, where)
    if len(where) < _DEPTH:
        for key, value in inner:
            yield from _state_dicts(value, (*where, key))


def _items(content: Any) -> list[tuple[str, Any]]:
    """The values of a mapping or a sequence by their keys or numbers; none of anything else."""
    pairs = content.items() if isinstance(content, Mapping) else enumerate(content) if _is_sequence(content) else ()
    return [(str(key), value) for key, value in pairs]


def _is_sequence(content: Any) -> bool:
    return isinstance(content, (list, tuple))


def _fitting_parts(part: _Part, own: Mapping[str, Tensor]) -> list[_Part]:
    """The parts of a state dict that fit a network; none if anything is left over.

    A left-over tensor, such as the mean of a normalization, may belong to the function that was trained.
    """
    if (whole := _fit(part, own)) is not None:
        return [whole]
    fitting: list[_Part] = []
    for inner in _split(part):
        found = _fitting_parts(inner, own)
        if not found:
            return []
        fitting += found
    return fitting


def _split(part: _Part) -> list[_Part]:
    """A state dict cut by the first part of its names; empty if a name has only one."""
    if any("." not in name for name in part.state if name != "n_averaged"):  # the counter of torch's AveragedModel
        return []
    return _groups(part)


def _groups(part: _Part) -> list[_Part]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in part.state.items():
        first, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(first, {})[rest] = value
    return [replace(part, state=state, prefix=(*part.prefix, first)) for first, state in groups.items()]


def _fit(part: _Part, own: Mapping[str, Tensor]) -> _Part | None:
    """A state dict under the network's names, with its counters where the file has none; None if it does not fit."""
    for each in (part, _unwrap(part), _wrap(part, own)):
        counters = {key: value for key, value in own.items() if _last(key) == _COUNTER}
        state = {**counters, **each.state}
        optional = {key for key in own if _last(key) == LEARNED and key not in state}
        if _shapes(state) == {key: shape for key, shape in _shapes(own).items() if key not in optional}:
            return replace(each, state=state)
    return None


def _unwrap(part: _Part) -> _Part:
    """A state dict without the parts of names that wrappers add."""
    state = {
        ".".join(each for each in key.split(".") if each not in _WRAPPERS): value for key, value in part.state.items()
    }
    found = dict.fromkeys(each for key in part.state for each in key.split(".") if each in _WRAPPERS)
    return replace(part, state=state, prefix=(*part.prefix, *found)) if len(state) == len(part.state) else part


def _wrap(part: _Part, own: Mapping[str, Tensor]) -> _Part:
    """A state dict with the first part of the network's own names, if they have one in common."""
    first = {key.partition(".")[0] for key in own}
    if len(first) != 1 or part.prefix:
        return part
    (name,) = first
    return replace(
        part, state={f"{name}.{key}": value for key, value in part.state.items()}, prefix=(name,), is_added=True
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def _averages(content: Any, parts: Sequence[_Part]) -> list[str]:
    """Keys of moving averages in a file that do not fit as they are, such as a list without names."""
    fitting = {part.where[0] for part in parts if part.where}
    named = [key for key, value in _items(content) if _is_average(key) and _has_tensors(value)]
    return [key for key in named if key not in fitting]


def _has_tensors(content: Any, depth: int = 0) -> bool:
    if isinstance(content, Tensor):
        return content.dim() > 0
    inner = (_has_tensors(value, depth + 1) for _, value in _items(content))
    return isinstance(content, Unread) or (depth < _DEPTH and any(inner))


def _select_part(parts: Sequence[_Part], unnamed: Sequence[str], ema: bool | None, path: Path) -> _Part:
    """The one part to load."""
    averages = [part for part in parts if part.is_average]
    raw = [part for part in parts if not part.is_average]
    if ema is None and raw and (averages or unnamed):
        both = ", ".join([*map(str, [*raw, *averages]), *(f"tensors under {key!r}" for key in unnamed)])
        raise WeightsError(
            f"{path} holds weights and a moving average of them ({both}): say which to load, ema=True or ema=False "
            "(--ema or --no-ema)"
        )
    wanted = (raw or averages) if ema is None else averages if ema else raw
    if not wanted:
        there, cure = (
            ("no moving average", "ema=False (--no-ema)") if ema else ("a moving average only", "ema=True (--ema)")
        )
        raise WeightsError(f"{path} holds {there} that fits this network: pass {cure}")
    if any(not _are_equal(part, wanted[0]) for part in wanted[1:]):
        names = ", ".join(map(str, wanted))
        raise WeightsError(f"{path} holds several sets of weights that fit ({names}): save the one you mean on its own")
    return wanted[0]


def _are_equal(one: _Part, other: _Part) -> bool:
    return all(torch.equal(value, other.state[key]) for key, value in one.state.items())


def _load_closest(model: nn.Module, content: Any, path: Path) -> None:
    """Load the state dict with most names in common with a network that none fits: the error names the keys."""
    own, dicts = model.state_dict(), list(_state_dicts(content))
    for part in dicts:
        for inner in _inner_fits(part, own):
            prefix = ".".join(inner.prefix) + "."
            rest = [name for name in part.state if not name.startswith(prefix)]
            raise WeightsError(
                f"{path} has more than this network: {inner} fit, but {', '.join(rest[:_SHOWN])} may belong to what "
                "was trained, too: save the state dict of the network alone"
            )
    found = [each for part in dicts for each in _variants(part)]
    if not found:
        keys = [
            repr(key) + (f" a {type(value).__name__}" if isinstance(value, Unread) else "")
            for key, value in _items(content)
        ]
        raise WeightsError(
            f"{path} holds no state dict but {', '.join(keys) or type(content).__name__}: save model.state_dict(), "
            "alone or at a key of a dict"
        )
    closest = max(found, key=lambda each: len(own.keys() & each.state.keys()))
    load_strictly(model, closest.state, f"{path} ({closest})" if closest.where or closest.prefix else path)


def _inner_fits(part: _Part, own: Mapping[str, Tensor]) -> Iterator[_Part]:
    """The parts of a state dict that fit a network, whatever else it has."""
    for inner in _groups(part):
        whole = _fit(inner, own)
        yield from [whole] if whole is not None else _inner_fits(inner, own)


def _variants(part: _Part) -> Iterator[_Part]:
    yield part
    yield _unwrap(part)
    if len(inner := _split(part)) == 1:
        yield from _variants(inner[0])


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    for key, value in state.items():
        if is_special(value):
            raise WeightsError(f"{path} holds {key!r} as {describe_kind(value)}: save it as a plain tensor")


def holds_codes(path: Path) -> bool:
    """Whether a weight file is of the packed format, or else a state dict of any kind.

    Raises:
        WeightsError: If the file is missing, or neither a safetensors nor a PyTorch file.
    """
    return not _is_torch(path) and is_packed(path)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(9)


def _is_torch(path: Path) -> bool:
    start = read_weights(path, _start)
    if start[8:] == b"{":  # the header of a safetensors file, behind the eight bytes of its length
        return False
    return start.startswith((_ZIP, b"\x80")) or path.suffix.lower() in _PICKLES


_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    OSError,
    struct.error,
    BadZipFile,
)
"""What torch raises for a file it cannot read; a text file, depending on its first characters, raises most of these."""


class Unread:
    """Stands for an object of a PyTorch file that is no tensor: nothing of it is imported or executed."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Unread:
        """Take whatever the object would have been made from."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _read_torch(path: Path) -> Any:
    try:
        if is_tarfile(path):  # before torch 2.6, unpacked to disk
            raise WeightsError(f"{path} is a tar archive, of torch before 0.4: save its state dict anew")
        if _is_torchscript(path):  # before torch 2.6, `weights_only` does not keep torch.load from running it
            raise WeightsError(f"{path} is a TorchScript program, which would be executed: save a state dict")
        with _ignore_objects(path), path.open("rb") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            # The open file, as torch would judge a path by its name.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if not _has_code(error):
            raise WeightsError(
                f"{path} is truncated or no PyTorch file ({_reason(error) or type(error).__name__}): get it again"
            ) from error
        raise WeightsError(
            f"{path} cannot be read without executing code from it ({_reason(error)}): save a state dict"
        ) from error
    if isinstance(content, Unread):
        kind = type(content).__name__
        raise WeightsError(f"{path} cannot be read without executing code from it (it is a {kind}): save a state dict")
    return content


def _is_torchscript(path: Path) -> bool:
    # Read by torch's own reader as well: a crafted archive may show other files to Python's.
    names = set(torch._C.PyTorchFileReader(str(path)).get_all_records()) if _start(path)[:4] == _ZIP else set()
    if is_zipfile(path):
        with ZipFile(path) as archive:
            names |= {name.rpartition("/")[2] for name in archive.namelist()}
    return "constants.pkl" in names


_ZIP = b"PK\x03\x04"


def _has_code(error: Exception) -> bool:
    """Whether torch refused an object of the file, rather than failed to read it."""
    return (
        isinstance(error, pickle.UnpicklingError)
        and re.search(r"GLOBAL|class|function|callable|REDUCE", str(error)) is not None
    )


def _reason(error: Exception) -> str:
    """The reason in torch's message, which also advises to execute the code."""
    patterns = r"WeightsUnpickler error:\s*(.+)", r"Trying to load (unsupported \w+ [\w.]+)", r"\s*(.*)"
    found = next(match for pattern in patterns if (match := re.search(pattern, str(error))))
    return found[1].split(" Please use")[0].split(". ")[0]


def _ignore_objects(path: Path) -> AbstractContextManager[Any]:
    """Read objects that are no tensors, such as the arguments of a script, as :class:`Unread`.

    Before torch 2.6, and in files from before torch 1.6, they make a file unreadable instead.
    """
    find_objects = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if find_objects is None or not is_zipfile(path):
        return nullcontext()
    stand_ins: list[Any] = [(type(name, (Unread,), {}), name) for name in find_objects(path)]
    return torch.serialization.safe_globals(stand_ins)
