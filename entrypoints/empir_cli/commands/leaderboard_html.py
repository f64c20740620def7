"""``empir leaderboard html``."""

from __future__ import annotations

from pathlib import Path

import click

from empir_cli.commands.leaderboard_options import TREE


@click.command()
@TREE
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
def html(tree: Path, out: Path) -> None:
    """Write the entries as one page of HTML that needs no network: tables, charts and run records.

    A tree that `empir leaderboard check` does not accept makes no page.
    """
    from empir_plugin.leaderboard.page.render import write_page
    from empir_plugin.leaderboard.tree import Tree

    write_page(Tree(tree), out)
    click.echo(f"Page: {out}")
