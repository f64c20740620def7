"""SIGINT, SIGTERM and SIGHUP end a command in one line: finished shards are kept, the lock is free, nothing is half."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from empir_cli import main
from empir_plugin._files.atomic import locked
from empir_plugin.evaluation.cache.store import Cache
from empir_plugin.evaluation.record import Record

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
EVALUATE = (
    "evaluate",
    "mnistconv-w2a4",
    "--n-examples",
    "24",
    "--shard-size",
    "4",
    "--attack",
    "FGSM",
    "--threads",
    "1",
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A forked process has no pool of threads."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


def command(arguments: tuple[str, ...], output: Path, prepare: Callable[[], Any] = lambda: None) -> int:
    """Run a command in a process of its own; its exit code, or the negative signal that killed it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
            for name in SIGNALS:
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            prepare()
            main.main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def signal_at(name: str, moment: int, times: int = 1) -> None:
    """Have this process signalled as it is about to store its n-th shard."""
    save, count = Cache.save, iter(range(1, 1000))

    def interrupted(self: Cache, *args: Any, **more: Any) -> Any:
        if next(count) == moment:
            for _ in range(times):
                os.kill(os.getpid(), getattr(signal, name))
        return save(self, *args, **more)

    Cache.save = interrupted  # type: ignore[method-assign]


def options(folder: Path) -> tuple[str, ...]:
    return (*EVALUATE, "--store", str(folder / "store"), "--out", str(folder / "record.json"))


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "store").rglob("*.json")}


def survives(name: str, moment: int, folder: Path) -> bool:
    code = command(options(folder), folder / "err", lambda: signal_at(name, moment))
    assert code == 128 + getattr(signal, name)
    text = (folder / "err").read_text()
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith(f"Stopped by {name}: ")
    kept = stored(folder)
    assert len(kept) == moment - 1
    assert not (folder / "record.json").exists()
    assert list(folder.rglob("*.partial")) == []
    (lock,) = (folder / "store").rglob("lock")
    with locked(lock):
        pass
    assert command(options(folder), folder / "err") == 0, (folder / "err").read_text()
    assert len(Record.read(folder / "record.json").clean) == 24
    return {key: stored(folder)[key] for key in kept} == kept


@pytest.mark.parametrize(("name", "moment"), [("SIGINT", 1), ("SIGTERM", 8), ("SIGHUP", 5)])
def test_finished_shards_are_kept_and_the_lock_is_free(name: str, moment: int, tmp_path: Path, tally: Any) -> None:
    tally(f"evaluate: {name}", 1, int(survives(name, moment, tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_finished_shards_are_kept_at_every_moment(name: str, tmp_path: Path, tally: Any) -> None:
    moments = range(1, 13)
    folders = [tmp_path / str(moment) for moment in moments]
    for folder in folders:
        folder.mkdir()
    good = [survives(name, moment, folder) for moment, folder in zip(moments, folders, strict=True)]
    tally(f"evaluate: {name} at every shard", len(good), sum(good))


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    def as_nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal_at("SIGHUP", 2)

    assert command(options(tmp_path), tmp_path / "err", as_nohup) == 0
    assert len(stored(tmp_path)) == 12


def test_a_second_signal_waits_for_nothing(tmp_path: Path) -> None:
    assert command(options(tmp_path), tmp_path / "err", lambda: signal_at("SIGTERM", 3, 2)) in (-signal.SIGTERM, 143)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(getattr(signal, name)) for name in SIGNALS]
    with pytest.raises(SystemExit):
        main.main(["--help"])
    assert [signal.getsignal(getattr(signal, name)) for name in SIGNALS] == before
