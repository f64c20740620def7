"""Markup: what RobustBench's page may be given."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin.leaderboard.entry import escaped, footnote_problem, plain, schema


@given(st.text())
def test_escaped_text_has_no_markup_and_comes_back(text: str) -> None:
    assert plain(escaped(text)) == text
    assert re.search(schema()["$defs"]["text"]["pattern"], escaped(text))


@pytest.mark.parametrize(
    "footnote",
    [
        "plain, 5 &lt; 6, $\\ell_\\infty$",
        "<b>a <i>b</i></b><br>c<br/>d<br />",
        'x<sub>1</sub> <a href="https://arxiv.org/abs/2002.08347">y</a>',
    ],
)
def test_simple_markup_is_allowed(footnote: str) -> None:
    assert footnote_problem(footnote) == ""


@pytest.mark.parametrize(
    ("footnote", "found"),
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
def test_the_rest_is_named(footnote: str, found: str) -> None:
    assert footnote_problem(footnote) == found
