"""Strict JSON: what one reader would understand otherwise than another is neither written nor read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import EmpirError, EvaluationError, InputError

PLAIN = JsonKind("a note", InputError)
DATED = JsonKind("an old note", EvaluationError, schema=3)

TEXT = """{
  "name": "R\\u00e9sum\\u00e9",
  "values": [
    1,
    0.1,
    null,
    true
  ]
}
"""
VALUE: dict[str, Any] = {"name": "Résumé", "values": [1, 0.1, None, True]}


def written(folder: Path, text: str) -> Path:
    path = folder / "note.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_text_is_ascii_with_two_spaces(tmp_path: Path) -> None:
    assert PLAIN.text(VALUE) == TEXT
    PLAIN.write(tmp_path / "new" / "note.json", VALUE)
    assert (tmp_path / "new" / "note.json").read_bytes() == TEXT.encode("ascii")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["note.json"]


def test_what_others_wrote_is_read_too(tmp_path: Path) -> None:
    assert PLAIN.load(written(tmp_path, '\n{"name":"Résumé","values":[1,1e-1,null,true]}')) == VALUE
    assert PLAIN.load(written(tmp_path, '{"a": {"b": 1}, "b": {"b": 2}}')) == {"a": {"b": 1}, "b": {"b": 2}}
    number = PLAIN.load(written(tmp_path, "[1, 1.0, 1e308, -0.0]"))
    assert [str(item) for item in number] == ["1", "1.0", "1e+308", "-0.0"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON)
def test_any_value_is_read_back(tmp_path: Path, value: object) -> None:
    PLAIN.write(tmp_path / "note.json", value)
    assert PLAIN.load(tmp_path / "note.json") == value


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


NO_JSON = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "object": object(),
    "set": {1, 2},
    "bytes": b"",
    "endless": ENDLESS,
}


@pytest.mark.parametrize("bad", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_not_written(bad: object, tmp_path: Path) -> None:
    path = written(tmp_path, "old")
    with pytest.raises(InputError, match="a note holds texts and finite numbers only"):
        PLAIN.write(path, {"deep": [bad]})
    with pytest.raises(EvaluationError, match="an old note holds texts and finite numbers only"):
        DATED.text(bad)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["note.json"]


UNREADABLE = {
    "empty": ("", "Expecting value"),
    "cut": (TEXT[:-4], "Expecting"),
    "two values": ("{} {}", "Extra data"),
    "comma": ("[1,]", "Expecting value|Illegal trailing comma"),
    "NaN": ("[NaN]", "NaN"),
    "infinity": ("[-Infinity]", "-Infinity"),
    "overflow": ('{"a": 1e999}', "1e999"),
    "400 digits": (f'{{"a": {"7" * 400}}}', "77777777777777777777 is not a finite number"),
    "5,000 digits": (f'{{"a": {"7" * 5000}}}', "is not a finite number"),
    "lone surrogate": (r'["\ud800"]', "surrogates not allowed"),
    "lone surrogate in a key": (r'{"\uDFFF": 1, "a": "\ud83d\ude00"}', "surrogates not allowed|unexpected"),
    "long overflow": (f"[{'9' * 400}.0]", f"{'9' * 20}[^9]"),
    "key twice": ('{"a": 1, "b": 2, "a": 1}', "'a' occurs twice"),
    "key twice, deep": ('[{"b": {"a": 1, "\\u0061": 2}}]', "'a' occurs twice"),
    "deep": ("[" * 100_000, "recursion|[Ss]tack"),
}


@pytest.mark.parametrize(("text", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_strict_json_is_refused_by_name(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"note\.json.*({reason})") as refused:
        PLAIN.load(written(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_bytes_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"bytes\.json.*utf-8"):
        PLAIN.load(tmp_path / "bytes.json")
    for missing in (tmp_path / "none.json", tmp_path / "bytes.json" / "below-a-file.json"):
        with pytest.raises(EvaluationError, match=r"\.json cannot be read as an old note \(No.*\): check the path"):
            DATED.load(missing)


def test_what_a_file_describes(tmp_path: Path) -> None:
    assert PLAIN.read(written(tmp_path, '{"a": "7"}'), lambda table: int(table["a"])) == 7
    assert DATED.read(written(tmp_path, '{"schema": 3, "a": 7}'), lambda table: table["a"]) == 7


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": "x"}', r" \(ValueError: invalid literal"),
        ('{"b": 1}', r" \(KeyError: 'a'\)"),
        ("[7]", r" \(TypeError: "),
        ("null", r" \(TypeError: "),
    ],
    ids=["value", "key", "list", "null"],
)
def test_what_cannot_be_parsed_is_said_of_the_file(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"note\.json is not a note{reason}"):
        PLAIN.read(written(tmp_path, text), lambda table: int(table["a"]))


def test_a_refusal_of_the_parser_is_one_of_the_kind(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise EmpirError("it says nothing")

    with pytest.raises(InputError, match=r"note\.json is not a note: it says nothing"):
        PLAIN.read(written(tmp_path, "{}"), refuse)


def test_a_mistake_in_the_parser_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        PLAIN.read(written(tmp_path, "0"), lambda number: 1 // number)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"schema": 4}', "schema 4.* 3"),
        ('{"schema": "3"}', "schema '3'.* 3"),
        ("{}", "no schema.* 3"),
        ("[3]", "list"),
    ],
    ids=["newer", "text", "none", "list"],
)
def test_another_version_is_not_parsed(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=rf"note\.json.*{reason}"):
        DATED.read(written(tmp_path, text), pytest.fail)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "old")
    with pytest.raises(InputError, match=r"the note cannot be written to .*below \(.*\): choose another file"):
        PLAIN.write(path / "below", {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"the note cannot be written to .*note\.json \(No space left on device\)"):
        PLAIN.write(path, {})
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["note.json"]


def test_an_older_schema_is_upgraded_step_by_step(tmp_path: Path) -> None:
    def to_2(table: Mapping[str, Any]) -> dict[str, Any]:
        return {"schema": 2, "colour": table["color"]}

    def to_3(table: Mapping[str, Any]) -> dict[str, Any]:
        return {"schema": 3, "colours": [table["colour"]]}

    kind = JsonKind("a paint", EvaluationError, 3, upgrades={1: to_2, 2: to_3})
    for text in (
        '{"schema": 1, "color": "red"}',
        '{"schema": 2, "colour": "red"}',
        '{"schema": 3, "colours": ["red"]}',
    ):
        assert kind.read(written(tmp_path, text), dict) == {"schema": 3, "colours": ["red"]}
    with pytest.raises(EvaluationError, match=r"schema 4.*1, 2, 3"):
        kind.read(written(tmp_path, '{"schema": 4}'), dict)
    with pytest.raises(EvaluationError, match=r"note\.json.*color"):
        kind.read(written(tmp_path, '{"schema": 1}'), dict)
