"""``empir audit``: its table, report, exit codes and error messages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from empir_cli.commands.audit import audit
from empir_cli.group import CommandGroup
from empir_plugin.data.image_set import ImageSet
from empir_plugin.evaluation.audit.report import AuditReport, Finding
from empir_plugin.evaluation.evaluator import Settings

GOOD = Finding("zero gradients", "0 of 64 gradients are zero.", 0.0, 0.05, 1.0, "no step moves", True)
BAD = Finding("eps to 1", "9 of 64 images survive.", 9 / 64, 0.01, 1e-9, "any image is allowed", False)
FLAG = Finding(
    "AutoAttack's flags", "AutoAttack warns: x.", 1.0, 0.0, 0.0, "each is a property", False, {"flags": ["x"]}
)
CANNED = AuditReport(
    model={"name": "cifarconv-fp", "sha256": "a" * 64},
    data={"name": "cifar10", "n": 80, "sha256": "b" * 64},
    threat="Linf:8/255",
    compared_at="Linf:2/255",
    images=64,
    checks=(GOOD,),
    flags=(),
    verdict="passed",
)
MASKED = replace(CANNED, checks=(GOOD, BAD, FLAG), flags=("[bold]odd", "x"), verdict="masked")


def _run(*arguments: str) -> Result:
    group = CommandGroup("empir", commands={"audit": audit})
    return CliRunner().invoke(group, ("audit", *arguments))


def _canned(monkeypatch: pytest.MonkeyPatch, report: AuditReport) -> None:
    monkeypatch.setattr("empir_plugin.evaluation.audit.run.audit", lambda *args, **kwargs: report)


@pytest.mark.slow
def test_a_real_audit_prints_a_table_and_writes_a_report(tmp_path: Path) -> None:
    target = tmp_path / "new" / "audit.json"
    result = _run("mnistconv-fp", "--n-examples", "21", "--out", str(target))
    assert result.exit_code == 0, result.output
    report = AuditReport.read(target)
    assert report.model["name"] == "mnistconv-fp"
    assert (report.threat, report.data["n"]) == ("Linf:0.3", 21)
    assert all(finding.name in result.output for finding in report.checks)
    assert "threshold" in result.output
    assert report.summary in " ".join(result.output.split())


def test_the_table_shows_measured_threshold_and_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    _canned(monkeypatch, MASKED)
    result = _run("cifarconv-fp")
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "zero gradients 0.0 % 5.0 % passed" in lines
    assert "eps to 1 14.1 % 1.0 % masked" in lines
    assert "AutoAttack's flags 1 flags 0 flags masked" in lines
    text = " ".join(lines)
    assert "eps to 1: 9 of 64 images survive. Threshold: any image is allowed." in text
    assert "Attacks are compared under Linf:2/255" in text
    assert "AutoAttack warns: [bold]odd" in text
    assert "masked: 2 of 3 checks on 64 images under Linf:8/255" in text


def test_masking_fails_only_with_fail_on_masking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = tmp_path / "audit.json"
    _canned(monkeypatch, MASKED)
    assert _run("cifarconv-fp").exit_code == 0
    assert _run("cifarconv-fp", "--fail-on-masking", "--out", str(target)).exit_code == 1
    assert AuditReport.read(target) == MASKED
    _canned(monkeypatch, CANNED)
    assert _run("cifarconv-fp", "--fail-on-masking").exit_code == 0


def test_options_reach_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def record(
        model: object, data: ImageSet, threat: object, *, settings: Settings, name: str, **_: object
    ) -> AuditReport:
        seen.update(seed=settings.seed, device=str(settings.device), name=name)
        seen.update(images=len(data), data=data.name, threat=str(threat), model=type(model).__name__)
        return CANNED

    monkeypatch.setattr("empir_plugin.evaluation.audit.run.audit", record)
    _run("mnistconv-fp")
    assert (seen["model"], seen["data"], seen["images"], seen["threat"]) == ("MNISTConv", "mnist", 64, "Linf:0.3")
    _run("cifarconv-fp", "--n-examples", "30", "--threat", "L2:0.5", "--seed", "7")
    assert (seen["data"], seen["images"], seen["threat"], seen["seed"]) == ("cifar10", 30, "L2:0.5", 7)
    assert (seen["name"], seen["device"]) == ("cifarconv-fp", "cpu")


BAD_INPUT = {
    "unknown model": (("empir-cifra",), "did you mean 'empir-cifar'?"),
    "eps in 0..255": (("cifarconv-fp", "--threat", "Linf:8"), "so write 8/255"),
    "no budget": (("cifarconv-fp", "--threat", "L2:inf"), "name a finite eps"),
    "too few images": (("cifarconv-fp", "--n-examples", "4"), "needs 20 correctly classified images"),
    "no such GPU": (("cifarconv-fp", "--device", "cuda:99"), "use --device cpu"),
    "data folder": (("cifarconv-fp", "--data-dir", "nowhere"), "nowhere"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_prints_one_sentence_and_exits_with_2(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(*arguments, "--out", "audit.json")
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_report_path_that_is_a_folder_is_rejected_before_the_audit(tmp_path: Path) -> None:
    result = _run("cifarconv-fp", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert f"--out must be a file, got the folder {tmp_path}: name a file" in result.output


def test_a_model_without_weights_is_rejected() -> None:
    with pytest.warns(UserWarning, match="no weights"):
        result = _run("alexnet-fp")
    assert result.exit_code == 2
    assert "alexnet-fp has no weights" in result.output
