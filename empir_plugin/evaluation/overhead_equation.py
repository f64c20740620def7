"""Equation 6 of EMPIR: time and storage of an ensemble relative to one full-precision network.

Source: Sen et al., ICLR 2020, https://openreview.net/forum?id=HJem3yHKwH, Section 3: ``M + sum Ops(FP) / Ops(k_i)`` for
time and ``M + sum k_i / 32`` for storage, with M full-precision members and the low-precision ones of precision k_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.overhead_count import NetworkCost
from empir_plugin.evaluation.overhead_throughput import PROPORTIONAL, PUBLISHED, Throughput
from empir_plugin.models.precision import FULL_BITS, Precision

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
        >>> from empir_plugin.evaluation.overhead_count import LayerCost
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
