"""The marker ``robustness``: settings of one test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

NAME = "robustness"
HELP = (
    "robustness(model, dataset, threat, eps, attack, protocol, n_examples, data, checkpoint, batch_size, device, seed, "
    "min_robust, min_clean): evaluate the fixture rb_model, or the model named here, and fail below min_robust and "
    "min_clean, in percent; every argument is a keyword, means what the option --rb-... of that name does, and goes "
    "before it."
)
_KEYWORDS = tuple(HELP.partition("(")[2].partition(")")[0].split(", "))


def marked(item: pytest.Item | pytest.Function) -> dict[str, Any] | None:
    """The settings on a test, the nearest mark's first; None for a test without the marker.

    A mark with a keyword that is none of its settings fails the test.
    """
    marks = list(item.iter_markers(NAME))
    if not marks:
        return None
    found: dict[str, Any] = {}
    for mark in reversed(marks):
        unknown = [*map(repr, mark.args), *sorted(set(mark.kwargs) - set(_KEYWORDS))]
        if unknown:
            known = ", ".join(_KEYWORDS)
            pytest.fail(f"the marker {NAME} takes the keywords {known}, got {unknown[0]}", pytrace=False)
        found.update(_without_rival(mark.kwargs, found))
    return found


def _without_rival(given: Mapping[str, Any], found: dict[str, Any]) -> Mapping[str, Any]:
    """A nearer mark's attacks replace a farther one's protocol, and the other way round."""
    for one, other in (("attack", "protocol"), ("protocol", "attack")):
        if given.get(one) and other not in given:
            found.pop(other, None)
    return given


def overlaid(asked: dict[str, Any], mark: dict[str, Any]) -> dict[str, Any]:
    """Settings of a marked test: the mark's before the command line's, whose models are other tests' business."""
    base = {key: value for key, value in asked.items() if key != "model"}
    _without_rival(mark, base)
    return {**base, **mark}
