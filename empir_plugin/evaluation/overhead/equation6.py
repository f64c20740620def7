"""Equation 6 of EMPIR: time and storage of an ensemble relative to one full-precision network.

Source: Sen et al., ICLR 2020, https://openreview.net/forum?id=HJem3yHKwH, Section 3: ``M + sum Ops(FP) / Ops(k_i)`` for
time and ``M + sum k_i / 32`` for storage, with M full-precision members and the low-precision ones of precision k_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.overhead.count import NetworkCost
from empir_plugin.models.precision import FULL_BITS, Precision


@dataclass(frozen=True)
class Throughput:
    """How fast a platform computes at full precision and at few bits.

    Args:
        platform: Its name.
        fp_baseline: The format that counts as full precision.
        full: Peak at that format, in 10**12 operations per second (or any unit that ``modes`` shares).
        modes: Bits of each integer format, and the peak at it.
        source: Where the numbers are from.

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
        """Time of an operation on operands of ``bits`` bits, in times of one at full precision.

        It runs in the fastest integer format that holds so many bits, and at full precision where none is faster.
        """
        return min([1.0, *(self.full / speed for width, speed in self.modes if width >= bits)])


PROPORTIONAL = Throughput(
    "proportional to 32/k",
    "fp32",
    1.0,
    tuple((bits, 32 / bits) for bits in range(1, 9)),
    "an assumption: the paper names no throughput, and this one gives the 0.38 and 0.25 of its Section 5.4",
)
"""A k-bit operation takes k/32 of the time of a 32-bit one."""

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
"""Published peaks; the answer of Equation 6 depends mostly on which format counts as full precision."""


Price = Callable[[Precision], float]
"""What one operation or number of that precision costs, in full-precision ones."""


@dataclass(frozen=True)
class Ratios:
    """One cost of a model, in those of its full-precision baseline.

    Args:
        ideal: As if every layer of a low-precision member had the precision of its quantized layers (the mean over
            them, if they differ), as the equation supposes.
        as_built: Layers that stay in full precision counted as such.
    """

    ideal: float
    as_built: float


@dataclass(frozen=True)
class KRule:
    """Which number of bits is the k of the equation; the paper does not say.

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
"""Rules for the k of the time; the k of the storage is always that of the weights."""


@dataclass(frozen=True)
class Equation6:
    """The equation's answer, with what it was asked.

    Args:
        platform: Where the operations run.
        fp_baseline: The format of full precision there.
        k_rule: A key of :data:`K_RULES`.
        k_rule_text: That rule.
        source: Where the throughputs are from.
        time: Relative to the baseline; 1.25 is a quarter more.
        storage: Relative to the baseline, biases and normalisations included, file headers not.
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
        members: What each member costs, the full-precision ones included.
        baseline: What the full-precision network costs that all is relative to.
        throughput: Of the platform.
        k_rule: A key of :data:`K_RULES`.

    Raises:
        EvaluationError: If the baseline has nothing to compute or to store.

    Example:
        >>> from empir_plugin.evaluation.overhead.count import LayerCost
        >>> full = NetworkCost((LayerCost("fc", "Linear", 10, 10, 5, Precision()),), 10)
        >>> low = NetworkCost((LayerCost("fc", "QuantLinear", 10, 10, 5, Precision(2, 4)),), 10)
        >>> answer = equation6([low, low, full], full)
        >>> answer.time.ideal, answer.storage.ideal
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
        _ratios([_numbers(cost) for cost in members], _numbers(baseline), _share_of_bits),
    )


def alternatives(members: Sequence[NetworkCost], baseline: NetworkCost) -> tuple[Equation6, ...]:
    """What else the equation can say of the same members: by other rules for k, and for published throughputs.

    Raises:
        EvaluationError: If the baseline has nothing to compute or to store.
    """
    rules = [equation6(members, baseline, k_rule=rule) for rule in K_RULES if rule != "max"]
    return (*rules, *(equation6(members, baseline, throughput) for throughput in PUBLISHED))


def bit_operations(members: Sequence[NetworkCost], baseline: NetworkCost) -> Ratios:
    """Bit operations of all members in those of the baseline: the measure that needs no platform.

    Raises:
        EvaluationError: If the baseline has nothing to compute.
    """
    return _ratios([_operations(cost) for cost in members], _operations(baseline), _share_of_products)


def bit_operations_with_sums(members: Sequence[NetworkCost], baseline: NetworkCost) -> float:
    """Bit operations including those of the accumulators, in those of the baseline, as built.

    Raises:
        EvaluationError: If the baseline has nothing to compute.
    """
    own = sum(layer.bit_operations_with_sums for cost in members for layer in cost.layers)
    return own / _positive(sum(layer.bit_operations_with_sums for layer in baseline.layers))


def _share_of_bits(precision: Precision) -> float:
    return precision.weight_bits / FULL_BITS


def _share_of_products(precision: Precision) -> float:
    return precision.weight_bits * precision.activation_bits / FULL_BITS**2


_Parts = list[tuple[int, Precision]]
"""Amounts, and the precision each is in."""


def _operations(cost: NetworkCost) -> _Parts:
    return [(layer.macs, layer.precision) for layer in cost.layers]


def _numbers(cost: NetworkCost) -> _Parts:
    return [*((layer.weights, layer.precision) for layer in cost.layers), (cost.parameters - cost.weights, Precision())]


def _ratios(members: Sequence[_Parts], baseline: _Parts, price: Price) -> Ratios:
    whole = _positive(_total(baseline))
    ideal = sum(_total(parts) * _price_of_quantized(parts, price) for parts in members)
    as_built = sum(amount * price(precision) for parts in members for amount, precision in parts)
    return Ratios(ideal / whole, as_built / whole)


def _total(parts: _Parts) -> int:
    return sum(amount for amount, _ in parts)


def _price_of_quantized(parts: _Parts, price: Price) -> float:
    """Mean price of what is quantized; that of full precision if nothing is."""
    quantized = [(amount, precision) for amount, precision in parts if not precision.is_full]
    if not _total(quantized):
        return 1.0
    return sum(amount * price(precision) for amount, precision in quantized) / _total(quantized)


def _positive(whole: float) -> float:
    if not whole > 0:
        raise EvaluationError("the model has no convolution and no linear layer that ran: there is nothing to compare")
    return whole
