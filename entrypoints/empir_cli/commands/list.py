"""``empir list``: the models that have a name."""

from __future__ import annotations

import click

from empir_cli.console import console, table


@click.command("list")
@click.option("--all", "everything", is_flag=True, help="Also list every network that has no weights.")
def list_models(everything: bool) -> None:
    """List the models with precision, clean accuracy and size."""
    from empir_plugin.zoo.registry import builders
    from empir_plugin.zoo.show import named_rows, named_summary, rows

    models = table(["model", "data set", "precision"], ["clean %", "Mparams", "kB"])
    for row in [*rows(builders()), *(named_rows() if everything else ())]:
        models.add_row(*row)
    console().print(models)
    if not everything:
        console().print(named_summary(), highlight=False)
