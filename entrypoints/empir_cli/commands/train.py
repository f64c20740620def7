"""``empir train``: train the members of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from empir_cli.console import ProgressBar
from empir_cli.options import DEVICE, THREADS, set_threads


@click.command()
@click.argument("recipe")
@click.option("--data-dir", type=click.Path(path_type=Path), required=True, help="Folder of the training data.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for checkpoints and weights. [runs/train/RECIPE]")
@DEVICE
@click.option(
    "--resume/--restart", default=True, show_default=True, help="Resume from the checkpoints in --out, or start over."
)
@click.option(
    "--finish-from", type=click.Path(path_type=Path),
    help="Run only the recipe's [finish], on the members' weights and reports in this folder.",
)  # fmt: skip
@THREADS
def train(
    recipe: str,
    data_dir: Path,
    out: Path | None,
    device: str,
    resume: bool,
    finish_from: Path | None,
    threads: int | None,
) -> None:
    """Train the members of RECIPE: a name such as empir-cifar, or a TOML file.

    A checkpoint is written after every epoch: an interrupted run resumes from the last one, with the same result.
    """
    from empir_plugin.data.image_set import load_images
    from empir_plugin.evaluation.prepare import parse_device
    from empir_plugin.training.recipe import find_recipe
    from empir_plugin.training.run import train_recipe

    set_threads(threads)
    plan, target = find_recipe(recipe), parse_device(device)
    data = load_images(plan.dataset, data_dir=data_dir, split="train")
    folder = out or Path("runs", "train", plan.name)
    with ProgressBar() as progress:
        members = train_recipe(
            plan, data, folder, device=target, resume=resume, finish_from=finish_from, on_step=progress.show_step
        )
    for member in members:
        click.echo(f"{member.weights}  sha256 {member.sha256}")
    click.echo(f"{folder / plan.name}.safetensors  (the ensemble, for custom_checkpoint=)")
