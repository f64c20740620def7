"""Equation 6 of EMPIR: time and storage of an ensemble relative to one full-precision network.

Source: Sen et al., ICLR 2020, https://openreview.net/forum?id=HJem3yHKwH, Section 3: ``M + sum Ops(FP) / Ops(k_i)`` for
time and ``M + sum k_i / 32`` for storage, with M full-precision members and low-precision members of k_i bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.overhead.count import NetworkCost
from empir_plugin.models.quantize import FULL_BITS, Precision


@dataclass(frozen=True)
class Throughput:
    """Throughput of a platform at full precision and at low precision.

    Args:
        platform: Name of the platform.
        fp_baseline: The format that counts as full precision.
        full: Peak throughput in that format, in 10**12 operations per second (or any unit that ``modes`` shares).
        modes: Bits of each integer format, and its peak throughput.
        source: Source of the numbers.

    Raises:
        InputError: If a throughput is not above 0.

    Example:
        >>> Throughput("an accelerator", "fp32", 10.0, ((8, 40.0), (4, 80.0)), "made up").relative_time(2)
        0.125
    """

    platform: str
    fp_baseline: str
    full: float
    modes: tuple[tuple[int, float], ...]
    source: str

    def __post_init__(self) -> None:
        if not all(speed > 0 for speed in (self.full, *(speed for _, speed in self.modes))):
            raise InputError(f"throughputs must be above 0, got {self.full} and {self.modes} for {self.platform}")

    def relative_time(self, bits: int) -> float:
        """Time of an operation on operands of ``bits`` bits, relative to one at full precision.

        It runs in the fastest integer format with at least so many bits, or at full precision if none is faster.
        """
        return min([1.0, *(self.full / speed for width, speed in self.modes if width >= bits)])


PROPORTIONAL = Throughput(
    "proportional to 32/k",
    "fp32",
    1.0,
    tuple((bits, 32 / bits) for bits in range(1, 9)),
    "an assumption: the paper names no throughput, and this one gives the 0.38 and 0.25 of its Section 5.4",
)
"""A k-bit operation takes k/32 of the time of a 32-bit operation."""

_TURING = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"
_GEFORCE = "https://www.tomshardware.com/reviews/nvidia-turing-gpu-architecture-explored,5801-10.html"
_AMPERE = "https://developer.nvidia.com/blog/nvidia-ampere-architecture-in-depth/"
_HOPPER = "https://www.nvidia.com/en-us/data-center/h200/, halved, as it counts sparsity; Hopper has no 4-bit format"
_IBM = (
    "Fleischer et al., VLSI 2018, https://doi.org/10.1109/VLSIC.2018.8502276; its 2-bit format is ternary, "
    "so DoReFa's four levels would not quite fit"
)

PUBLISHED = (
    Throughput("NVIDIA T4", "fp32", 8.1, ((8, 130.0), (4, 260.0)), _TURING),
    Throughput("NVIDIA T4", "fp16", 65.0, ((8, 130.0), (4, 260.0)), _TURING),
    Throughput("NVIDIA RTX 2080 Ti", "fp32", 14.2, ((8, 227.7), (4, 455.4)), _GEFORCE),
    Throughput("NVIDIA RTX 2080 Ti", "fp16", 113.8, ((8, 227.7), (4, 455.4)), _GEFORCE),
    Throughput("NVIDIA A100", "fp32", 19.5, ((8, 624.0), (4, 1248.0)), _AMPERE),
    Throughput("NVIDIA A100", "tf32", 156.0, ((8, 624.0), (4, 1248.0)), _AMPERE),
    Throughput("NVIDIA H200", "fp32", 67.0, ((8, 1979.0),), _HOPPER),
    Throughput("NVIDIA H200", "tf32", 494.7, ((8, 1979.0),), _HOPPER),
    Throughput("NVIDIA H200", "bf16", 989.4, ((8, 1979.0),), _HOPPER),
    Throughput("IBM core of 2018", "fp16", 1.5, ((2, 12.0), (1, 24.0)), _IBM),
)
"""Published peak throughputs; the result of Equation 6 mostly depends on which format counts as full precision."""


@dataclass(frozen=True)
class Ratios:
    """A cost of a model, relative to its full-precision baseline.

    Args:
        ideal: As if all layers of a low-precision member had the precision of its quantized layers (the mean, if they
            differ), as the equation assumes.
        as_built: With layers that stay in full precision counted as such.
    """

    ideal: float
    as_built: float


@dataclass(frozen=True)
class KRule:
    """A rule for the k of the equation, as the paper does not say which number of bits it is.

    Args:
        text: The rule, for people to read.
        bits: From a layer's precision to k.
    """

    text: str
    bits: Callable[[Precision], int]


def _wider(precision: Precision) -> int:
    return max(precision.weight_bits, precision.activation_bits)


def _of_weights(precision: Precision) -> int:
    return precision.weight_bits


def _of_activations(precision: Precision) -> int:
    return precision.activation_bits


K_RULES: Mapping[str, KRule] = MappingProxyType(
    {
        "max": KRule("k = the wider of weights and activations, as both enter one multiplier", _wider),
        "weights": KRule("k = bits of the weights", _of_weights),
        "activations": KRule("k = bits of the activations", _of_activations),
    }
)
"""Rules for the k of the time; the k of the storage is always the number of bits of the weights."""


@dataclass(frozen=True)
class Equation6:
    """The result of the equation, with its assumptions.

    Args:
        platform: Name of the platform.
        fp_baseline: The format that counts as full precision.
        k_rule: A key of :data:`K_RULES`.
        k_rule_text: The text of that rule.
        source: Source of the throughputs.
        time: Relative to the baseline; 1.25 is a quarter more.
        storage: Relative to the baseline, with biases and normalisations, without file headers.
    """

    platform: str
    fp_baseline: str
    k_rule: str
    k_rule_text: str
    source: str
    time: Ratios
    storage: Ratios


def equation6(
    members: Sequence[NetworkCost],
    baseline: NetworkCost,
    throughput: Throughput = PROPORTIONAL,
    k_rule: str = "max",
) -> Equation6:
    """Equation 6 for one platform and one rule.

    Args:
        members: The cost of each member, including full-precision members.
        baseline: The cost of the full-precision baseline.
        throughput: Throughput of the platform.
        k_rule: A key of :data:`K_RULES`.

    Raises:
        EvaluationError: If the baseline has no operations or no weights.

    Example:
        >>> from empir_plugin.evaluation.overhead.count import LayerCost
        >>> full = NetworkCost((LayerCost("fc", "Linear", 10, 10, 5, Precision()),), 10)
        >>> low = NetworkCost((LayerCost("fc", "QuantLinear", 10, 10, 5, Precision(2, 4)),), 10)
        >>> result = equation6([low, low, full], full)
        >>> result.time.ideal, result.storage.ideal
        (1.25, 1.125)
    """
    rule = K_RULES[k_rule]

    def time(precision: Precision) -> float:
        return throughput.relative_time(rule.bits(precision))

    return Equation6(
        throughput.platform,
        throughput.fp_baseline,
        k_rule,
        rule.text,
        throughput.source,
        _ratios([_operations(cost) for cost in members], _operations(baseline), time),
        _ratios([_parameters(cost) for cost in members], _parameters(baseline), _relative_storage),
    )


def alternatives(members: Sequence[NetworkCost], baseline: NetworkCost) -> tuple[Equation6, ...]:
    """Equation 6 for the same members with the other rules for k, and with published throughputs.

    Raises:
        EvaluationError: If the baseline has no operations or no weights.
    """
    rules = [equation6(members, baseline, k_rule=rule) for rule in K_RULES if rule != "max"]
    return (*rules, *(equation6(members, baseline, throughput) for throughput in PUBLISHED))


def bit_operations(members: Sequence[NetworkCost], baseline: NetworkCost) -> Ratios:
    """Bit operations of all members, relative to the baseline: a measure that needs no platform.

    Raises:
        EvaluationError: If the baseline has no operations.
    """
    return _ratios([_operations(cost) for cost in members], _operations(baseline), _relative_bit_operations)


def bit_operations_with_sums(members: Sequence[NetworkCost], baseline: NetworkCost) -> float:
    """Bit operations of all members including those of the accumulators, relative to the baseline, as built.

    Raises:
        EvaluationError: If the baseline has no operations.
    """
    total = math.fsum(layer.bit_operations_with_sums for cost in members for layer in cost.layers)
    return total / _check_positive(math.fsum(layer.bit_operations_with_sums for layer in baseline.layers))


_RelativeCost = Callable[[Precision], float]
"""The cost of one operation or weight of that precision, relative to full precision."""

_Amounts = list[tuple[int, Precision]]
"""Numbers of operations or weights, with the precision of each."""


def _relative_storage(precision: Precision) -> float:
    return precision.weight_bits / FULL_BITS


def _relative_bit_operations(precision: Precision) -> float:
    return precision.weight_bits * precision.activation_bits / FULL_BITS**2


def _operations(cost: NetworkCost) -> _Amounts:
    return [(layer.macs, layer.precision) for layer in cost.layers]


def _parameters(cost: NetworkCost) -> _Amounts:
    return [*((layer.weights, layer.precision) for layer in cost.layers), (cost.parameters - cost.weights, Precision())]


def _ratios(members: Sequence[_Amounts], baseline: _Amounts, relative_cost: _RelativeCost) -> Ratios:
    whole = _check_positive(_total(baseline))
    ideal = math.fsum(_total(amounts) * _mean_cost_of_quantized(amounts, relative_cost) for amounts in members)
    as_built = math.fsum(amount * relative_cost(precision) for amounts in members for amount, precision in amounts)
    return Ratios(ideal / whole, as_built / whole)


def _total(amounts: _Amounts) -> int:
    return sum(amount for amount, _ in amounts)


def _mean_cost_of_quantized(amounts: _Amounts, relative_cost: _RelativeCost) -> float:
    """Mean relative cost of the quantized amounts; 1 if nothing is quantized."""
    quantized = [(amount, precision) for amount, precision in amounts if not precision.is_full]
    if not _total(quantized):
        return 1.0
    return math.fsum(amount * relative_cost(precision) for amount, precision in quantized) / _total(quantized)


def _check_positive(whole: float) -> float:
    if not whole > 0:
        raise EvaluationError(
            "the model must have a convolution or linear layer that runs, got none: there is nothing to compare "
            "(layers in a Python list or a closure do not count: hold them as attributes or in an nn.ModuleList)"
        )
    return whole
