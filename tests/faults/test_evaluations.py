"""An evaluation that is killed, whose files are damaged, or whose disk is full ends with the same verdicts."""

from __future__ import annotations

import os
import random
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from empir_plugin import load_images, load_model
from empir_plugin.attacks import fgsm, pgd
from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
PLAN = (AttackSpec("FGSM", fgsm()), AttackSpec("PGD", pgd(3)))
SETTINGS = Settings(seed=3, batch_size=4, shard_size=4)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Equal bits need equal numbers of threads, and a forked process has no pool."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return load_model("mnistconv-w2a4", dataset="mnist")


def run(network: torch.nn.Module, store: Path | None = None) -> Record:
    return evaluate(
        network, load_images("mnist", n_examples=12), Threat.parse("Linf:0.1"), PLAN, settings=SETTINGS, store=store
    )


def verdicts(record: Record) -> tuple[object, ...]:
    return record.clean, record.worst_case, [(attack.name, attack.robust) for attack in record.attacks]


@pytest.fixture(scope="module")
def wanted(network: torch.nn.Module) -> tuple[object, ...]:
    return verdicts(run(network))


def shards(store: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(store.rglob("*.json"))}


def survives_a_kill(network: torch.nn.Module, store: Path, delay: float, wanted: tuple[object, ...]) -> bool:
    """Whether an evaluation killed after so many seconds is resumed: the same verdicts, no finished shard repeated."""
    pid = os.fork()
    if pid == 0:
        try:
            run(network, store)
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    before = shards(store)
    again = verdicts(run(network, store))
    after = shards(store)
    return again == wanted and all(after[path] == content for path, content in before.items())


@needs_fork
@pytest.mark.parametrize("kills", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_kills_at_random_moments(
    kills: int, network: torch.nn.Module, tmp_path: Path, wanted: tuple[object, ...], tally: Any
) -> None:
    chance = random.Random(kills)
    good = [survives_a_kill(network, tmp_path / str(i), chance.uniform(0.01, 0.3), wanted) for i in range(kills)]
    tally("evaluate: killed at a random moment", kills, sum(good))


@pytest.mark.parametrize("n", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_damaged_shards_are_computed_again(
    n: int, network: torch.nn.Module, tmp_path: Path, wanted: tuple[object, ...], toys: ModuleType, tally: Any
) -> None:
    run(network, tmp_path)
    intact, chance, good = shards(tmp_path), random.Random(n), 0
    for number in range(n):
        path = chance.choice(list(intact))
        (path.write_bytes(next(toys.damaged_bytes(intact[path], 1, seed=number))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            good += verdicts(run(network, tmp_path)) == wanted
        for name, content in intact.items():
            name.write_bytes(content)
    tally("evaluate: damaged shard", n, good)


@needs_fork
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    network: torch.nn.Module, tmp_path: Path, wanted: tuple[object, ...], toys: ModuleType, tally: Any
) -> None:
    sizes = (0, 500)
    reasons = [toys.with_full_disk(size, lambda: run(network, tmp_path)) for size in sizes]
    assert all("File too large): free some space" in reason for reason in reasons), reasons
    assert list(tmp_path.rglob("*.partial")) == []
    same = verdicts(run(network, tmp_path)) == wanted
    tally("evaluate: full disk", len(sizes), len(sizes) * same)
