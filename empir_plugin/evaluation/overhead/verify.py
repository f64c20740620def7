"""An overhead report, read back and not believed: everything in it that follows from something else is computed again.

From the layers that a report lists follow all operations, shares and ratios; only the sizes of the two weight files and
the measured times do not. Where the model is at hand, :func:`compare_counts` compares with all that is counted on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from empir_plugin._files.json_schema import shorten
from empir_plugin._files.tables import build, table_of
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.overhead.count import LayerCost, NetworkCost
from empir_plugin.evaluation.overhead.latency import BackendTime, Latency, Spread
from empir_plugin.evaluation.overhead.report import Overhead, derive, member_overhead
from empir_plugin.models.quantize import Precision

_ROUNDING = 1e-12
"""Relative difference of two sums of the same numbers in another order."""
_COUNTED = (
    "image_shape", "baseline", "baseline_parameters", "baseline_macs", "baseline_storage_bytes", "parameters", "macs",
    "macs_quantized_share", "weights_quantized_share", "storage_bytes_packed", "storage_ratio", "bops_ratio",
    "bops_with_sums_ratio", "eq6", "eq6_alternatives",
)  # fmt: skip


def parse_overhead(table: object) -> Overhead:
    """The report of a JSON value, as :meth:`Overhead.to_dict` gives it.

    Raises:
        InputError: If a key is missing, unknown or of the wrong type.
        EvaluationError: If a number is out of range, or does not follow from the others.

    Example:
        >>> from empir_plugin.evaluation.overhead.report import overhead
        >>> from empir_plugin.models.architectures import CIFARConv
        >>> table = overhead(CIFARConv(), (3, 32, 32)).to_dict()
        >>> parse_overhead(table).macs
        10763904
        >>> parse_overhead({**table, "macs": 1})
        Traceback (most recent call last):
        empir_plugin.errors.EvaluationError: overhead.macs is 1, its layers make it 10763904: measure it again
    """
    known = {"model_identity": 1, **table_of(table, "the overhead")}  # The first reports do not state it.
    report = build(Overhead, known, "the overhead")
    for sentence in _problems(report):
        raise EvaluationError(f"{sentence}: measure it again")
    return report


def compare_counts(report: Overhead, counted: Overhead) -> None:
    """Check that a report says of a model what was counted on it.

    Args:
        report: From a file.
        counted: Of the model itself.

    Raises:
        EvaluationError: If they differ in anything but the measured times, naming the first such key.
    """
    for key in (*_COUNTED, "members"):
        found, expected = (_plain(getattr(each, key)) for each in (report, counted))
        for sentence in _differences(f"overhead.{key}", found, expected, "the model makes it"):
            raise EvaluationError(f"{sentence}: measure it again")


def _problems(report: Overhead) -> Iterator[str]:
    yield from _out_of_range(report)
    yield from _not_derived(report)
    if report.measured is not None:
        yield from _of_times(report.measured)
    yield from _by_batch_size(report)


def _by_batch_size(report: Overhead) -> Iterator[str]:
    for batch_size, latency in report.measured_by_batch_size.items():
        if isinstance(latency, str):
            continue
        if latency.batch_size != batch_size:
            yield f"overhead.measured_by_batch_size[{batch_size}] is of {latency.batch_size} images"
        yield from _of_times(latency)
    if report.measured_by_batch_size and report.measured not in report.measured_by_batch_size.values():
        latencies = [each for each in report.measured_by_batch_size.values() if not isinstance(each, str)]
        if latencies or report.measured is not None:
            yield "overhead.measured is none of overhead.measured_by_batch_size"


def _out_of_range(report: Overhead) -> Iterator[str]:
    if len(report.image_shape) != 3 or min(report.image_shape) < 1:
        yield f"overhead.image_shape must be three sizes (C, H, W), 1 or more, got {list(report.image_shape)}"
    if not report.members:
        yield "overhead.members must not be empty"
    counts = "model_identity", "baseline_parameters", "baseline_macs", "baseline_storage_bytes", "storage_bytes_packed"
    yield from (
        f"overhead.{key} must be 1 or more, got {getattr(report, key)}" for key in counts if getattr(report, key) < 1
    )
    for index, member in enumerate(report.members):
        where = f"overhead.members[{index}]"
        yield from (text for layer in member.layers for text in _of_layer(f"{where}, layer {layer.name}", layer))
        if member.parameters < 0:
            yield f"{where}.parameters must be 0 or more, got {member.parameters}"
        unknown = sorted(member.errors.keys() - {layer.name for layer in member.layers})
        yield from (f"{where}.errors has no layer {name}" for name in unknown)
        for name, norms in member.errors.items():
            if min(asdict(norms).values()) < 0:
                yield f"{where}.errors.{name} must be 0 or more, got {list(asdict(norms).values())}"


def _of_layer(where: str, layer: LayerCost) -> Iterator[str]:
    for key, least in (("weights", 0), ("macs", 0), ("fan_in", 1)):
        if (number := getattr(layer, key)) < least:
            yield f"{where}: {key} must be {least} or more, got {number}"


def _not_derived(report: Overhead) -> Iterator[str]:
    costs = [NetworkCost(member.layers, member.parameters) for member in report.members]
    for index, (member, cost) in enumerate(zip(report.members, costs, strict=True)):
        again = asdict(member_overhead(cost, member.errors))
        yield from _differences(f"overhead.members[{index}]", asdict(member), again, "its layers make it")
    index = _baseline_of(report)
    in_float = tuple(replace(layer, precision=Precision()) for layer in report.members[index].layers)
    baseline = NetworkCost(in_float, report.baseline_parameters)
    if not baseline.weights <= report.baseline_parameters <= report.members[index].parameters:
        bounds = f"{baseline.weights} to {report.members[index].parameters}"
        yield f"overhead.baseline_parameters is {report.baseline_parameters}, member {index} makes it {bounds}"
    ratio = report.storage_bytes_packed / report.baseline_storage_bytes
    expected = {"baseline_macs": baseline.macs, "storage_ratio": ratio, **derive(costs, baseline)}
    for key, value in expected.items():
        found = _plain(getattr(report, key))
        yield from _differences(f"overhead.{key}", found, _plain(value), "its layers make it")


def _baseline_of(report: Overhead) -> int:
    """Which member the baseline is, in full precision: see :func:`~.count.baseline_of`."""
    full = [index for index, member in enumerate(report.members) if member.precision == "fp"]
    sizes = [member.parameters for member in report.members]
    index = full[0] if full else sizes.index(max(sizes))
    of_one = ("the model itself, which is in full precision", "the same network in full precision")[not full]
    of_many = f"member {index} of the ensemble, " + (
        "its full-precision one" if full else "its largest, in full precision (no member is)"
    )
    known = [of_many] if len(report.members) > 1 else [of_one, of_many]
    if report.baseline not in known:
        raise EvaluationError(
            f"overhead.baseline is {report.baseline!r}, its members make it {known[0]!r}: measure it again"
        )
    return index


def _of_times(measured: Latency) -> Iterator[str]:
    for key in ("threads", "batch_size", "repeats"):
        if getattr(measured, key) < 1:
            yield f"overhead.measured.{key} must be 1 or more, got {getattr(measured, key)}"
    if measured.execution != "sequential":
        yield f"overhead.measured.execution must be 'sequential', got {measured.execution!r}"
    kind, _, name = measured.device.partition(": ")
    if kind not in ("cpu", "cuda") or name != (measured.processor.name if measured.processor else name):
        yield f"overhead.measured.device must be 'cpu: ' and the processor's name, got {measured.device!r}"
    for index, row in enumerate(measured.backends):
        yield from _of_row(f"overhead.measured.backends[{index}]", row)
    rows = {(row.network, row.backend): row for row in measured.backends}
    if len(rows) < len(measured.backends):
        yield "overhead.measured.backends has two rows of one network on one backend"
    model = rows.get(("model", measured.backend))
    baseline = rows.get(("baseline", f"float32, {measured.baseline_layout}"))
    if model is None or (model.milliseconds, model.ratio) != (measured.model, measured.ratio):
        yield f"overhead.measured: model and ratio are not those of the backend {measured.backend!r}"
    if baseline is None or baseline.milliseconds != measured.baseline:
        yield f"overhead.measured: baseline is not that of the layout {measured.baseline_layout!r}"
    elif any(
        row.network == "baseline" and row.milliseconds and row.milliseconds.median < measured.baseline.median
        for row in rows.values()
    ):
        yield f"overhead.measured.baseline_layout {measured.baseline_layout!r} is not the faster one"


def _of_row(where: str, row: BackendTime) -> Iterator[str]:
    if row.network not in ("model", "baseline") or not row.backend:
        yield f"{where} must be of 'model' or 'baseline' on a named backend, got {row.network!r} on {row.backend!r}"
    spreads = row.milliseconds, row.ratio
    if row.unavailable and spreads != (None, None):
        yield f"{where} has times, and a reason why it has none: {row.unavailable}"
    if not row.unavailable and None in spreads:
        yield f"{where} has neither times nor a reason"
    yield from (f"{where}: {text}" for spread in spreads if spread is not None for text in _of_spread(spread))


def _of_spread(spread: Spread) -> Iterator[str]:
    if not 0 < spread.p10 <= spread.median <= spread.p90:
        yield f"0 < p10 <= median <= p90 must hold, got {spread.p10}, {spread.median}, {spread.p90}"


def _plain(value: Any) -> Any:
    """Dataclasses as tables, tuples as lists."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key != "errors"}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _differences(path: str, found: Any, expected: Any, cause: str) -> Iterator[str]:
    """Where two values differ by more than the order of a sum explains."""
    if isinstance(expected, Mapping):
        for key in expected:
            yield from _differences(f"{path}.{key}", found[key], expected[key], cause)
    elif isinstance(expected, (list, tuple)) and len(found) == len(expected):
        for index, pair in enumerate(zip(found, expected, strict=True)):
            yield from _differences(f"{path}[{index}]", *pair, cause)
    elif not (math.isclose(found, expected, rel_tol=_ROUNDING) if isinstance(expected, float) else found == expected):
        yield f"{path} is {shorten(found)}, {cause} {shorten(expected)}"
