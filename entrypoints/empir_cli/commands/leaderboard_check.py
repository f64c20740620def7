"""``empir leaderboard check``."""

from __future__ import annotations

from pathlib import Path

import click

from empir_cli.commands.leaderboard_options import TREE


@click.command()
@TREE
def check(tree: Path) -> None:
    """Make every entry again from its sources and compare; exit with 1 if anything is wrong."""
    from empir_plugin.leaderboard.check import check as check_tree
    from empir_plugin.leaderboard.tree import Tree

    found = check_tree(Tree(tree))
    for problem in found:
        click.echo(str(problem))
    if found:
        raise click.exceptions.Exit(1)
    count = len(list(Tree(tree).places()))
    told = f"{count} {'entry' if count == 1 else 'entries'}, and each follows from its sources."
    click.echo(told if count else f"{tree} has no entries yet.")
