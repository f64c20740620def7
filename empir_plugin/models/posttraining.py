"""Quantization of trained weights, without training and without quantized activations.

Source: Song et al., "Improving adversarial robustness in weight-quantized neural networks",
https://arxiv.org/abs/2012.14965, which rounds weights to equally spaced levels, mostly of 3 bits. The paper does not
state range and granularity; here every layer has one range, from minus to plus its largest absolute weight.
"""

from __future__ import annotations

from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.models.convert.layers import quantize_layer_class_, undo_on_error
from empir_plugin.models.convert.probe import negative_shares, noise, weights_outside_layers
from empir_plugin.models.convert.select import Layers, Plan, plan, refuse_applied_outside, refuse_uncalled
from empir_plugin.models.layers import refuse_script
from empir_plugin.models.quantize import FULL_BITS, ActivationQuantizer, WeightQuantizer
from empir_plugin.models.weight_quantizers import AnyWeightQuantizer, UniformWeightQuantizer


def post_training_quantizer(bits: int) -> AnyWeightQuantizer:
    """The quantizer of trained weights: ``2**bits - 1`` equally spaced levels, and for one bit ``mean|w| sign(w)``.

    Args:
        bits: 1 to 8.

    Raises:
        InputError: If the number of bits is another.

    Example:
        >>> post_training_quantizer(3)
        UniformWeightQuantizer(bits=3)
    """
    if not isinstance(bits, int) or not 1 <= bits <= 8:
        raise InputError(f"bits of a weight must be a whole number from 1 to 8, got {bits!r}")
    return WeightQuantizer(1) if bits == 1 else UniformWeightQuantizer(bits)


def quantize_weights_(model: nn.Module, bits: int = 3, *, layers: Layers | str = "all") -> tuple[str, ...]:
    """Quantize the weights of a trained network, in place, without training it again.

    The trained weights stay as latent weights, so the quantization error can be measured:
    :func:`~empir_plugin.models.lipschitz.quantization_error_norms`. Either every requested layer is quantized, or the
    network is left unchanged. If its ``default_cfg`` has the size of its images, a forward pass on noise checks that
    the network calls each of the layers.

    Args:
        model: A network or an ensemble in full precision.
        bits: 1 to 8, see :func:`post_training_quantizer`.
        layers: See :func:`~empir_plugin.models.convert.quantize_.quantize_`; here all of them by default.

    Returns:
        Names of the quantized layers.

    Raises:
        InputError: If the number of bits is invalid, a layer is quantized already or cannot be, or there is none.

    Example:
        >>> quantize_weights_(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2)))
        ('0', '2')
    """
    refuse_script(model)
    quantizer, selected = post_training_quantizer(bits), _refuse_unused(model, plan(model, layers, noise(model)))
    if selected.refused:
        first = selected.refused[0]
        raise InputError(f"{first.name or first.kind} cannot be quantized ({first.reason}): name others with layers=")
    if not selected.chosen:
        raise InputError(f"nothing to quantize in {type(model).__name__}: it has no convolution or linear layer")
    with undo_on_error(selected.chosen.values()):
        for layer in selected.chosen.values():
            quantize_layer_class_(layer).use_quantizers_(quantizer, ActivationQuantizer(FULL_BITS))
    return tuple(selected.chosen)


def _refuse_unused(model: nn.Module, selected: Plan) -> Plan:
    """Refuse layers that the network does not call, if its image size is known."""
    images = noise(model)
    if images is None:
        return selected
    try:
        called = negative_shares(model, selected.chosen, images)
        outside = weights_outside_layers(model, selected.by_name(model), images)
        return refuse_applied_outside(model, refuse_uncalled(selected, called), outside)
    except InputError:
        return selected  # The image size in the configuration is wrong, which is no reason to refuse the network.
