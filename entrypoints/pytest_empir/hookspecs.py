"""The hooks this plugin calls."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_rb_update_json(config: pytest.Config, report: dict[str, Any]) -> None:
    """Change the report of ``--rb-json`` in place before it is written.

    Called once, by the process that writes it. What is no JSON afterwards is left out, and the run fails.

    Args:
        config: Of the run.
        report: ``schema``, ``finished``, ``exit_status``, ``cases`` (one for each test) and ``records`` (run records,
            one for each model, data set and threat, over all attacks that ran).
    """
