"""``empir evaluate``: a model's accuracy under attack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from empir_cli.console import ProgressBar, console, table
from empir_cli.drawings import EPS_CURVE, PICTURES, adversarial_images, draw_pictures, report_curve
from empir_cli.group import CommandError
from empir_cli.model_options import ModelArguments, model_arguments
from empir_cli.names import complete_attacks, complete_protocols
from empir_cli.options import DATA_DIR, DEVICE, SEED, THREADS, set_threads

if TYPE_CHECKING:
    from empir_plugin.data.corruptions import CorruptedImages
    from empir_plugin.evaluation.record import Record


@click.command()
@model_arguments
@click.option(
    "--protocol",
    default="default",
    show_default=True,
    shell_complete=complete_protocols,
    help="default, standard, adaptive, paper or released.",
)
@click.option(
    "--attack",
    "chosen",
    multiple=True,
    shell_complete=complete_attacks,
    help="Run only this attack (repeatable): one of the protocol, or pgd, fgsm, autoattack, square, ...  [all of the "
    "protocol's]",
)
@click.option(
    "--threat", help="Norm and radius, such as Linf:8/255, or corruptions.  [the protocol's, or the model card's]"
)
@click.option(
    "--make-corruptions", is_flag=True, help="With --threat corruptions: make them from the clean images; see below."
)
@click.option("--n-examples", type=int, help="Number of test images, counted from the first.  [100; all of --data-dir]")
@DATA_DIR
@DEVICE
@SEED
@click.option(
    "--shard-size",
    type=int,
    help="Images per shard: the most an interrupted run has to repeat, and what AutoAttack attacks at once.  "
    "[50 on a CPU, 500 on a GPU]",
)
@click.option(
    "--store", type=click.Path(path_type=Path), help="Folder for finished shards; an interrupted run resumes there."
)
@click.option(
    "--cascade",
    is_flag=True,
    help="Attack only images that survived earlier attacks (same worst case, faster).",
)
@click.option("--no-int8", is_flag=True, help="Do not use int8 kernels; see above.")
@click.option(
    "--gradients",
    type=click.Choice(["float32", "bf16"]),
    default="float32",
    show_default=True,
    help="Operands of the backward passes of quantized layers; bf16 is faster, and makes no leaderboard entry.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Write the adversarial images to this file (safetensors); needs --store.",
)
@EPS_CURVE
@PICTURES
@THREADS
@click.option(
    "--out", "record", type=click.Path(path_type=Path), help="Write the run record here.  [runs/MODEL-TIME.json]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the run record instead of the table.")
def evaluate(
    source: ModelArguments,
    protocol: str,
    chosen: tuple[str, ...],
    threat: str | None,
    make_corruptions: bool,
    n_examples: int | None,
    data_dir: Path | None,
    device: str,
    seed: int,
    shard_size: int | None,
    store: Path | None,
    cascade: bool,
    no_int8: bool,
    gradients: str,
    images: Path | None,
    eps_curve: str | None,
    pictures: int | None,
    threads: int | None,
    record: Path | None,
    as_json: bool,
) -> None:
    """Report MODEL's accuracy under attack: FGSM, PGD and AutoAttack, or another protocol's attacks.

    MODEL is a name (empir list), package.module:callable, an architecture such as ResNet-18 with --checkpoint, what
    empir train or empir quantize wrote (its report, or the folder), or a model of RobustBench.

    Without --data-dir, the first images of the bundled sample of the test set are used; no download is needed. Under
    torchrun, the images are divided among the processes.

    Quantized layers run on int8 kernels wherever no gradient is needed: clean images, Square, noise, transfer, and the
    verdict on every adversarial image. The logits are those of float32 bit for bit; each kernel is tested on the
    model's own weights first, and where one is missing or inexact, float32 is used, and the record gives the reason.
    --no-int8 turns the kernels off.

    With --eps-curve, every attack runs at each radius, and an image it has broken is not attacked again at a larger
    one. The record holds the records of all radii. With matplotlib (the extra `plots`), robust accuracy over eps and a
    histogram of the smallest eps that breaks an image are written beside it, as SVG and PNG. The radius of --threat is
    not used, and there is no --store.

    With --threat corruptions, no attack is run: the images are those of CIFAR-10-C (or CIFAR-100-C), which must be in
    --data-dir beside the clean ones, and the result is RobustBench's mean over 15 corruptions at 5 severities. With
    --make-corruptions they are made from the clean images; their numbers cannot be compared with the leaderboard's.
    """
    from empir_plugin._files.atomic import check_output_file
    from empir_plugin._files.names import plain_name
    from empir_plugin.attacks.threat import Threat
    from empir_plugin.data.image_set import load_images
    from empir_plugin.evaluation.corruptions import evaluate_corruptions
    from empir_plugin.evaluation.curve import evaluate_curve, parse_radii
    from empir_plugin.evaluation.distributed import torchrun_team
    from empir_plugin.evaluation.evaluator import Settings
    from empir_plugin.evaluation.named_attacks import attack_specs
    from empir_plugin.evaluation.prepare import parse_device, require_weights
    from empir_plugin.evaluation.protocols import parse_protocol
    from empir_plugin.evaluation.run import evaluate as run_evaluation
    from empir_plugin.zoo.find import threat_of

    set_threads(threads)
    settings = Settings(
        seed=seed,
        shard_size=shard_size,
        device=parse_device(device),
        cascade=cascade,
        int8=not no_int8,
        gradients=gradients,
    )
    plan, evaluated = parse_protocol(protocol), source.find()
    target = record or Path("runs", f"{plain_name(evaluated.name)}-{datetime.now():%Y%m%d-%H%M%S}.json")
    check_output_file("--out", target)
    if images is not None:
        check_output_file("--images", images)
    dataset = evaluated.dataset
    wanted = n_examples if n_examples is not None or data_dir is not None else _QUICK
    run: Callable[..., Record]
    given = {"--images": images is not None, "--pictures": pictures is not None, "--store": store is not None}
    if eps_curve is not None:
        _refuse("--eps-curve has results of its own", {**given, "--cascade": cascade, "--json": as_json})
    if threat is not None and threat.lower() == "corruptions":
        unused = {"--protocol": protocol != "default", "--attack": bool(chosen), **given, "--cascade": cascade}
        unused = {**unused, "--eps-curve": eps_curve is not None}
        _refuse("--threat corruptions runs no attack", {**unused, "--store": False})
        corrupted = _load_corruptions(dataset, data_dir, wanted, make_corruptions, seed)
        data = corrupted.clean
        network = evaluated.load("corruptions")
        require_weights(network, evaluated.name)
        run = partial(evaluate_corruptions, network, corrupted)
    else:
        if make_corruptions:
            raise CommandError("--make-corruptions is for --threat corruptions: pass that, too")
        budget = Threat.parse(threat) if threat is not None else plan.threat(dataset) or threat_of(evaluated)
        data = load_images(dataset, data_dir=data_dir, n_examples=wanted)
        network = evaluated.load(str(budget.norm))
        require_weights(network, evaluated.name)
        attacks = attack_specs(chosen, network, plan, dataset) or None
        if eps_curve is not None:
            about: dict[str, Any] = {"name": evaluated.name, "settings": settings, "protocol": plan}
            with ProgressBar() as progress:
                about["on_progress"] = progress.show
                curve = evaluate_curve(network, data, budget.norm, parse_radii(eps_curve), attacks, **about)
            report_curve(curve, target)
            return
        run = partial(run_evaluation, network, data, budget, attacks, protocol=plan)
    with adversarial_images(pictures is not None, store, images) as (folder, file):
        with torchrun_team() as team, ProgressBar() as progress:
            shared: dict[str, Any] = {"name": evaluated.name, "settings": settings, "store": folder}
            files: dict[str, Any] = {} if file is None else {"images": file}
            result = run(**shared, **files, team=team, on_progress=progress.show)
        if team.is_leader:
            result.write(target)
            click.echo(result.to_json(), nl=False) if as_json else _print_report(result, target)
            draw_pictures(network, data, result, file, pictures or 0, target)


def _refuse(reason: str, given: Mapping[str, bool]) -> None:
    if names := [name for name, is_given in given.items() if is_given]:
        raise CommandError(f"{reason}, got {', '.join(names)}: leave that out")


def _load_corruptions(
    dataset: str, data_dir: Path | None, n_examples: int | None, make: bool, seed: int
) -> CorruptedImages:
    """The corrupted images, made or read."""
    from empir_plugin.data.corruptions import MadeCorruptions, PublishedCorruptions
    from empir_plugin.data.image_set import load_images

    if make:
        return MadeCorruptions(load_images(dataset, data_dir=data_dir, n_examples=n_examples), seed)
    if data_dir is None:
        raise CommandError(
            "corrupted images are not bundled: pass --data-dir with CIFAR-10-C (https://zenodo.org/records/2535967) "
            "beside the clean images, or --make-corruptions"
        )
    return PublishedCorruptions(load_images(dataset, data_dir=data_dir, n_examples=n_examples), data_dir)


_QUICK = 100
"""Number of images by default: about two minutes on two cores."""


def _print_report(result: Record, path: Path) -> None:
    out = console()
    if result.threat == "corruptions":
        _print_corruptions(result, path)
        return
    images = f"{result.data['n']:,} images of {result.data['name']} ({result.data['source']})"
    out.print(f"{result.model['name']} under {result.threat}, {images}", style="bold", markup=False)
    out.print(_accuracy_table(result))
    if result.protocol["name"] not in ("default", "custom"):
        out.print(result.protocol["description"], markup=False)
    if result.run["cascade"]:
        out.print("Each attack was run only on images that the attacks above did not break.", markup=False)
    for flag in result.flags:
        out.print(f"Warning: {flag}", markup=False)
    for attack in result.attacks:
        for flag in attack.flags:
            out.print(f"{attack.name} warns: {flag}", markup=False)
    out.print(f"Record: {path}", markup=False, soft_wrap=True)


def _print_corruptions(result: Record, path: Path) -> None:
    """The mean accuracy under each corruption; the mean over all of them is the number to quote."""
    from empir_plugin.evaluation.corruptions import mean_accuracies

    out, corruptions = console(), result.data["corruptions"]
    images = f"{result.data['n']:,} images of {corruptions['name']} ({corruptions['source']})"
    out.print(f"{result.model['name']} under corruptions, {images}", style="bold", markup=False)
    rows = table(["corruption"], ["accuracy"])
    rows.add_row("none (clean)", f"{result.clean_accuracy:.2f} %")
    for name, accuracy in mean_accuracies(result).items():
        rows.add_row(name, f"{accuracy:.2f} %")
    rows.add_row("[bold]mean over corruptions and severities", f"[bold]{result.headline_accuracy:.2f} %")
    out.print(rows)
    if corruptions["source"] != "official":
        out.print("These are not the published images: the numbers make no leaderboard entry.", markup=False)
    out.print(f"Record: {path}", markup=False, soft_wrap=True)


def _accuracy_table(result: Record) -> Any:
    """One row for each attack; the number to quote is bold."""
    from empir_plugin.evaluation.intervals import interval_text

    rows = table(["attack"], ["accuracy", "95 % interval", "seconds"])
    rows.add_row("none (clean)", f"{result.clean_accuracy:.2f} %", interval_text(result.clean), "")
    for attack in result.attacks:
        interval = interval_text(attack.robust)
        rows.add_row(attack.name, f"{attack.accuracy:.2f} %", interval, f"{attack.seconds:.1f}")
    averaged = result.protocol.get("headline") == "AVERAGE"
    if averaged:
        rows.add_row("[bold]average of the attacks", f"[bold]{result.headline_accuracy:.2f} %", "", "")
    style = "" if averaged else "[bold]"
    interval = interval_text(result.worst_case)
    rows.add_row(f"{style}worst case per image", f"{style}{result.worst_case_accuracy:.2f} %", interval, "")
    return rows
