"""``empir leaderboard add``."""

from __future__ import annotations

from pathlib import Path

import click

from empir_cli.commands.leaderboard_options import TREE

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("--record", "records", type=_FILE, multiple=True, required=True, help="A run record (repeatable).")
@click.option("--audit", type=_FILE, help="A report of an audit for gradient masking.")
@click.option("--overhead", type=_FILE, help="What the model costs (JSON).")
@click.option("--paper", type=_FILE, help="Paper and architecture (TOML), for a model this package has none of.")
@TREE
def add(
    model: str, records: tuple[Path, ...], audit: Path | None, overhead: Path | None, paper: Path | None, tree: Path
) -> None:
    """Make the entry of MODEL from run records and put it, with them, into the tree.

    One record must hold standard AutoAttack on the official test set, under the board's radius. Records of fewer images
    make no entry; they are kept among the runs.
    """
    from empir_plugin.leaderboard.add import Files
    from empir_plugin.leaderboard.add import add as add_entry
    from empir_plugin.leaderboard.tree import Tree

    place = add_entry(Tree(tree), model, Files(records, audit, overhead, paper))
    click.echo(f"Entry: {place.entry}")
    click.echo(f"Sources: {place.evidence}")
    if audit is None:
        click.echo("No --audit was given: `unreliable` says only what AutoAttack flagged.", err=True)
