"""``empir overhead``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from empir_cli.console import console, table
from empir_cli.options import DEVICE

if TYPE_CHECKING:
    from empir_plugin.evaluation.overhead.latency import Latency
    from empir_plugin.evaluation.overhead.report import MemberOverhead, Overhead


@click.command()
@click.argument("model")
@click.option("--json", "target", type=click.Path(path_type=Path), help="File for all numbers, as JSON.")
@click.option("--layers", is_flag=True, help="Show every layer, and how far its quantization error reaches.")
@click.option("--latency/--no-latency", default=True, show_default=True, help="Measure times; use an idle machine.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="Images per timed forward pass.")
@click.option("--threads", type=int, help="CPU threads of the timed passes.")
@click.option("--repeats", type=int, default=20, show_default=True, help="Timed rounds.")
@click.option("--image-shape", help="Of the model's images, such as 3x32x32.  [its data set's]")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights instead of the model's own (safetensors).")
@DEVICE
def overhead(
    model: str,
    target: Path | None,
    layers: bool,
    latency: bool,
    batch_size: int,
    threads: int | None,
    repeats: int,
    image_shape: str | None,
    checkpoint: Path | None,
    device: str,
) -> None:
    """Show what MODEL costs beside one full-precision network: parameters, operations, bytes, Equation 6, time.

    A ratio counts the layers that stay in full precision as such; the ideal ratio supposes that there are none, as
    EMPIR's Equation 6 does.
    """
    from empir_plugin._files.atomic import check_output_file
    from empir_plugin.evaluation.overhead.latency import LatencySettings
    from empir_plugin.evaluation.overhead.report import image_shape_of, parse_image_shape
    from empir_plugin.evaluation.overhead.report import overhead as find_overhead
    from empir_plugin.evaluation.prepare import parse_device
    from empir_plugin.leaderboard.evidence import OVERHEAD
    from empir_plugin.zoo.registry import find_builder, load_model
    from empir_plugin.zoo.show import dataset_of

    if target is not None:
        check_output_file("--json", target)
    how = LatencySettings(batch_size, repeats, threads, parse_device(device))
    dataset, builder = dataset_of(model), find_builder(model)
    threat = builder.threats[0] if builder else "Linf"
    network = load_model(model, dataset=dataset, threat_model=threat, custom_checkpoint=checkpoint or "")
    shape = parse_image_shape(image_shape) if image_shape else image_shape_of(dataset)
    trained = getattr(network, "weights_loaded", True)
    found = find_overhead(network, shape, latency=how if latency else None, errors=layers and trained)
    _report(model, found)
    if layers:
        _report_layers(found)
    if target is not None:
        OVERHEAD.write(target, found.to_dict())


def _report(model: str, found: Overhead) -> None:
    out = console()
    out.print(f"{model} beside {found.baseline}", style="bold", markup=False)
    out.print(_costs(found))
    out.print(_members(found.members))
    out.print("Equation 6, time", style="bold")
    out.print(_equation(found))
    out.print(f"{found.eq6.k_rule}: {found.eq6.k_rule_text}. Throughputs:", markup=False)
    for platform, source in {answer.platform: answer.source for answer in (found.eq6, *found.eq6_alternatives)}.items():
        out.print(f"{platform}: {source}", markup=False, soft_wrap=True)
    if found.measured is not None:
        out.print("Measured time", style="bold")
        out.print(_times(found.measured))
        for text in _measured(found.measured):
            out.print(text, markup=False)


def _costs(found: Overhead) -> Any:
    rows = table(["cost"], ["model", "full precision", "ratio", "ideal ratio"])
    eq6, bits = found.eq6, found.bops_ratio
    macs, whole = f"{found.macs / 1e6:,.3f}", f"{found.baseline_macs / 1e6:,.3f}"
    rows.add_row("MMACs per image", macs, whole, f"{found.macs / found.baseline_macs:.3f}", "")
    counts = found.parameters, found.baseline_parameters
    rows.add_row("parameters", *(f"{number:,}" for number in counts), f"{counts[0] / counts[1]:.3f}", "")
    sizes = found.storage_bytes_packed, found.baseline_storage_bytes
    rows.add_row("weight file, bytes", *(f"{number:,}" for number in sizes), f"{found.storage_ratio:.3f}", "")
    rows.add_row("storage, Equation 6", "", "", f"{eq6.storage.as_built:.3f}", f"{eq6.storage.ideal:.3f}")
    rows.add_row("time, Equation 6", "", "", f"{eq6.time.as_built:.3f}", f"{eq6.time.ideal:.3f}")
    rows.add_row("bit operations", "", "", f"{bits.as_built:.3f}", f"{bits.ideal:.3f}")
    rows.add_row("  with sums", "", "", f"{found.bops_with_sums_ratio:.3f}", "")
    if found.measured is not None:
        times = found.measured.model.median, found.measured.baseline.median
        shown = [f"{time:,.2f}" for time in times]
        rows.add_row("measured, ms", *shown, f"{found.measured.ratio.median:.3f}", "")
    return rows


def _members(members: tuple[MemberOverhead, ...]) -> Any:
    rows = table(["member", "precision"], ["Mparams", "MMACs", "MACs quantized", "weights quantized"])
    for index, member in enumerate(members):
        sizes = f"{member.parameters / 1e6:,.3f}", f"{member.macs / 1e6:,.3f}"
        shares = f"{member.macs_quantized_share:.2%}", f"{member.weights_quantized_share:.2%}"
        rows.add_row(str(index), member.precision, *sizes, *shares)
    return rows


def _equation(found: Overhead) -> Any:
    rows = table(["throughput", "full precision", "k"], ["ratio", "ideal ratio"])
    for answer in (found.eq6, *found.eq6_alternatives):
        ratios = f"{answer.time.as_built:.3f}", f"{answer.time.ideal:.3f}"
        rows.add_row(answer.platform, answer.fp_baseline, answer.k_rule, *ratios)
    return rows


def _times(latency: Latency) -> Any:
    rows = table(["time of a forward pass"], ["ms", "ratio", "p10", "p90"])
    for row in sorted(latency.backends, key=lambda row: row.network):
        name = f"{'full precision' if row.network == 'baseline' else row.network}: {row.backend}"
        if row.milliseconds is None or row.ratio is None:
            rows.add_row(name, "n/a")
            continue
        ratio = row.ratio.median, row.ratio.p10, row.ratio.p90
        rows.add_row(name, f"{row.milliseconds.median:,.2f}", *(f"{number:.3f}" for number in ratio))
    return rows


def _measured(latency: Latency) -> Iterator[str]:
    where = f"{latency.device}, threads: {latency.threads}, batch {latency.batch_size}, {latency.repeats} rounds"
    layout = latency.baseline_layout
    yield f"Measured in turns on {where}. Ratios: to full precision in its faster layout, {layout}, within each round."
    for row in latency.backends:
        if row.unavailable:
            yield f"{row.backend} is not available: {row.unavailable}."


def _report_layers(found: Overhead) -> None:
    rows = table(["layer", "precision"], ["weights", "kMACs", "error L2", "Linf", "matrix L2"])
    many = len(found.members) > 1
    for index, member in enumerate(found.members):
        for layer in member.layers:
            name = f"{index}.{layer.name}" if many else layer.name
            error = member.errors.get(layer.name)
            norms = (error.spectral, error.infinity, error.flattened) if error else ()
            shown = [f"{norm:.3f}" for norm in norms] or [""] * 3
            rows.add_row(name, str(layer.precision), f"{layer.weights:,}", f"{layer.macs / 1e3:,.1f}", *shown)
    out = console()
    out.print(rows)
    if not any(member.errors for member in found.members):
        out.print("No latent weights, so no quantization error: packed weight files keep the quantized ones alone.")
