"""The names of models from data alone: the same models as the library's, found without torch and in little time."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import timm
from click.testing import CliRunner

import empir_cli
from empir_cli import names
from empir_cli.group import CommandError
from empir_plugin.evaluation.protocols import PROTOCOLS
from empir_plugin.zoo.card import cards
from empir_plugin.zoo.quantized.build import curated_networks
from empir_plugin.zoo.registry import builders

WEIGHTS = Path(names._folder("empir_plugin"), "zoo", "weights")


def test_the_rows_are_the_cards() -> None:
    rows = {row.name: row for row in names.model_rows()}
    assert list(rows) == list(cards())
    for name, card in cards().items():
        row = rows[name]
        assert (row.datasets, row.precision) == ((card.dataset,), card.precisions)
        assert row.clean_accuracy == card.clean_accuracy
        assert row.parameters == sum(network.parameters for network in card.networks)
        sizes = [len((WEIGHTS / network.weights).read_bytes()) for network in card.networks if network.weights]
        assert row.bytes == (sum(sizes) if card.has_weights else None)


def test_the_predefined_rows_are_the_registered_networks() -> None:
    rows = {row.name: row.datasets for row in names.predefined_rows()}
    assert rows == {name: tuple(each.dataset for each in family) for name, family in curated_networks().items()}
    assert names.predefined_summary().startswith(f"and {len(rows)} networks without weights")


def test_every_name_that_can_be_built_passes() -> None:
    from robustbench.model_zoo.models import model_dicts

    known = [*builders(), *curated_networks(), "EMPIR_cifar", "resnet18.a1_in1k"]
    known += ["ResNet-18", "DMWideResNet-28-10-silu"]
    known += [name for threats in model_dicts.values() for rows in threats.values() for name in rows]
    known += [name for name in timm.list_models() if timm.models.model_entrypoint(name).__module__.startswith("timm.")]
    for name in known:
        names.check_name(name)
    for text in ("my.nets:Net", "runs/x.json", "x.safetensors", "hf-hub:owner/name", "cifarconv", "."):
        names.check_name(text)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("empir-cifer", "did you mean 'empir-cifar'?"),
        ("Carmon2019Unlabelled", "did you mean 'Carmon2019Unlabeled'?"),
        ("rasnet18", "did you mean 'resnet18'?"),
        ("nonsense", "empir list shows the ones here"),
    ],
)
def test_a_name_nobody_knows_is_refused_with_the_closest(text: str, advice: str) -> None:
    with pytest.raises(CommandError, match=f"no model '{text}' here, in RobustBench or in timm"):
        names.check_name(text)
    for command in (["evaluate", text], ["audit", text], ["overhead", text], ["evaluate", "--member", text]):
        result = CliRunner().invoke(empir_cli.main, command)
        assert (result.exit_code, advice in result.output) == (2, True)
    result = CliRunner().invoke(empir_cli.main, ["quantize", text, "--precision", "w4a4"])
    assert (result.exit_code, advice in result.output) == (2, True)


def test_nothing_is_refused_where_other_code_may_register_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_points", lambda: [EntryPoint("other", "others:build", "robustbench.models")])
    names.check_name("nonsense")
    monkeypatch.undo()
    monkeypatch.setattr(names, "_timm_names", frozenset)
    names.check_name("nonsense")


@pytest.mark.parametrize("arguments", [["list"], ["list", "--all", "--json"], ["evaluate", "empir-cifer"], ["--help"]])
def test_answers_from_data_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys, empir_cli\n"
        "try: empir_cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(7 if 'torch' in sys.modules or 'empir_plugin' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["list"], ["evaluate", "empir-cifer"]])
def test_answers_from_data_take_less_than_half_a_second(arguments: list[str]) -> None:
    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime  # of the processor, whatever else the machine does

    start = seconds()
    subprocess.run([sys.executable, "-m", "empir_cli", *arguments], check=False, capture_output=True)
    assert seconds() - start < 0.5


def test_the_list_as_json_has_every_column() -> None:
    result = CliRunner().invoke(empir_cli.main, ["list", "--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["empir-cifar"]["clean_accuracy"] == 75.23
    assert rows["empir-imagenet"]["bytes"] is None
    assert rows["empir-cifar"]["datasets"] == ["cifar10"]


def test_no_row_is_cut_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = CliRunner().invoke(empir_cli.main, ["list", "--all"]).stdout
    (line,) = (line for line in text.splitlines() if "dorefa-w8a8-swin_tiny_patch4_window7_224" in line)
    assert line.split()[1:] == ["cifar10,", "cifar100,", "imagenet", "w8a8", "none"]
    assert "…" not in text


def test_models_of_other_packages_are_listed_with_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("empir_cli.commands.list.other_rows", lambda: [names.ModelRow("x", (), "?", package="theirs")])
    (line,) = (line for line in CliRunner().invoke(empir_cli.main, ["list"]).stdout.splitlines() if "theirs" in line)
    assert line.split() == ["x", "?", "of", "theirs"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("empir evaluate empir-c", {"empir-cifar", "empir-cifar-at"}),
        ("empir quantize wrn-10-1-f", {"wrn-10-1-fp"}),
        ("empir evaluate --member mnistconv-w2a4-", {"mnistconv-w2a4-b"}),
        ("empir evaluate x --attack fg", {"fgsm"}),
        ("empir evaluate x --protocol ad", {"adaptive"}),
    ],
)
def test_the_shell_completes_models_attacks_and_protocols(words: str, expected: set[str]) -> None:
    complete = {"_EMPIR_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    result = CliRunner().invoke(empir_cli.main, prog_name="empir", env=complete)
    assert {line.partition(",")[2] for line in result.stdout.splitlines()} == expected


def test_the_protocols_of_the_shell_are_those_there_are() -> None:
    assert set(names.PROTOCOL_NAMES) == set(PROTOCOLS)
