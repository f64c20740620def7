"""Entries: RobustBench's format to the letter, everything else refused, and the markup of footnotes."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from empir_plugin.errors import InputError
from empir_plugin.leaderboard.entry import KEYS, Entry, escape_html, footnote_problem, problems, schema, unescape_html

# Written by hand, as RobustBench lays its files out: order, two spaces, texts for numbers, ASCII.
TEXT = r"""{
  "link": "https://openreview.net/forum?id=HJem3yHKwH",
  "name": "R\u00e9sum\u00e9 &amp; more",
  "authors": "Sanchari Sen, Balaraman Ravindran",
  "additional_data": false,
  "number_forward_passes": 3,
  "dataset": "cifar10",
  "venue": "ICLR 2020",
  "architecture": "CIFARconv",
  "eps": "8/255",
  "clean_acc": "75.23",
  "reported": "",
  "autoattack_acc": "1.40",
  "external": "0.90",
  "footnote": "See <a href=\"https://arxiv.org/abs/2002.08347\">here</a>.",
  "unreliable": true,
  "overhead": {
    "storage_ratio": 1.77,
    "members": [
      "w2a2"
    ]
  }
}
"""
TABLE: dict[str, Any] = json.loads(TEXT)
ENTRY = Entry.of(TABLE)


def test_entries_are_written_as_robustbench_writes_them(tmp_path: Path) -> None:
    shuffled = {key: TABLE[key] for key in reversed(TABLE)}
    entry = Entry(**shuffled)
    entry.write(tmp_path / "new" / "Sen2020EMPIR.json")
    assert (tmp_path / "new" / "Sen2020EMPIR.json").read_text(encoding="ascii") == TEXT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["Sen2020EMPIR.json"]


def test_fields_without_a_value_have_no_key() -> None:
    bare = replace(ENTRY, external=None, footnote=None, overhead=None, order=())
    absent = ("corruptions_acc", "external", "footnote", "overhead")
    assert list(bare.table()) == [key for key in KEYS if key not in absent]
    assert bare.lowest_acc == "1.40"
    assert ENTRY.lowest_acc == "0.90"


def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    lines = TEXT.splitlines(keepends=True)
    lines.insert(12, '  "autoattack_seed": 0,\n')
    lines.insert(1, '  "$comment": "first",\n')
    path = tmp_path / "Sen2020EMPIR.json"
    path.write_text("".join(lines))
    entry = Entry.read(path)
    assert entry.others == {"$comment": "first", "autoattack_seed": 0}
    assert entry.to_json() == "".join(lines)


def test_an_entry_keeps_the_key_order_of_the_one_it_replaces() -> None:
    old = Entry.of({"mine": 1, **{key: TABLE[key] for key in reversed(TABLE) if key != "external"}})
    new = replace(ENTRY, clean_acc="75.24", footnote=None).in_place_of(old.table())
    keys = list(new.table())
    assert keys[0] == "mine"
    assert keys[keys.index("autoattack_acc") + 1] == "external"
    assert [key for key in keys if key != "external"] == [
        "mine",
        *(k for k in reversed(KEYS) if k in keys and k != "external"),
    ]
    assert new.table() == {
        "mine": 1,
        **{key: item for key, item in TABLE.items() if key != "footnote"},
        "clean_acc": "75.24",
    }


TEXTS = st.text(st.characters(blacklist_characters="&<>", blacklist_categories=("Cs",)), min_size=1)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=TEXTS,
    others=st.dictionaries(st.text().filter(lambda key: key not in KEYS), JSON, max_size=3),
    overhead=st.dictionaries(st.text(), JSON, max_size=3),
    keys=st.randoms(),
)
def test_entries_round_trip(tmp_path: Path, name: str, others: dict, overhead: dict, keys: Any) -> None:
    table = {**TABLE, "name": name, "overhead": overhead, **others}
    order = list(table)
    keys.shuffle(order)
    path = tmp_path / "Any2020Entry.json"
    path.write_text(json.dumps({key: table[key] for key in order}, indent=2) + "\n")
    entry = Entry.read(path)
    before = path.read_bytes()
    entry.write(path)
    assert path.read_bytes() == before
    assert Entry.read(path) == entry


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "float eps": ({"eps": 8 / 255}, 'eps must be a text such as "8/255"'),
    "eps in words": ({"eps": "8 / 255"}, "eps must be"),
    "no decimals": ({"clean_acc": "75"}, "clean_acc must be a text in percent with two decimals"),
    "one decimal": ({"clean_acc": "75.2"}, "clean_acc must be"),
    "percent sign": ({"autoattack_acc": "1.40%"}, "autoattack_acc must be"),
    "number": ({"clean_acc": 75.23}, "clean_acc must be"),
    "above 100": ({"clean_acc": "100.01"}, "clean_acc must be"),
    "negative": ({"autoattack_acc": "-1.40"}, "autoattack_acc must be"),
    "leading zero": ({"autoattack_acc": "01.40"}, "autoattack_acc must be"),
    "newline": ({"autoattack_acc": "1.40\n"}, "autoattack_acc must be"),
    "external null": ({"external": None}, "external must be left out, or a text in percent with two decimals, got"),
    "external empty": ({"external": ""}, "external must be left out"),
    "external equal": ({"external": "1.40"}, "external 1.40 must be below autoattack_acc 1.40: leave it out"),
    "external above": ({"external": "1.41"}, "must be below"),
    "external as numbers": ({"external": "9.00", "autoattack_acc": "10.00"}, ""),
    "above clean": ({"clean_acc": "1.39"}, "autoattack_acc 1.40 is above clean_acc 1.39"),
    "footnote null": ({"footnote": None}, "footnote must be left out, or a text"),
    "script": ({"footnote": "<script>alert(1)</script>"}, 'markup that is not allowed: "<script>"'),
    "handler": ({"footnote": '<b onclick="alert(1)">x</b>'}, "not allowed"),
    "javascript": ({"footnote": '<a href="javascript:alert(1)">x</a>'}, "not allowed"),
    "half a tag": ({"footnote": "a <script src=x"}, "not allowed"),
    "unclosed": ({"footnote": "<b>x"}, "not allowed"),
    "crossed": ({"footnote": "<b><i>x</b></i>"}, "not allowed"),
    "markup in a field": ({"architecture": "<img src=x>"}, "architecture must be a text, with &, < and > written as"),
    "bare ampersand": ({"venue": "R&D"}, "venue must be"),
    "link": ({"link": "javascript:alert(1)"}, "link must be an address"),
    "link leaves its attribute": ({"link": 'https://a.b/" onclick="x'}, "link must be"),
    "null venue": ({"venue": None}, "venue must be"),
    "flag as text": ({"unreliable": "false"}, "unreliable must be true or false"),
    "flag as number": ({"additional_data": 0}, "additional_data must be true or false"),
    "passes as float": ({"number_forward_passes": 3.0}, "number_forward_passes must be a whole number"),
    "no passes": ({"number_forward_passes": 0}, "number_forward_passes must be"),
    "data set": ({"dataset": "svhn"}, "dataset must be one of mnist"),
    "reported null": ({"reported": None}, "reported must be"),
    "overhead": ({"overhead": [1]}, "overhead must be left out, or a table"),
    "not finite": ({"overhead": {"a": [{"b": float("nan")}]}}, "NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), WRONG.values(), ids=WRONG)
def test_invalid_entries_are_refused(change: dict[str, Any], sentence: str) -> None:
    if not sentence:
        assert problems({**TABLE, **change}) == ()
        return
    with pytest.raises(InputError, match=re.escape(sentence)):
        Entry.of({**TABLE, **change})
    assert len(problems({**TABLE, **change})) == 1


@pytest.mark.parametrize("key", [*schema()["required"], *schema()["else"]["required"]])
def test_a_missing_key_is_named(key: str) -> None:
    assert problems({name: item for name, item in TABLE.items() if name != key}) == (f"{key} is missing",)


def test_all_problems_are_reported_at_once() -> None:
    wrong = {key: item for key, item in TABLE.items() if key != "link"} | {"eps": 0.5, "venue": None}
    assert [problem.split()[0] for problem in problems(wrong)] == ["link", "venue", "eps"]
    assert problems([]) == ("an entry is a JSON object, got a list",)


def test_the_schema_is_valid_and_has_every_key() -> None:
    Draft202012Validator.check_schema(schema())
    assert tuple(schema()["properties"]) == KEYS
    optional, attacked = {"external", "footnote", "overhead"}, {"autoattack_acc", "unreliable"}
    assert set(schema()["required"]) == {*KEYS} - optional - attacked - {"corruptions_acc"}
    assert set(schema()["else"]["required"]) == attacked
    assert Draft202012Validator(schema()).is_valid(TABLE), "the file alone is enough for other tools"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not valid JSON"),
        (TEXT[:-4], "not valid JSON"),
        ("[]", "an entry is a JSON object, got a list"),
        (TEXT.replace("1.77", "NaN"), "NaN is not"),
        (TEXT.replace("1.77", "1e999"), "1e999 is not"),
        (TEXT.replace('"unreliable": true', '"unreliable": false, "unreliable": true'), "'unreliable' occurs twice"),
        ("[" * 100_000, "not valid JSON"),
    ],
    ids=["empty", "cut", "list", "NaN", "infinite", "twice", "deep"],
)
def test_an_invalid_file_is_named(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "Bad2020File.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"Bad2020File\.json is not a leaderboard entry: ") as refused:
        Entry.read(path)
    assert sentence in str(refused.value)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read as a leaderboard entry \(No such file"):
        Entry.read(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not valid JSON"):
        Entry.read(tmp_path / "bytes.json")


def test_a_failed_write_keeps_the_old_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "Sen2020EMPIR.json"
    ENTRY.write(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot be written to .* \(No space left on device\): choose another"):
        replace(ENTRY, clean_acc="2.00").write(path)
    assert path.read_text() == TEXT
    assert [item.name for item in tmp_path.iterdir()] == ["Sen2020EMPIR.json"]


@given(st.text())
def test_escaped_text_has_no_markup_and_is_unescaped_again(text: str) -> None:
    assert unescape_html(escape_html(text)) == text
    assert re.search(schema()["$defs"]["text"]["pattern"], escape_html(text))


@pytest.mark.parametrize(
    "footnote",
    [
        "plain, 5 &lt; 6, $\\ell_\\infty$",
        "<b>a <i>b</i></b><br>c<br/>d<br />",
        'x<sub>1</sub> <a href="https://arxiv.org/abs/2002.08347">y</a>',
    ],
)
def test_allowed_markup_has_no_problem(footnote: str) -> None:
    assert footnote_problem(footnote) == ""


@pytest.mark.parametrize(
    ("footnote", "problem"),
    [
        ("<script>", "<script>"),
        ("<scr<b>ipt>", "<script>"),
        ("<SCRIPT>", "<SCRIPT>"),
        ("<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"),
        ("a <svg/onload=alert(1)", "<svg/onload=alert(1)"),
        ("<a href='https://x.y'>z</a>", "<a href='https://x.y'>"),
        ('<a href="https://x.y" target="_top">z</a>', '<a href="https://x.y" target="_top">'),
        ("<!-- x -->", "<!-- x -->"),
        ("5 > 4", ">"),
        ("<b>", "<b>"),
        ("</b>", "</b>"),
        ("<b><i></b></i>", "</b>"),
    ],
)
def test_other_markup_is_named(footnote: str, problem: str) -> None:
    assert footnote_problem(footnote) == problem


CORRUPTED = {key: TABLE[key] for key in TABLE if key not in ("autoattack_acc", "external", "unreliable", "overhead")}
CORRUPTED |= {"eps": None, "corruptions_acc": "61.20"}


def test_entries_of_corruptions_have_null_for_eps(tmp_path: Path) -> None:
    entry = Entry.of(CORRUPTED)
    assert (entry.board_acc, entry.lowest_acc, entry.eps) == ("61.20", "61.20", None)
    entry.write(tmp_path / "Sen2020EMPIR.json")
    assert json.loads((tmp_path / "Sen2020EMPIR.json").read_text()) == CORRUPTED
    assert Draft202012Validator(schema()).is_valid(CORRUPTED)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"eps": "8/255"}, "eps must be"),
        ({"corruptions_acc": "61.2"}, "corruptions_acc must be"),
        ({"autoattack_acc": "1.40"}, "autoattack_acc belongs on another board"),
        ({"unreliable": False}, "unreliable belongs on another board"),
    ],
    ids=["eps", "one decimal", "AutoAttack", "flag"],
)
def test_entries_of_corruptions_are_as_strict(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Entry.of({**CORRUPTED, **change})
    assert not Draft202012Validator(schema()).is_valid({**CORRUPTED, **change})
    assert problems({key: CORRUPTED[key] for key in CORRUPTED if key != "eps"}) == ("eps is missing",)


def test_an_entry_without_eps_must_be_one_of_corruptions() -> None:
    assert problems({**TABLE, "eps": None})[0].startswith("eps must be a text")
    assert not Draft202012Validator(schema()).is_valid({**TABLE, "eps": None})
