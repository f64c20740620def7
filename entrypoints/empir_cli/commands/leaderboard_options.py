"""What the commands of ``empir leaderboard`` share."""

from __future__ import annotations

from pathlib import Path

import click

TREE = click.option(
    "--tree",
    type=click.Path(path_type=Path),
    default=Path("leaderboard"),
    show_default=True,
    help="Folder with model_info (entries) and runs (records).",
)
