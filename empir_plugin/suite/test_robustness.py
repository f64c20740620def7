"""Every model of ``--rb-model`` under every attack of ``--rb-attack``, and under all of them together."""

from __future__ import annotations

from empir_plugin.evaluation.record import Record


def test_robustness(rb_record: Record) -> None:
    """Hold the model to ``--rb-min-clean`` and ``--rb-min-robust``: the plugin compares after the body of a test."""
