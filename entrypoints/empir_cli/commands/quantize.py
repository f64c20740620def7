"""``empir quantize``: quantize a trained network, and fine-tune it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from empir_cli.console import ProgressBar, console, table
from empir_cli.group import CommandError
from empir_cli.model_options import (
    DATASET,
    MEAN,
    MODEL_ARGS,
    STD,
    import_from_here,
    parse_channels,
    parse_settings,
)
from empir_cli.names import check_name, complete_models
from empir_cli.options import CHECKPOINT, DATA_DIR, DEVICE, EMA, THREADS, set_threads

if TYPE_CHECKING:
    from empir_plugin.data.image_set import ImageSet
    from empir_plugin.models.convert.report import ConversionReport
    from empir_plugin.training.quantization import QuantizationPlan, QuantizedNetwork
    from empir_plugin.zoo.spec import DefinedModel


@click.command()
@click.argument("model", shell_complete=complete_models)
@click.option("--precision", required=True, help="Bits of weights and inputs, such as w4a4.")
@CHECKPOINT
@EMA
@DATA_DIR
@DATASET
@MODEL_ARGS
@MEAN
@STD
@click.option("--finetune", type=click.IntRange(min=0), default=0, metavar="EPOCHS", help="Epochs of fine-tuning.  [0]")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Peak learning rate of fine-tuning.")
@click.option("--batch-size", type=int, default=128, show_default=True, help="Images per step of fine-tuning.")
@click.option(
    "--ema-decay",
    "decay",
    type=float,
    default=0.0,
    show_default=True,
    help="Decay of the moving average of the weights; 0 keeps none.",
)
@click.option(
    "--augment/--no-augment",
    default=True,
    show_default=True,
    help="Randomly shift and (not MNIST) flip training images.",
)
@click.option(
    "--scale", default="max", show_default=True, help="Scale of quantized weights: max, mean or none (DoReFa)."
)
@click.option(
    "--activations",
    type=click.Choice(["auto", "unsigned", "signed", "pact"]),
    default="auto",
    show_default=True,
    help="Range of the quantized inputs; pact learns it.",
)
@click.option(
    "--layers",
    multiple=True,
    help="inner (all but the first, the last and sensitive layers), all, or names with *; repeatable.  [inner]",
)
@click.option("--allow-unsupported", is_flag=True, help="Leave unsupported layers in full precision.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the order and augmentation of the images."
)
@DEVICE
@click.option("--name", help="Name of the files.  [MODEL-PRECISION]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the files.  [runs/quantize]")
@click.option(
    "--resume/--restart", default=True, show_default=True, help="Resume from a checkpoint in --out, or start over."
)
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of tables.")
def quantize(
    model: str,
    checkpoint: Path | None,
    ema: bool | None,
    data_dir: Path | None,
    dataset: str | None,
    model_args: tuple[str, ...],
    mean: str | None,
    std: str | None,
    device: str,
    out: Path | None,
    resume: bool,
    threads: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Quantize a trained network, and fine-tune it.

    MODEL is an architecture of timm or RobustBench, such as resnet18 (timm's, for ImageNet), ResNet-18 (RobustBench's,
    for CIFAR) or WideResNet-28-10, the id of a model of RobustBench, or package.module:callable, each with
    --checkpoint; or a full-precision model with weights: a name, or the report that empir train wrote. The result is
    evaluated by the path of its report, empir evaluate OUT/NAME.json.

    The first training images calibrate the network: whether a layer's inputs are signed, and the statistics of batch
    normalization. A checkpoint is written after every epoch: an interrupted run resumes from the last one, with the
    same result. Accuracies are measured on the test images.
    """
    check_name(model)
    from empir_plugin.data.image_set import load_images
    from empir_plugin.evaluation.prepare import parse_device
    from empir_plugin.training.quantization import quantize_checkpoint
    from empir_plugin.zoo.find import find_full_precision
    from empir_plugin.zoo.spec import ModelOptions

    set_threads(threads)
    import_from_here()
    channels = parse_channels("--mean", mean), parse_channels("--std", std)
    options = ModelOptions(checkpoint, ema, dataset or "", parse_settings(model_args), *channels)
    source, target = find_full_precision(model, options), parse_device(device)
    plan = _plan(model, source, **settings)
    if data_dir is None:
        raise CommandError(
            "--data-dir is missing: calibration and fine-tuning need training images, and the bundled sample holds "
            "only test images"
        )
    training = load_images(source.dataset, data_dir=data_dir, split="train")
    test = load_images(source.dataset, data_dir=data_dir)
    folder = out or Path("runs", "quantize")
    with ProgressBar() as progress:
        network = quantize_checkpoint(
            plan,
            source.weights,
            training,
            test,
            folder,
            ema=ema,
            device=target,
            resume=resume,
            on_conversion=None if as_json else _print_conversion,
            on_step=progress.show_step,
            on_progress=progress.show,
        )
    if as_json:
        click.echo((folder / f"{plan.member.name}.json").read_text("utf-8"), nl=False)
    else:
        _print_report(network, test)


def _plan(
    model: str,
    source: DefinedModel,
    *,
    precision: str,
    finetune: int,
    augment: bool,
    activations: str,
    layers: tuple[str, ...],
    allow_unsupported: bool,
    name: str | None,
    decay: float,
    **schedule: Any,
) -> QuantizationPlan:
    from empir_plugin._files.names import plain_name
    from empir_plugin.models.activations import Activations
    from empir_plugin.models.convert.select import INNER
    from empir_plugin.models.quantize import Precision
    from empir_plugin.training.networks import Extent
    from empir_plugin.training.quantization import QuantizationPlan
    from empir_plugin.training.schedules import MemberRecipe

    bits = Precision.parse(precision)
    member = MemberRecipe(
        name or plain_name(f"{Path(model).name.removesuffix('.json')}-{precision}".lower()),
        ema=decay,
        epochs=finetune,
        precision=bits,
        activations=Activations.parse(activations),
        flip=augment and source.dataset != "mnist",
        shift=_SHIFT if augment else 0,
        **schedule,
    )
    kinds = {(): INNER, ("inner",): INNER, ("all",): "all"}.get(layers, layers)
    network = source.definition
    how = {"settings": network.settings, "mean": network.mean, "std": network.std}
    return QuantizationPlan(network.architecture, member, Extent(kinds, allow_unsupported), **how)


_SHIFT = 3
"""Largest shift of a training image, in pixels, as in the recipes for CIFAR-10."""


def _print_conversion(conversion: ConversionReport) -> None:
    console().print(str(conversion), markup=False, soft_wrap=True)


def _print_report(network: QuantizedNetwork, test: ImageSet) -> None:
    from empir_plugin.evaluation.intervals import wilson_interval

    accuracies, out, n = network.accuracies, console(), len(test)
    rows = table([f"on {n:,} test images of {test.name}"], ["accuracy", "95 % interval", "points lost"])
    lines = {
        "full precision": accuracies.full_precision,
        "converted": accuracies.converted,
        "fine-tuned": accuracies.fine_tuned,
    }
    for name, share in lines.items():
        if share is not None:
            lost = "" if name == "full precision" else f"{100 * (accuracies.full_precision - share):.2f}"
            low, high = wilson_interval(round(share * n), n)
            rows.add_row(name, f"{100 * share:.2f} %", f"{100 * low:.1f}-{100 * high:.1f}", lost)
    out.print(rows)
    size, full = network.weights.stat().st_size, network.full_precision_bytes
    out.print(f"{size:,} bytes, {size / full:.1%} of the {full:,} bytes in full precision", markup=False)
    out.print(f"{network.weights}  sha256 {network.sha256}", markup=False, soft_wrap=True)
