"""The start of a session: everything named on the command line is loaded once before anything is attacked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_empir.options import settings
from pytest_empir.workers import is_worker

if TYPE_CHECKING:
    from empir_plugin.suite.session import Bench

_BENCH: pytest.StashKey[Bench] = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse models, attacks, threats and data that do not exist, in one sentence.

    Raises:
        pytest.UsageError: If there is one.
    """
    config = session.config
    if is_worker(config) or config.option.collectonly or not config.getoption("rb_model"):
        return
    from empir_plugin.errors import EmpirError
    from empir_plugin.suite.case import Case

    asked = settings(config)
    try:
        for model in dict.fromkeys(asked["model"]):
            case = Case(**{**asked, "model": model, "attack": tuple(asked.get("attack", ()))})
            bench_of(config).check(case)
    except (EmpirError, OSError) as error:
        raise pytest.UsageError(str(error)) from error


def bench_of(config: pytest.Config) -> Bench:
    """What this process keeps from one test to the next."""
    from empir_plugin.suite.session import Bench

    return config.stash.setdefault(_BENCH, Bench())
