"""The report of a session: every case, and the records they add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from empir_plugin.evaluation.merge import gathered, record_of
from empir_plugin.evaluation.provenance import now

SCHEMA = 1


def session_report(rows: Sequence[Mapping[str, Any]], exit_status: int) -> dict[str, Any]:
    """What ``--rb-json`` holds.

    Args:
        rows: Cases in order, each with its ``outcome`` and, unless it ended before, its ``record`` as a table.
        exit_status: Of pytest.

    Returns:
        ``schema``, ``finished``, ``exit_status``; ``cases``, with the numbers of each; and ``records``: run records,
        each over all attacks of the session on one model and data set under one threat, so that its worst case is, per
        image, that of all of them.
    """
    records = [record_of(row["record"]) for row in rows if "record" in row]
    return {
        "schema": SCHEMA,
        "finished": now(),
        "exit_status": exit_status,
        "cases": [_case(row) for row in rows],
        "records": [asdict(record) for record in gathered(records)],
    }


def _case(row: Mapping[str, Any]) -> dict[str, Any]:
    about = {key: value for key, value in row.items() if key not in ("record", "order")}
    if "record" not in row:
        return about
    record = row["record"]
    return {
        **about,
        "model": record["model"]["name"],
        "dataset": record["data"]["name"],
        "threat": record["threat"],
        "n_examples": record["data"]["n"],
        "clean_accuracy": record["clean_accuracy"],
        "attacks": {attack["name"]: attack["accuracy"] for attack in record["attacks"]},
        "worst_case_accuracy": record["worst_case_accuracy"],
        "seconds": round(sum(attack["seconds"] for attack in record["attacks"]), 2),
    }
