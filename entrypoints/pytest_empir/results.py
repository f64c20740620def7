"""What the tests of a session found: collected by the one process that reports, shown, and written once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from pytest_empir.fixtures import CASE, RECORD
from pytest_empir.options import output
from pytest_empir.table import lines

_WORSE = ("passed", "xfailed", "skipped", "failed", "error")


class Results:
    """A plugin of one run, in the process that reports: what every test that evaluated left in its properties."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rows: dict[str, dict[str, Any]] = {}
        self._notes: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down what a test found, and how it ended: each of its phases is reported."""
        properties = dict(report.user_properties)
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
        """Write the report, also of a session that failed or was interrupted."""
        path, rows = output(self._config, "json"), self._in_order()
        if path is None:
            return
        if not any("record" in row for row in rows):
            self._notes.append(f"no report: nothing was evaluated, {path} is as it was")
            return
        from empir_plugin.suite.session import session_report

        self._write(path, session_report(rows, int(exitstatus)), session)

    def _write(self, path: Path, report: dict[str, Any], session: pytest.Session) -> None:
        from empir_plugin._files.atomic import write_atomically

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self._text(report, session).encode())
        except OSError as error:
            self._fail(session, f"no report: {path} cannot be written ({error.strerror or error})")
        else:
            self._notes.append(f"report: {path}")

    def _text(self, report: dict[str, Any], session: pytest.Session) -> str:
        changed = copy.deepcopy(report)
        self._config.hook.pytest_rb_update_json(config=self._config, report=changed)
        try:
            return json.dumps(changed, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            self._fail(session, f"the report leaves out what pytest_rb_update_json added, it is no JSON ({error})")
            return json.dumps(report, indent=2, allow_nan=False) + "\n"

    def _fail(self, session: pytest.Session, note: str) -> None:
        self._notes.append(note)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the table of models and attacks."""
        rows = self._in_order()
        if rows or self._notes:
            terminalreporter.section("robustness")
            for line in (*lines(rows), *self._notes):
                terminalreporter.write_line(line)

    def _in_order(self) -> list[dict[str, Any]]:
        """In the order of the tests, whichever worker was faster."""
        return sorted(self._rows.values(), key=lambda row: row["order"])


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed"
    return "error" if report.failed and report.when != "call" else report.outcome
