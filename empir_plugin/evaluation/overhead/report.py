"""What a model costs beside one full-precision network: counted, by EMPIR's Equation 6, and measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.identity import IDENTITY, model_fingerprint
from empir_plugin.evaluation.int8_queries import integer_queries
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
from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.lipschitz import ErrorNorms, quantization_error_norms

IMAGE_SHAPES: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "imagenet": (3, 224, 224)}
)
"""``(C, H, W)`` of the images of each data set."""


@dataclass(frozen=True)
class MemberOverhead:
    """One member of an ensemble, or the one network that a model is.

    Args:
        precision: Of its quantized layers, such as ``"w2a4"``; several if they differ.
        parameters: All of them, quantized or not.
        macs: Multiply-accumulate operations for one image.
        macs_quantized_share: Of these, between 0 and 1, with both operands quantized.
        weights_quantized_share: Of its layers' weights.
        layers: Every convolution and linear layer.
        errors: Norms of the quantization error by layer; empty unless asked for.
    """

    precision: str
    parameters: int
    macs: int
    macs_quantized_share: float
    weights_quantized_share: float
    layers: tuple[LayerCost, ...]
    errors: Mapping[str, ErrorNorms]


@dataclass(frozen=True)
class Overhead:
    """What a model costs; ratios are relative to ``baseline``, so 1 is no overhead.

    Args:
        model_sha256: Of the model, as in run records.
        model_identity: Version of that hash.
        image_shape: ``(C, H, W)`` of the image that operations are counted for.
        baseline: Which full-precision network it is compared with.
        baseline_parameters: Parameters of that network.
        baseline_macs: Its multiply-accumulate operations for one image.
        baseline_storage_bytes: Size of its weight file.
        parameters: Of the model.
        macs: Of the model.
        macs_quantized_share: Of these, between 0 and 1, with both operands quantized.
        weights_quantized_share: Of the weights of all layers.
        storage_bytes_packed: Size of the model's weight file, every quantized weight in its own bits.
        storage_ratio: Of the sizes of the two files.
        bops_ratio: Bit operations.
        bops_with_sums_ratio: Bit operations including those of the accumulators, as built.
        eq6: Equation 6 with the throughput and the rule that reproduce the paper.
        eq6_alternatives: By other rules and for published throughputs.
        members: Of an ensemble in order; of any other model, the model.
        measured: Wall-clock times; None if they were not asked for.
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

    def to_dict(self) -> dict[str, Any]:
        """Tables, lists, texts and finite numbers, as JSON has them.

        Raises:
            EvaluationError: If a number is not finite.
        """
        found: dict[str, Any] = _plain(asdict(self))
        for path, number in _numbers(found, "overhead"):
            if not math.isfinite(number):
                raise EvaluationError(f"{path} is {number}, which JSON has no number for: measure again")
        return found


def overhead(
    model: nn.Module,
    image_shape: tuple[int, ...],
    *,
    latency: LatencySettings | None = None,
    errors: bool = False,
) -> Overhead:
    """Count, and if asked measure, what a model costs beside one full-precision network.

    Any module will do; layers that are no :class:`~empir_plugin.models.layers.QuantizedLayer` are full precision. The
    model is left as it is.

    Args:
        model: An ensemble or a single network, from images to logits.
        image_shape: ``(C, H, W)`` of its images.
        latency: Measure times too, in this way.
        errors: Find the norms of every quantized layer's error too, which takes a while for large layers.

    Raises:
        InputError: If the model is no module, hides an ensemble inside, has weights that are not finite, or cannot take
            images of that shape.
        EvaluationError: If it has no layer to count, or cannot be copied or packed.

    Example:
        >>> from empir_plugin.models.architectures import CIFARConv
        >>> from empir_plugin.models.precision import Precision
        >>> found = overhead(CIFARConv(Precision.parse("w2a2")), (3, 32, 32))
        >>> f"{found.storage_ratio:.3f} {found.eq6.storage.ideal:.3f} {found.eq6.storage.as_built:.3f}"
        '0.365 0.062 0.364'
    """
    device = torch.device("cpu") if latency is None else latency.device
    subject = prepare(model, device)
    image = torch.zeros(1, *image_shape, device=device)
    reference = baseline_of(subject)
    members = members_of(subject)
    costs, baseline = [count(member, image) for member in members], count(reference.network, image)
    stored, reference_bytes = packed_bytes(subject), packed_bytes(reference.network)
    norms = [quantization_error_norms(member, image) if errors else {} for member in members]
    return Overhead(
        model_sha256=model_fingerprint(model),
        model_identity=IDENTITY,
        image_shape=tuple(image_shape),
        baseline=reference.description,
        baseline_parameters=baseline.parameters,
        baseline_macs=baseline.macs,
        baseline_storage_bytes=reference_bytes,
        parameters=sum(cost.parameters for cost in costs),
        macs=sum(cost.macs for cost in costs),
        macs_quantized_share=_share([cost.quantized_macs for cost in costs], [cost.macs for cost in costs]),
        weights_quantized_share=_share([cost.quantized_weights for cost in costs], [cost.weights for cost in costs]),
        storage_bytes_packed=stored,
        storage_ratio=stored / reference_bytes,
        bops_ratio=bit_operations(costs, baseline),
        bops_with_sums_ratio=bit_operations_with_sums(costs, baseline),
        eq6=equation6(costs, baseline),
        eq6_alternatives=alternatives(costs, baseline),
        members=tuple(_member(cost, found) for cost, found in zip(costs, norms, strict=True)),
        measured=latency and _measured(subject, reference.network, tuple(image_shape), latency),
    )


def _measured(subject: nn.Module, baseline: nn.Module, image_shape: tuple[int, ...], how: LatencySettings) -> Latency:
    found = integer_queries(subject)
    integer = (
        Execution("int8", unavailable=found.reason) if found.copy is None else Execution(found.backend, found.copy)
    )
    return measure_latency(subject, baseline, image_shape, how, others=(integer,))


def image_shape_of(dataset: str) -> tuple[int, int, int]:
    """``(C, H, W)`` of a data set's images.

    Raises:
        InputError: If the data set is not known here.

    Example:
        >>> image_shape_of("mnist")
        (1, 28, 28)
    """
    if dataset not in IMAGE_SHAPES:
        raise InputError(f"the size of {dataset!r} images is not known, only of {', '.join(IMAGE_SHAPES)}: give it")
    return IMAGE_SHAPES[dataset]


def parse_image_shape(text: str) -> tuple[int, int, int]:
    """Read the size of an image, such as ``"3x32x32"`` for three channels of 32 rows and 32 columns.

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


def _member(cost: NetworkCost, errors: Mapping[str, ErrorNorms]) -> MemberOverhead:
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


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _numbers(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Every number inside, with the way to it."""
    if isinstance(value, (int, float)):
        yield path, value
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(item, f"{path}.{key}")
