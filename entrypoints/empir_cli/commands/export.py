"""``empir export``: write a model to a file for other runtimes and for hardware."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from empir_cli.console import console
from empir_cli.model_options import ModelArguments, model_arguments
from empir_cli.options import DATA_DIR, THREADS, set_threads

if TYPE_CHECKING:
    from empir_plugin.export.export import ExportReport


@click.command()
@model_arguments
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "qonnx"], case_sensitive=False),
    default="onnx",
    show_default=True,
    help="onnx: standard operators, for onnxruntime; qonnx: Quant nodes, for FINN and hls4ml.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
@DATA_DIR
@click.option(
    "--images",
    "n_images",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Images on which the file is compared with the model.",
)
@THREADS
def export(
    source: ModelArguments,
    form: str,
    out: Path,
    data_dir: Path | None,
    n_images: int,
    threads: int | None,
) -> None:
    """Write MODEL, a network or a whole ensemble, to a file, and compare the file's decisions with the model's.

    Weights are stored as integers. The file runs in onnxruntime or the qonnx executor before it is written, and is
    refused if it computes something else. A part that cannot be exported is named. Needs the extra "export":
    pip install 'empir-plugin[export]'.
    """
    from empir_plugin._files.atomic import check_output_file
    from empir_plugin.data.image_set import load_images
    from empir_plugin.evaluation.prepare import require_weights
    from empir_plugin.export.export import export_model

    set_threads(threads)
    check_output_file("--out", out)
    model = source.find()
    images = load_images(model.dataset, data_dir=data_dir, n_examples=n_images)
    network = model.load()
    require_weights(network, model.name)
    _print(export_model(network, out, images.as_float(), format=form))


def _print(report: ExportReport) -> None:
    found, out = report.agreement, console()
    version = f"{report.format.value}, operators of version {report.opset}"
    out.print(f"{report.path}: {report.bytes:,} bytes ({version})", markup=False, soft_wrap=True)
    same = found.images - found.differing_decisions
    gaps = f"logits differ by {found.median_logit_difference:.2g} (median) to {found.max_logit_difference:.2g}"
    out.print(
        f"same decisions as the model on {same:,} of {found.images:,} images; {gaps}", markup=False, soft_wrap=True
    )
