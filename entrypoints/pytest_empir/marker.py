"""What each test evaluates: the marker ``robustness``, and one case for each model and attack of the options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any
from unittest import TestCase

import pytest

from pytest_empir.options import option_settings

NAME = "robustness"
HELP = (
    "robustness(model, dataset, threat, eps, attack, protocol, n_examples, data, checkpoint, ema, batch_size, device, "
    "seed, min_robust, min_clean): evaluate the fixture rb_model, or the model named here, and fail below min_robust "
    "and min_clean, in percent; all arguments are keywords with the meaning of the options --rb-... and override them."
)
_KEYWORDS = tuple(HELP.partition("(")[2].partition(")")[0].split(", "))
_THRESHOLDS = frozenset({"min_robust", "min_clean"})
_SKIP_REASON = f"needs --rb-model, or a fixture rb_model and the marker {NAME}"


@dataclass(frozen=True)
class OptionCase:
    """The parameter ``rb_case`` of a test whose definition is not marked.

    Args:
        settings: The model and attacks of the options it evaluates; None where its parameter or a hook marks it.
    """

    settings: Mapping[str, Any] | None = None


_NO_MODEL = OptionCase({})
"""The case of a test for which the options name no model."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test that evaluates, and has no marker, by the models and attacks of the options.

    Only the finished tests show whether their parameters are marked, so each also gets a case for the marker;
    :func:`pytest_pycollect_makeitem` removes what does not apply.
    """
    if "rb_case" not in metafunc.fixturenames or metafunc.definition.get_closest_marker(NAME):
        return
    options = option_settings(metafunc.config)
    cases = [case for model in dict.fromkeys(options.get("model", ())) for case in _cases(model, options)]
    # pytest below 8.4 cannot hide a parameter from the test's name.
    of_marker = pytest.param(OptionCase(), id=getattr(pytest, "HIDDEN_PARAM", "marked"))
    without = pytest.param(_NO_MODEL, id="no-model")
    metafunc.parametrize("rb_case", [*(cases or [without]), of_marker], indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> Iterator[Any]:
    """Keep one of the tests of a marked parameter, and the models of the options for all others.

    Raises:
        pytest.Collector.CollectError: If pytest passes over a marked function or class, so that it would never run.
    """
    made = yield
    if _marks_on(obj) and (cure := _why_never_run(obj, made)):
        raise collector.CollectError(f"{name} has the marker {NAME}, but pytest does not run it: {cure}")
    return [item for item in made if not _is_surplus(item)] if isinstance(made, list) else made


def _is_surplus(item: pytest.Item) -> bool:
    case = option_case(item)
    return case is not None and is_marked(item) != (case.settings is None)


def _why_never_run(obj: object, made: object) -> str:
    if isinstance(obj, FunctionType) and made is None:
        return "give it a name of a test, such as test_mine"
    # A class without a name of a test may be the base of others; one of unittest has its own __init__.
    has_init = isinstance(obj, type) and obj.__init__ is not object.__init__ and not issubclass(obj, TestCase)
    return "put what its __init__ does into a fixture" if has_init and made is not None else ""


def is_marked(item: pytest.Item) -> bool:
    """Whether the marker applies to a test: on its function, a class, the module or a parameter, or added by a hook."""
    return item.get_closest_marker(NAME) is not None


def option_case(item: pytest.Item | pytest.Function) -> OptionCase | None:
    """The case of a test that :func:`pytest_generate_tests` has parametrized; None for others."""
    case = getattr(getattr(item, "callspec", None), "params", {}).get("rb_case")
    return case if isinstance(case, OptionCase) else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test without a model to evaluate; fail a marked one that pytest skips for want of parameters.

    With a threshold among the options, a test without a model is not skipped, as its threshold would not be tested.
    """
    if is_marked(item):
        _reject_empty_parameters(item)
    elif option_case(item) == _NO_MODEL and not option_settings(item.config).keys() & _THRESHOLDS:
        pytest.skip(_SKIP_REASON)


def _reject_empty_parameters(item: pytest.Item) -> None:
    reasons = [str(mark.kwargs.get("reason", "")) for mark in item.own_markers if mark.name in ("skip", "xfail")]
    if empty := [reason for reason in reasons if reason.startswith("got empty parameter set")]:
        pytest.fail(f"the marker {NAME} has nothing to test, {empty[0]}: give it parameters", pytrace=False)


def _cases(model: str, options: dict[str, Any]) -> list[Any]:
    """One case for each attack, then one for the worst case over all; a single case for a protocol."""
    attacks = list(dict.fromkeys(options.get("attack", ())))
    if not attacks:
        return [pytest.param(OptionCase({"model": model}), id=f"{model}-{options.get('protocol', 'default')}")]
    attacks_by_label = {attack: [attack] for attack in attacks}
    if len(attacks) > 1:
        attacks_by_label["worst-case"] = attacks
    return [
        pytest.param(OptionCase({"model": model, "attack": names}), id=f"{model}-{label}")
        for label, names in attacks_by_label.items()
    ]


def settings_of(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of one test: those of its marker or parameter, then those of the options.

    A marked test ignores ``--rb-model``, which names models for other tests.
    """
    options, mark = option_settings(request.config), marker_settings(request.node)
    if mark is None:
        case = option_case(request.node)
        if case is None or case.settings is None:
            cure = "name rb_record among the arguments of the test"
            pytest.fail(
                f"without the marker {NAME}, rb_record must be known before the test runs: {cure}", pytrace=False
            )
        settings = {**options, **case.settings}
    else:
        settings = _override({key: value for key, value in options.items() if key != "model"}, mark)
    return {key: _as_tuple(value) if key == "attack" else value for key, value in settings.items()}


def marker_settings(item: pytest.Item | pytest.Function) -> dict[str, Any] | None:
    """The settings in a test's markers; None for a test without the marker.

    The closest one wins: a parameter's, then the function's, then a class's before those of its base classes, then the
    module's. An unknown keyword fails the test, and so do two markers in one place that set a keyword differently: one
    of them would not be tested.
    """
    marks = [mark for node in item.listchain() for mark in node.own_markers if mark.name == NAME]
    if not marks:
        return None
    for stack in _stacks(item):
        _check_stack(stack)
    settings: dict[str, Any] = {}
    for mark in marks:
        unknown = [*map(repr, mark.args), *sorted(set(mark.kwargs) - set(_KEYWORDS))]
        if unknown:
            known = ", ".join(_KEYWORDS)
            pytest.fail(f"the marker {NAME} takes the keywords {known}, got {unknown[0]}", pytrace=False)
        settings = _override(settings, mark.kwargs)
    return settings


def _stacks(item: pytest.Item | pytest.Function) -> Iterator[list[pytest.Mark]]:
    """The markers that stand in one place: on a function, a class or a module, or on the parameters of a test."""
    for node in item.listchain():
        owner = getattr(node, "obj", None)
        for each in owner.__mro__ if isinstance(owner, type) else (owner,):
            yield _marks_on(each)
    yield _named(getattr(getattr(item, "callspec", None), "marks", ()))


def _marks_on(owner: object) -> list[pytest.Mark]:
    """The markers written on a function, a class or a module."""
    found: Any = getattr(owner, "__dict__", {}).get("pytestmark", [])
    return _named(found if isinstance(found, list) else [found])


def _named(marks: Iterable[Any]) -> list[pytest.Mark]:
    return [getattr(mark, "mark", mark) for mark in marks if getattr(mark, "name", "") == NAME]


def _check_stack(marks: list[pytest.Mark]) -> None:
    settings: dict[str, Any] = {}
    for mark in marks:
        for key, value in mark.kwargs.items():
            other = key if key in settings else _EXCLUSIVE.get(key, key)
            if other in settings and (other != key or settings[key] != value):
                both = f"{other}={settings[other]!r} and {key}={value!r}"
                cure = "write a test for each, or pytest.param(..., marks=...)"
                pytest.fail(f"two markers {NAME} in one place give {both}: {cure}", pytrace=False)
        settings |= mark.kwargs


_EXCLUSIVE = {"attack": "protocol", "protocol": "attack"}
"""Settings of which only one can be given."""


def _override(settings: dict[str, Any], mark: Mapping[str, Any]) -> dict[str, Any]:
    """Settings overridden by a marker: its attacks also replace a protocol, and its protocol replaces attacks."""
    base = dict(settings)
    for one, other in _EXCLUSIVE.items():
        if mark.get(one) and other not in mark:
            base.pop(other, None)
    return {**base, **mark}


def _as_tuple(attacks: Any) -> tuple[Any, ...]:
    return tuple(attacks) if isinstance(attacks, (list, tuple)) else (attacks,)
