"""``empir audit``, as a user types it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from empir_cli.commands.audit import audit
from empir_cli.group import Commands
from empir_plugin.data.image_set import ImageSet
from empir_plugin.evaluation.audit.report import AuditReport, found

GOOD = found("zero gradients", "The gradient is zero for 0 of 64 images.", (0.0, 0.05, 1.0), "nothing moves there")
BAD = found("eps to 1", "9 of 64 images survive.", (9 / 64, 0.01, 1e-9), "who may paint any image always wins")
FLAG = found("AutoAttack's flags", "AutoAttack warns: x.", (1.0, 0.0, 0.0), "each names a property", flags=["x"])
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
    group = Commands("empir", commands={"audit": audit})
    return CliRunner().invoke(group, ("audit", *arguments))


def _canned(monkeypatch: pytest.MonkeyPatch, report: AuditReport) -> None:
    monkeypatch.setattr("empir_plugin.evaluation.audit.run.audit", lambda *args, **kwargs: report)


@pytest.mark.slow
def test_a_real_audit_prints_a_table_and_leaves_a_report(tmp_path: Path) -> None:
    target = tmp_path / "new" / "audit.json"
    result = _run("mnistconv-fp", "--n-examples", "21", "--json", str(target))
    assert result.exit_code == 0, result.output
    report = AuditReport.read(target)
    assert report.model["name"] == "mnistconv-fp"
    assert (report.threat, report.data["n"]) == ("Linf:0.3", 21)
    assert all(finding.name in result.output for finding in report.checks)
    assert "threshold" in result.output
    assert report.summary in " ".join(result.output.split())


def test_the_table_says_measured_threshold_and_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    _canned(monkeypatch, MASKED)
    result = _run("cifarconv-fp")
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "zero gradients 0.0 % 5.0 % passed" in lines
    assert "eps to 1 14.1 % 1.0 % masked" in lines
    assert "AutoAttack's flags 1 flags 0 flags masked" in lines
    text = " ".join(lines)
    assert "eps to 1: 9 of 64 images survive. Threshold: who may paint any image always wins." in text
    assert "Attacks compared under Linf:2/255" in text
    assert "AutoAttack warns: [bold]odd" in text
    assert "masked: 2 of 3 checks on 64 images under Linf:8/255" in text


def test_masking_is_no_failure_unless_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    target = tmp_path / "audit.json"
    _canned(monkeypatch, MASKED)
    assert _run("cifarconv-fp").exit_code == 0
    assert _run("cifarconv-fp", "--fail-on-masking", "--json", str(target)).exit_code == 1
    assert AuditReport.read(target) == MASKED
    _canned(monkeypatch, CANNED)
    assert _run("cifarconv-fp", "--fail-on-masking").exit_code == 0


def test_what_is_typed_reaches_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}

    def record(model: object, data: ImageSet, threat: object, **settings: object) -> AuditReport:
        seen.update(settings, images=len(data), data=data.name, threat=str(threat), model=type(model).__name__)
        return CANNED

    monkeypatch.setattr("empir_plugin.evaluation.audit.run.audit", record)
    _run("mnistconv-fp")
    assert (seen["model"], seen["data"], seen["images"], seen["threat"]) == ("MNISTConv", "mnist", 64, "Linf:0.3")
    _run("cifarconv-fp", "--n-examples", "30", "--threat", "L2:0.5", "--seed", "7")
    assert (seen["data"], seen["images"], seen["threat"], seen["seed"]) == ("cifar10", 30, "L2:0.5", 7)
    assert (seen["name"], str(seen["device"])) == ("cifarconv-fp", "cpu")


BAD_INPUT = {
    "unknown model": (("empir-cifra",), "did you mean 'empir-cifar'?"),
    "eps in 0..255": (("cifarconv-fp", "--threat", "Linf:8"), "so write 8/255"),
    "no budget": (("cifarconv-fp", "--threat", "L2:inf"), "name a finite eps"),
    "too few images": (("cifarconv-fp", "--n-examples", "4"), "needs 20 correctly classified images"),
    "no such GPU": (("cifarconv-fp", "--device", "cuda:99"), "use --device cpu"),
    "data folder": (("cifarconv-fp", "--data-dir", "nowhere"), "nowhere"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(*arguments, "--json", "audit.json")
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    result = _run("cifarconv-fp", "--json", str(tmp_path))
    assert result.exit_code == 2
    assert result.output.strip() == f"Error: --json must be a file, got the folder {tmp_path}: name a file in it"


def test_a_model_without_weights_is_refused() -> None:
    with pytest.warns(UserWarning, match="no weights"):
        result = _run("alexnet-fp")
    assert result.exit_code == 2
    assert "alexnet-fp has no weights" in result.output
