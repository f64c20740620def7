"""What each test evaluates: the marker ``robustness``, and one case for each model and attack of the options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pytest_empir.options import option_settings

NAME = "robustness"
HELP = (
    "robustness(model, dataset, threat, eps, attack, protocol, n_examples, data, checkpoint, batch_size, device, seed, "
    "min_robust, min_clean): evaluate the fixture rb_model, or the model named here, and fail below min_robust and "
    "min_clean, in percent; all arguments are keywords with the meaning of the options --rb-... and override them."
)
_KEYWORDS = tuple(HELP.partition("(")[2].partition(")")[0].split(", "))
_SKIP_REASON = f"needs --rb-model, or a fixture rb_model and the marker {NAME}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test that evaluates, and has no marker, by the models and attacks of the options."""
    if "rb_case" not in metafunc.fixturenames or metafunc.definition.get_closest_marker(NAME):
        return
    options = option_settings(metafunc.config)
    cases = [case for model in dict.fromkeys(options.get("model", ())) for case in _cases(model, options)]
    skipped = pytest.param(None, id="no-model", marks=pytest.mark.skip(reason=_SKIP_REASON))
    metafunc.parametrize("rb_case", cases or [skipped], indirect=True)


def _cases(model: str, options: dict[str, Any]) -> list[Any]:
    """One case for each attack, then one for the worst case over all; a single case for a protocol."""
    attacks = list(dict.fromkeys(options.get("attack", ())))
    if not attacks:
        return [pytest.param({"model": model}, id=f"{model}-{options.get('protocol', 'default')}")]
    attacks_by_label = {attack: [attack] for attack in attacks}
    if len(attacks) > 1:
        attacks_by_label["worst-case"] = attacks
    return [
        pytest.param({"model": model, "attack": names}, id=f"{model}-{label}")
        for label, names in attacks_by_label.items()
    ]


def settings_of(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of one test: those of its marker or parameter, then those of the options.

    A marked test ignores ``--rb-model``, which names models for other tests.
    """
    options, mark = option_settings(request.config), marker_settings(request.node)
    if mark is None:
        settings = {**options, **request.param}
    else:
        settings = _override({key: value for key, value in options.items() if key != "model"}, mark)
    return {key: _as_tuple(value) if key == "attack" else value for key, value in settings.items()}


def marker_settings(item: pytest.Item | pytest.Function) -> dict[str, Any] | None:
    """The settings in a test's markers, of which the closest one wins; None for a test without the marker.

    An unknown keyword fails the test.
    """
    marks = list(item.iter_markers(NAME))
    if not marks:
        return None
    settings: dict[str, Any] = {}
    for mark in reversed(marks):
        unknown = [*map(repr, mark.args), *sorted(set(mark.kwargs) - set(_KEYWORDS))]
        if unknown:
            known = ", ".join(_KEYWORDS)
            pytest.fail(f"the marker {NAME} takes the keywords {known}, got {unknown[0]}", pytrace=False)
        settings = _override(settings, mark.kwargs)
    return settings


def _override(settings: dict[str, Any], mark: Mapping[str, Any]) -> dict[str, Any]:
    """Settings overridden by a marker: its attacks also replace a protocol, and its protocol replaces attacks."""
    base = dict(settings)
    for one, other in (("attack", "protocol"), ("protocol", "attack")):
        if mark.get(one) and other not in mark:
            base.pop(other, None)
    return {**base, **mark}


def _as_tuple(attacks: Any) -> tuple[Any, ...]:
    return tuple(attacks) if isinstance(attacks, (list, tuple)) else (attacks,)
