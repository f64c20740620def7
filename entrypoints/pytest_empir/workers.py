"""pytest-xdist: all tests of a model run on one worker, and the workers divide the CPU cores among them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_empir.options import option_settings


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run all cases of a model on one worker: they share finished evaluations, and the lock on a store.

    pytest-xdist's own ``--dist loadgroup`` would need a mark on every test, and its release 3.8 does not find the mark
    under pytest 9.2. Any other explicit ``--dist`` is respected.
    """
    models, store = option_settings(config).get("model", []), config.getoption("rb_state") is not None
    if config.getoption("dist") != "load" or not (models or store):
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByModel(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return worker_group(nodeid, models, by_file=store)

    return ByModel(config, log)


def worker_group(nodeid: str, models: list[str], *, by_file: bool) -> str:
    """The group of a test; tests of one group run on one worker.

    Tests of a named model form a group. Other tests form one group per file or, without ``by_file``, one each.

    Args:
        nodeid: Of the test.
        models: Names of the models of ``--rb-model``; a test of one of them has it in its parameters.
        by_file: Whether to group the other tests by file: with a store, they may evaluate the same model.

    Example:
        >>> worker_group("test_a.py::test_b[empir-cifar-pgd]", ["empir-cifar"], by_file=False)
        'empir-cifar'
    """
    parameters = nodeid.partition("[")[2]
    matches = [model for model in models if f"{model}-" in parameters]
    if matches:
        return max(matches, key=len)
    return nodeid.partition("::")[0] if by_file else nodeid


def limit_threads(config: pytest.Config) -> None:
    """Limit torch to this worker's share of the CPU cores."""
    if not is_worker(config):
        return
    import torch

    workers = getattr(config, "workerinput")["workercount"]  # noqa: B009 - pytest-xdist's, unknown to pytest's types
    share = max(1, (os.cpu_count() or 1) // workers)
    if torch.get_num_threads() > share:
        torch.set_num_threads(share)
