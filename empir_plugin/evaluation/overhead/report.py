"""The overhead of a model relative to one full-precision network: counted, by EMPIR's Equation 6, and measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from empir_plugin._files.json_schema import shorten
from empir_plugin._files.tables import build, read_with, table_of
from empir_plugin.errors import EmpirError, EvaluationError, InputError, cause
from empir_plugin.evaluation.identity import IDENTITY, model_fingerprint
from empir_plugin.evaluation.overhead.count import LayerCost, NetworkCost, baseline_of, count, members_of, packed_bytes
from empir_plugin.evaluation.overhead.equation6 import (
    Equation6,
    Ratios,
    alternatives,
    bit_operations,
    bit_operations_with_sums,
    equation6,
)
from empir_plugin.evaluation.overhead.latency import Execution, Latency, LatencySettings, measure_latency
from empir_plugin.evaluation.prepare import Float32Logits, exact_float32, prepare, prepare_for_images
from empir_plugin.models.integer.convert import FLOAT32, run_on_integers
from empir_plugin.models.lipschitz import ErrorNorms, quantization_error_norms


def _read_errors(value: Any, where: str) -> dict[str, ErrorNorms]:
    return {
        name: build(ErrorNorms, table_of(row, where), f"{name} in {where}")
        for name, row in table_of(value, where).items()
    }


@dataclass(frozen=True)
class MemberOverhead:
    """The cost of one member of an ensemble, or of a model that is a single network.

    Args:
        precision: Precision of its quantized layers, such as ``"w2a4"``; several if they differ.
        parameters: Number of all its parameters, quantized or not.
        macs: Multiply-accumulate operations for one image.
        macs_quantized_share: Share of the MACs with both operands quantized, between 0 and 1.
        weights_quantized_share: Share of the layers' weights that are quantized, between 0 and 1.
        layers: The cost of every convolution and linear layer.
        errors: Norms of the quantization error of each layer; empty unless requested.
    """

    precision: str
    parameters: int
    macs: int
    macs_quantized_share: float
    weights_quantized_share: float
    layers: tuple[LayerCost, ...]
    errors: Mapping[str, ErrorNorms] = field(metadata=read_with(_read_errors))


def _read_by_batch_size(value: Any, where: str) -> dict[int, Latency | str]:
    """Latencies, or why there is none, by batch size: JSON has texts as keys."""
    found: dict[int, Latency | str] = {}
    for key, latency in table_of(value, where).items():
        if not key.isdecimal() or len(key) > 9:
            raise InputError(f"a key of {where} must be a number of images, got {shorten(key)}")
        found[int(key)] = (
            latency
            if isinstance(latency, str)
            else build(Latency, table_of(latency, f"{where}[{key}]"), f"{where}[{key}]")
        )
    return found


@dataclass(frozen=True)
class Overhead:
    """The overhead of a model; ratios are relative to the baseline, so 1 is no overhead.

    Args:
        model_sha256: Hash of the model's text and weights, as in run records.
        model_identity: Version of that hash.
        image_shape: ``(C, H, W)`` of the image that operations are counted for.
        baseline: Which full-precision network the model is compared with.
        baseline_parameters: Number of parameters of the baseline.
        baseline_macs: Multiply-accumulate operations of the baseline for one image.
        baseline_storage_bytes: Size of the baseline's weight file.
        parameters: Number of parameters of the model.
        macs: Multiply-accumulate operations of the model for one image.
        macs_quantized_share: Share of the MACs with both operands quantized, between 0 and 1.
        weights_quantized_share: Share of the weights of all layers that are quantized, between 0 and 1.
        storage_bytes_packed: Size of the model's weight file, with bit-packed quantized weights.
        storage_ratio: Ratio of the sizes of the two weight files.
        bops_ratio: Ratio of the bit operations.
        bops_with_sums_ratio: Ratio of the bit operations including those of the accumulators, as built.
        eq6: Equation 6 with the throughput and the rule that reproduce the paper.
        eq6_alternatives: Equation 6 with other rules, and with published throughputs.
        members: The cost of each member of an ensemble, in order; for any other model, of the model itself.
        measured: Measured latency at the batch size nearest to 32; None unless requested.
        measured_by_batch_size: The same at every batch size; the reason where one was left out.
    """

    model_sha256: str
    model_identity: int
    image_shape: tuple[int, ...]
    baseline: str
    baseline_parameters: int
    baseline_macs: int
    baseline_storage_bytes: int
    parameters: int
    macs: int
    macs_quantized_share: float
    weights_quantized_share: float
    storage_bytes_packed: int
    storage_ratio: float
    bops_ratio: Ratios
    bops_with_sums_ratio: float
    eq6: Equation6
    eq6_alternatives: tuple[Equation6, ...]
    members: tuple[MemberOverhead, ...]
    measured: Latency | None = None
    measured_by_batch_size: Mapping[int, Latency | str] = field(
        default_factory=dict, metadata=read_with(_read_by_batch_size)
    )

    def to_dict(self) -> dict[str, Any]:
        """As a mapping that JSON can hold.

        Raises:
            EvaluationError: If a number is not finite.
        """
        table: dict[str, Any] = _as_json(asdict(self))
        for path, number in _numbers(table, "overhead"):
            if not math.isfinite(number):
                raise EvaluationError(f"{path} must be finite to be written as JSON, got {number}: measure again")
        return table


def overhead(
    model: nn.Module,
    image_shape: tuple[int, ...],
    *,
    latency: LatencySettings | None = None,
    errors: bool = False,
) -> Overhead:
    """Compute the overhead of a model relative to one full-precision network, https://openreview.net/forum?id=HJem3yHKwH.

    It works for any module; layers that are not :class:`~empir_plugin.models.layers.QuantizedLayer` count as full
    precision. The model is not changed.

    Args:
        model: An ensemble or a single network, from images to logits.
        image_shape: ``(C, H, W)`` of its images.
        latency: Settings to measure latency with; None to only count.
        errors: Also compute the norms of each layer's quantization error, which is slow for large layers.

    Raises:
        InputError: If the model is not a module, has an ensemble nested inside, has weights that are not finite, or
            cannot take images of that shape.
        EvaluationError: If the model has no layer to count, or cannot be copied or packed.

    Example:
        >>> from empir_plugin.models.architectures import CIFARConv
        >>> from empir_plugin.models.quantize import Precision
        >>> cost = overhead(CIFARConv(Precision.parse("w2a2")), (3, 32, 32))
        >>> f"{cost.storage_ratio:.3f} {cost.eq6.storage.ideal:.3f} {cost.eq6.storage.as_built:.3f}"
        '0.365 0.062 0.364'
    """
    device = torch.device("cpu") if latency is None else latency.device
    prepared = prepare_for_images(model, device, torch.zeros(2, *image_shape), differentiable=False).model
    model = prepared.model if isinstance(prepared, Float32Logits) else prepared  # A cast costs nothing that counts.
    image = torch.zeros(1, *image_shape, device=device)
    baseline, members = baseline_of(model), members_of(model)
    costs, baseline_cost = [count(member, image) for member in members], count(baseline.network, image)
    storage_bytes, baseline_bytes = packed_bytes(model), packed_bytes(baseline.network)
    norms = [quantization_error_norms(member, image) if errors else {} for member in members]
    measured = _measure(model, baseline.network, tuple(image_shape), latency) if latency else {}
    return Overhead(
        model_sha256=model_fingerprint(model),
        model_identity=IDENTITY,
        image_shape=tuple(image_shape),
        baseline=baseline.description,
        baseline_parameters=baseline_cost.parameters,
        baseline_macs=baseline_cost.macs,
        baseline_storage_bytes=baseline_bytes,
        storage_bytes_packed=storage_bytes,
        storage_ratio=storage_bytes / baseline_bytes,
        **derive(costs, baseline_cost),
        members=tuple(member_overhead(cost, by_layer) for cost, by_layer in zip(costs, norms, strict=True)),
        measured=_nearest(measured, _USUAL_BATCH_SIZE),
        measured_by_batch_size=measured,
    )


def derive(costs: Sequence[NetworkCost], baseline: NetworkCost) -> dict[str, Any]:
    """The fields of :class:`Overhead` that follow from the costs of all members and of the baseline."""
    return {
        "parameters": sum(cost.parameters for cost in costs),
        "macs": sum(cost.macs for cost in costs),
        "macs_quantized_share": _share([cost.quantized_macs for cost in costs], [cost.macs for cost in costs]),
        "weights_quantized_share": _share([cost.quantized_weights for cost in costs], [cost.weights for cost in costs]),
        "bops_ratio": bit_operations(costs, baseline),
        "bops_with_sums_ratio": bit_operations_with_sums(costs, baseline),
        "eq6": equation6(costs, baseline),
        "eq6_alternatives": alternatives(costs, baseline),
    }


_USUAL_BATCH_SIZE = 32


def _nearest(measured: Mapping[int, Latency | str], batch_size: int) -> Latency | None:
    """The latency at the batch size nearest to one; None if there is none at all."""
    latencies = [latency for latency in measured.values() if isinstance(latency, Latency)]
    return min(latencies, key=lambda latency: abs(latency.batch_size - batch_size), default=None)


def _measure(
    model: nn.Module, baseline: nn.Module, image_shape: tuple[int, ...], settings: LatencySettings
) -> dict[int, Latency | str]:
    """Measure the latency in float32 and, if there are kernels for the model, in int8."""
    try:
        with exact_float32():
            network, backend = run_on_integers(prepare(model, settings.device))
        in_float = backend.name == FLOAT32
        int8 = Execution("int8", unavailable=backend.reason) if in_float else Execution(backend.name, network)
        return measure_latency(model, baseline, image_shape, settings, others=(int8,))
    except EmpirError:
        raise
    except Exception as error:
        sizes = ", ".join(map(str, settings.batch_sizes))
        batch = f"{sizes} images of {'x'.join(map(str, image_shape))}"
        raise EvaluationError(
            f"the timed passes of {batch} failed with {cause(error)}: pass another batch size, or measure no latency"
        ) from error


def member_overhead(cost: NetworkCost, errors: Mapping[str, ErrorNorms]) -> MemberOverhead:
    """What a report says of one member."""
    quantized = dict.fromkeys(str(layer.precision) for layer in cost.layers if not layer.precision.is_full)
    return MemberOverhead(
        precision=" + ".join(quantized) or "fp",
        parameters=cost.parameters,
        macs=cost.macs,
        macs_quantized_share=_share([cost.quantized_macs], [cost.macs]),
        weights_quantized_share=_share([cost.quantized_weights], [cost.weights]),
        layers=cost.layers,
        errors=errors,
    )


def _share(part: list[int], whole: list[int]) -> float:
    return sum(part) / sum(whole) if sum(whole) else 0.0


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, (tuple, list)) else value


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """All numbers inside a value, with their paths."""
    if isinstance(value, (int, float)):
        yield path, value
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(item, f"{path}.{key}")


IMAGE_SHAPES: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "imagenet": (3, 224, 224)}
)
"""The shape ``(C, H, W)`` of the images of each data set."""


def image_shape_of(dataset: str) -> tuple[int, int, int]:
    """The shape ``(C, H, W)`` of a data set's images.

    Raises:
        InputError: If the data set is unknown.

    Example:
        >>> image_shape_of("mnist")
        (1, 28, 28)
    """
    if dataset not in IMAGE_SHAPES:
        raise InputError(f"dataset must be one of {', '.join(IMAGE_SHAPES)}, got {dataset!r}: give the image shape")
    return IMAGE_SHAPES[dataset]


def parse_image_shape(text: str) -> tuple[int, int, int]:
    """Read the shape of an image, such as ``"3x32x32"`` for three channels of 32 rows and 32 columns.

    Raises:
        InputError: If the text has another form.

    Example:
        >>> parse_image_shape("3x32x32")
        (3, 32, 32)
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"the size of an image is written 3x32x32 (channels, rows, columns), got {text!r}")
    channels, rows, columns = (int(part) for part in parts)
    return channels, rows, columns
