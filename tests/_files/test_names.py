"""Names of files: one rule, and no way out of a folder."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin._files.names import LONGEST, check_name, plain_name
from empir_plugin.errors import InputError

BAD = {
    "empty": "",
    "a folder": "a/b",
    "up": "../x",
    "two up": "../../y",
    "here": ".",
    "parent": "..",
    "absolute": "/etc/passwd",
    "of Windows": "a\\b",
    "a drive": "C:x",
    "hidden": ".bashrc",
    "an option": "-x",
    "a dot at the end": "a.",
    "a space": "a b",
    "a line": "a\n",
    "a null": "a\0b",
    "other letters": "mod\u00e8le",
    "a wide slash": "a\uff0fb",
    "a half surrogate": "a\ud800",
    "a device": "nul",
    "a device with a suffix": "COM1.weights",
    "long": "a" * (LONGEST + 1),
}


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_what_may_leave_a_folder_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="rename it") as error:
        check_name("a member", name)
    assert "a member" in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", [None, 3, b"a", ["a"]])
def test_only_texts_are_names(name: object) -> None:
    with pytest.raises(InputError, match=type(name).__name__):
        check_name("a member", name)


@pytest.mark.parametrize("name", ["empir-cifar", "Wang2023Better_WRN-70-16", "a", "0", "a..b", "v1.0+x", "nullable"])
def test_plain_names_are_taken_as_they_are(name: str) -> None:
    assert check_name("a model", name) == name


@given(st.text())
def test_an_accepted_name_is_one_part_of_a_path_everywhere(text: str) -> None:
    try:
        name = plain_name(text)
    except InputError:
        return
    assert Path(name).parts == (name,)
    assert PureWindowsPath(name).parts == (name,)
    assert name not in (".", "..")
    assert check_name("a file", name) == name
