"""The pytest plugin: pytest runs inside pytest, on models whose accuracies are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from empir_plugin.attacks.registry import attacks
from empir_plugin.data.image_set import load_images
from empir_plugin.suite.session import EvaluationSession, session_report
from empir_plugin.zoo.registry import builders

pytest_plugins = ("pytester",)

# pytester unloads the modules that an inner run imports, so these are imported before.
LOADED = (EvaluationSession, session_report, attacks(), builders())

TOYS = '''
import os
import struct
from dataclasses import dataclass

import torch
from torch import nn

from empir_plugin import ModelBuilder
from empir_plugin.attacks import fgsm


class Compare(nn.Module):
    """Class 0 or 1: which of an image's first two pixels is the brighter; half their difference is the distance."""

    def __init__(self, sign=1):
        super().__init__()
        self.register_buffer("sign", torch.tensor(float(sign)))

    def forward(self, x):
        difference = self.sign * (x[:, 0, 0, 0] - x[:, 0, 0, 1])
        rest = torch.full_like(difference, -5.0)
        return torch.stack([difference, -difference, *[rest] * 8], 1)


toy = ModelBuilder(lambda num_classes: Compare(), dataset="mnist")
toy_wrong = ModelBuilder(lambda num_classes: Compare(-1), dataset="mnist")


@dataclass(frozen=True)
class Logged:
    """FGSM on some images; every call leaves a line in the file named by TOY_LOG."""

    rows: tuple = tuple(range(8))

    def __call__(self, model, x, y, threat, *, seed=0, indices=None):
        if "TOY_LOG" in os.environ:
            with open(os.environ["TOY_LOG"], "a") as file:
                file.write(f"{len(x)}\\n")
        chosen = torch.isin(indices, torch.tensor(self.rows)).view(-1, 1, 1, 1)
        return torch.where(chosen, fgsm()(model, x, y, threat, seed=seed, indices=indices), x)
'''
ENTRY_POINTS = """
[robustbench.models]
toy = toy_rb:toy
toy-wrong = toy_rb:toy_wrong

[robustbench.attacks]
logged = toy_rb:Logged
"""
DISTANCES = (2, 5, 7, 9, 12, -3, -10, 20)
"""Of the toy images, in steps of 1/255: at eps 8/255, images 0, 1, 2 and 5 are broken; 7 is misclassified."""
LABELS = bytes([0, 0, 0, 0, 0, 1, 1, 1])
CLEAN, ROBUST = 87.5, 37.5


@pytest.fixture
def toys(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.Pytester]:
    """A distribution with a toy model and a toy attack, and a folder ``data`` with eight images of MNIST's format."""
    pytester.makepyfile(toy_rb=TOYS)
    metadata = pytester.mkdir("toy_rb-1.0.dist-info")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-rb\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    pytester.syspathinsert()
    monkeypatch.setenv("PYTHONPATH", str(pytester.path), prepend=os.pathsep)
    _write_images(pytester.path / "data" / "MNIST" / "raw")
    yield pytester
    _forget()


def _forget() -> None:
    """Discover entry points again: pytester unloads the toys' module after every run."""
    for cache in (builders, attacks):
        cache.cache_clear()


def _write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    images = bytearray(8 * 28 * 28)
    for number, distance in enumerate(DISTANCES):
        images[number * 784], images[number * 784 + 1] = 128 + distance, 128 - distance
    header = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (8, 28, 28))
    (folder / "t10k-images-idx3-ubyte").write_bytes(header + bytes(images))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + (8).to_bytes(4, "big") + LABELS)


def _suite(toys: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    shared = ("-p", "no:cacheprovider", "--rb-data", "data", "--rb-json", "out.json", "--rb-eps", "8/255")
    _forget()
    return toys.runpytest("--pyargs", "empir_plugin.suite", *shared, *arguments)


HEAD = (
    "import pytest\nimport toy_rb\nfrom empir_plugin.evaluation.attack_spec import AttackSpec\n"
    "@pytest.fixture\ndef rb_model():\n    return toy_rb.Compare()\n"
)
OWN = ("-p", "no:cacheprovider", "--rb-data", "data", "--rb-dataset", "mnist", "--rb-json", "out.json")


def _own(toys: pytest.Pytester, body: str, *arguments: str) -> pytest.RunResult:
    toys.makepyfile(test_own=HEAD + body)
    return toys.runpytest("test_own.py", *OWN, *arguments)


def _report(toys: pytest.Pytester) -> dict[str, Any]:
    return json.loads((toys.path / "out.json").read_text())


def test_a_run_without_evaluations_imports_neither_torch_nor_the_package(tmp_path: Path) -> None:
    (tmp_path / "test_light.py").write_text(
        "import sys\n"
        "def test_light(request):\n"
        "    assert request.config.pluginmanager.hasplugin('empir')\n"
        "    assert 'pytest_empir' in sys.modules\n"
        "    assert not {'torch', 'empir_plugin', 'numpy'} & set(sys.modules)\n"
    )
    run = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers"]
    done = subprocess.run([*run, str(tmp_path)], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert "robustness" not in done.stdout
    (tmp_path / "conftest.py").write_text("import numpy\n")
    assert subprocess.run([*run, str(tmp_path)], check=False, capture_output=True, cwd=tmp_path).returncode == 1


def test_options_marker_and_fixtures_are_documented(pytester: pytest.Pytester) -> None:
    pytester.runpytest("--help").stdout.fnmatch_lines(["robustness under attack*", "*--rb-model=NAME*"])
    pytester.runpytest("--markers").stdout.fnmatch_lines(["@pytest.mark.robustness(model, dataset, *"])
    pytester.runpytest("--fixtures").stdout.fnmatch_lines(["rb_record*", "*empir_plugin.Record*"])


def test_the_suite_is_skipped_with_a_reason_unless_a_model_is_named(toys: pytest.Pytester) -> None:
    result = _suite(toys, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*needs --rb-model*"])
    assert result.ret == 0
    assert not (toys.path / "out.json").exists()


def test_the_suite_reports_the_known_accuracies(toys: pytest.Pytester) -> None:
    result = _suite(toys, "--rb-model", "toy", "--rb-attack", "fgsm")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "model *threat *images *attack *clean *robust *seconds *verdict",
            "toy *Linf:8/255 *8 *fgsm *87.50 % *37.50 %*no threshold",
        ]
    )
    report = _report(toys)
    (case,), (record,) = report["cases"], report["records"]
    assert (case["clean_accuracy"], case["worst_case_accuracy"], case["eps"]) == (CLEAN, ROBUST, "8/255")
    assert (record["clean"], record["worst_case"]) == ("11111110", "00011010")
    assert (report["exit_status"], record["model"]["name"], record["threat"]) == (0, "toy", "Linf:8/255")


def test_accuracy_depends_on_the_radius(toys: pytest.Pytester) -> None:
    _suite(toys, "--rb-model", "toy", "--rb-attack", "fgsm", "--rb-eps", "1/255")
    assert _report(toys)["cases"][0]["worst_case_accuracy"] == CLEAN
    _suite(toys, "--rb-model", "toy", "--rb-attack", "fgsm", "--rb-eps", "0.5")
    assert _report(toys)["cases"][0]["worst_case_accuracy"] == 0


def test_each_attack_is_a_case_beside_the_worst_case_and_runs_once(
    toys: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_LOG", str(toys.path / "log"))
    result = _suite(toys, "--rb-model", "toy", "--rb-model", "toy-wrong", "--rb-attack", "logged", "--rb-attack", "bim")
    result.assert_outcomes(passed=6)
    report = _report(toys)
    assert [case["test"].partition("[")[2] for case in report["cases"]] == [
        "toy-logged]", "toy-bim]", "toy-worst-case]", "toy-wrong-logged]", "toy-wrong-bim]", "toy-wrong-worst-case]",
    ]  # fmt: skip
    assert [[attack["name"] for attack in record["attacks"]] for record in report["records"]] == [["logged", "bim"]] * 2
    assert [record["worst_case_accuracy"] for record in report["records"]] == [ROBUST, 12.5]
    assert (toys.path / "log").read_text().split() == ["7", "1"], "one call for each model, on what it classifies"


def test_a_missed_threshold_fails_readably_and_the_report_is_written(toys: pytest.Pytester) -> None:
    result = _suite(toys, "--rb-model", "toy", "--rb-attack", "fgsm", "--rb-min-robust", "40", "--rb-min-clean", "90")
    result.assert_outcomes(failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "toy under Linf:8/255, 8 images of mnist (folder)",
            "clean accuracy 87.50 % is below min_clean 90 %: 7 of 8 images are classified correctly, 8 are needed",
            "robust accuracy 37.50 % is below min_robust 40 %: 3 of 8 images are robust to every attack, 4 are needed",
            "*clean *87.50 %  wrong: 7",
            "*fgsm *37.50 %  broken: 0-2, 5",
            "reproduce: pytest --pyargs empir_plugin.suite --rb-model toy --rb-eps 8/255 --rb-attack fgsm*",
            "toy *FAILED",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    report = _report(toys)
    assert (report["exit_status"], report["cases"][0]["outcome"]) == (1, "failed")


def test_an_accuracy_at_the_threshold_passes(toys: pytest.Pytester) -> None:
    arguments = ("--rb-min-robust", "37.5", "--rb-min-clean", "87.5")
    result = _suite(toys, "--rb-model", "toy", "--rb-attack", "fgsm", *arguments)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["toy *passed"])


def test_the_reproduction_command_reproduces(toys: pytest.Pytester) -> None:
    result = _suite(toys, "--rb-model", "toy", "--rb-attack", "fgsm", "--rb-attack", "bim", "--rb-min-robust", "40")
    commands = [line.split()[2:] for line in result.outlines if line.startswith("reproduce: pytest")]
    again = toys.runpytest("-p", "no:cacheprovider", *commands[0])
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["robust accuracy 37.50 % is below*"])


FGSM = ("--rb-model", "toy", "--rb-attack", "fgsm")


def test_a_session_is_compared_with_a_saved_one(toys: pytest.Pytester) -> None:
    _suite(toys, *FGSM, "--rb-save", "base.json").assert_outcomes(passed=1)
    compare = ("--rb-compare", "base.json", "--rb-compare-fail", "1")
    equal = _suite(toys, *FGSM, *compare)
    equal.assert_outcomes(passed=1)
    equal.stdout.fnmatch_lines(["toy *fgsm *passed", "toy *Linf:8/255 *fgsm *37.50 % *37.50 % *+0.00 *0 *0 *1"])
    base = json.loads((toys.path / "base.json").read_text())
    (record,) = base["records"]
    record.update(clean="11111111", clean_accuracy=100.0, worst_case="00011110", worst_case_accuracy=50.0)
    record["attacks"][0].update(robust="00011110", accuracy=50.0)
    (toys.path / "base.json").write_text(json.dumps(base))
    worse = _suite(toys, *FGSM, *compare)
    worse.assert_outcomes(failed=1)
    worse.stdout.fnmatch_lines(
        [
            "clean accuracy fell by 12.50 points, from 100.00 % to 87.50 %*",
            "robust accuracy fell by 12.50 points, from 50.00 % to 37.50 %*",
            "reproduce: pytest *--rb-compare base.json --rb-compare-fail 1",
            "toy *Linf:8/255 *fgsm *50.00 % *37.50 % *-12.50 *1 *0 *1",
        ]
    )
    assert _suite(toys, *FGSM, "--rb-compare", "base.json", "--rb-compare-fail", "12.5").ret == 0
    assert _suite(toys, *FGSM, "--rb-compare", "base.json").ret == 0, "without a limit nothing fails"


def test_what_the_baseline_does_not_cover_fails(toys: pytest.Pytester) -> None:
    _suite(toys, *FGSM, "--rb-save", "base.json")
    result = _suite(
        toys, "--rb-model", "toy", "--rb-attack", "bim", "--rb-compare", "base.json", "--rb-compare-fail", "1"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*base.json has no result of bim for toy under Linf:8/255*--rb-save"])


def test_a_failed_session_does_not_become_the_baseline(toys: pytest.Pytester) -> None:
    result = _suite(toys, *FGSM, "--rb-min-robust", "40", "--rb-save", "base.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["no baseline: not every test passed*"])
    assert not (toys.path / "base.json").exists()
    assert (toys.path / "out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--rb-compare-fail", "1"), "pass --rb-compare FILE"),
        (("--rb-compare", "nothing.json"), "nothing.json cannot be read"),
        (("--rb-save", "data"), "--rb-save must be a file"),
    ],
    ids=["no file", "missing", "folder"],
)
def test_a_baseline_that_cannot_be_is_one_sentence(
    toys: pytest.Pytester, arguments: tuple[str, ...], sentence: str
) -> None:
    result = _suite(toys, *FGSM, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert sentence in result.stderr.str()


def test_a_protocol_is_one_case_and_is_recorded(toys: pytest.Pytester) -> None:
    _suite(toys, "--rb-model", "toy", "--rb-protocol", "paper", "--rb-n-examples", "3").assert_outcomes(passed=1)
    (record,) = _report(toys)["records"]
    assert record["protocol"]["name"] == "paper"
    assert [attack["name"] for attack in record["attacks"]] == ["CW", "FGSM", "BIM", "PGD"]
    assert record["data"]["n"] == 3


def test_the_ini_file_sets_models_attacks_and_data(toys: pytest.Pytester) -> None:
    toys.makeini("[pytest]\nrb_models =\n  toy\nrb_attacks =\n  fgsm\n  bim\nrb_data = data\n")
    shared = ("--pyargs", "empir_plugin.suite", "-p", "no:cacheprovider")
    toys.runpytest(*shared).assert_outcomes(passed=3)
    toys.runpytest(*shared, "--rb-attack", "fgsm").assert_outcomes(passed=1)
    toys.runpytest(*shared, "--rb-protocol", "paper", "--rb-n-examples", "2").assert_outcomes(passed=1)


MARKED = """
@pytest.mark.robustness(eps="8/255", attack=["fgsm"], min_clean=80, min_robust={least})
def test_mine(rb_record):
    assert rb_record.worst_case_accuracy == {expected}
"""


def test_the_markers_thresholds_apply_to_your_own_model(toys: pytest.Pytester) -> None:
    _own(toys, MARKED.format(least=30, expected=37.5)).assert_outcomes(passed=1)
    result = _own(toys, MARKED.format(least=50, expected=37.5))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["Compare under *", "*broken: 0-2, 5", "reproduce: pytest test_own.py::test_mine*"])


def test_a_failed_assertion_is_reported_before_a_missed_threshold(toys: pytest.Pytester) -> None:
    result = _own(toys, MARKED.format(least=50, expected=0))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 37.5 == 0"])


def test_a_missed_threshold_can_be_expected(toys: pytest.Pytester) -> None:
    body = "@pytest.mark.xfail(strict=True)" + MARKED
    _own(toys, body.format(least=50, expected=37.5)).assert_outcomes(xfailed=1)
    _own(toys, body.format(least=30, expected=37.5)).assert_outcomes(failed=1)


def test_the_marker_overrides_the_command_line(toys: pytest.Pytester) -> None:
    body = "@pytest.mark.robustness(eps=1 / 255)\ndef test_mine(rb_record):\n    pass\n"
    _own(toys, body, "--rb-eps", "8/255", "--rb-attack", "bim", "--rb-seed", "5").assert_outcomes(passed=1)
    (record,) = _report(toys)["records"]
    assert (record["threat"], record["run"]["seed"], record["attacks"][0]["name"]) == ("Linf:1/255", 5, "bim")


def test_the_reports_worst_case_is_per_image_rather_than_the_minimum_of_columns(toys: pytest.Pytester) -> None:
    front, back = 'AttackSpec("front", toy_rb.Logged((0, 1, 3)))', 'AttackSpec("back", toy_rb.Logged((2, 5, 6)))'
    test = '@pytest.mark.robustness(eps="8/255", attack={}, min_robust=50)\ndef test_{}(rb_record):\n    pass\n'
    result = _own(toys, test.format(front, "front") + test.format(back, "back"))
    result.assert_outcomes(passed=2)
    (record,) = _report(toys)["records"]
    assert [attack["accuracy"] for attack in record["attacks"]] == [62.5, 62.5]
    assert record["worst_case_accuracy"] == ROBUST
    _own(toys, test.format(f"[{front}, {back}]", "both")).assert_outcomes(failed=1)


def test_an_attack_without_a_budget_misses_every_threshold(toys: pytest.Pytester) -> None:
    body = (
        "from empir_plugin import Threat\n"
        "from empir_plugin.attacks import carlini_wagner_of_empir\n"
        'far = AttackSpec("far", carlini_wagner_of_empir(), threat=Threat.parse("L2:inf"))\n'
        '@pytest.mark.robustness(eps="8/255", attack=far, min_robust={})\n'
        "def test_mine(rb_record):\n    pass\n"
    )
    result = _own(toys, body.format(0))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["min_robust 0 % needs an attack with a budget, got far: add one, such as pgd"])
    _own(toys, body.format(None)).assert_outcomes(passed=1)


BAD_OPTIONS = {
    "eps in 0..255": (("--rb-eps", "8"), "so write 8/255"),
    "eps text": (("--rb-eps", "eight"), "eps is written as a fraction"),
    "norm": (("--rb-threat", "L7"), "a norm is one of Linf, L2, got 'L7'"),
    "norm without radius": (("--rb-threat", "L2", "--rb-eps", ""), "pass eps, such as '8/255' (--rb-eps)"),
    "attack": (("--rb-attack", "fgms"), "no attack 'fgms' here: did you mean 'fgsm'?"),
    "attack that needs settings": (("--rb-attack", "on-member"), "needs the setting"),
    "protocol": (("--rb-attack", "fgsm", "--rb-protocol", "paper"), "got both"),
    "unknown protocol": (("--rb-protocol", "ours"), "a protocol is one of"),
    "data set": (("--rb-dataset", "cifar10"), "toy is a model for mnist, got dataset='cifar10'"),
    "data folder": (("--rb-data", "nowhere"), "nowhere"),
    "images": (("--rb-n-examples", "9"), "has 8 images, got n_examples=9"),
    "checkpoint": (("--rb-checkpoint", "nowhere.safetensors"), "no weight file at nowhere.safetensors"),
    "device": (("--rb-device", "tpu?"), "a device is written"),
    "batch size": (("--rb-batch-size", "0"), "batch_size must be a whole number"),
    "threshold": (("--rb-min-robust", "nan"), "min_robust must be a percentage from 0 to 100, got nan"),
    "no number": (("--rb-seed", "x"), "--rb-seed"),
    "report is a folder": (("--rb-json", "data"), "--rb-json must be a file"),
    "report in a file": (("--rb-json", "toy_rb.py/out.json"), "toy_rb.py is a file"),
    "store is a file": (("--rb-state", "toy_rb.py"), "toy_rb.py is a file"),
    "images without store": (("--rb-adv-out", "adv"), "pass --rb-state, too"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_print_one_sentence_before_any_attack(
    toys: pytest.Pytester, arguments: tuple[str, ...], sentence: str
) -> None:
    (toys.path / "out.json").write_text("an older report")
    result = _suite(toys, "--rb-model", "toy", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (error,) = (line for line in result.errlines if sentence in line)
    assert error.lower().startswith("error: ") or "argument" in error
    assert "Traceback" not in result.stderr.str()
    assert "test session starts" not in result.stdout.str() or "collected" not in result.stdout.str()
    assert (toys.path / "out.json").read_text() == "an older report"


BAD_MARKERS = {
    "keyword": ("epsilon=8", "takes the keywords model, dataset,", "got epsilon"),
    "position": ("'8/255'", "takes the keywords", "got '8/255'"),
    "eps": ("eps=8, attack='fgsm'", "eps must lie in (0, 1]", "8/255"),
    "no eps": ("attack='fgsm'", "a model of your own has no default", "pass eps"),
    "attack": ("eps='8/255', attack='fgms'", "no attack 'fgms' here", "did you mean 'fgsm'?"),
    "threshold": ("eps='8/255', min_clean=101", "min_clean must be a percentage", "got 101"),
    "threat twice": ("threat='Linf:0.1', eps='8/255'", "give the radius once", "leave one out"),
}


@pytest.mark.parametrize(("keywords", "sentence", "cure"), BAD_MARKERS.values(), ids=BAD_MARKERS)
def test_bad_markers_print_one_sentence(toys: pytest.Pytester, keywords: str, sentence: str, cure: str) -> None:
    result = _own(toys, f"@pytest.mark.robustness({keywords})\ndef test_mine(rb_record):\n    pass\n")
    result.assert_outcomes(errors=1)
    (line,) = {line for line in result.outlines if sentence in line and not line.startswith("ERROR")}
    assert cure in line
    assert "Traceback" not in result.stdout.str()
    assert "During handling" not in result.stdout.str()


def test_a_marked_test_needs_a_model_a_data_set_and_the_fixture(toys: pytest.Pytester) -> None:
    toys.makepyfile(
        test_lacking="""
        import pytest
        import toy_rb

        @pytest.mark.robustness(eps="8/255", attack="fgsm", dataset="mnist")
        def test_model(rb_record):
            pass

        @pytest.mark.robustness(eps="8/255", attack="fgsm")
        def test_fixture():
            pass

        class TestData:
            @pytest.fixture
            def rb_model(self):
                return toy_rb.Compare()

            @pytest.mark.robustness(eps="8/255", attack="fgsm")
            def test_data(self, rb_record):
                pass
        """
    )
    result = toys.runpytest("test_lacking.py", "-p", "no:cacheprovider")
    result.assert_outcomes(errors=2, failed=1)
    for sentence in ("needs a model, got none", "does not ask for rb_record", "needs a data set, got none"):
        result.stdout.fnmatch_lines([f"*{sentence}*"])


STRICT = 'pytest.mark.robustness(eps="8/255", attack="fgsm", min_robust=50)'
LOOSE = 'pytest.mark.robustness(eps="8/255", attack="fgsm", min_robust=30)'
MARKS = {"strict": STRICT, "loose": LOOSE}
"""The toy's robust accuracy, ROBUST, is below the first threshold and above the second."""
PLACES = (
    "@{mark}\ndef test_mine(rb_record): pass",
    "@{mark}\nclass TestMine:\n    def test_mine(self, rb_record): pass",
    "@{mark}\nclass Base:\n    def test_mine(self, rb_record): pass\nclass TestMine(Base): pass",
    "class TestMine:\n    pytestmark = {mark}\n    def test_mine(self, rb_record): pass",
    "pytestmark = [{mark}]\ndef test_mine(rb_record): pass",
    '@pytest.mark.parametrize("n", [pytest.param(1, marks={mark})])\ndef test_mine(n, rb_record): pass',
    "@pytest.fixture(params=[pytest.param(1, marks={mark})])\ndef n(request): pass\ndef test_mine(n, rb_record): pass",
    "def pytest_generate_tests(metafunc): metafunc.parametrize('n', [pytest.param(1, marks={mark})])\n"
    "def test_mine(n, rb_record): pass",
    "@{mark}\n@pytest.mark.usefixtures('rb_record')\ndef test_mine(): pass",
    "@{mark}\ndef test_mine(request):\n    request.getfixturevalue('rb_record')",
)


def test_the_marker_counts_wherever_pytest_takes_one(toys: pytest.Pytester) -> None:
    bodies = {f"{kind} {n}": body.format(mark=mark) for n, body in enumerate(PLACES) for kind, mark in MARKS.items()}
    result = _several(toys, bodies)
    assert _outcomes(toys) == {name: "failed" if "strict" in name else "passed" for name in bodies}
    result.stdout.fnmatch_lines(["robust accuracy 37.50 % is below min_robust 50 %*"])


CLOSEST = (
    '@{loose}\n@pytest.mark.parametrize("n", [pytest.param(1, marks={strict})])\ndef test_mine(n, rb_record): pass',
    "@{loose}\nclass TestMine:\n    @{strict}\n    def test_mine(self, rb_record): pass",
    "@{loose}\nclass Base:\n    def test_mine(self, rb_record): pass\n@{strict}\nclass TestMine(Base): pass",
    "pytestmark = {loose}\n@{strict}\nclass TestMine:\n    def test_mine(self, rb_record): pass",
)


def test_the_closest_marker_wins(toys: pytest.Pytester) -> None:
    bodies = {f"strict {n}": body.format(strict=STRICT, loose=LOOSE) for n, body in enumerate(CLOSEST)}
    bodies |= {f"loose {n}": body.format(strict=LOOSE, loose=STRICT) for n, body in enumerate(CLOSEST)}
    _several(toys, bodies)
    assert _outcomes(toys) == {name: "failed" if "strict" in name else "passed" for name in bodies}


def _several(toys: pytest.Pytester, bodies: Mapping[str, str], *arguments: str) -> pytest.RunResult:
    """A session over one file for each body."""
    files = {f"test_{name.replace(' ', '_')}": f"{HEAD}{body}\n" for name, body in bodies.items()}
    toys.makepyfile(**files)
    return toys.runpytest(*(f"{name}.py" for name in files), *OWN, *arguments)


def _outcomes(toys: pytest.Pytester) -> dict[str, str]:
    """The outcomes in the report, by the names of :func:`_several`."""
    files = {case["test"].partition(".py::")[0]: case["outcome"] for case in _report(toys)["cases"]}
    return {file.removeprefix("test_").replace("_", " "): outcome for file, outcome in files.items()}


def test_marked_parameters_evaluate_once_and_the_others_follow_the_options(toys: pytest.Pytester) -> None:
    values = f"[pytest.param(1, marks={LOOSE}), pytest.param(2, marks={LOOSE}), 3]"
    body = f"@pytest.mark.parametrize('n', {values})\ndef test_mine(n, rb_record): pass"
    _own(toys, body).assert_outcomes(passed=2, skipped=1)
    assert [case["test"] for case in _report(toys)["cases"]] == [f"test_own.py::test_mine[{n}]" for n in (1, 2)]
    models = ("--rb-model", "toy", "--rb-model", "toy-wrong", "--rb-eps", "8/255", "--rb-attack", "fgsm")
    # The marked ones have the model of their own fixture; a test that follows the options must not.
    _own(toys, body, *models).assert_outcomes(passed=2, errors=2)
    names = {case["test"].partition("[")[2] for case in _report(toys)["cases"]}
    assert names == {"1]", "2]", "toy-fgsm-3]", "toy-wrong-fgsm-3]"}


def test_a_hook_may_add_the_marker(toys: pytest.Pytester) -> None:
    toys.makeconftest(f"import pytest\ndef pytest_collection_modifyitems(items): items[0].add_marker({STRICT})")
    _own(toys, "def test_mine(rb_record): pass").assert_outcomes(failed=1)


ASK = "does not ask for rb_record: add it"
UNTESTED = (
    ("@{mark}\nclass TestMine:\n    def test_mine(self): pass", ASK),
    ("pytestmark = {mark}\ndef test_mine(rb_model): pass", ASK),
    ('@pytest.mark.parametrize("n", [pytest.param(1, marks={mark})])\ndef test_mine(n): pass', ASK),
    ("import unittest\n@{mark}\nclass TestMine(unittest.TestCase):\n    def test_mine(self): pass", ASK),
    (
        '@{mark}\n@pytest.mark.parametrize("n", [])\ndef test_mine(n, rb_record): pass',
        "set for (n): give it parameters",
    ),
    (
        "@{mark}\n@pytest.mark.robustness(min_robust=30)\ndef test_mine(rb_record): pass",
        "min_robust=30 and min_robust=50",
    ),
    (
        "@{mark}\n@pytest.mark.robustness(protocol='paper')\ndef test_mine(rb_record): pass",
        "='paper' and attack='fgsm'",
    ),
    ("@{mark}\ndef check_mine(rb_record): pass", "check_mine has the marker*give it a name"),
    ("@{mark}\nclass TestMine:\n    def __init__(self): pass", "TestMine has the marker*into a fixture"),
    ("@{mark}\ndef test_mine(rb_record):\n    pytest.skip('low')", "robust accuracy 37.50 % is below min_robust 50 %"),
)


def test_a_threshold_that_is_not_tested_is_an_error(toys: pytest.Pytester) -> None:
    bodies = {str(n): body.format(mark=STRICT) for n, (body, _) in enumerate(UNTESTED)}
    result = _several(toys, bodies, "--continue-on-collection-errors")
    assert sum(result.parseoutcomes().get(kind, 0) for kind in ("failed", "errors")) == len(UNTESTED)
    assert not result.parseoutcomes().keys() & {"passed", "skipped"}
    for _, sentence in UNTESTED:
        result.stdout.fnmatch_lines([f"*{sentence}*"])


def test_a_skipped_test_stays_skipped_and_is_named(toys: pytest.Pytester) -> None:
    result = _own(toys, f"@pytest.mark.skip(reason='no GPU')\n@{STRICT}\ndef test_mine(rb_record): pass")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["not evaluated, so its marker is not tested: test_own.py::test_mine"])


def test_thresholds_of_the_command_line_need_a_model(toys: pytest.Pytester) -> None:
    result = _suite(toys, "--rb-min-robust", "30")
    result.stdout.fnmatch_lines(["*needs a model, got none: name one with --rb-model*", "*1 error*"])
    for least, outcomes in (("50", {"failed": 1}), ("30", {"passed": 1})):
        arguments = ("--rb-attack", "fgsm", "--rb-eps", "8/255", "--rb-min-robust", least)
        _own(toys, "def test_mine(rb_record): pass", *arguments).assert_outcomes(**outcomes)


def test_a_record_asked_for_in_the_test_needs_the_marker(toys: pytest.Pytester) -> None:
    result = _own(toys, "def test_mine(request):\n    request.getfixturevalue('rb_record')")
    result.stdout.fnmatch_lines(["*name rb_record among the arguments*", "*1 failed*"])


def test_a_hook_can_extend_the_report(toys: pytest.Pytester) -> None:
    toys.makeconftest("def pytest_rb_update_json(config, report):\n    report['commit'] = 'abc'\n")
    assert _suite(toys, "--rb-model", "toy", "--rb-attack", "fgsm").ret == 0
    assert _report(toys)["commit"] == "abc"


def test_a_hook_that_breaks_the_json_fails_the_run_but_not_the_report(toys: pytest.Pytester) -> None:
    toys.makeconftest("def pytest_rb_update_json(config, report):\n    report['commit'] = object()\n")
    result = _suite(toys, "--rb-model", "toy", "--rb-attack", "fgsm")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["the report omits the changes of pytest_rb_update_json*", "report: *out.json"])
    assert _report(toys)["cases"][0]["worst_case_accuracy"] == ROBUST


def test_an_interrupted_session_writes_its_results(toys: pytest.Pytester) -> None:
    body = MARKED.format(least=30, expected=37.5) + "def test_stop():\n    pytest.exit('enough')\n"
    result = _own(toys, body)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    report = _report(toys)
    assert (report["exit_status"], report["records"][0]["worst_case_accuracy"]) == (2, ROBUST)


def test_a_session_without_evaluations_keeps_the_older_report(toys: pytest.Pytester) -> None:
    (toys.path / "out.json").write_text("an older report")
    result = _own(toys, "@pytest.mark.robustness(eps=8)\ndef test_mine(rb_record):\n    pass\n")
    result.stdout.fnmatch_lines(["no report: nothing was evaluated, *out.json is unchanged"])
    assert (toys.path / "out.json").read_text() == "an older report"


def test_a_store_keeps_finished_work_and_adversarial_images_break_the_model(
    toys: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_LOG", str(toys.path / "log"))
    arguments = ("--rb-model", "toy", "--rb-attack", "logged", "--rb-state", "state", "--rb-adv-out", "new/adv")
    _suite(toys, *arguments).assert_outcomes(passed=1)
    first = _report(toys)["records"][0]["worst_case"]
    _suite(toys, *arguments).assert_outcomes(passed=1)
    assert (toys.path / "log").read_text().split() == ["7"], "the second session attacks nothing"
    assert _report(toys)["records"][0]["worst_case"] == first
    (file,) = (toys.path / "new" / "adv").iterdir()
    assert file.match("toy-logged-Linf-8-255-*.safetensors")
    images = load_file(file)["images"]
    brighter = images[:, 0, 0, 0] > images[:, 0, 0, 1]
    assert brighter.tolist() == [False, False, False, True, True, True, False, True]
    clean = load_images("mnist", data_dir=toys.path / "data").as_float()
    assert float((images - clean).abs().max()) <= 8 / 255 + 1e-6


def test_the_suite_collects_without_doctests_or_warnings(pytester: pytest.Pytester) -> None:
    arguments = ("--pyargs", "empir_plugin.suite", "--doctest-modules", "-p", "no:cacheprovider", "-W", "error")
    result = pytester.runpytest(*arguments, "--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_robustness[[]no-model[]]"])


@pytest.mark.slow
def test_workers_report_the_same_as_one_process(toys: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    asked = ("--rb-model", "toy", "--rb-model", "toy-wrong", "--rb-attack", "fgsm", "--rb-attack", "logged")
    shared = ("--pyargs", "empir_plugin.suite", "-p", "no:cacheprovider", "--rb-data", "data", "--rb-eps", "8/255")
    rows: list[Callable[[], Any]] = []
    for name, more in (("one", ()), ("two", ("-n", "2", "--rb-state", "state"))):
        outputs = ("--rb-json", f"{name}.json", "--rb-min-robust", "20")
        result = toys.runpytest_subprocess(*shared, *asked, *outputs, *more)
        result.assert_outcomes(passed=3, failed=3)
        rows.append(lambda name=name: json.loads((toys.path / f"{name}.json").read_text()))
    one, two = (read() for read in rows)
    keys = ("test", "outcome", "clean_accuracy", "worst_case_accuracy", "attacks")
    assert [[case[key] for key in keys] for case in one["cases"]] == [[c[key] for key in keys] for c in two["cases"]]
    assert [r["worst_case"] for r in one["records"]] == [r["worst_case"] for r in two["records"]]


@pytest.mark.slow
def test_an_unknown_model_prints_one_sentence(toys: pytest.Pytester) -> None:
    arguments = ("--pyargs", "empir_plugin.suite", "--rb-model", "empir-cifra")
    result = toys.runpytest_subprocess(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: no model 'empir-cifra' here or in RobustBench: did you mean 'empir-cifar'?" in result.errlines


NAMED = '@pytest.mark.robustness(model="toy", eps="8/255", attack="fgsm")\ndef test_mine(rb_record): pass\n'
CHANGED = (
    "import copy\nimport pytest\nimport torch\n"
    "@pytest.fixture\ndef rb_model(rb_model):\n"
    "    {change}\n    rb_model.extra = torch.nn.Linear(1, 1)\n    return rb_model\n"
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD + NAMED, "names the model 'toy', and its fixture rb_model returns another one, a Compare: leave model="),
        (CHANGED.format(change="rb_model = copy.deepcopy(rb_model)") + NAMED, "returns another one, a Compare"),
        (
            CHANGED.format(change="pass") + NAMED,
            "names the model 'toy', whose Compare a fixture or an earlier test has",
        ),
    ],
    ids=["another", "a changed copy", "changed in place"],
)
def test_a_record_never_carries_the_name_of_another_model(toys: pytest.Pytester, text: str, sentence: str) -> None:
    toys.makepyfile(test_own=text)
    result = toys.runpytest("test_own.py", *OWN)
    result.assert_outcomes(errors=1)
    assert sentence in " ".join(result.stdout.str().split())
    assert not (toys.path / "out.json").exists()


def test_options_do_not_name_the_model_of_a_fixture(toys: pytest.Pytester) -> None:
    result = _own(
        toys, "def test_mine(rb_record): pass\n", "--rb-model", "toy", "--rb-eps", "8/255", "--rb-attack", "fgsm"
    )
    result.assert_outcomes(errors=1)
    assert "'toy', and its fixture rb_model returns another one, a Compare" in " ".join(result.stdout.str().split())


def test_a_test_that_changes_its_model_does_not_lend_the_name_to_the_next(toys: pytest.Pytester) -> None:
    change = '@pytest.mark.robustness(model="toy", eps="8/255", attack="fgsm")\ndef test_first(rb_record, rb_model):\n'
    toys.makepyfile(test_own=f"import pytest, torch\n{change}    rb_model.extra = torch.nn.Linear(1, 1)\n" + NAMED)
    result = toys.runpytest("test_own.py", *OWN)
    result.assert_outcomes(passed=1, errors=1)
    assert [row["record"] for row in _report(toys)["cases"] if "record" in row] == []
    assert [record["model"]["name"] for record in _report(toys)["records"]] == ["toy"]
