"""``empir quantize``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from empir_cli.console import Progress, console, table
from empir_cli.group import Refusal
from empir_cli.options import DATA_DIR, DEVICE, THREADS, set_threads

if TYPE_CHECKING:
    from empir_plugin.models.convert.report import ConversionReport
    from empir_plugin.training.loop import Step
    from empir_plugin.training.quantization import QuantizationPlan, QuantizedNetwork


@click.command()
@click.argument("architecture", metavar="ARCH")
@click.option("--precision", required=True, help="Bits of weights and inputs, such as w4a4.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    required=True,
    help="Full-precision weights: safetensors, packed or plain, or a state dict of torch (.pt).",
)
@DATA_DIR
@click.option("--dataset", default="cifar10", show_default=True, help="mnist, cifar10 or cifar100.")
@click.option(
    "--finetune", type=click.IntRange(min=0), default=0, metavar="EPOCHS", help="Train so long, quantized.  [0]"
)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Highest of the fine-tuning.")
@click.option("--batch-size", type=int, default=128, show_default=True, help="Images per step of the fine-tuning.")
@click.option("--ema", type=float, default=0.0, show_default=True, help="Decay of an average of the weights, to keep.")
@click.option("--augment/--no-augment", default=True, show_default=True, help="Shift and, but for MNIST, mirror them.")
@click.option("--scale", default="max", show_default=True, help="Of quantized weights: max, mean or none (DoReFa's).")
@click.option(
    "--activations",
    type=click.Choice(["auto", "unsigned", "signed", "pact"]),
    default="auto",
    show_default=True,
    help="Range of the inputs; pact learns it.",
)
@click.option(
    "--layers",
    multiple=True,
    help="inner (all but the first, the last and delicate ones), all, or names with *; may be repeated.  [inner]",
)
@click.option("--allow-unsupported", is_flag=True, help="Leave layers that cannot be quantized in full precision.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order and augmentation of the images.")
@DEVICE
@click.option("--name", help="Of the files.  [ARCH-PRECISION]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the files.  [runs/quantize]")
@click.option("--resume/--restart", default=True, show_default=True, help="Go on from a checkpoint in --out.")
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print the report file instead of the tables.")
def quantize(
    architecture: str,
    checkpoint: Path,
    data_dir: Path | None,
    dataset: str,
    device: str,
    out: Path | None,
    resume: bool,
    threads: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Quantize a trained network of timm or RobustBench, such as resnet18 or WideResNet-28-10, and fine-tune it.

    The first training images calibrate it: whether a layer's input has a sign, and the statistics of batch
    normalisations. Every epoch of the fine-tuning ends in a checkpoint: a run that was killed goes on where it stopped,
    with the same result. Accuracies are those on the test images.
    """
    from empir_plugin.data.image_set import load_images
    from empir_plugin.evaluation.prepare import parse_device
    from empir_plugin.training.quantization import quantize_checkpoint

    set_threads(threads)
    plan, target = _plan(architecture, dataset, **settings), parse_device(device)
    if data_dir is None:
        raise Refusal(
            "--data-dir is missing: a network is calibrated and fine-tuned on training images, and the bundled sample "
            "holds test images, for evaluation only"
        )
    training = load_images(dataset, data_dir=data_dir, split="train")
    test = load_images(dataset, data_dir=data_dir)
    folder = out or Path("runs", "quantize")
    with _Shown() as progress:
        made = quantize_checkpoint(
            plan,
            checkpoint,
            training,
            test,
            folder,
            device=target,
            resume=resume,
            on_conversion=None if as_json else _report_conversion,
            on_step=progress.show,
        )
    if as_json:
        click.echo((folder / f"{plan.member.name}.json").read_text("utf-8"), nl=False)
    else:
        _report(made, f"{len(test):,} test images of {test.name}")


def _plan(
    architecture: str,
    dataset: str,
    *,
    precision: str,
    finetune: int,
    augment: bool,
    activations: str,
    layers: tuple[str, ...],
    allow_unsupported: bool,
    name: str | None,
    **schedule: Any,
) -> QuantizationPlan:
    from empir_plugin.models.activations import Activations
    from empir_plugin.models.precision import Precision
    from empir_plugin.training.networks import Extent
    from empir_plugin.training.quantization import QuantizationPlan
    from empir_plugin.training.schedules import MemberRecipe

    bits = Precision.parse(precision)
    member = MemberRecipe(
        name or re.sub(r"[^\w.-]+", "-", f"{architecture}-{precision}".lower()),
        epochs=finetune,
        precision=bits,
        activations=Activations.parse(activations),
        flip=augment and dataset != "mnist",
        shift=_SHIFT if augment else 0,
        **schedule,
    )
    kinds: tuple[str, ...] | str = layers[0] if layers in (("inner",), ("all",)) else layers or "inner"
    return QuantizationPlan(architecture, member, Extent(kinds, allow_unsupported))


_SHIFT = 3
"""Pixels that training images are moved by at most, as in the recipes for CIFAR-10."""


def _report_conversion(conversion: ConversionReport) -> None:
    console().print(str(conversion), markup=False, soft_wrap=True)


def _report(made: QuantizedNetwork, images: str) -> None:
    reached, out = made.accuracies, console()
    rows = table([f"on {images}"], ["accuracy", "points lost"])
    lines = {
        "full precision": reached.full_precision,
        "converted": reached.converted,
        "fine-tuned": reached.fine_tuned,
    }
    for name, share in lines.items():
        if share is not None:
            lost = "" if name == "full precision" else f"{100 * (reached.full_precision - share):.2f}"
            rows.add_row(name, f"{100 * share:.2f} %", lost)
    out.print(rows)
    size, full = made.weights.stat().st_size, made.full_precision_bytes
    out.print(f"{size:,} bytes, {size / full:.1%} of the {full:,} in full precision", markup=False)
    out.print(f"{made.weights}  sha256 {made.sha256}", markup=False, soft_wrap=True)


class _Shown(Progress):
    def show(self, step: Step) -> None:
        self.update(step.member, step.step, step.steps, f"loss {step.loss:.3f}, accuracy {step.accuracy:.1%}")
