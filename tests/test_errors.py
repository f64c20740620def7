"""How errors of other code are quoted."""

from __future__ import annotations

import pytest

from empir_plugin.errors import cause


@pytest.mark.parametrize(
    ("message", "quoted"),
    [
        ("sizes differ", "sizes differ"),
        ("\x1b[31msizes\x1b[0m differ", "sizes differ"),
        ("\x1b[1;38;5;9msizes\x1b[m differ\x1b[K", "sizes differ"),
        ("\x1b]8;;https://example.org\x1b\\sizes\x1b]8;;\x1b\\ differ", "sizes differ"),
        ("\x1b]0;a title\x07sizes differ", "sizes differ"),
        ("\x1b(B\x1b7sizes differ\x1b8", "sizes differ"),
        ("\n\n  \x1b[1m  sizes differ\nat line 3", "sizes differ"),
        ("Error(s) in loading:\n\tmissing: a\n\tb", "Error(s) in loading: missing: a"),
        ("sizes [31] differ", "sizes [31] differ"),
    ],
)
def test_the_first_line_without_the_codes_of_a_terminal(message: str, quoted: str) -> None:
    assert cause(RuntimeError(message)) == f"RuntimeError: {quoted}"


def test_an_error_without_a_message_and_one_that_shows_its_argument() -> None:
    assert cause(NotImplementedError()) == "NotImplementedError"
    assert cause(KeyError("\x1b[31mlogits\x1b[0m")) == "KeyError: 'logits'"
