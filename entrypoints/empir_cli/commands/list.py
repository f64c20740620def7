"""``empir list``: the models that have a name."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from empir_cli.console import console, table
from empir_cli.names import model_rows, other_rows, predefined_rows, predefined_summary


@click.command("list")
@click.option("--all", "everything", is_flag=True, help="Also list every network that has no weights.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON instead of a table.")
def list_models(everything: bool, as_json: bool) -> None:
    """List the models with precision, clean accuracy and size."""
    rows = [*model_rows(), *other_rows(), *(predefined_rows() if everything else ())]
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    models = table(["model", "data set", "precision"], ["clean %", "Mparams", "kB"])
    for row in rows:
        models.add_row(*row.cells())
    console().print(models)
    if not everything:
        console().print(predefined_summary(), highlight=False, soft_wrap=True)
