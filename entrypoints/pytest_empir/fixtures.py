"""The fixtures of a test that evaluates, and its verdict."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_empir.collection import settings_of
from pytest_empir.marker import NAME
from pytest_empir.options import as_arguments, output, settings
from pytest_empir.start import bench_of
from pytest_empir.workers import share_processor

if TYPE_CHECKING:
    from torch import nn

    from empir_plugin.data.image_set import ImageSet
    from empir_plugin.evaluation.record import Record
    from empir_plugin.suite.case import Case

CASE, RECORD = "rb_case", "rb_record"
"""Names of the properties of a test that its results travel in."""

_VERDICT: pytest.StashKey[str] = pytest.StashKey()


@pytest.fixture
def rb_case(request: pytest.FixtureRequest) -> Case:
    """What this test evaluates: an ``empir_plugin.suite.case.Case`` made of parameter, marker and options."""
    share_processor(request.config)
    with _refusals():
        from empir_plugin.suite.case import Case

        case = Case(
            **settings_of(request),
            store=output(request.config, "state"),
            adv_out=output(request.config, "adv_out"),
        )
    items = request.session.items
    about = {"test": request.node.nodeid, "order": items.index(request.node), **case.describe()}
    request.node.user_properties.append((CASE, json.dumps(about)))
    return case


@pytest.fixture
def rb_model(request: pytest.FixtureRequest, rb_case: Case) -> nn.Module:
    """The model to attack, by the name in the case; override it with a fixture that returns a model of your own."""
    with _refusals():
        return bench_of(request.config).model(rb_case)


@pytest.fixture
def rb_data(request: pytest.FixtureRequest, rb_case: Case) -> ImageSet:
    """The images to attack; override it with a fixture that returns an ``empir_plugin.ImageSet`` of your own."""
    with _refusals():
        return bench_of(request.config).data(rb_case)


@pytest.fixture
def rb_record(request: pytest.FixtureRequest, rb_case: Case, rb_model: nn.Module, rb_data: ImageSet) -> Record:
    """The evaluation's ``empir_plugin.Record``; the test fails after its body where a threshold is missed."""
    with _refusals():
        record = bench_of(request.config).record(rb_case, rb_model, rb_data)
        text = record.to_json()
        shortfalls = rb_case.thresholds.explain(record)
    request.node.user_properties.append((RECORD, text))
    request.node.stash[_VERDICT] = f"{shortfalls}\n\nreproduce: {_command(request)}" if shortfalls else ""
    return record


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that passed by itself where a threshold was missed, or never compared with anything."""
    yield
    if verdict := item.stash.get(_VERDICT, ""):
        pytest.fail(verdict, pytrace=False)
    if _VERDICT not in item.stash and any(mark.name == NAME for mark in item.own_markers):
        pytest.fail(f"the marker {NAME} has no effect on a test that does not ask for rb_record: add it", pytrace=False)


@contextmanager
def _refusals() -> Iterator[None]:
    """Answer the library's own errors with their sentence instead of a traceback."""
    from empir_plugin.errors import EmpirError

    try:
        yield
    except EmpirError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def _command(request: pytest.FixtureRequest) -> str:
    """What to type to run this test alone."""
    parameters: dict[str, Any] = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    asked = {**settings(request.config), "model": None, **parameters.get("rb_case", {})}
    in_suite = Path(request.node.path).parent.parts[-2:] == ("empir_plugin", "suite")
    target = ["--pyargs", "empir_plugin.suite"] if in_suite else [request.node.nodeid]
    return shlex.join(["pytest", *target, *as_arguments(asked)])
