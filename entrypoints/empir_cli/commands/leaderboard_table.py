"""``empir leaderboard table``."""

from __future__ import annotations

from pathlib import Path

import click

from empir_cli.commands.leaderboard_options import TREE


@click.command()
@TREE
def table(tree: Path) -> None:
    """Print the entries as Markdown, board by board, ranked as RobustBench ranks."""
    from empir_plugin.leaderboard.tree import Tree, markdown_tables

    click.echo(markdown_tables(Tree(tree)), nl=False)
