"""Bars of an evaluation: where they are shown, what they say, and that they end."""

from __future__ import annotations

import io
import sys
from types import ModuleType

import pytest

from empir_plugin.attacks import fgsm
from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.suite_progress import SuiteProgress
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.progress import AttackedImages, Progress, progress_bars
from empir_plugin.evaluation.run import evaluate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error as a terminal; not a fixture, as pytest sets standard error again before each test."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


STEP = Progress("PGD", 3, 8, 5.5, "restart 2/5")


def test_bars_are_shown_in_a_terminal_or_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    with progress_bars(None, None) as shown:
        assert shown is not None
    with progress_bars(False, None) as shown:
        assert shown is None
    told: list[Progress] = []
    with progress_bars(None, told.append) as shown:
        assert shown == told.append, "a function of the caller's own replaces the bars"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bars(None, None) as shown:
        assert shown is None
    with progress_bars(True, None) as shown:
        assert shown is not None


def test_a_bar_says_how_many_are_finished_and_what_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    told: list[Progress] = []
    with progress_bars(True, told.append) as shown:
        assert shown is not None
        shown(STEP)
        shown(Progress("PGD", 8, 8, 8.0))
    assert told == [STEP, Progress("PGD", 8, 8, 8.0)]
    lines = stderr.getvalue().replace("\n", "\r").split("\r")
    assert any("PGD:  69%" in line and "3/8 restart 2/5" in line for line in lines), lines
    assert any("PGD: 100%" in line and "8/8" in line for line in lines), lines


def test_running_totals_become_ticks_that_sum_to_every_image() -> None:
    ticks: list[tuple[int, float, str]] = []
    images = AttackedImages(lambda *tick: ticks.append(tick), 10)
    for step in (SuiteProgress(2, 4.0, "a"), SuiteProgress(5, 3.0, "b"), SuiteProgress(5, 8.0, "c")):
        images.report(step)
    images.finish()
    assert [tick[0] for tick in ticks] == [2, 3, 0, 5]
    assert sum(tick[1] for tick in ticks) == 10
    assert all(tick[1] >= 0 for tick in ticks), "a bar never goes back"


def test_autoattack_reports_within_a_shard(toys: ModuleType) -> None:
    told: list[Progress] = []
    specs = [AttackSpec("AutoAttack", AutoAttackSuite(attacks=("apgd-ce", "square"), queries=20))]
    evaluate(toys.network(), toys.noise_images(), toys.THREAT, specs, settings=Settings(), on_progress=told.append)
    inside = [each for each in told if each.title == "AutoAttack" and each.note]
    assert {each.note.partition(":")[0] for each in inside} == {"apgd-ce", "square"}
    work = [each.work for each in told if each.title == "AutoAttack"]
    assert work == sorted(work)
    assert work[-1] == 40
    wrong = 40 - evaluate(toys.network(), toys.noise_images(), toys.THREAT, []).clean.count("1")
    assert wrong > 0
    assert inside[0].done >= wrong, "what is misclassified is finished before the first step"


def test_a_long_run_is_cut_into_shards(toys: ModuleType) -> None:
    plan = [AttackSpec("FGSM", fgsm())]
    record = evaluate(toys.network(), toys.noise_images(300), toys.THREAT, plan, progress=False)
    assert record.run["shard_size"] == 250
