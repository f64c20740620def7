"""``empir evaluate``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from empir_cli.console import Progress, console, table
from empir_cli.group import Refusal
from empir_cli.options import DATA_DIR, DEVICE, THREADS, set_threads
from empir_cli.subject import MEMBER, RULE, TRAINED, parse_subject

if TYPE_CHECKING:
    from empir_plugin.evaluation.attack_spec import AttackSpec
    from empir_plugin.evaluation.record import Record


@click.command()
@click.argument("model")
@click.option(
    "--protocol", default="default", show_default=True, help="default, standard, adaptive, paper or released."
)
@click.option("--attack", "chosen", multiple=True, help="Run only this attack of the protocol (repeatable).")
@click.option("--threat", help="Norm and radius, such as Linf:8/255.  [the protocol's, or the model card's]")
@click.option("--n-examples", type=int, help="How many test images, from the first.  [100; all of --data-dir]")
@DATA_DIR
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights instead of the model's own (safetensors).")
@TRAINED
@RULE
@MEMBER
@DEVICE
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random in the attacks.")
@click.option(
    "--shard-size",
    type=int,
    default=500,
    show_default=True,
    help="Images that are one piece of work: what a killed run loses, and what AutoAttack is given at once.",
)
@click.option(
    "--store", type=click.Path(path_type=Path), help="Folder for finished shards: a killed run goes on there."
)
@click.option(
    "--cascade",
    is_flag=True,
    help="Spare images that fell under one attack the next ones: the same worst case, sooner.",
)
@click.option(
    "--int8", is_flag=True, help="Let int8 kernels answer clean images, Square, noise and transfer; see above."
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="File for the adversarial images (safetensors); needs --store."
)
@THREADS
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
    trained: Path | None,
    rule: str | None,
    member: str | None,
    device: str,
    seed: int,
    shard_size: int,
    store: Path | None,
    cascade: bool,
    int8: bool,
    images: Path | None,
    threads: int | None,
    record: Path | None,
    as_json: bool,
) -> None:
    """Attack MODEL and print what is left: FGSM, PGD and AutoAttack, or another protocol's attacks.

    Without --data-dir it runs on the first images of the bundled sample of the test set, offline. Under torchrun, the
    processes share the images.

    With --int8, a copy of MODEL on integer kernels answers whatever asks for no gradient; what attacks return is judged
    by MODEL itself. It is off by default because a record should not depend on the instructions a processor has. Where
    it has none, or decisions differ, float32 is used, and record and table say why.
    """
    from empir_plugin._files.atomic import check_output_file
    from empir_plugin.attacks.threat import Threat
    from empir_plugin.data.image_set import load_images
    from empir_plugin.evaluation.distributed import torchrun_team
    from empir_plugin.evaluation.evaluator import Settings
    from empir_plugin.evaluation.prepare import parse_device
    from empir_plugin.evaluation.protocols import parse_protocol
    from empir_plugin.evaluation.run import evaluate as run_evaluation

    set_threads(threads)
    settings = Settings(seed=seed, shard_size=shard_size, device=parse_device(device), cascade=cascade, int8=int8)
    plan, subject = parse_protocol(protocol), parse_subject(model, checkpoint, trained, rule, member)
    target = record or Path("runs", f"{subject.name}-{datetime.now():%Y%m%d-%H%M%S}.json")
    check_output_file("--record", target)
    if images is not None:
        check_output_file("--images", images)
    dataset = subject.dataset
    budget = Threat.parse(threat) if threat is not None else plan.threat(dataset) or subject.threat()
    wanted = n_examples if n_examples is not None or data_dir is not None else _QUICK
    data = load_images(dataset, data_dir=data_dir, n_examples=wanted)
    network = subject.load(str(budget.norm), data)
    attacks = _chosen(plan.attacks(network, dataset), chosen)
    with torchrun_team() as team, _EvaluationProgress() as progress:
        result = run_evaluation(
            network,
            data,
            budget,
            attacks,
            protocol=plan,
            name=subject.name,
            settings=settings,
            store=store,
            images=images,
            team=team,
            on_progress=progress.show,
        )
    if team.is_leader:
        result.write(target)
        click.echo(result.to_json(), nl=False) if as_json else _report(result, target, int8)


_QUICK = 100
"""Images of the bundled sample that take about two minutes on two cores."""


def _chosen(attacks: tuple[AttackSpec, ...], names: tuple[str, ...]) -> tuple[AttackSpec, ...] | None:
    """The attacks of those names; None, for all of the protocol, where none is named."""
    known = {spec.name: spec for spec in attacks}
    for name in names:
        if name not in known:
            raise Refusal(f"--attack must be one of {', '.join(map(repr, known))}, got {name!r}")
    return tuple(known[name] for name in names) or None


def _report(result: Record, path: Path, int8: bool) -> None:
    out = console()
    images = f"{result.data['n']:,} images of {result.data['name']} ({result.data['source']})"
    out.print(f"{result.model['name']} under {result.threat}, {images}", style="bold", markup=False)
    out.print(_attacks(result))
    if result.protocol["name"] not in ("default", "custom"):
        out.print(result.protocol["description"], markup=False)
    if result.run["cascade"]:
        out.print("Each attack was given only what the ones above it left.", markup=False)
    if int8:
        out.print(_answered(result.run["backend"]), markup=False)
    for attack in result.attacks:
        for flag in attack.flags:
            out.print(f"{attack.name} warns: {flag}", markup=False)
    out.print(f"Record: {path}", markup=False, soft_wrap=True)


def _attacks(result: Record) -> Any:
    """One row for each attack, and the number to quote in bold."""
    rows = table(["attack"], ["accuracy", "seconds"])
    rows.add_row("none (clean)", f"{result.clean_accuracy:.2f} %", "")
    for attack in result.attacks:
        rows.add_row(attack.name, f"{attack.accuracy:.2f} %", f"{attack.seconds:.1f}")
    averaged = result.protocol.get("headline") == "AVERAGE"
    if averaged:
        rows.add_row("[bold]average of the attacks", f"[bold]{result.headline_accuracy:.2f} %", "")
    style = "" if averaged else "[bold]"
    rows.add_row(f"{style}worst case per image", f"{style}{result.worst_case_accuracy:.2f} %", "")
    return rows


def _answered(backend: dict[str, str]) -> str:
    if backend["reason"]:
        return f"--int8 had no effect, all is {backend['queries']}: {backend['reason']}."
    judged = f"what attacks returned was judged in {backend['verdicts']}"
    return f"Clean images and queries were answered by {backend['queries']}; {judged}."


class _EvaluationProgress(Progress):
    def show(self, attack: str, done: int, total: int) -> None:
        self.update(attack, done, total)
