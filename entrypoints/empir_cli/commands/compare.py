"""``empir compare``: the difference between two run records, attack by attack and image by image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empir_cli.console import console, table

if TYPE_CHECKING:
    from empir_plugin.evaluation.comparison import RecordComparison


@click.command()
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option(
    "--fail-on-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Exit with code 1 if clean or worst-case accuracy fell by more than this.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON, with the numbers of all images.")
def compare(baseline: Path, candidate: Path, fail_on_drop: float | None, as_json: bool) -> None:
    """Compare the run record CANDIDATE with BASELINE: the same images under the same threat.

    For each attack that both ran: both accuracies with their 95 % confidence intervals (Wilson), how many images were
    lost (-) and gained (+), and the p-value of the exact McNemar test: the probability of a difference as large as this
    if neither were the better. Reports of pytest's --rb-save and --rb-json can be compared, too.
    """
    from empir_plugin.evaluation.baseline import pair_records, read_records
    from empir_plugin.evaluation.comparison import compare as compare_records

    pairs = pair_records(read_records(baseline), read_records(candidate))
    comparisons = [compare_records(*pair) for pair in pairs]
    if as_json:
        click.echo(json.dumps([comparison.to_table() for comparison in comparisons], indent=2))
    else:
        for comparison in comparisons:
            _print(comparison)
    drops = [] if fail_on_drop is None else [drop for each in comparisons for drop in each.drops(fail_on_drop)]
    for drop in drops:
        click.echo(drop, err=True)
    if drops:
        raise click.exceptions.Exit(1)


def _print(comparison: RecordComparison) -> None:
    from empir_plugin.evaluation.comparison import ranges
    from empir_plugin.evaluation.intervals import interval_text
    from empir_plugin.evaluation.record import percent

    out, data = console(), comparison.baseline.data
    names = f"{comparison.baseline.model.get('name')} and {comparison.candidate.model.get('name')}"
    images = f"{data['n']:,} images of {data.get('name')} ({data.get('source')})"
    out.print(f"{names} under {comparison.baseline.threat}, {images}", style="bold", markup=False)
    rows = table(["attack"], ["baseline", "now", "points", "images", "p"])
    for change in comparison.changes:
        # Two lines for each attack, so that the table fits a terminal.
        accuracies = [f"{percent(each):.2f} %\n{interval_text(each)}" for each in (change.before, change.after)]
        images = f"{-len(change.lost)}\n{len(change.gained):+}"
        rows.add_row(change.name, *accuracies, f"{change.difference:+.2f}", images, f"{change.p_value:.2g}")
    out.print(rows)
    for change in comparison.changes:
        if change.lost or change.gained:
            lost, gained = ranges(change.lost), ranges(change.gained)
            out.print(f"{change.name}: images lost: {lost}; gained: {gained}", markup=False, soft_wrap=True)
    for note in comparison.notes:
        out.print(f"Note: {note}", markup=False, soft_wrap=True)
