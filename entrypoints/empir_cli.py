"""The command ``empir``. Frameworks load this module by name: torch is imported only inside the commands."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from empir_plugin.attacks.threat import Threat
    from empir_plugin.evaluation.planned import Planned
    from empir_plugin.evaluation.protocols import Protocol
    from empir_plugin.evaluation.record import Record
    from empir_plugin.training.loop import Step

_DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder of the full data set, as torchvision lays it out.",
)
_DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")


class _Refusal(click.ClickException):
    """An error the library raised on purpose: one sentence, exit code 2."""

    exit_code = 2


class _Commands(click.Group):
    """Commands that answer the library's own errors with their sentence instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from empir_plugin.errors import EmpirError

            if isinstance(error, EmpirError):
                raise _Refusal(str(error)) from error
            raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="empir-plugin")
def main() -> None:
    """EMPIR ensembles and DoReFa-quantized networks in RobustBench, attacked honestly."""


@main.command("list")
def list_models() -> None:
    """Show the models, with precision, clean accuracy and size."""
    from empir_plugin.zoo.registry import builders
    from empir_plugin.zoo.show import rows

    table = _table("model", "data set", "precision", "clean %", "Mparams", "kB")
    for row in rows(builders()):
        table.add_row(*row)
    _console().print(table)


@main.command()
@click.argument("recipe")
@click.option("--data-dir", type=click.Path(path_type=Path), required=True, help="Folder of the training data.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for checkpoints and weights. [runs/train/RECIPE]")
@_DEVICE
@click.option("--resume/--restart", default=True, show_default=True, help="Go on from checkpoints in --out.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; results depend on their number.")
def train(recipe: str, data_dir: Path, out: Path | None, device: str, resume: bool, threads: int | None) -> None:
    """Train the members of RECIPE: a name such as empir-cifar, or a TOML file.

    Every epoch ends in a checkpoint: a run that was killed goes on where it stopped, with the same result.
    """
    import torch

    from empir_plugin.evaluation.data import load_images
    from empir_plugin.evaluation.subject import parse_device
    from empir_plugin.training.run import find_recipe, train_recipe

    if threads is not None:
        torch.set_num_threads(threads)
    plan, target = find_recipe(recipe), parse_device(device)
    data = load_images(plan.dataset, data_dir=data_dir, split="train")
    folder = out or Path("runs", "train", plan.name)
    with _TrainingProgress() as progress:
        members = train_recipe(plan, data, folder, device=target, resume=resume, on_step=progress.show)
    for member in members:
        click.echo(f"{member.weights}  sha256 {member.sha256}")
    click.echo(f"{folder / plan.name}.safetensors  (the ensemble, for custom_checkpoint=)")


@main.command()
@click.argument("model")
@click.option(
    "--protocol", default="default", show_default=True, help="default, standard, adaptive, paper or released."
)
@click.option("--attack", "chosen", multiple=True, help="Run only this attack of the protocol (repeatable).")
@click.option("--threat", help="Norm and radius, such as Linf:8/255.  [the protocol's, or the model card's]")
@click.option("--n-examples", type=int, help="How many test images, from the first.  [100; all of --data-dir]")
@_DATA_DIR
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights instead of the model's own (safetensors).")
@_DEVICE
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random in the attacks.")
@click.option(
    "--store", type=click.Path(path_type=Path), help="Folder for finished shards: a killed run goes on there."
)
@click.option("--record", type=click.Path(path_type=Path), help="File for the run record.  [runs/MODEL-TIME.json]")
@click.option("--json", "as_json", is_flag=True, help="Print the run record instead of the table.")
def evaluate(
    model: str,
    protocol: str,
    chosen: tuple[str, ...],
    threat: str | None,
    n_examples: int | None,
    data_dir: Path | None,
    checkpoint: Path | None,
    device: str,
    seed: int,
    store: Path | None,
    record: Path | None,
    as_json: bool,
) -> None:
    """Attack MODEL and print what is left: FGSM, PGD and AutoAttack, or another protocol's attacks.

    Without --data-dir it runs on the first images of the bundled sample of the test set, offline. Under torchrun, the
    processes share the images.
    """
    from empir_plugin.evaluation.data import load_images
    from empir_plugin.evaluation.distributed import torchrun_team
    from empir_plugin.evaluation.protocols import parse_protocol
    from empir_plugin.evaluation.run import Settings
    from empir_plugin.evaluation.run import evaluate as run_evaluation
    from empir_plugin.evaluation.subject import parse_device, require_weights
    from empir_plugin.zoo.registry import load_model
    from empir_plugin.zoo.show import dataset_of

    settings, plan = Settings(seed=seed, device=parse_device(device)), parse_protocol(protocol)
    dataset = dataset_of(model)
    budget = _budget(threat, plan, model, dataset)
    network = load_model(model, dataset=dataset, threat_model=str(budget.norm), custom_checkpoint=checkpoint or "")
    require_weights(network, model)
    attacks = _chosen(plan.attacks(network, dataset), chosen)
    wanted = n_examples if n_examples is not None or data_dir is not None else _QUICK
    data = load_images(dataset, data_dir=data_dir, n_examples=wanted)
    target = record or Path("runs", f"{model}-{datetime.now():%Y%m%d-%H%M%S}.json")
    with torchrun_team() as team, _EvaluationProgress() as progress:
        result = run_evaluation(
            network,
            data,
            budget,
            attacks,
            protocol=plan,
            name=model,
            settings=settings,
            store=store,
            team=team,
            on_progress=progress.show,
        )
    if team.is_leader:
        result.write(target)
        click.echo(result.to_json(), nl=False) if as_json else _report(result, target)


_QUICK = 100
"""Images of the bundled sample that take about two minutes on two cores."""


def _budget(text: str | None, protocol: Protocol, model: str, dataset: str) -> Threat:
    """The threat asked for, or the one the protocol prescribes, or the one on the model's card."""
    from empir_plugin.attacks.threat import Threat
    from empir_plugin.zoo.show import default_threat

    if text is not None:
        return Threat.parse(text)
    return protocol.threat(dataset) or Threat.parse(default_threat(model))


def _chosen(attacks: tuple[Planned, ...], names: tuple[str, ...]) -> tuple[Planned, ...] | None:
    """The attacks of those names; None, for all of the protocol, where none is named."""
    known = {planned.name: planned for planned in attacks}
    for name in names:
        if name not in known:
            raise _Refusal(f"--attack must be one of {', '.join(map(repr, known))}, got {name!r}")
    return tuple(known[name] for name in names) or None


def _report(result: Record, path: Path) -> None:
    table = _table("attack", "accuracy", "seconds")
    table.add_row("none (clean)", f"{result.clean_accuracy:.2f} %", "")
    for attack in result.attacks:
        table.add_row(attack.name, f"{attack.accuracy:.2f} %", f"{attack.seconds:.1f}")
    table.add_row("[bold]worst case per image", f"[bold]{result.worst_case_accuracy:.2f} %", "")
    console = _console()
    images = f"{result.data['n']:,} images of {result.data['name']} ({result.data['source']})"
    console.print(f"{result.model['name']} under {result.threat}, {images}", style="bold", markup=False)
    console.print(table)
    if result.protocol["name"] not in ("default", "custom"):
        console.print(result.protocol["description"], markup=False)
    for attack in result.attacks:
        for flag in attack.flags:
            console.print(f"{attack.name} warns: {flag}", markup=False)
    console.print(f"Record: {path}", markup=False, soft_wrap=True)


def _console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMERIC else "left", no_wrap=True)
    return table


_NUMERIC = frozenset({"accuracy", "seconds", "clean %", "Mparams", "kB"})


class _Progress:
    """A progress bar on the error stream, so that the output can be piped."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        clock = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._progress = Progress(*columns, *clock, console=_console(stderr=True))
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Any:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, title: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of that title, adding it if it is new."""
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, total=total, note=note)
        self._progress.update(self._tasks[title], completed=done, note=note)


class _EvaluationProgress(_Progress):
    def show(self, attack: str, done: int, total: int) -> None:
        self.update(attack, done, total)


class _TrainingProgress(_Progress):
    def show(self, step: Step) -> None:
        self.update(step.member, step.step, step.steps, f"loss {step.loss:.3f}, accuracy {step.accuracy:.1%}")


if __name__ == "__main__":
    main()
