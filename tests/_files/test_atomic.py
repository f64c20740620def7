"""Files are written as a whole or not at all, and a lock belongs to one process, however that process ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from empir_plugin._files.atomic import locked, write_atomically
from empir_plugin.errors import EvaluationError

HOLD = """
import sys, time
from pathlib import Path
from empir_plugin._files.atomic import locked
with locked(Path(sys.argv[1])):
    Path(sys.argv[2]).touch()
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[bytes]:
    """A process that holds the lock."""
    ready = path.with_name("ready")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(ready)])
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_atomic_writes_replace_or_leave(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "missing" / "file", b"")


def test_a_lock_of_a_running_process_holds_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = holder(path)
    try:
        with pytest.raises(EvaluationError, match=f"(?s)somebody.*{path}.*wait"), locked(path, "somebody"):
            pass
    finally:
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        process.wait()
    with locked(path):
        pass


def test_a_lock_of_this_process_holds_against_itself(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), pytest.raises(EvaluationError, match="lock"), locked(path):
        pass
    with locked(path), locked(tmp_path / "other"):
        pass


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    with locked(path):
        pass


def test_a_lock_where_no_file_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"lock .*cannot be written"), locked(tmp_path / "file" / "lock"):
        pass
