"""Robustness as tests: the pytest plugin ``empir``.

pytest loads this package in every run in the environment, so its modules import neither torch nor ``empir_plugin``
until a test asks for an evaluation.

``pytest --pyargs empir_plugin.suite --rb-model empir-cifar`` evaluates models by name. A model of your own needs a
fixture ``rb_model`` and a test with the marker ``robustness`` that requests the fixture ``rb_record``::

    @pytest.fixture
    def rb_model():
        return MyNetwork()  # a torch.nn.Module from images in [0, 1] to logits


    @pytest.mark.robustness(dataset="cifar10", eps="8/255", attack=["fgsm", "pgd"], min_clean=90, min_robust=40)
    def test_my_network(rb_record):
        assert not any(attack.flags for attack in rb_record.attacks)  # any further assertions about the record

The marker may stand wherever pytest takes one: on a function, a class, a module (``pytestmark``) or a parameter
(``pytest.param(..., marks=...)``); the closest one wins. A marked test that never evaluates is an error.
"""

from __future__ import annotations

import pytest

from pytest_empir.fixtures import pytest_runtest_call as pytest_runtest_call
from pytest_empir.fixtures import pytest_runtest_makereport as pytest_runtest_makereport
from pytest_empir.fixtures import pytest_sessionstart as pytest_sessionstart
from pytest_empir.fixtures import rb_case as rb_case
from pytest_empir.fixtures import rb_data as rb_data
from pytest_empir.fixtures import rb_model as rb_model
from pytest_empir.fixtures import rb_record as rb_record
from pytest_empir.marker import HELP
from pytest_empir.marker import pytest_generate_tests as pytest_generate_tests
from pytest_empir.marker import pytest_pycollect_makeitem as pytest_pycollect_makeitem
from pytest_empir.marker import pytest_runtest_setup as pytest_runtest_setup
from pytest_empir.options import check_outputs
from pytest_empir.options import pytest_addoption as pytest_addoption
from pytest_empir.report import ReportHooks, SessionResults
from pytest_empir.workers import is_worker
from pytest_empir.workers import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the plugin's own hook, :class:`pytest_empir.report.ReportHooks`."""
    pluginmanager.add_hookspecs(ReportHooks)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and the collector of results; reject unwritable output paths before any attack runs."""
    config.addinivalue_line("markers", HELP)
    if not is_worker(config):
        check_outputs(config)
        config.pluginmanager.register(SessionResults(config), "empir-results")
