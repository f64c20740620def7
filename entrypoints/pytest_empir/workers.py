"""Under pytest-xdist: tests of one model on one worker, and the processor shared out."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_empir.options import settings


def is_worker(config: pytest.Config) -> bool:
    """Whether this process runs tests for another one that reports them."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the cases of a model on one worker: they share what each attack left, and the lock on a store.

    pytest-xdist's own ``--dist loadgroup`` would need a mark on every test, and its release 3.8 does not find the mark
    under pytest 9.2. Every other explicit ``--dist`` is left alone.
    """
    models, store = settings(config).get("model", []), config.getoption("rb_state") is not None
    if config.getoption("dist") != "load" or not (models or store):
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByModel(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid, models, by_file=store)

    return ByModel(config, log)


def group(nodeid: str, models: list[str], *, by_file: bool) -> str:
    """Which tests go to one worker: those of a model; of the others those of one file, or each wherever it may.

    Args:
        nodeid: Name of a test.
        models: Evaluated by name; a test of one of them has it in its parameters.
        by_file: Whether tests of a file belong together, as when they may evaluate one model with one store.

    Example:
        >>> group("test_a.py::test_b[empir-cifar-pgd]", ["empir-cifar"], by_file=False)
        'empir-cifar'
    """
    parameters = nodeid.partition("[")[2]
    found = [model for model in models if f"{model}-" in parameters]
    if found:
        return max(found, key=len)
    return nodeid.partition("::")[0] if by_file else nodeid


def share_processor(config: pytest.Config) -> None:
    """Use this worker's share of the processor's cores."""
    if not is_worker(config):
        return
    import torch

    workers = getattr(config, "workerinput")["workercount"]  # noqa: B009 - pytest-xdist's, unknown to pytest's types
    share = max(1, (os.cpu_count() or 1) // workers)
    if torch.get_num_threads() > share:
        torch.set_num_threads(share)
