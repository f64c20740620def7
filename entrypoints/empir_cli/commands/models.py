"""``empir list``."""

from __future__ import annotations

import click

from empir_cli.console import console, table


@click.command("list")
def list_models() -> None:
    """Show the models, with precision, clean accuracy and size."""
    from empir_plugin.zoo.registry import builders
    from empir_plugin.zoo.show import rows

    shown = table(["model", "data set", "precision"], ["clean %", "Mparams", "kB"])
    for row in rows(builders()):
        shown.add_row(*row)
    console().print(shown)
