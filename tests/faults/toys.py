"""Damage for every kind of file, kills at any system call, and a full disk."""

from __future__ import annotations

import copy
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

VALUES: tuple[Any, ...] = (None, True, -1, 0.1, 10**400, "x", "\ud800", [], {}, [[]], {"x": 1})
"""What a value is replaced by."""


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value; of a list, those of the first and the last item."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*path, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} & set(range(len(value)))):
            yield from paths(value[index], (*path, index))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def mutations(table: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], Any, dict[str, Any]]]:
    """Every value deleted (``...``), its key renamed (``"renamed"``), or replaced by another one."""
    for path in paths(table):
        for value in (..., "renamed", *VALUES):
            damaged = copy.deepcopy(table)
            parent, last = at(damaged, path[:-1]), path[-1]
            old = parent.pop(last)
            if value == "renamed":
                if not isinstance(parent, dict):
                    continue
                parent[f"{last}_"] = old
            elif value is not ...:
                if type(old) is type(value) and old == value:
                    continue
                parent.insert(last, value) if isinstance(parent, list) else parent.update({last: value})
            yield path, value, damaged


def sample(table: dict[str, Any], n: int, seed: int = 0) -> list[tuple[tuple[Any, ...], Any, dict[str, Any]]]:
    """Some of the mutations, the same ones every time."""
    every = list(mutations(table))
    return random.Random(seed).sample(every, min(n, len(every)))


def text(value: Any) -> str:
    """As JSON, in which a number may have hundreds of digits and a surrogate stand alone."""
    return json.dumps(value)


def damaged_bytes(content: bytes, n: int, seed: int = 0) -> Iterator[bytes]:
    """A file cut short, with flipped bits, doubled, or with other bytes inside."""
    chance = random.Random(seed)
    for number in range(n):
        place = chance.randrange(len(content))
        kind = number % 4
        if kind == 0:
            yield content[:place]
        elif kind == 1:
            yield content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
        elif kind == 2:
            yield content + content[place:]
        else:
            yield content[:place] + chance.randbytes(16) + content[place + 16 :]


def die_at(call: str, moment: int, after: bool) -> None:
    """Have this process killed, as from outside, before or after it makes a system call for the n-th time."""
    made, count = getattr(os, call), iter(range(1, 10_000))

    def killed(*args: Any, **more: Any) -> Any:
        now = next(count) == moment
        if now and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = made(*args, **more)
        if now:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, call, killed)


def dies(call: str, moment: int, after: bool, work: Callable[[], object]) -> bool:
    """Whether the work, in a process of its own, was killed; False once it makes fewer such calls."""
    pid = os.fork()
    if pid == 0:
        try:
            die_at(call, moment, after)
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def with_full_disk(size: int, work: Callable[[], object]) -> str:
    """The error that ends the work, in a process that may write no file longer than ``size`` bytes; empty if none does.

    That is how a quota or a full disk looks to a program: an ``OSError`` from a write.
    """
    import resource

    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            work()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(theirs, text.encode())
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        text = pipe.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return text
