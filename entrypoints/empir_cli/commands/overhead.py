"""``empir overhead``: a model's costs, relative to one full-precision network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from empir_cli.console import console, table
from empir_cli.model_options import ModelArguments, model_arguments
from empir_cli.options import DEVICE, MOST_THREADS

if TYPE_CHECKING:
    from empir_plugin.evaluation.overhead.latency import Latency
    from empir_plugin.evaluation.overhead.report import MemberOverhead, Overhead


@click.command()
@model_arguments
@click.option("--out", "target", type=click.Path(path_type=Path), help="Also write all numbers to this file (JSON).")
@click.option("--json", "as_json", is_flag=True, help="Print all numbers as JSON instead of tables.")
@click.option("--layers", is_flag=True, help="Show every layer and its quantization error.")
@click.option(
    "--latency/--no-latency", default=True, show_default=True, help="Measure forward passes; use an idle machine."
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=int,
    multiple=True,
    default=(1, 32, 256),
    show_default=True,
    help="Images per timed forward pass (repeatable).",
)
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="CPU threads for the timed passes.")
@click.option("--repeats", type=int, default=20, show_default=True, help="Number of timed rounds.")
@click.option(
    "--seconds",
    type=float,
    default=10.0,
    show_default=True,
    help="Time for each batch size; slow networks get fewer rounds, or none.",
)
@click.option("--image-shape", help="Shape of an input image, such as 3x32x32.  [the data set's]")
@DEVICE
def overhead(
    source: ModelArguments,
    target: Path | None,
    as_json: bool,
    layers: bool,
    latency: bool,
    batch_sizes: tuple[int, ...],
    threads: int | None,
    repeats: int,
    seconds: float,
    image_shape: str | None,
    device: str,
) -> None:
    """Compare MODEL's costs with one full-precision network: parameters, operations, bytes, Equation 6, time.

    The ratio counts layers that stay in full precision as they are. The ideal ratio assumes that every layer is
    quantized, as EMPIR's Equation 6 does. The measured ratios are those on this processor, in float32 and on int8
    kernels, which evaluations use by default.
    """
    from empir_plugin._files.atomic import check_output_file
    from empir_plugin.evaluation.overhead.latency import LatencySettings
    from empir_plugin.evaluation.overhead.report import image_shape_of, parse_image_shape
    from empir_plugin.evaluation.overhead.report import overhead as compute_overhead
    from empir_plugin.evaluation.prepare import parse_device
    from empir_plugin.leaderboard.evidence import OVERHEAD

    if target is not None:
        check_output_file("--out", target)
    how = LatencySettings(batch_sizes, repeats, threads, parse_device(device), seconds)
    costly = source.find()
    network = costly.load()
    shape = parse_image_shape(image_shape) if image_shape else image_shape_of(costly.dataset)
    trained = getattr(network, "weights_loaded", True)
    report = compute_overhead(network, shape, latency=how if latency else None, errors=layers and trained)
    if target is not None:
        OVERHEAD.write(target, report.to_dict())
    if as_json:
        click.echo(OVERHEAD.text(report.to_dict()), nl=False)
        return
    _print_report(costly.name, report)
    if layers:
        _print_layers(report)


def _print_report(model: str, report: Overhead) -> None:
    out = console()
    out.print(f"{model} compared with {report.baseline}", style="bold", markup=False)
    out.print(_cost_table(report))
    out.print(_member_table(report.members))
    out.print("Equation 6, time", style="bold")
    out.print(_equation_table(report))
    out.print(f"{report.eq6.k_rule}: {report.eq6.k_rule_text}. Throughputs:", markup=False)
    for platform, source in {
        answer.platform: answer.source for answer in (report.eq6, *report.eq6_alternatives)
    }.items():
        out.print(f"{platform}: {source}", markup=False, soft_wrap=True)
    if report.measured_by_batch_size:
        out.print("Equation 6 and measured time, relative to full precision", style="bold")
        out.print(_ratio_table(report))
        for text in _ratio_notes(report):
            out.print(text, markup=False)
    if report.measured is not None:
        out.print(f"Measured time at batch size {report.measured.batch_size}", style="bold")
        out.print(_time_table(report.measured))
        for text in _measurement_notes(report.measured):
            out.print(text, markup=False)


def _cost_table(report: Overhead) -> Any:
    rows = table(["cost"], ["model", "full precision", "ratio", "ideal ratio"])
    eq6, bits = report.eq6, report.bops_ratio
    macs, whole = f"{report.macs / 1e6:,.3f}", f"{report.baseline_macs / 1e6:,.3f}"
    rows.add_row("MMACs per image", macs, whole, f"{report.macs / report.baseline_macs:.3f}", "")
    counts = report.parameters, report.baseline_parameters
    rows.add_row("parameters", *(f"{number:,}" for number in counts), f"{counts[0] / counts[1]:.3f}", "")
    sizes = report.storage_bytes_packed, report.baseline_storage_bytes
    rows.add_row("weight file, bytes", *(f"{number:,}" for number in sizes), f"{report.storage_ratio:.3f}", "")
    rows.add_row("storage, Equation 6", "", "", f"{eq6.storage.as_built:.3f}", f"{eq6.storage.ideal:.3f}")
    rows.add_row("time, Equation 6", "", "", f"{eq6.time.as_built:.3f}", f"{eq6.time.ideal:.3f}")
    rows.add_row("bit operations", "", "", f"{bits.as_built:.3f}", f"{bits.ideal:.3f}")
    rows.add_row("  with sums", "", "", f"{report.bops_with_sums_ratio:.3f}", "")
    if report.measured is not None:
        times = report.measured.model.median, report.measured.baseline.median
        shown = [f"{time:,.2f}" for time in times]
        rows.add_row("measured, ms", *shown, f"{report.measured.ratio.median:.3f}", "")
    return rows


def _member_table(members: tuple[MemberOverhead, ...]) -> Any:
    rows = table(["member", "precision"], ["Mparams", "MMACs", "MACs quantized", "weights quantized"])
    for index, member in enumerate(members):
        sizes = f"{member.parameters / 1e6:,.3f}", f"{member.macs / 1e6:,.3f}"
        shares = f"{member.macs_quantized_share:.2%}", f"{member.weights_quantized_share:.2%}"
        rows.add_row(str(index), member.precision, *sizes, *shares)
    return rows


def _equation_table(report: Overhead) -> Any:
    rows = table(["throughput", "full precision", "k"], ["ratio", "ideal ratio"])
    for answer in (report.eq6, *report.eq6_alternatives):
        ratios = f"{answer.time.as_built:.3f}", f"{answer.time.ideal:.3f}"
        rows.add_row(answer.platform, answer.fp_baseline, answer.k_rule, *ratios)
    return rows


def _ratio_table(report: Overhead) -> Any:
    rows = table(["batch size"], ["Equation 6", "ideal", "float32", "int8", "fp, ms", "rounds"])
    counted = f"{report.eq6.time.as_built:.3f}", f"{report.eq6.time.ideal:.3f}"
    for size, found in report.measured_by_batch_size.items():
        if isinstance(found, str):
            rows.add_row(str(size), *counted, "n/a", "n/a")
            continue
        ratios = [row.ratio for row in found.backends if row.network == "model" and row.backend.startswith("int8")]
        int8 = next((f"{ratio.median:.3f}" for ratio in ratios if ratio is not None), "n/a")
        shown = f"{found.ratio.median:.3f}", int8, f"{found.baseline.median:,.2f}", str(found.repeats)
        rows.add_row(str(size), *counted, *shown)
    return rows


def _ratio_notes(report: Overhead) -> Iterator[str]:
    if report.measured is not None:
        yield f"Processor, and the instructions its kernels run: {report.measured.processor}."
    for size, found in report.measured_by_batch_size.items():
        if isinstance(found, str):
            yield f"Batch size {size} is left out: {found}. See --seconds."


def _time_table(latency: Latency) -> Any:
    rows = table(["time of a forward pass"], ["ms", "ratio", "p10", "p90"])
    for row in sorted(latency.backends, key=lambda row: row.network):
        name = f"{'full precision' if row.network == 'baseline' else row.network}: {row.backend}"
        if row.milliseconds is None or row.ratio is None:
            rows.add_row(name, "n/a")
            continue
        ratio = row.ratio.median, row.ratio.p10, row.ratio.p90
        rows.add_row(name, f"{row.milliseconds.median:,.2f}", *(f"{number:.3f}" for number in ratio))
    return rows


def _measurement_notes(latency: Latency) -> Iterator[str]:
    rounds = f"{latency.repeats} round{'' if latency.repeats == 1 else 's'}"
    where = f"{latency.device}, threads: {latency.threads}, batch {latency.batch_size}, {rounds}"
    layout = latency.baseline_layout
    yield f"Measured in turn on {where}. Ratios: to full precision in its faster layout, {layout}, in the same round."
    for row in latency.backends:
        if row.unavailable:
            yield f"{row.backend} is not available: {row.unavailable}."


def _print_layers(report: Overhead) -> None:
    rows = table(["layer", "precision"], ["weights", "kMACs", "error L2", "Linf", "matrix L2"])
    many = len(report.members) > 1
    for index, member in enumerate(report.members):
        for layer in member.layers:
            name = f"{index}.{layer.name}" if many else layer.name
            error = member.errors.get(layer.name)
            norms = (error.spectral, error.infinity, error.flattened) if error else ()
            shown = [f"{norm:.3f}" for norm in norms] or [""] * 3
            rows.add_row(name, str(layer.precision), f"{layer.weights:,}", f"{layer.macs / 1e3:,.1f}", *shown)
    out = console()
    out.print(rows)
    if not any(member.errors for member in report.members):
        out.print("No latent weights, so no quantization error: packed files hold only the quantized weights.")
