"""``empir leaderboard``: add, check, table, html and submit, and their error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from empir_cli.commands.leaderboard import leaderboard
from empir_plugin.data.image_set import OFFICIAL_FINGERPRINTS
from empir_plugin.evaluation.record import AttackRecord, Record
from empir_plugin.leaderboard.eligibility import shipped_fingerprint

AUTOATTACK = "AutoAttackSuite(version='standard', attacks=(), surrogate=Plain(), batch_size=250, queries=5000)"
ROOT = Path(__file__).parents[3]
RUN = {
    "seed": 0, "batch_size": 250, "shard_size": 500, "cascade": False, "device": "cpu", "threads": [1], "processes": 1,
    "finished": "2026-11-21T08:43:43+00:00",
    "versions": {"python": "3.11.7", "torch": "2.15.0"}, "code_sha256": "2" * 64,
}  # fmt: skip
"""What every record states of its run."""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(leaderboard, arguments)


def write_record(path: Path, n: int = 10_000, model: str = "cifarconv-fp") -> str:
    dataset, threat = ("mnist", "Linf:0.3") if "mnist" in model else ("cifar10", "Linf:8/255")
    clean, robust = "1" * (n // 2) + "0" * (n - n // 2), "1" * (n // 100) + "0" * (n - n // 100)
    Record(
        model={"name": model, "sha256": shipped_fingerprint(model), "identity": 2, "weights_loaded": True},
        data={
            "name": dataset, "split": "test", "source": "official", "n": n, "full_official": n == 10_000,
            "sha256": OFFICIAL_FINGERPRINTS[dataset, "test"] if n == 10_000 else "5" * 64,
        },
        threat=threat, clean=clean, clean_accuracy=50.0,
        attacks=(AttackRecord("AutoAttack", AUTOATTACK, robust, 1.0, 1.0, threat=threat, kind="autoattack-standard"),),
        worst_case=robust, worst_case_accuracy=1.0, run=RUN,
        protocol={"name": "standard", "description": "", "headline": "WORST_CASE"},
    ).write(path)  # fmt: skip
    return str(path)


def test_add_check_table_submit(tmp_path: Path) -> None:
    tree, out = ("--tree", str(tmp_path / "board")), tmp_path / "out"
    added = run("add", "cifarconv-fp", "--record", write_record(tmp_path / "aa.json"), *tree)
    assert added.exit_code == 0, added.output
    assert "Sen2020EMPIR_fp.json" in added.output
    assert "No --audit was given" in added.output
    checked = run("check", *tree)
    assert (checked.exit_code, checked.output) == (0, "1 entry agrees with its sources.\n")
    shown = run("table", *tree)
    assert "| 50.00 % | 1.00 % | 1.00 % | no |" in shown.output
    submitted = run("submit", "cifarconv-fp", "--out", str(out), *tree)
    assert submitted.output.splitlines() == [str(path) for path in (
        out / "model_info" / "cifar10" / "Linf" / "Sen2020EMPIR_fp.json", out / "new-model.md", out / "zoo_row.py",
    )]  # fmt: skip


def test_a_board_that_robustbench_does_not_have(tmp_path: Path) -> None:
    tree, out = ("--tree", str(tmp_path / "board")), tmp_path / "out"
    run("add", "empir-mnist", "--record", write_record(tmp_path / "aa.json", model="empir-mnist"), *tree)
    refused = run("submit", "empir-mnist", "--out", str(out), "--images", str(tmp_path / "none.safetensors"), *tree)
    assert refused.exit_code == 2
    assert "RobustBench has no board for mnist/Linf" in refused.output
    assert not out.exists()
    submitted = run("submit", "empir-mnist", "--out", str(out), *tree)
    assert submitted.exit_code == 0, submitted.output
    files = [str(out / "model_info" / "mnist" / "Linf" / "Sen2020EMPIR.json"), str(out / "new-model.md")]
    assert submitted.output.splitlines()[:2] == files
    assert "RobustBench has no board for mnist/Linf: new-model.md proposes one" in submitted.output
    assert "Nothing is written for its model zoo" in submitted.output


def test_check_names_what_is_wrong_and_exits_with_1(tmp_path: Path) -> None:
    tree = ("--tree", str(tmp_path / "board"))
    run("add", "cifarconv-fp", "--record", write_record(tmp_path / "aa.json"), *tree)
    entry = tmp_path / "board" / "model_info" / "cifar10" / "Linf" / "Sen2020EMPIR_fp.json"
    entry.write_text(entry.read_text().replace('"1.00"', '"2.00"'))
    checked = run("check", *tree)
    assert checked.exit_code == 1
    assert checked.output == f'{entry}: autoattack_acc is "2.00", its sources make it "1.00"\n'


def test_the_committed_tree_passes() -> None:
    checked = run("check", "--tree", str(ROOT / "leaderboard"))
    assert checked.exit_code == 0, checked.output


def test_a_sample_is_kept_among_the_runs(tmp_path: Path) -> None:
    record = write_record(tmp_path / "small.json", 500)
    added = run("add", "cifarconv-fp", "--record", record, "--tree", str(tmp_path / "board"))
    assert added.exit_code == 2
    assert "500 images" in added.output
    assert "evaluate on all of them (--data-dir)" in added.output
    assert [path.name for path in (tmp_path / "board").rglob("*.json")] == ["small.json"]


BAD = {
    "no record": (("add", "empir-cifar"), "Missing option '--record'"),
    "missing record": (("add", "empir-cifar", "--record", "none.json"), "none.json cannot be read"),
    "unknown model": (("add", "other", "--record", "file"), "no paper is known for 'other'"),
    "no record at all": (("add", "empir-cifar", "--record", "file"), "file is not a run record"),
    "no tree": (("check", "--tree", "none"), "there is no leaderboard at none"),
    "no entry": (("submit", "empir-cifar", "--out", "out", "--tree", "none"), "make one with `empir leaderboard add`"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_prints_one_sentence_and_exits_with_2(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no JSON")
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing written"


def test_help_names_every_command() -> None:
    text = run("--help").output
    assert all(command in text for command in ("add", "check", "table", "submit"))
