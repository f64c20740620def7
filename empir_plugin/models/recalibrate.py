"""Statistics that belong to a precision: those of batch normalisations, and where learned ranges start."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.models.activations import is_signed
from empir_plugin.models.convert_probe import checked_images, modes_kept, run
from empir_plugin.models.layers import quantized_layers

_BATCH = 256
_QUANTILE = 0.999
_SMALLEST_BOUND = 1e-3


@torch.no_grad()
def recalibrate_(model: nn.Module, images: Tensor) -> int:
    """Estimate the statistics of a network's batch normalisations anew, as the averages over the batches of 256.

    Another precision moves what every layer gives; with the statistics of the old one a network guesses. The weights,
    and the mode of the network, stay.

    Args:
        model: Any network.
        images: ``(N, C, H, W)`` in [0, 1].

    Returns:
        How many normalisations have new statistics.

    Raises:
        InputError: If the images are none, or the network does not take them.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1))
        >>> recalibrate_(network, torch.full((4, 1, 2, 2), 0.5))
        1
        >>> network[0].running_mean
        tensor([0.5000])
    """
    images = checked_images(model, images)
    with _averaging(model) as norms:
        for batch in images.tensor_split(math.ceil(len(images) / _BATCH)):
            run(model, batch)
    return len(norms)


@torch.no_grad()
def start_ranges_(model: nn.Module, images: Tensor) -> None:
    """Start learned ranges at the 99.9 % quantile of the size of what each layer is given.

    One pass sets them all, so that each layer is given what quantized layers before it give. Batch normalisations use
    the statistics of the images.

    Args:
        model: With layers whose range is learned.
        images: ``(N, C, H, W)`` in [0, 1]: one batch.
    """

    def start(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].abs() if is_signed(layer.activation_quantizer) else inputs[0].clamp_min(0)
        rank = max(1, math.ceil(_QUANTILE * values.numel()))
        layer.activation_bound.fill_(values.flatten().kthvalue(rank).values.clamp_min(_SMALLEST_BOUND))

    learning = [layer for _, layer in quantized_layers(model) if layer.activation_bound is not None]
    handles = [layer.register_forward_pre_hook(start) for layer in learning]
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with _averaging(model):
            run(model, checked_images(model, images)[:_BATCH])
    finally:
        for handle in handles:
            handle.remove()
        for name, value in model.named_buffers():
            value.copy_(statistics[name])


@contextmanager
def _averaging(model: nn.Module) -> Iterator[list[Any]]:
    """Everything in evaluation mode but batch normalisations, which forget and average over the batches inside."""
    norms: list[Any] = [module for module in model.modules() if _has_statistics(module)]
    momenta = [norm.momentum for norm in norms]
    with modes_kept(model):
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        try:
            yield norms
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
