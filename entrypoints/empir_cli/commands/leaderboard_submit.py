"""``empir leaderboard submit``."""

from __future__ import annotations

from pathlib import Path

import click

from empir_cli.commands.leaderboard_options import TREE
from empir_cli.options import DATA_DIR


@click.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="Adversarial images (safetensors), to be reported as well."
)
@DATA_DIR
@click.option("--code-url", help="Address of the code, for the issue.")
@TREE
def submit(name: str, out: Path, images: Path | None, data_dir: Path | None, code_url: str | None, tree: Path) -> None:
    """Write what RobustBench asks for: the entry of NAME, the text of the issue, a row for the model zoo.

    NAME is a model (empir-cifar), a stem (Sen2020EMPIR), or board and stem (cifar10/Linf/Sen2020EMPIR). With
    --images, also the tensor and the text of an external evaluation; with --data-dir their norms are measured again.
    For a board that RobustBench does not have, such as mnist/Linf, entry and issue alone: they propose one.
    """
    from empir_plugin.leaderboard.issues import CODE_URL
    from empir_plugin.leaderboard.submit import find
    from empir_plugin.leaderboard.submit import submit as write_submission
    from empir_plugin.leaderboard.tree import Tree

    found = find(Tree(tree), name)
    for path in write_submission(found, out, images=images, data_dir=data_dir, code_url=code_url or CODE_URL):
        click.echo(str(path))
    if not found.place.board.in_robustbench:
        click.echo(
            f"RobustBench has no board for {found.place.board}: new-model.md proposes one, or keep the entry in a tree "
            "of your own. Nothing is written for its model zoo or for an external evaluation, which need a board.",
            err=True,
        )
