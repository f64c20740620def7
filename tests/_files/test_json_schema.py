"""What is wrong with a value is said with its path, and with the words of the schema."""

from __future__ import annotations

from typing import Any

import pytest

from empir_plugin._files.json_schema import JsonSchema, shorten

SCHEMA = JsonSchema("empir_plugin.evaluation", "record.schema.json")
ENTRY = JsonSchema("empir_plugin.leaderboard", "schema.json")


def problems(table: Any) -> list[str]:
    return [sentence for sentence in SCHEMA.problems(table) if sentence.startswith(("it ", "data", "attacks", "more"))]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ([], "it must be a JSON object, got []"),
        ({"data": 3}, "data must be a table, got 3"),
        ({"data": {"n": True}}, "data.n must be a whole number, 1 or more, got true"),
        ({"data": {"n": 3.0}}, "data.n must be a whole number, 1 or more, got 3.0"),
        ({"data": {"n": 3}}, "data.sha256 is missing"),
        (
            {"attacks": [{"parts": [{"robust": "12"}]}]},
            'attacks[0].parts[0].robust must be a 0 or 1 for each image, got "12"',
        ),
        (
            {"attacks": [{"threat": 3}]},
            'attacks[0].threat must be a threat such as "Linf:8/255", or empty for that of the record, got 3',
        ),
        ({"more": 1}, "more is unknown"),
    ],
)  # fmt: skip
def test_a_problem_names_path_words_and_value(table: Any, sentence: str) -> None:
    assert sentence in problems(table)


def test_a_schema_with_two_cases_uses_the_words_of_the_key() -> None:
    assert list(ENTRY.problems({"eps": 8, "corruptions_acc": "61.20"}))[-1].startswith("eps must be a text such as")


def test_long_values_are_cut() -> None:
    assert len(shorten("x" * 1000)) == 63
    assert shorten(None) == "null"
