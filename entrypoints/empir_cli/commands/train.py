"""``empir train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from empir_cli.console import Progress
from empir_cli.options import DEVICE, THREADS, set_threads

if TYPE_CHECKING:
    from empir_plugin.training.loop import Step


@click.command()
@click.argument("recipe")
@click.option("--data-dir", type=click.Path(path_type=Path), required=True, help="Folder of the training data.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for checkpoints and weights. [runs/train/RECIPE]")
@DEVICE
@click.option("--resume/--restart", default=True, show_default=True, help="Go on from checkpoints in --out.")
@click.option(
    "--finish-from", type=click.Path(path_type=Path),
    help="Run only the recipe's [finish], from the members' weights and reports in this folder.",
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

    Every epoch ends in a checkpoint: a run that was killed goes on where it stopped, with the same result.
    """
    from empir_plugin.data.image_set import load_images
    from empir_plugin.evaluation.prepare import parse_device
    from empir_plugin.training.recipe import find_recipe
    from empir_plugin.training.run import train_recipe

    set_threads(threads)
    plan, target = find_recipe(recipe), parse_device(device)
    data = load_images(plan.dataset, data_dir=data_dir, split="train")
    folder = out or Path("runs", "train", plan.name)
    with _TrainingProgress() as progress:
        members = train_recipe(
            plan, data, folder, device=target, resume=resume, finish_from=finish_from, on_step=progress.show
        )
    for member in members:
        click.echo(f"{member.weights}  sha256 {member.sha256}")
    click.echo(f"{folder / plan.name}.safetensors  (the ensemble, for custom_checkpoint=)")


class _TrainingProgress(Progress):
    def show(self, step: Step) -> None:
        self.update(step.member, step.step, step.steps, f"loss {step.loss:.3f}, accuracy {step.accuracy:.1%}")
