"""Every number in the README and the documentation is computed again from the committed records."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from empir_plugin.evaluation.audit.report import SIGNIFICANCE
from empir_plugin.evaluation.intervals import CONFIDENCE, wilson_interval
from empir_plugin.evaluation.record import Record
from empir_plugin.export.export import LARGEST_SHARE
from empir_plugin.zoo.card import cards

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / "reproduction.md"})]
GENERATED = (
    "README.md",
    "docs/architecture.md",
    "docs/believe.md",
    "docs/benchmarks.md",
    "docs/extend.md",
    "docs/models.md",
    "docs/quantize.md",
    "docs/results.md",
    "docs/robust.md",
)

pytestmark = pytest.mark.skipif(len(PAGES) == 1, reason="the source distribution has no docs/")


PLAIN = "peer on the network as written"


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("docs_tables")


# Tables.


@pytest.mark.parametrize("page", GENERATED)
def test_generated_tables_are_up_to_date(page: str, tools: ModuleType) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tools.update(page, text) == text, "run python tools/docs_tables.py"
    wrong = re.sub(r'(<!-- [\w -]+ -->\n\n|title="blurred/\w+\.py"\n)', r"\1wrong ", text)
    assert wrong != text
    assert tools.update(page, wrong) == text


def test_all_pages_with_generated_parts_are_tested(tools: ModuleType) -> None:
    assert {*GENERATED} == {*tools.BLOCKS, tools.EXAMPLE_PAGE}


def test_a_missing_marker_is_an_error(tools: ModuleType) -> None:
    text = (ROOT / "docs" / "believe.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"believe\.md.*<!-- /protocols -->.*put them back"):
        tools.update("docs/believe.md", text.replace("<!-- /", "<!-- "))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_markers_are_on_lines_of_their_own(page: Path) -> None:
    for line in page.read_text(encoding="utf-8").splitlines():
        assert "<!--" not in line or re.fullmatch(r"<!-- [^<>]+ -->", line), line


# Sentences.


@dataclass(frozen=True)
class Claim:
    """A sentence with numbers.

    Args:
        page: Where it is.
        sentence: Its text, with ``{}`` for each number.
        compute: Computes the numbers, as they are written, from the module ``run_records``; for numbers that are quoted
            from elsewhere it only returns them.
    """

    page: str
    sentence: str
    compute: Callable[[Any], tuple[object, ...]]


def _full_accuracies(records: Any, autoattack: str, adaptive: str) -> tuple[str, str]:
    """Accuracy under AutoAttack and in the worst case of ``adaptive``, on the whole test set."""
    under_autoattack = records.accuracy_under(records.read_full_run(autoattack), "AutoAttack")
    return f"{under_autoattack:.2f}", f"{records.read_full_run(adaptive).worst_case_accuracy:.2f}"


def _reproduced(records: Any) -> tuple[str, str]:
    return _full_accuracies(records, "empir-cifar", "empir-cifar-adaptive")


def _robust(records: Any, model: str) -> tuple[str, str]:
    return _full_accuracies(records, f"{model}-standard", f"{model}-adaptive")


def _count(verdicts: str) -> int:
    return verdicts.count("1")


def _after_autoattack(records: Any, model: str) -> tuple[int, int, str]:
    """Other attacks of ``adaptive``, images that they broke, and images that were robust to AutoAttack."""
    record: Record = records.read_full_run(f"{model}-adaptive")
    robust = _count(records.find_attack(record, "AutoAttack").robust)
    return len(record.attacks) - 1, robust - _count(record.worst_case), f"{robust:,}"


def _broken_by_square(records: Any) -> tuple[int, str]:
    """Images that Square broke, and images that were robust to the parts of AutoAttack before it."""
    attack = records.find_attack(records.read_full_run("empir-mnist-at-standard"), "AutoAttack")
    *_, before, square = attack.parts
    assert square.name == "square"
    return _count(before.robust) - _count(square.robust), f"{_count(before.robust):,}"


def _relative_times(records: Any, record: str, case: str, form: str) -> list[float]:
    rows = records.read_times(record)["cases"][case]["contenders"]
    return [row["times_ours"] for row in rows if row["name"].endswith(form) and "bare" not in row["name"]]


def _fraction(records: Any) -> tuple[str]:
    """The time of PGD as a fraction of the fastest other library's, in words."""
    fastest = min(_relative_times(records, "attacks", "pgd", "as written"))
    words = "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"
    return (words[round(fastest) - 5],)


def _pyautoattack(records: Any) -> tuple[int, str, str]:
    images = records.read_times("autoattack")["cases"]["autoattack"]["n_images"]
    times = [_relative_times(records, "autoattack", "autoattack", form)[0] for form in ("as written", "prepared")]
    return images, f"{times[0]:.1f}", f"{times[1]:.1f}"


def _compared_images(records: Any) -> tuple[str]:
    found = records.read_times("integer-agreement")
    rows = [row for network in found["models"].values() for row in network["logits"]]
    assert {row["images"] for row in rows} == {found["settings"]["images"]}
    return (f"{found['settings']['images']:,}",)


def _resnet18(records: Any) -> tuple[str, str]:
    ratio = records.read_times("integer")["cases"]["network"]["rows"]["w4a4 on integers"]["ratio"]
    return f"{ratio['p10']:.2f}", f"{ratio['p90']:.2f}"


def _resnet18_ensemble(records: Any) -> tuple[str, ...]:
    rows = records.read_times("integer")["cases"]["network"]["rows"]
    return tuple(f"{rows[f'fp + w4a4 + w2a2 {form}']['ratio']['median']:.1f}" for form in ("on integers", "simulated"))


def _storage(records: Any, form: str) -> float:
    return records.read_overhead("empir-cifar")["eq6"]["storage"][form]


def _interval(_: Any) -> tuple[str, ...]:
    low, high = wilson_interval(10, 100)
    return f"{10:g}", f"{100 * low:.1f}", f"{100 * high:.1f}"


def _pgd_bf16(records: Any) -> tuple[str]:
    return (f"{records.read_times('attacks')['cases']['pgd-standing']['speedup_over_fastest_bf16'][PLAIN]:.1f}",)


def _changed_verdicts(_: Any) -> tuple[int, str]:
    tables = importlib.import_module("integer_tables")
    changes = [tables.change_of_definition(model) for model in tables.DEFINED]
    return sum(len(each.lost) + len(each.gained) for each in changes), f"{sum(len(each.before) for each in changes):,}"


def _joint_epochs(records: Any) -> tuple[int]:
    report = json.loads((records.RUNS / "training" / "cifarconv-at-fp.json").read_text(encoding="utf-8"))
    assert len(report["joint"]["history"]) == report["joint"]["recipe"]["epochs"]
    return (report["joint"]["recipe"]["epochs"],)


def _headline_images(records: Any) -> tuple[int]:
    names = importlib.import_module("accuracy_tables").HEADLINE
    (images,) = {records.read_run(name).data["n"] for name in names}
    return (images,)


CLAIMS = (
    Claim("README.md", "Accuracy on the first {} test images.", _headline_images),
    Claim(
        "README.md",
        "the accuracy of empir-cifar is {} % under AutoAttack and {} % in the worst case over the protocol `adaptive`.",
        _reproduced,
    ),
    Claim(
        "README.md",
        "reach {} % and {} % (empir-cifar-at), and {} % and {} % (empir-mnist-at).",
        lambda records: _robust(records, "empir-cifar-at") + _robust(records, "empir-mnist-at"),
    ),
    Claim("README.md", "PGD takes a {} of the time of the fastest other library", _fraction),
    Claim("docs/results.md", "an accuracy of {} % for the authors' ensemble", lambda _: ("1.5",)),
    Claim(
        "docs/results.md",
        "The accuracy of empir-cifar is {} % under AutoAttack, and {} % in the worst case over the protocol",
        _reproduced,
    ),
    Claim(
        "docs/results.md",
        "The accuracy of empir-cifar-at, trained adversarially, is {} % under AutoAttack and {} % in the worst case.",
        lambda records: _robust(records, "empir-cifar-at"),
    ),
    Claim(
        "docs/results.md",
        "The accuracy of empir-mnist-at is {} % under AutoAttack and {} % in the worst case.",
        lambda records: _robust(records, "empir-mnist-at"),
    ),
    Claim("docs/results.md", "The paper claims an overhead of less than {} %", lambda _: ("25",)),
    Claim(
        "docs/results.md",
        "the weights of empir-cifar would take {} % more.",
        lambda records: (f"{100 * _storage(records, 'ideal') - 100:.1f}",),
    ),
    Claim(
        "docs/results.md",
        "the ensemble takes {} times the storage of one network.",
        lambda records: (f"{_storage(records, 'as_built'):.2f}",),
    ),
    Claim(
        "docs/results.md",
        "takes {} times as long as with the full-precision member alone, and {} times with the low-precision members",
        lambda records: tuple(records.relative_times("empir-cifar")[kind] for kind in ("simulated", "int8")),
    ),
    Claim(
        "docs/robust.md",
        "The other {} attacks of `adaptive` broke {} more of its {} robust images.",
        lambda records: _after_autoattack(records, "empir-cifar-at"),
    ),
    Claim(
        "docs/robust.md",
        "broke {} of the {} images that were robust to targeted APGD and FAB.",
        _broken_by_square,
    ),
    Claim(
        "docs/robust.md",
        "The other {} attacks of `adaptive` broke {} more of the {} remaining images.",
        lambda records: _after_autoattack(records, "empir-mnist-at"),
    ),
    Claim("docs/robust.md", "had a clean accuracy below {} % on the test images", lambda _: ("58",)),
    Claim("docs/robust.md", "`empir-cifar-at` was trained for {} such epochs and a last stage", _joint_epochs),
    Claim("docs/benchmarks.md", "takes a {} of the time of the fastest of torchattacks", _fraction),
    Claim(
        "docs/benchmarks.md",
        "Where no image breaks it is {} times as fast",
        lambda records: (f"{min(_relative_times(records, 'attacks', 'pgd-standing', 'as written')):.1f}",),
    ),
    Claim(
        "docs/benchmarks.md",
        "Standard AutoAttack on {} images is {} times as fast as pyautoattack on one thread, and {} times as fast as "
        "pyautoattack on the prepared network.",
        _pyautoattack,
    ),
    Claim("docs/benchmarks.md", "the {} test images, bit for bit", _compared_images),
    Claim("docs/benchmarks.md", "and with bf16 gradients {} times as fast", _pgd_bf16),
    Claim("docs/benchmarks.md", "{} of {} verdicts changed", _changed_verdicts),
    Claim("docs/quantize.md", "Up to {} % of other decisions", lambda _: (f"{100 * LARGEST_SHARE:g}",)),
    Claim("docs/evaluate.md", "The {} % intervals in tables are Wilson's.", lambda _: (f"{100 * CONFIDENCE:g}",)),
    Claim("docs/evaluate.md", "{} % of 100 images is anything from {} % to {} %.", _interval),
    Claim("docs/quantize.md", "a w4a4 ResNet-18 takes {} to {} of the time of float32", _resnet18),
    Claim(
        "docs/quantize.md",
        "The target was {};",
        lambda records: (records.read_times("integer")["cases"]["network"]["targets"]["w4a4 on integers"]["at_most"],),
    ),
    Claim(
        "docs/quantize.md",
        "take {} times the time of one full-precision network ({} times if simulated)",
        _resnet18_ensemble,
    ),
    Claim("docs/believe.md", "with a p-value below {} %.", lambda _: (f"{100 * SIGNIFICANCE:g}",)),
)


def _prose(text: str) -> str:
    """A page without code, generated parts and emphasis, on one line."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!-- ([\w -]+) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL)
    return " ".join(text.replace("**", "").split())


def _written(claim: Claim) -> str:
    return claim.sentence.format(*claim.compute(importlib.import_module("run_records")))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.page}: {claim.sentence[:40]}")
def test_numbers_in_sentences_follow_from_the_records(claim: Claim) -> None:
    prose = _prose((ROOT / claim.page).read_text(encoding="utf-8"))
    assert prose.count(_written(claim)) == 1, _written(claim)


_NUMBER = re.compile(r"\d[\d.]* %|\d[\d.]* times|\d+ (?:more )?of (?:the|its) \d|(?:\w+(?:ir|f|x|n|h)th) of the time")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_no_measured_number_is_missing_from_the_claims(page: Path) -> None:
    prose = _prose(page.read_text(encoding="utf-8"))
    for claim in CLAIMS:
        if claim.page == _name(page):
            prose = prose.replace(_written(claim), "")
    assert _NUMBER.findall(prose) == []


def test_measured_numbers_are_recognized() -> None:
    text = "PGD takes a sixth of the time, is 6.1 times as fast, leaves 0.2 %, and breaks 4 more of its 3,131 images."
    assert _NUMBER.findall(text) == ["sixth of the time", "6.1 times", "0.2 %", "4 more of its 3"]


# Comparisons in words.


@pytest.fixture
def records(tools: ModuleType) -> ModuleType:
    return importlib.import_module("run_records")


@pytest.mark.parametrize("ensemble", ["empir-cifar-at", "empir-mnist-at"])
def test_both_ensembles_are_more_accurate_under_autoattack_than_their_members(
    ensemble: str, records: ModuleType
) -> None:
    own = records.accuracy_under(records.read_run(f"{ensemble}-500"), "AutoAttack")
    members = [network.name for network in cards()[ensemble].networks]
    assert len(members) == 3
    assert own > max(records.accuracy_under(records.read_run(f"{name}-500"), "AutoAttack") for name in members)


def test_the_cifar_ensemble_under_autoattack_is_more_accurate_than_its_best_member_under_fgsm(
    records: ModuleType,
) -> None:
    own = records.accuracy_under(records.read_full_run("empir-cifar-at-standard"), "AutoAttack")
    members = [network.name for network in cards()["empir-cifar-at"].networks]
    assert own > max(records.accuracy_under(records.read_full_run(name), "FGSM") for name in members)


@pytest.mark.parametrize("model", ["empir-cifar-at", "empir-mnist-at"])
def test_the_first_500_images_are_a_fair_sample(model: str, records: ModuleType) -> None:
    verdicts = records.find_attack(records.read_full_run(f"{model}-standard"), "AutoAttack").robust
    first, every = _count(verdicts[:500]) / 500, _count(verdicts) / len(verdicts)
    assert abs(first - every) < 0.01


def test_far_fewer_of_the_first_5000_mnist_images_are_robust(records: ModuleType) -> None:
    verdicts = records.find_attack(records.read_full_run("empir-mnist-at-standard"), "AutoAttack").robust
    assert _count(verdicts[:5000]) < _count(verdicts[5000:]) - 100
