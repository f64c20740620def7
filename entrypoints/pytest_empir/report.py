"""The results of a session: collected from its tests, shown as a table, and written as the report of ``--rb-json``."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_empir.fixtures import CASE, CHANGES, NOT_EVALUATED, RECORD
from pytest_empir.options import option_path

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
        self._comparisons: dict[str, dict[str, Any]] = {}
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
        if CHANGES in properties:
            self._comparisons[case["test"]] = json.loads(str(properties[CHANGES]))
        row["outcome"] = max(row["outcome"], _outcome(report), key=_WORSE.index)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the report, even if the session failed or was interrupted."""
        report, baseline, rows = option_path(self._config, "json"), self._baseline(exitstatus), self._rows_in_order()
        for what, path in (("report", report), ("baseline", baseline)):
            if path is None:
                continue
            if not any("record" in row for row in rows):
                self._notes.append(f"no {what}: nothing was evaluated, {path} is unchanged")
                continue
            from empir_plugin.suite.session import session_report

            self._write(what, path, session_report(rows, int(exitstatus)), session)

    def _baseline(self, exitstatus: int) -> Path | None:
        """The file of ``--rb-save``; None without one, and if a test failed: a failure must not become a baseline."""
        path = option_path(self._config, "save")
        if path is not None and exitstatus:
            self._notes.append(f"no baseline: not every test passed, {path} is unchanged")
            return None
        return path

    def _write(self, what: str, path: Path, report: dict[str, Any], session: pytest.Session) -> None:
        from empir_plugin._files.atomic import write_atomically

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self._to_json(report, session).encode())
        except OSError as error:
            self._fail(session, f"no {what}: {path} cannot be written ({error.strerror or error})")
        else:
            self._notes.append(f"{what}: {path}")

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
            compared = [self._comparisons[row["test"]] for row in rows if row["test"] in self._comparisons]
            for line in (*_table_lines(rows), *_comparison_lines(compared), *self._notes):
                terminalreporter.write_line(line)

    def _rows_in_order(self) -> list[dict[str, Any]]:
        """The rows in the order of the tests, whichever worker finished first."""
        return sorted(self._rows.values(), key=lambda row: row["order"])


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed"
    return "error" if report.failed and report.when != "call" else report.outcome


_HEAD = ("model", "threat", "images", "attack", "clean", "robust", "95 % interval", "seconds", "verdict")
_COMPARED = ("model", "threat", "attack", "baseline", "now", "points", "only baseline", "only now", "p")
_TEXTS = frozenset({"model", "threat", "attack", "verdict"})
_LIMITS = ("min_robust", "min_clean", "compare_fail")
_VERDICTS = {"failed": "FAILED", "error": "ERROR"}


def _table_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line for each attack, one for the worst case of a test with several, then AutoAttack's warnings.

    Args:
        rows: Cases in order, each with its outcome and, unless it ended before the evaluation, its record.
    """
    if not rows:
        return
    yield from _aligned([_HEAD, *_drop_repetitions([line for row in rows for line in _case_lines(row)])])
    yield from dict.fromkeys(
        f"{row['record']['model']['name']}: {flag}" for row in rows for flag in row.get("record", {}).get("flags", ())
    )
    yield from dict.fromkeys(
        f"{row['record']['model']['name']}: {attack['name']} warns: {flag}"
        for row in rows
        for attack in row.get("record", {}).get("attacks", ())
        for flag in attack["flags"]
    )


def _comparison_lines(comparisons: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The comparisons with the baseline, one line for each attack, each line once; then what else differs."""
    lines = [line for comparison in comparisons for line in _changes(comparison)]
    if lines:
        yield from ("", *_aligned([_COMPARED, *dict.fromkeys(lines)]))
    yield from dict.fromkeys(f"baseline: {note}" for comparison in comparisons for note in comparison["notes"])


def _changes(comparison: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for change in comparison["changes"]:
        accuracies = _percent(change["before"]), _percent(change["after"]), f"{change['difference']:+.2f}"
        counts = str(len(change["lost"])), str(len(change["gained"])), f"{change['p_value']:.2g}"
        yield comparison["candidate"]["model"]["name"], comparison["threat"], change["name"], *accuracies, *counts


def _aligned(table: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """The lines of a table whose first line is its heading: texts to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = zip(table[0], line, widths, strict=True)
        yield "  ".join(
            cell.ljust(width) if name in _TEXTS else cell.rjust(width) for name, cell, width in cells
        ).rstrip()


def _case_lines(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    verdict = _verdict(row)
    if "record" not in row:
        yield row["model"] or row["test"], "", "", row["label"], "", "", "", "", verdict
        return
    record = row["record"]
    head = record["model"]["name"], record["threat"], f"{record['data']['n']:,}"
    attacks, clean = record["attacks"], _percent(record["clean_accuracy"])
    for attack in attacks:
        own = verdict if len(attacks) == 1 else ""
        robust = _percent(attack["accuracy"]), _interval(attack["robust"])
        yield *head, attack["name"], clean, *robust, f"{attack['seconds']:.1f}", own
    if len(attacks) != 1:
        worst = _percent(record["worst_case_accuracy"]), _interval(record["worst_case"])
        seconds = sum(attack["seconds"] for attack in attacks)
        yield *head, f"worst case of {row['label']}", clean, *worst, f"{seconds:.1f}", verdict


def _drop_repetitions(table: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Drop the attacks of a worst case that an earlier line already shows."""
    seen: set[tuple[str, ...]] = set()
    for line in table:
        if line[-1] or line[:-1] not in seen:
            yield line
        seen.add(line[:-1])


def _verdict(row: dict[str, Any]) -> str:
    if row["outcome"] == "passed" and all(row[limit] is None for limit in _LIMITS):
        return "no threshold"
    return _VERDICTS.get(row["outcome"], row["outcome"])


def _percent(accuracy: float) -> str:
    return f"{accuracy:.2f} %"


def _interval(verdicts: str) -> str:
    from empir_plugin.evaluation.intervals import interval_text

    return interval_text(verdicts)
