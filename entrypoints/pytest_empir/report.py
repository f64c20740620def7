"""The results of a session: collected from its tests, shown as a table, and written as the report of ``--rb-json``."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_empir.fixtures import CASE, NOT_EVALUATED, RECORD
from pytest_empir.options import output_path

_WORSE = ("passed", "xfailed", "skipped", "failed", "error")


class ReportHooks:
    """The hook that this plugin calls."""

    def pytest_rb_update_json(self, config: pytest.Config, report: dict[str, Any]) -> None:
        """Change the report of ``--rb-json`` in place before it is written.

        Called once, by the process that writes the report. If the result is not valid JSON, the changes are dropped and
        the run fails.

        Args:
            config: Of the run.
            report: ``schema``, ``finished``, ``exit_status``, ``cases`` (one for each test) and ``records`` (run
                records, one for each model, data set and threat, over all attacks that ran).
        """


class SessionResults:
    """A plugin in the process that reports: collects the results of every test that evaluated."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rows: dict[str, dict[str, Any]] = {}
        self._notes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect a test's case, record and outcome; called for each phase of the test."""
        properties = dict(report.user_properties)
        if NOT_EVALUATED in properties:
            self._notes.append(f"not evaluated, so its marker is not tested: {properties[NOT_EVALUATED]}")
        if CASE not in properties:
            return
        case = json.loads(str(properties[CASE]))
        row = self._rows.setdefault(case["test"], {"outcome": "passed"})
        row |= case
        if RECORD in properties and "record" not in row:
            row["record"] = json.loads(str(properties[RECORD]))
        row["outcome"] = max(row["outcome"], _outcome(report), key=_WORSE.index)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the report, even if the session failed or was interrupted."""
        path, rows = output_path(self._config, "json"), self._rows_in_order()
        if path is None:
            return
        if not any("record" in row for row in rows):
            self._notes.append(f"no report: nothing was evaluated, {path} is unchanged")
            return
        from empir_plugin.suite.session import session_report

        self._write(path, session_report(rows, int(exitstatus)), session)

    def _write(self, path: Path, report: dict[str, Any], session: pytest.Session) -> None:
        from empir_plugin._files.atomic import write_atomically

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self._to_json(report, session).encode())
        except OSError as error:
            self._fail(session, f"no report: {path} cannot be written ({error.strerror or error})")
        else:
            self._notes.append(f"report: {path}")

    def _to_json(self, report: dict[str, Any], session: pytest.Session) -> str:
        changed = copy.deepcopy(report)
        self._config.hook.pytest_rb_update_json(config=self._config, report=changed)
        try:
            return json.dumps(changed, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            self._fail(session, f"the report omits the changes of pytest_rb_update_json, not valid JSON ({error})")
            return json.dumps(report, indent=2, allow_nan=False) + "\n"

    def _fail(self, session: pytest.Session, note: str) -> None:
        self._notes.append(note)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table of models and attacks."""
        rows = self._rows_in_order()
        if rows or self._notes:
            terminalreporter.section("robustness")
            for line in (*_table_lines(rows), *self._notes):
                terminalreporter.write_line(line)

    def _rows_in_order(self) -> list[dict[str, Any]]:
        """The rows in the order of the tests, whichever worker finished first."""
        return sorted(self._rows.values(), key=lambda row: row["order"])


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed"
    return "error" if report.failed and report.when != "call" else report.outcome


_HEAD = ("model", "threat", "images", "attack", "clean", "robust", "seconds", "verdict")
_TEXTS = frozenset({"model", "threat", "attack", "verdict"})
_VERDICTS = {"failed": "FAILED", "error": "ERROR"}


def _table_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line for each attack, one for the worst case of a test with several, then AutoAttack's warnings.

    Args:
        rows: Cases in order, each with its outcome and, unless it ended before the evaluation, its record.
    """
    if not rows:
        return
    table = [_HEAD, *_drop_repetitions([line for row in rows for line in _case_lines(row)])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = zip(_HEAD, line, widths, strict=True)
        yield "  ".join(
            cell.ljust(width) if name in _TEXTS else cell.rjust(width) for name, cell, width in cells
        ).rstrip()
    yield from dict.fromkeys(
        f"{row['record']['model']['name']}: {flag}" for row in rows for flag in row.get("record", {}).get("flags", ())
    )
    yield from dict.fromkeys(
        f"{row['record']['model']['name']}: {attack['name']} warns: {flag}"
        for row in rows
        for attack in row.get("record", {}).get("attacks", ())
        for flag in attack["flags"]
    )


def _case_lines(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    verdict = _verdict(row)
    if "record" not in row:
        yield row["model"] or row["test"], "", "", row["label"], "", "", "", verdict
        return
    record = row["record"]
    head = record["model"]["name"], record["threat"], f"{record['data']['n']:,}"
    attacks, clean = record["attacks"], _percent(record["clean_accuracy"])
    for attack in attacks:
        own = verdict if len(attacks) == 1 else ""
        yield *head, attack["name"], clean, _percent(attack["accuracy"]), f"{attack['seconds']:.1f}", own
    if len(attacks) != 1:
        worst = _percent(record["worst_case_accuracy"])
        seconds = sum(attack["seconds"] for attack in attacks)
        yield *head, f"worst case of {row['label']}", clean, worst, f"{seconds:.1f}", verdict


def _drop_repetitions(table: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Drop the attacks of a worst case that an earlier line already shows."""
    seen: set[tuple[str, ...]] = set()
    for line in table:
        if line[-1] or line[:-1] not in seen:
            yield line
        seen.add(line[:-1])


def _verdict(row: dict[str, Any]) -> str:
    if row["outcome"] == "passed" and row["min_robust"] is None and row["min_clean"] is None:
        return "no threshold"
    return _VERDICTS.get(row["outcome"], row["outcome"])


def _percent(accuracy: float) -> str:
    return f"{accuracy:.2f} %"
