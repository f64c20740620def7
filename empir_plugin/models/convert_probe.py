"""What the layers of a network are given: one forward pass in evaluation mode that changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError

_NOISE_IMAGES = 2


def checked_images(model: nn.Module, images: object) -> Tensor:
    """Calibration images, moved to where the network is.

    Raises:
        InputError: If they are no images ``(N, C, H, W)``, not float, not finite, or fewer than two.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        found = (
            f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise InputError(f"calibration must be a float tensor of images (N, C, H, W), got {found}")
    if len(images) < 2:
        raise InputError(f"calibration needs two images at least, got {len(images)}: one has no statistics")
    if not bool(images.isfinite().all()):
        raise InputError("calibration has values that are not finite: images are in [0, 1]")
    parameter = next(model.parameters(), images)
    return images.to(parameter.device, parameter.dtype)


def noise(model: nn.Module) -> Tensor | None:
    """Images ``(N, C, H, W)`` of uniform noise, always the same, of the size in ``default_cfg``; None without one."""
    config: Any = getattr(model, "default_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    if size is None:
        return None
    images = torch.rand(_NOISE_IMAGES, *size, generator=torch.Generator().manual_seed(0))
    parameter = next(model.parameters(), images)
    return images.to(parameter.device, parameter.dtype)


@dataclass
class _Tally:
    negative: int = 0
    total: int = 0


def negative_shares(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, float]:
    """Share of negative values among what each layer is given, 0 to 1; layers that are never called are left out.

    Raises:
        InputError: If the network does not take the images.
    """
    tallies: dict[str, _Tally] = {}

    def watch(name: str, layer: nn.Module) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tally = tallies.setdefault(name, _Tally())
            tally.negative += int((inputs[0] < 0).sum())
            tally.total += inputs[0].numel()

        return layer.register_forward_pre_hook(note)

    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: tally.negative / max(tally.total, 1) for name, tally in tallies.items()}


def run(model: nn.Module, images: Tensor) -> None:
    """Call a network on images, for what happens inside.

    Raises:
        InputError: If the network does not take them.
    """
    try:
        model(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n")[0]
        shape = tuple(images.shape)
        raise InputError(f"{type(model).__name__} does not take images of shape {shape}: {reason}") from error


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module back the mode it had."""
    found = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in found:
            module.training = mode
