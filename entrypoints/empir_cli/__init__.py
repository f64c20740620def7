"""The command line ``empir``.

Its console script loads this package by name: torch and ``empir_plugin`` are imported only inside the commands.
"""

from __future__ import annotations

import click

from empir_cli.border import RootGroup, debug_option
from empir_cli.commands.audit import audit
from empir_cli.commands.compare import compare
from empir_cli.commands.evaluate import evaluate
from empir_cli.commands.export import export
from empir_cli.commands.leaderboard import leaderboard
from empir_cli.commands.list import list_models
from empir_cli.commands.overhead import overhead
from empir_cli.commands.quantize import quantize
from empir_cli.commands.reproduce import reproduce
from empir_cli.commands.train import train
from empir_cli.console import show_log


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="empir-plugin")
@debug_option
def main() -> None:
    """EMPIR ensembles and DoReFa-quantized networks in RobustBench, attacked honestly."""
    show_log()


for _command in (list_models, train, quantize, evaluate, compare, audit, overhead, export, leaderboard, reproduce):
    main.add_command(_command)
