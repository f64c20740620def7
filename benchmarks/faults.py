"""Every case of ``tests/faults``, counted: ``OMP_NUM_THREADS=1 python benchmarks/faults.py --out faults.json``.

Files of every kind are damaged, processes are killed at every moment that matters, disks are full, and signals arrive.
A test counts its cases with the fixture ``tally``: what was tried, how often, and how often nothing was lost, executed
or left half done. One that counts none is one case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest

from empir_plugin._files.atomic import write_atomically
from empir_plugin.evaluation.identity import code_sha256, now, versions

TESTS = Path(__file__).parents[1] / "tests" / "faults"


@dataclass
class Count:
    """How many cases of a kind there were.

    Args:
        tried: All of them.
        survived: Those in which nothing was lost.
    """

    tried: int = 0
    survived: int = 0

    def add(self, tried: int, survived: int) -> None:
        """Count more cases."""
        self.tried += tried
        self.survived += survived


@dataclass
class Counter:
    """A pytest plugin that adds up the cases of all tests.

    Args:
        kinds: The cases by kind.
        skipped: Tests that did not run here.
    """

    kinds: dict[str, Count] = field(default_factory=dict)
    skipped: int = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count the cases of a test that ran, or that failed before it could."""
        if report.skipped:
            self.skipped += report.when in ("setup", "call")
        elif report.when == "call" or report.failed:
            counted = [value for name, value in report.user_properties if name == "faults"]
            if not counted:
                place, passed = Path(report.nodeid.partition("::")[0]).stem.removeprefix("test_"), report.passed
                counted = [(f"other cases: {place.replace('_', ' ')}", 1, int(passed))]
            for kind, tried, survived in counted:
                self.kinds.setdefault(kind, Count()).add(tried, survived)

    def table(self) -> dict[str, Any]:
        """The counts as a record."""
        kinds = {kind: vars(count) for kind, count in sorted(self.kinds.items())}
        total = Count()
        for count in self.kinds.values():
            total.add(count.tried, count.survived)
        return {"total": vars(total), "skipped_tests": self.skipped, "kinds": kinds}


def count_faults(arguments: Iterable[str]) -> dict[str, Any]:
    """Run tests and count their cases.

    Args:
        arguments: Of pytest.
    """
    counter = Counter()
    # The package is imported already, so pytest cannot rewrite the asserts of its plugin: nothing that matters here.
    options = ("-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider", "-m", "slow or not slow")
    pytest.main(["-q", *options, *arguments], plugins=[counter])
    return counter.table()


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write the counts to (JSON).")
@click.argument("tests", nargs=-1)
def main(out: Path, tests: tuple[str, ...]) -> None:
    """Run TESTS, by default all of tests/faults, and write how many cases survived; exit with 1 if one did not."""
    about = {"versions": {**versions(), "code_sha256": code_sha256()}, "finished": now()}
    table = {**count_faults(tests or [str(TESTS)]), **about}
    write_atomically(out, (json.dumps(table, indent=1) + "\n").encode())
    total = table["total"]
    click.echo(f"{total['survived']:,} of {total['tried']:,} cases survived")
    sys.exit(total["survived"] < total["tried"] or not total["tried"])


if __name__ == "__main__":
    main()
