"""The fixtures ``rb_...`` of a test that evaluates, its verdict, and the checks at the start of a session."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_empir.marker import NAME, is_marked, option_case, settings_of
from pytest_empir.options import as_arguments, baseline_arguments, option_path, option_settings
from pytest_empir.workers import is_worker, limit_threads

if TYPE_CHECKING:
    from torch import nn

    from empir_plugin.data.image_set import ImageSet
    from empir_plugin.evaluation.baseline import BaselineRecords
    from empir_plugin.evaluation.record import Record
    from empir_plugin.suite.case import Case
    from empir_plugin.suite.session import EvaluationSession

CASE, RECORD, NOT_EVALUATED, CHANGES = "rb_case", "rb_record", "rb_not_evaluated", "rb_changes"
"""Names of the properties that carry a test's results to the process that reports."""

_VERDICT: pytest.StashKey[str] = pytest.StashKey()
_SESSION: pytest.StashKey[EvaluationSession] = pytest.StashKey()
_BASELINE: pytest.StashKey[BaselineRecords | None] = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Load every model and data set of the options, and the baseline, so that mistakes show before any attack runs.

    Raises:
        pytest.UsageError: If a model, attack, threat, data set or baseline does not exist.
    """
    config = session.config
    asked = config.getoption("rb_model") or config.getoption("rb_compare")
    if is_worker(config) or config.option.collectonly or not asked:
        return
    from empir_plugin.errors import EmpirError
    from empir_plugin.suite.case import Case

    settings = option_settings(config)
    try:
        _baseline(config)
        if not config.getoption("rb_model"):
            return
        for model in dict.fromkeys(settings["model"]):
            case = Case(**{**settings, "model": model, "attack": tuple(settings.get("attack", ()))})
            _evaluation_session(config).check(case)
    except (EmpirError, OSError) as error:
        raise pytest.UsageError(str(error)) from error


def _evaluation_session(config: pytest.Config) -> EvaluationSession:
    """The models, data and finished evaluations that this process keeps between tests."""
    from empir_plugin.suite.session import EvaluationSession

    return config.stash.setdefault(_SESSION, EvaluationSession())


def _baseline(config: pytest.Config) -> BaselineRecords | None:
    """What the records of this session are compared with; None without ``--rb-compare``."""
    if _BASELINE not in config.stash:
        from empir_plugin.evaluation.baseline import BaselineRecords, read_records

        path = option_path(config, "compare")
        drop = config.getoption("rb_compare_fail")
        config.stash[_BASELINE] = None if path is None else BaselineRecords(path, read_records(path), drop)
    return config.stash[_BASELINE]


@pytest.fixture
def rb_case(request: pytest.FixtureRequest) -> Case:
    """What this test evaluates: an ``empir_plugin.suite.case.Case`` from its parameter, its marker and the options."""
    limit_threads(request.config)
    with _errors_as_failures():
        from empir_plugin.suite.case import Case

        case = Case(
            **settings_of(request),
            store=option_path(request.config, "state"),
            adv_out=option_path(request.config, "adv_out"),
        )
    items = request.session.items
    place = {"test": request.node.nodeid, "order": items.index(request.node)}
    about = {**place, **case.describe(), "compare_fail": request.config.getoption("rb_compare_fail")}
    request.node.user_properties.append((CASE, json.dumps(about)))
    return case


@pytest.fixture
def rb_model(request: pytest.FixtureRequest, rb_case: Case) -> nn.Module:
    """The model to attack, by the name in the case; override this fixture to return a model of your own."""
    with _errors_as_failures():
        return _evaluation_session(request.config).model(rb_case)


@pytest.fixture
def rb_data(request: pytest.FixtureRequest, rb_case: Case) -> ImageSet:
    """The images to attack; override this fixture to return an ``empir_plugin.ImageSet`` of your own."""
    with _errors_as_failures():
        return _evaluation_session(request.config).data(rb_case)


@pytest.fixture
def rb_record(request: pytest.FixtureRequest, rb_case: Case, rb_model: nn.Module, rb_data: ImageSet) -> Record:
    """The evaluation's ``empir_plugin.Record``; after its body, the test fails if a threshold is missed."""
    with _errors_as_failures():
        record = _evaluation_session(request.config).record(rb_case, rb_model, rb_data)
        text = record.to_json()
        shortfalls = "\n\n".join(
            filter(None, (rb_case.thresholds.explain(record), *_compare(request, _baseline(request.config), record)))
        )
    request.node.user_properties.append((RECORD, text))
    request.node.stash[_VERDICT] = f"{shortfalls}\n\nreproduce: {_command(request)}" if shortfalls else ""
    return record


def _compare(request: pytest.FixtureRequest, baseline: BaselineRecords | None, record: Record) -> tuple[str, ...]:
    """The accuracies that fell too far below the baseline's; the comparison goes to the process that reports."""
    if baseline is None:
        return ()
    comparison = baseline.compare(record)
    if comparison is not None:
        request.node.user_properties.append((CHANGES, json.dumps(comparison.to_table())))
    return baseline.shortfalls(record, comparison)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test whose body passed, or skipped the rest, if it missed a threshold or has the marker but no evaluation.

    A test that skips itself before the evaluation stays skipped.
    """
    try:
        yield
    except pytest.skip.Exception:
        if not item.stash.get(_VERDICT, ""):
            raise
    if verdict := item.stash.get(_VERDICT, ""):
        pytest.fail(verdict, pytrace=False)
    if _VERDICT not in item.stash and is_marked(item):
        cure = "add it, or move the marker to the tests that do"
        pytest.fail(f"the marker {NAME} has no effect on a test that does not ask for rb_record: {cure}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Note on its report that a marked test was skipped, for the summary."""
    report = yield
    if report.skipped and is_marked(item) and _VERDICT not in item.stash:
        report.user_properties.append((NOT_EVALUATED, item.nodeid))
    return report


@contextmanager
def _errors_as_failures() -> Iterator[None]:
    """Turn the library's own errors into failures: their sentence, without a traceback."""
    from empir_plugin.errors import EmpirError

    try:
        yield
    except EmpirError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def _command(request: pytest.FixtureRequest) -> str:
    """The command that runs this test alone."""
    case = option_case(request.node)
    chosen = case.settings if case is not None and case.settings is not None else {}
    settings = {**option_settings(request.config), "model": None, **chosen}
    in_suite = Path(request.node.path).parent.parts[-2:] == ("empir_plugin", "suite")
    target = ["--pyargs", "empir_plugin.suite"] if in_suite else [request.node.nodeid]
    return shlex.join(["pytest", *target, *as_arguments(settings), *baseline_arguments(request.config)])
