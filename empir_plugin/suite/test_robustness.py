"""The one test of the suite: each model of ``--rb-model`` under each attack of ``--rb-attack``, and all together."""

from __future__ import annotations

from empir_plugin.evaluation.record import Record


def test_robustness(rb_record: Record) -> None:
    """Fail below ``--rb-min-clean`` or ``--rb-min-robust``: the plugin compares after the body of the test."""
