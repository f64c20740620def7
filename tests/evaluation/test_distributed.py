"""Several processes: the same verdicts, one record, and a lost worker loses only its unfinished shard."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from empir_plugin.attacks import fgsm, pgd
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.distributed import Team, device_of_rank, torchrun_team
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate
from empir_plugin.evaluation.shards import cut
from empir_plugin.models.integer import convert
from empir_plugin.models.integer.kernels import IntMM
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.quantize import Precision

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_every_shard_has_exactly_one_worker(n: int, size: int) -> None:
    pieces = cut(n, 4)
    dealt = [shard for rank in range(size) for shard in Team(rank, size).own(pieces)]
    assert sorted(dealt, key=lambda shard: shard.number) == pieces
    assert [i for shard in pieces for i in range(shard.start, shard.stop)] == list(range(n))
    counts = [len(Team(rank, size).own(pieces)) for rank in range(size)]
    assert max(counts) - min(counts) <= 1


def test_everybody_gets_everybodys_text() -> None:
    store, size = HashStore(), 3
    got: dict[int, list[list[str]]] = {}

    def work(rank: int) -> None:
        team = Team(rank, size, store)
        got[rank] = [team.round().gather(f"{word}{rank}") for word in ("a", "b")]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == {rank: [["a0", "a1", "a2"], ["b0", "b1", "b2"]] for rank in range(size)}


def test_a_failure_stops_the_others_with_its_sentence() -> None:
    store = HashStore()
    lame, waiting = Team(1, 2, store).round(), Team(0, 2, store).round()
    with pytest.raises(EvaluationError, match="the disk is full"), lame.announce_failure():
        raise EvaluationError("the disk is full")
    with pytest.raises(EvaluationError, match="the disk is full"):
        waiting.stop_if_failed()
    with pytest.raises(EvaluationError, match="the disk is full"):
        waiting.gather("mine")


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    with torchrun_team(threads=threads) as team:
        assert (team.rank, team.size, team.is_leader) == (0, 1, True)
    assert device_of_rank(torch.device("cuda")) == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of_rank(torch.device("cpu")) == torch.device("cpu")
    assert device_of_rank(torch.device("cuda:1")) == torch.device("cuda:1")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(size: int, action: Callable[[Team], object]) -> list[int]:
    """Fork processes into the surroundings torchrun makes, each of which acts in the team it finds."""
    port, pids = str(free_port()), []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            os.environ.update({name: str(value) for name, value in names.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            try:
                with torchrun_team(threads=1) as team:
                    action(team)
                os._exit(0)
            except EvaluationError:
                os._exit(3)
            except BaseException:
                os._exit(1)
        pids.append(pid)
    return pids


def codes(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def run_toy(toys: ModuleType, store: Path | None = None, **rest: Any) -> Record:
    return evaluate(
        toys.network(), toys.noise_images(), toys.THREAT, toys.PLAN, settings=toys.SETTINGS, store=store, **rest
    )


@needs_fork
@pytest.mark.parametrize("stored", [True, False])
def test_two_processes_give_the_verdicts_of_one(toys: ModuleType, tmp_path: Path, stored: bool) -> None:
    def action(team: Team) -> None:
        told: list[tuple[str, int, int]] = []
        record = run_toy(
            toys,
            tmp_path / "store" if stored else None,
            team=team,
            on_progress=lambda each: told.append((each.title, each.done, each.total)),
        )
        record.write(tmp_path / f"record{team.rank}.json")
        (tmp_path / f"told{team.rank}.json").write_text(json.dumps(told))

    assert codes(start(2, action)) == [0, 0]
    alone = run_toy(toys)
    records = [Record.read(tmp_path / f"record{rank}.json") for rank in range(2)]
    assert [toys.verdicts(record) for record in records] == [toys.verdicts(alone)] * 2
    assert records[0].run["processes"] == 2
    told = [json.loads((tmp_path / f"told{rank}.json").read_text()) for rank in range(2)]
    assert not told[1]
    for title in ("clean", "noise", "PGD"):
        assert [title, 40, 40] in told[0]
    if stored:
        assert len(list((tmp_path / "store").glob("*/*.json"))) == 15


@needs_fork
def test_the_record_names_the_arithmetic_of_every_process(toys: ModuleType, tmp_path: Path) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        conv = QuantConv2d(1, 4, 3, precision=Precision.parse("w2a4"))
        model = nn.Sequential(conv, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3)).eval()
    data, attacks = toys.noise_images(24), [AttackSpec("PGD", pgd(4))]

    def action(team: Team) -> None:
        with pytest.MonkeyPatch.context() as patched:
            missing = None if team.is_leader else "not here"
            patched.setattr(IntMM, "unusable", lambda self, device: missing)
            patched.setattr(convert, "kernel_for", lambda device: IntMM())
            record = evaluate(model, data, toys.THREAT, attacks, settings=Settings(shard_size=6), team=team)
        record.write(tmp_path / f"record{team.rank}.json")

    assert codes(start(2, action)) == [0, 0]
    records = [Record.read(tmp_path / f"record{rank}.json") for rank in range(2)]
    alone = evaluate(model, data, toys.THREAT, attacks, settings=Settings(shard_size=6, int8=False))
    for record in records:
        assert toys.verdicts(record) == toys.verdicts(alone)
        assert record.run["backend"]["verdicts"] == "float32 and int8 (int_mm)"
        assert record.run["backend"]["gradients"] == "float32 and int8 (int_mm) forward, float32 backward"


@needs_fork
def test_nobody_writes_into_the_store_before_the_leader_has_tidied_it(toys: ModuleType, tmp_path: Path) -> None:
    def action(team: Team) -> None:
        if team.is_leader:
            time.sleep(1.5)  # Alone, the other process is through with its shards in a fraction of that.
            if list((tmp_path / "store").glob("*/*")):
                os._exit(4)
        run_toy(toys, tmp_path / "store", team=team)

    assert codes(start(2, action)) == [0, 0]


def test_the_others_wait_for_the_leader_and_hear_of_its_failure() -> None:
    store, order = HashStore(), list[str]()
    leader, other = Team(0, 2, store).round(), Team(1, 2, store).round()
    thread = threading.Thread(target=lambda: (other.after_leader("tidying"), order.append("other")))
    thread.start()
    time.sleep(0.3)
    order.append("leader")
    leader.after_leader("tidying")
    thread.join(30)
    assert order == ["leader", "other"]
    with pytest.raises(EvaluationError, match="no space"), leader.announce_failure():
        raise EvaluationError("no space")
    with pytest.raises(EvaluationError, match="no space"):
        other.after_leader("something else")


@needs_fork
def test_a_lost_worker_loses_only_its_unfinished_shard(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.touch()

    def action(team: Team) -> None:
        os.environ.update(TOY_LOG=str(log) + str(team.rank), TOY_STALL="3" if team.rank else "1000")
        run_toy(toys, tmp_path / "store", team=team)

    pids = start(2, action)
    end = time.monotonic() + 60
    # Rank 0 has shards 0, 2 and 4, rank 1 has 1 and 3, in two batches of 4 each: it stalls in its second shard.
    while len(list((tmp_path / "store").glob("*/*.json"))) < 5 + 6 + 1:
        assert time.monotonic() < end
        time.sleep(0.05)
    for pid in reversed(pids):  # torchrun ends the others when it loses one
        os.kill(pid, signal.SIGKILL)
    assert codes(pids) == [-signal.SIGKILL] * 2
    stored = {path.name for path in (tmp_path / "store").glob("*/*.json")}
    monkeypatch.setenv("TOY_LOG", str(log))
    assert toys.verdicts(run_toy(toys, tmp_path / "store")) == toys.verdicts(run_toy(toys))
    assert stored < {path.name for path in (tmp_path / "store").glob("*/*.json")}
    first_images = [int(line) for line in log.read_text().split()]
    assert set(first_images[:6]) <= {*range(24, 32), *range(8, 16)}


@needs_fork
def test_an_error_in_one_process_ends_all_of_them(toys: ModuleType, tmp_path: Path) -> None:
    def action(team: Team) -> None:
        if team.rank:
            (tmp_path / "store").write_text("")
        run_toy(toys, tmp_path / "store" if team.rank else None, team=team)

    assert codes(start(2, action)) == [3, 3]


@pytest.mark.slow
def test_torchrun_gives_the_verdicts_of_one_process(toys: ModuleType, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    script = [str(Path(toys.__file__ or "")), str(tmp_path / "store"), str(record)]
    done = subprocess.run([*command, *script], check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    alone = run_toy(toys)
    assert toys.verdicts(Record.read(record)) == toys.verdicts(alone)
    assert Record.read(record).run["processes"] == 2
    # What the two stored serves one process: not a shard is computed again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*/*.json")}
    plan = [*toys.PLAN, AttackSpec("FGSM", fgsm())]
    settings = toys.SETTINGS
    evaluate(toys.network(), toys.noise_images(), toys.THREAT, plan, settings=settings, store=tmp_path / "store")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*/*.json")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 5
