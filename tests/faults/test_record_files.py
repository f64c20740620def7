"""A damaged run record is refused in one sentence, or says the same as before: nothing of another form gets in."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.record import AttackRecord, PartRecord, Record

PARTS = (PartRecord("clean", "1110", 75.0), PartRecord("apgd-ce", "1000", 25.0))
RECORD = Record(
    model={"name": "toy", "sha256": "a" * 64, "identity": 2, "weights_loaded": True},
    data={"name": "toy", "split": "test", "source": "folder", "n": 4, "sha256": "b" * 64, "full_official": False},
    threat="Linf:8/255", clean="1110", clean_accuracy=75.0,
    attacks=(
        AttackRecord("FGSM", "fgsm()", "1100", 50.0, 0.25, threat="Linf:8/255", rules="FGSM: attacks."),
        AttackRecord("AA", "aa()", "1000", 25.0, 60.5, ("a flag",), threat="Linf:8/255", parts=PARTS),
    ),
    worst_case="1000", worst_case_accuracy=25.0,
    run={
        "seed": 0, "batch_size": 250, "shard_size": 500, "cascade": False, "device": "cpu", "threads": [1],
        "backend": {"verdicts": "float32", "queries": "float32", "gradients": "float32", "reason": ""},
        "batch_dependent": 0, "processes": 1, "finished": "2026-11-21T08:43:43+00:00",
        "versions": {"python": "3.11.7", "torch": "2.15.0"}, "code_sha256": "c" * 64,
    },
    protocol={"name": "default", "description": "", "headline": "WORST_CASE"}, flags=("a flag",),
)  # fmt: skip

FREE = {
    "x": ("name", "split", "source", "kind", "settings", "rules", "flags", "description", "versions", "device",
          "verdicts", "queries", "gradients", "reason"),
    -1: ("seed",),
    0.1: ("seconds",),
    True: ("cascade",),
}  # fmt: skip
"""Keys that may hold a value of :data:`toys.VALUES`: no file can tell that a name or a time was another one."""
OPTIONAL = {("flags",), ("model", "identity"), ("run", "backend"), ("run", "batch_dependent")}
LISTS = {("flags",), ("attacks",), ("attacks", 1, "flags"), ("attacks", 1, "parts")}
"""Lists that may be empty, or one item shorter."""


def is_another_record(path: tuple[Any, ...], value: Any) -> bool:
    """Whether the mutation gives a record that could be true."""
    if value is ...:
        return path in OPTIONAL or path == ("run", "backend", "gradients") or path[:-1] in LISTS
    if value == []:
        return path in LISTS
    return any(value == free and type(value) is type(free) and set(keys) & set(path) for free, keys in FREE.items())


def accepted(path: Path, table: dict[str, Any], toys: ModuleType) -> bool:
    path.write_text(toys.text(table))
    try:
        Record.read(path)
    except EvaluationError as error:
        refusal = str(error)
    else:
        return True
    assert "\n" not in refusal
    assert str(path) in refusal
    return False


def test_every_mutation_of_another_form_is_refused(tmp_path: Path, toys: ModuleType, tally: Any) -> None:
    table = json.loads(RECORD.to_json())
    cases = toys.sample(table, 300)
    wrong = [
        (path, value)
        for path, value, damaged in cases
        if accepted(tmp_path / "record.json", damaged, toys) and not is_another_record(path, value)
    ]
    assert wrong == []
    tally("run record: mutated value", len(cases), len(cases) - len(wrong))


@pytest.mark.slow
def test_every_mutation_there_is(tmp_path: Path, toys: ModuleType, tally: Any) -> None:
    cases = list(toys.mutations(json.loads(RECORD.to_json())))
    path = tmp_path / "record.json"
    wrong = [case[:2] for case in cases if accepted(path, case[2], toys) and not is_another_record(*case[:2])]
    assert wrong == []
    tally("run record: mutated value, all", len(cases), len(cases) - len(wrong))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("threat",), "x", "threat must be a threat such as .*got \"x\""),
        (("threat",), "Linf:1e999", "1e999"),
        (("model",), {}, "model.name is missing; model.sha256 is missing"),
        (("run", "batch_size"), 0.1, "run.batch_size must be a whole number, 1 or more, got 0.1"),
        (("run", "finished"), "yesterday", "run.finished must be a time"),
        (("run", "batch_dependent"), 5, "run.batch_dependent counts 5 of 4 images"),
        (("run", "extra"), 1, "run.extra is unknown"),
        (("data", "n"), 5, "speaks of 5 images"),
        (("data", "name"), "cifar10", ""),
        (("attacks", 1, "name"), "FGSM", "two attacks are named FGSM"),
        (("attacks", 0, "threat"), "Linf:9/255", "FGSM is in the worst case under Linf:8/255, and .* Linf:9/255"),
        (("attacks", 1, "parts", 0, "name"), "", r"attacks\[1\].parts\[0\].name must be a text that is not empty"),
        (("protocol", "headline"), "BEST", "protocol.headline must be .*got \"BEST\""),
    ],
    ids=lambda part: ".".join(map(str, part)) if isinstance(part, tuple) else None,
)  # fmt: skip
def test_the_key_is_named(path: tuple[Any, ...], value: Any, sentence: str, tmp_path: Path, toys: ModuleType) -> None:
    table = json.loads(RECORD.to_json())
    toys.at(table, path[:-1])[path[-1]] = value
    file = tmp_path / "record.json"
    file.write_text(json.dumps(table))
    if not sentence:
        assert Record.read(file).data[path[-1]] == value
        return
    with pytest.raises(EvaluationError, match=sentence):
        Record.read(file)


def test_parts_that_undo_one_another_are_named(tmp_path: Path) -> None:
    table = json.loads(RECORD.to_json())
    table["attacks"][1]["parts"].reverse()
    (tmp_path / "record.json").write_text(json.dumps(table))
    with pytest.raises(EvaluationError, match="in AA, clean finds images robust that apgd-ce broke before it"):
        Record.read(tmp_path / "record.json")


def test_damaged_bytes_are_refused_or_change_a_text_only(tmp_path: Path, toys: ModuleType, tally: Any) -> None:
    before, path = RECORD.to_json().encode(), tmp_path / "record.json"
    cases, survived = list(toys.damaged_bytes(before, 200)), 0
    for content in cases:
        path.write_bytes(content)
        try:
            text = Record.read(path).threat
        except EvaluationError as error:
            text = str(error)
        survived += "\n" not in text
    tally("run record: damaged bytes", len(cases), survived)
