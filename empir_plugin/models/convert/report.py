"""The report of a conversion: which layers are quantized, and which parts of the network are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby

from torch import nn

from empir_plugin.models.layers import quantized_layers
from empir_plugin.models.quantize import ActivationQuantizer, Precision


@dataclass(frozen=True)
class ConvertedLayer:
    """Report on a quantized layer.

    Args:
        name: In the network.
        kind: Its class before the conversion.
        weights: Number of weights, without the bias.
        activations: Quantization of its input: ``"unsigned"``, ``"signed"`` or ``"sign"``.
        negative: Share of negative values among its inputs, 0 to 1; None if not measured.
        bound: Start of the learned range of its input; None if none is learned.
    """

    name: str
    kind: str
    weights: int
    activations: str
    negative: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class KeptLayer:
    """Report on a layer that stays in full precision.

    Args:
        name: In the network.
        kind: Its class.
        weights: Number of weights, without the bias.
        reason: Why it is not quantized.
    """

    name: str
    kind: str
    weights: int
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """Report of :func:`~empir_plugin.models.convert.quantize_.quantize_` on a network.

    Args:
        network: Class of the network.
        precision: Bits of the quantized layers.
        scale: Scale of their weights.
        converted: The quantized layers, in order of registration.
        kept: The layers left in full precision.
        other_parameters: Number of parameters in none of these layers: biases, normalisations, embeddings.
        attention: Names of attention modules. They multiply activations with activations, in full precision.
        looked_at: Images on which the inputs of layers were inspected: ``"calibration"``, ``"noise"``, or ``""`` for
            none; then it is unknown whether the network calls every converted layer. ``"definition"`` is for
            architectures defined with quantized layers.
        recalibrated: Number of batch normalisations with new statistics.
        weights_in_no_layer: Names of parameters among the others that the network multiplies in matrix products, in
            full precision, such as learned queries of attention; empty if it was not run.

    Example:
        >>> from empir_plugin.models.quantize import Precision
        >>> kept = (KeptLayer("fc", "Linear", 10, "last layer"),)
        >>> converted = (ConvertedLayer("conv", "Conv2d", 30, "unsigned"),)
        >>> report = ConversionReport("Net", Precision(4, 4), "max", converted, kept, other_parameters=2)
        >>> report.quantized_share
        0.75
    """

    network: str
    precision: Precision
    scale: str
    converted: tuple[ConvertedLayer, ...]
    kept: tuple[KeptLayer, ...]
    other_parameters: int
    attention: tuple[str, ...] = field(default=())
    looked_at: str = ""
    recalibrated: int = 0
    weights_in_no_layer: tuple[str, ...] = ()

    @property
    def quantized_weights(self) -> int:
        """Number of quantized weights."""
        return sum(layer.weights for layer in self.converted)

    @property
    def quantized_share(self) -> float:
        """Their share among the weights of all layers, 0 to 1."""
        return self.quantized_weights / (self.quantized_weights + sum(layer.weights for layer in self.kept))

    def to_dict(self) -> dict[str, object]:
        """The report as a mapping that JSON can hold."""
        totals = {"quantized_weights": self.quantized_weights, "quantized_share": self.quantized_share}
        return {**asdict(self), "precision": str(self.precision), **totals}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        share = f"{self.quantized_weights:,} weights, {100 * self.quantized_share:.1f} % of those in layers"
        yield f"{self.network}: {len(self.converted)} layers at {self.precision}, scale {self.scale}: {share}"
        signed = sum(layer.activations != "unsigned" for layer in self.converted)
        source = self.looked_at or "nothing: whether the network calls each of them is not known"
        yield f"  inputs: {signed} signed, {len(self.converted) - signed} unsigned; looked at with {source}"
        if self.recalibrated:
            yield f"  batch normalisations with new statistics: {self.recalibrated}"
        for reason, layers in groupby(sorted(self.kept, key=lambda layer: layer.reason), lambda layer: layer.reason):
            group = list(layers)
            names = ", ".join(layer.name for layer in group[:3]) + (", ..." if len(group) > 3 else "")
            weights = sum(layer.weights for layer in group)
            yield f"  full precision, {reason}: {len(group)} layers, {weights:,} weights ({names})"
        if self.attention:
            yield f"  full precision, products of activations: {len(self.attention)} attention modules"
        yield f"  full precision, in no layer: {self.other_parameters:,} parameters"
        if self.weights_in_no_layer:
            names = ", ".join(self.weights_in_no_layer[:3]) + (", ..." if len(self.weights_in_no_layer) > 3 else "")
            yield f"    weights of matrix products among them: {len(self.weights_in_no_layer)} ({names})"


def report_as_built(model: nn.Module, precision: Precision, scale: str, recalibrated: int = 0) -> ConversionReport:
    """The report on a network that is defined with quantized layers, such as those of EMPIR's release.

    Args:
        model: The network.
        precision: Bits of its quantized layers.
        scale: Scale of their weights.
        recalibrated: Number of batch normalisations with new statistics.

    Example:
        >>> from empir_plugin.models.architectures import CIFARConv
        >>> bits = Precision.parse("w4a2")
        >>> report = report_as_built(CIFARConv(bits), bits, "none")
        >>> [layer.name for layer in report.converted], [layer.name for layer in report.kept]
        (['conv1', 'conv2', 'conv3'], ['ip1', 'logits'])
    """
    quantized = {name: layer for name, layer in quantized_layers(model) if not layer.precision.is_full}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    converted = tuple(
        ConvertedLayer(name, type(layer).__name__, layer.weight.numel(), _inputs(layer.activation_quantizer))
        for name, layer in quantized.items()
    )
    kept = tuple(
        KeptLayer(name, type(layer).__name__, layer.weight.numel(), "as in the release")
        for name, layer in layers.items()
        if name not in quantized
    )
    others = sum(parameter.numel() for parameter in model.parameters()) - sum(x.weights for x in (*converted, *kept))
    network = type(model).__name__
    return ConversionReport(
        network, precision, scale, converted, kept, others, looked_at="definition", recalibrated=recalibrated
    )


def _inputs(quantizer: object) -> str:
    return "unsigned" if isinstance(quantizer, ActivationQuantizer) else str(quantizer)
