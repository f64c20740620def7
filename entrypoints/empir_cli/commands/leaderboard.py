"""``empir leaderboard``: a group, with one module for each of its commands."""

from __future__ import annotations

import click

from empir_cli.commands.leaderboard_add import add
from empir_cli.commands.leaderboard_check import check
from empir_cli.commands.leaderboard_html import html
from empir_cli.commands.leaderboard_submit import submit
from empir_cli.commands.leaderboard_table import table
from empir_cli.group import Commands


@click.group(cls=Commands)
def leaderboard() -> None:
    """Make leaderboard entries from run records, check, show and submit them."""


for _command in (add, check, table, html, submit):
    leaderboard.add_command(_command)
