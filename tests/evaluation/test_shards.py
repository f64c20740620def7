"""Shards: an interrupted evaluation resumes with the next one, and nothing else is ever taken from the cache."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from empir_plugin.attacks import Threat, fgsm, pgd
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate

THREAT = Threat.parse("Linf:8/255")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


def run_toy(toys: ModuleType, store: Path | None, **rest: Any) -> Record:
    settings = replace(toys.SETTINGS, batch_size=8)
    return evaluate(toys.network(), toys.noise_images(), THREAT, toys.PLAN, settings=settings, store=store, **rest)


def fork(action: Callable[[], object]) -> int:
    """Run an action in a child process and return its number."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def die_at(call: str, number: int) -> None:
    """Have this process killed, as from outside, when it makes a system call for the n-th time."""
    original, count = getattr(os, call), iter(range(1_000_000))

    def counted(*args: Any) -> Any:
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(os, call, counted)


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("call", "number"), [("replace", n) for n in (0, 4, 5, 9, 14)] + [("fsync", 13), ("open", 20)])
def test_a_kill_at_any_write_loses_only_the_unfinished_shard(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    whole = run_toy(toys, None)

    def child() -> None:
        die_at(call, number)
        run_toy(toys, tmp_path)

    _, status = os.waitpid(fork(child), 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    stored = len(list(tmp_path.glob("*/*.json")))
    if call == "replace":
        assert stored == number
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("TOY_LOG", str(log))
    resumed = run_toy(toys, tmp_path)
    assert toys.verdicts(resumed) == toys.verdicts(whole)
    # 5 shards: the first 5 files are of the clean images, then one call of an attack for each shard.
    assert len(log.read_text().split()) == 10 - max(0, stored - 5)
    assert len(list(tmp_path.glob("*/*.json"))) == 15
    assert not list(tmp_path.glob("*/.*"))


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kill_9_from_outside_and_two_processes_on_one_store(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("TOY_LOG", str(log))
    monkeypatch.setenv("TOY_STALL", "7")
    pid = fork(lambda: run_toy(toys, tmp_path))
    try:
        wait_for(lambda: len(log.read_text().split()) == 7)
        monkeypatch.delenv("TOY_STALL")
        with pytest.raises(EvaluationError, match="another evaluation of this model on this data"):
            run_toy(toys, tmp_path)
        other = toys.network(seed=1)
        evaluate(other, toys.noise_images(), THREAT, [], settings=toys.SETTINGS, store=tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    log.write_text("")
    assert toys.verdicts(run_toy(toys, tmp_path)) == toys.verdicts(run_toy(toys, None))
    assert log.read_text().split()[:4] == ["8", "16", "24", "32"]  # 6 of 10 were finished; then the run without a store


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_finished_evaluation_computes_nothing_again(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_toy(toys, tmp_path)
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    told: list[Any] = []
    again = run_toy(toys, tmp_path, on_progress=lambda each: told.append((each.title, each.done, each.total)))
    assert toys.verdicts(again) == toys.verdicts(first)
    assert [attack.seconds for attack in again.attacks] == [attack.seconds for attack in first.attacks]
    assert not (tmp_path / "log").exists()
    assert ("PGD", 40, 40) in told


@pytest.mark.parametrize("what", ["model", "labels", "images", "threat", "seed", "attack", "shard", "batch"])
def test_results_of_anything_else_are_never_used(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run_toy(toys, tmp_path)
    model, data, threat, plan, settings = toys.network(), toys.noise_images(), THREAT, toys.PLAN, toys.SETTINGS
    settings = replace(settings, batch_size=8)
    match what:
        case "model":
            model[3].bias.data[0] += 1e-6
        case "labels":
            labels = data.labels.clone()
            labels[::2] = (labels[::2] + 1) % 3
            data = replace(data, labels=labels)
        case "images":
            data = replace(data, images=data.images.flip(3))
        case "threat":
            threat = Threat.parse("Linf:7/255")
        case "seed":
            settings = replace(settings, seed=4)
        case "attack":
            plan = [replace(planned, attack=toys.Logged(replace(planned.attack.attack, steps=7))) for planned in plan]
        case "shard":
            settings = replace(settings, shard_size=16)
        case "batch":
            settings = replace(settings, batch_size=4)
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("TOY_LOG", str(log))
    record = evaluate(model, data, threat, plan, settings=settings, store=tmp_path)
    assert log.read_text().split(), "attacked again"
    monkeypatch.delenv("TOY_LOG")
    assert toys.verdicts(record) == toys.verdicts(evaluate(model, data, threat, plan, settings=settings))


def test_shards_of_the_first_images_serve_a_run_on_all_of_them(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, log = toys.noise_images(), tmp_path / "log"
    settings = replace(toys.SETTINGS, batch_size=8)
    evaluate(toys.network(), data.first(20), THREAT, toys.PLAN, settings=settings, store=tmp_path)
    monkeypatch.setenv("TOY_LOG", str(log))
    whole = run_toy(toys, tmp_path)
    first_images = {int(line) for line in log.read_text().split()}
    assert min(first_images) >= 16, "images 0 to 15 are two whole shards, the third was a smaller one"
    monkeypatch.delenv("TOY_LOG")
    assert toys.verdicts(whole) == toys.verdicts(run_toy(toys, None))


def test_a_damaged_shard_is_named_and_computed_again(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_toy(toys, tmp_path)
    path = sorted(tmp_path.glob("*/00002-*.json"))[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match=path.name):
        assert toys.verdicts(run_toy(toys, tmp_path)) == toys.verdicts(first)
    assert toys.verdicts(run_toy(toys, tmp_path)) == toys.verdicts(first)


def test_a_store_that_cannot_be_written_is_refused_before_any_attack(toys: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    told: list[Any] = []
    with pytest.raises(EvaluationError, match="choose another store"):
        run_toy(toys, tmp_path / "store", on_progress=lambda each: told.append((each.title, each.done, each.total)))
    assert not told


def test_a_disk_that_fills_up_keeps_finished_shards(
    toys: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = os.replace, iter(range(100))

    def filling(*args: Any) -> None:
        if next(count) >= 8:
            raise OSError(28, "No space left on device")
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", filling)
        with pytest.raises(EvaluationError, match=r"No space left on device.*run again"):
            run_toy(toys, tmp_path)
    assert len(list(tmp_path.glob("*/*.json"))) == 8
    assert toys.verdicts(run_toy(toys, tmp_path)) == toys.verdicts(run_toy(toys, None))


@pytest.mark.slow
@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ten_thousand_cifar_images_stay_under_two_gigabytes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10_000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    data = ImageSet("toy", "test", images, torch.randint(0, 10, (10_000,), generator=generator), tuple("abcdefghij"))
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 225, 10))
    plan = [AttackSpec("FGSM", fgsm(), attack_all=True), AttackSpec("PGD", pgd(2), attack_all=True)]

    def child() -> None:
        evaluate(model, data, THREAT, plan, store=tmp_path / "store", images=tmp_path / "images.safetensors")

    _, status, usage = os.wait4(fork(child), 0)
    assert status == 0
    assert usage.ru_maxrss * 1024 < 2e9
