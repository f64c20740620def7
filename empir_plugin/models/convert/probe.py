"""Run a network on images to learn about it: signs of layer inputs, batch statistics and starts of learned ranges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.activations import is_signed
from empir_plugin.models.layers import input_of_call, quantized_layers
from empir_plugin.models.quantize import in_float32

_NOISE_IMAGES = 2
_BATCH = 256
_QUANTILE = 0.999
_SMALLEST_BOUND = 1e-3


def check_images(model: nn.Module, images: object) -> Tensor:
    """Check calibration images and move them to the network's device and type.

    Raises:
        InputError: If they are not finite float images ``(N, C, H, W)``, or fewer than two.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        actual = (
            f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise InputError(f"calibration must be a float tensor of images (N, C, H, W), got {actual}")
    if len(images) < 2:
        raise InputError(f"calibration needs two images at least, got {len(images)}: one has no statistics")
    if not bool(images.isfinite().all()):
        raise InputError("calibration has values that are not finite: images are in [0, 1]")
    return _like_parameters(images, model)


def _like_parameters(images: Tensor, model: nn.Module) -> Tensor:
    """The images on the device and in the type of a network's first parameter of floating-point numbers."""
    parameter = next((each for each in model.parameters() if each.is_floating_point()), images)
    return images.to(parameter.device, parameter.dtype)


def noise(model: nn.Module) -> Tensor | None:
    """Fixed images ``(N, C, H, W)`` of uniform noise, of the size in ``default_cfg``; None without one."""
    config: Any = getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    if size is None:
        return None
    return _like_parameters(torch.rand(_NOISE_IMAGES, *size, generator=torch.Generator().manual_seed(0)), model)


@dataclass
class _SignTally:
    """Counts of one layer's input values."""

    negative: int = 0
    total: int = 0


def negative_shares(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, float]:
    """Share of negative values in the input of each layer, 0 to 1; layers that are never called are omitted.

    Raises:
        InputError: If the network does not accept the images.
    """
    tallies: dict[str, _SignTally] = {}

    def watch(name: str, layer: nn.Module) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            values, tally = input_of_call(args, kwargs), tallies.setdefault(name, _SignTally())
            tally.negative += int((values < 0).sum())
            tally.total += values.numel()

        return layer.register_forward_pre_hook(note, with_kwargs=True)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        with preserve_modes(model), torch.no_grad():
            model.eval()
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tally.negative / max(tally.total, 1) for name, tally in tallies.items()}


def run(model: nn.Module, images: Tensor) -> None:
    """Call a network on images, for the hooks or statistics inside it.

    Raises:
        InputError: If the network does not accept them.
    """
    try:
        model(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n")[0]
        kind = f"images of shape {tuple(images.shape)} and type {str(images.dtype).removeprefix('torch.')}"
        raise InputError(f"{type(model).__name__} does not take {kind}: {reason}") from error


@contextmanager
def preserve_modes(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every module on exit."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def recalibrate_(model: nn.Module, images: Tensor) -> int:
    """Estimate the statistics of a network's batch normalisations anew, as averages over batches of 256.

    Another precision shifts the outputs of every layer; with the old statistics, accuracy can drop to chance. The
    weights and the mode of the network stay the same.

    Args:
        model: Any network.
        images: ``(N, C, H, W)`` in [0, 1].

    Returns:
        How many normalisations have new statistics.

    Raises:
        InputError: If the images are invalid, or the network does not accept them.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1))
        >>> recalibrate_(network, torch.full((4, 1, 2, 2), 0.5))
        1
        >>> network[0].running_mean
        tensor([0.5000])
    """
    images = check_images(model, images)
    with _averaging(model) as norms:
        for batch in images.tensor_split(math.ceil(len(images) / _BATCH)):
            run(model, batch)
    return len(norms)


@torch.no_grad()
def start_ranges_(model: nn.Module, images: Tensor) -> None:
    """Start learned ranges at the 99.9 % quantile of the magnitude of each layer's input.

    A single pass sets them all, so each layer sees the outputs of the quantized layers before it. Batch normalisations
    use the statistics of the images.

    Args:
        model: A network with learned ranges.
        images: ``(N, C, H, W)`` in [0, 1]: one batch.
    """

    def start(layer: Any, args: Any, kwargs: Any) -> None:
        inputs = in_float32(input_of_call(args, kwargs))
        values = inputs.abs() if is_signed(layer.activation_quantizer) else inputs.clamp_min(0)
        rank = max(1, math.ceil(_QUANTILE * values.numel()))
        layer.activation_bound.fill_(values.flatten().kthvalue(rank).values.clamp_min(_SMALLEST_BOUND))

    learning = [layer for _, layer in quantized_layers(model) if layer.activation_bound is not None]
    handles = [layer.register_forward_pre_hook(start, with_kwargs=True) for layer in learning]
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with _averaging(model):
            run(model, check_images(model, images)[:_BATCH])
    finally:
        for handle in handles:
            handle.remove()
        restore_buffers_(model, before)


@contextmanager
def _averaging(model: nn.Module) -> Iterator[list[Any]]:
    """Evaluation mode, except for batch normalisations: their statistics become averages over the batches inside."""
    norms: list[Any] = [module for module in model.modules() if _has_statistics(module)]
    before = {name: value.clone() for name, value in model.named_buffers()}
    momenta = [norm.momentum for norm in norms]
    with preserve_modes(model):
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        try:
            yield norms
        except BaseException:
            restore_buffers_(model, before)
            raise
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@torch.no_grad()
def restore_buffers_(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Write earlier copies of a network's buffers back into them."""
    for name, value in model.named_buffers():
        value.copy_(before[name])


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
