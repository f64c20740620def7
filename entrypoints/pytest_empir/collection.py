"""Which tests there are: one for each model by name and each attack, and one for all of its attacks together."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_empir.marker import NAME, marked, overlaid
from pytest_empir.options import settings

_REASON = f"needs --rb-model, or a fixture rb_model and the marker {NAME}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat a test that evaluates, and has no marker, for every model and attack asked for."""
    if "rb_case" not in metafunc.fixturenames or metafunc.definition.get_closest_marker(NAME):
        return
    asked = settings(metafunc.config)
    cases = [case for model in dict.fromkeys(asked.get("model", ())) for case in _cases(model, asked)]
    nothing = pytest.param(None, id="no-model", marks=pytest.mark.skip(reason=_REASON))
    metafunc.parametrize("rb_case", cases or [nothing], indirect=True)


def _cases(model: str, asked: dict[str, Any]) -> list[Any]:
    """Each attack on its own, then the worst case of all; one case where there is no choice."""
    attacks = list(dict.fromkeys(asked.get("attack", ())))
    if not attacks:
        return [pytest.param({"model": model}, id=f"{model}-{asked.get('protocol', 'default')}")]
    chosen = {attack: [attack] for attack in attacks}
    if len(attacks) > 1:
        chosen["worst-case"] = attacks
    return [pytest.param({"model": model, "attack": some}, id=f"{model}-{label}") for label, some in chosen.items()]


def settings_of(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What one test evaluates: its parameter, its marker and the options, in this order."""
    asked, mark = settings(request.config), marked(request.node)
    found = overlaid(asked, mark) if mark is not None else {**asked, **request.param}
    return {key: _several(value) if key == "attack" else value for key, value in found.items()}


def _several(attacks: Any) -> tuple[Any, ...]:
    return tuple(attacks) if isinstance(attacks, (list, tuple)) else (attacks,)
