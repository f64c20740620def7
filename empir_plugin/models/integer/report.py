"""What became of the layers of a network that was to run on integers, and how well the two agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError


@dataclass(frozen=True)
class LayerOutcome:
    """What became of one convolution or linear layer.

    Args:
        name: As in ``named_modules``.
        precision: ``"w2a4"``, or ``"fp"``.
        on_integers: Whether it runs on integers.
        reason: The kernel's name, or why the layer stays in float.
    """

    name: str
    precision: str
    on_integers: bool
    reason: str

    def __str__(self) -> str:
        where = "integers" if self.on_integers else "float"
        return f"{self.name} ({self.precision}): {where}, {self.reason}"


@dataclass(frozen=True)
class IntegerReport:
    """What became of all of them.

    Args:
        layers: In order of registration.
        notes: What else could not be done, such as handing codes from layer to layer.
        agreement: With the fake-quantized model on the images given for a check, if any were.
    """

    layers: tuple[LayerOutcome, ...]
    notes: tuple[str, ...] = ()
    agreement: Agreement | None = None

    @property
    def on_integers(self) -> tuple[str, ...]:
        """Names of the layers that run on integers."""
        return tuple(layer.name for layer in self.layers if layer.on_integers)

    @property
    def in_float(self) -> tuple[str, ...]:
        """Names of the layers that stay in floating point."""
        return tuple(layer.name for layer in self.layers if not layer.on_integers)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.layers), *self.notes])


@dataclass(frozen=True)
class Agreement:
    """How far two models of the same function are apart on some images.

    Args:
        max_logit_difference: The largest difference between two logits.
        median_logit_difference: Median over the images of the largest difference on each; a network with batch
            normalisation moves a rare activation to the neighbouring level, which shows in the maximum only.
        differing_decisions: Images on which the decisions differ.
        images: N.
    """

    max_logit_difference: float
    median_logit_difference: float
    differing_decisions: int
    images: int


@torch.no_grad()
def agree(model: nn.Module, integer: nn.Module, images: Tensor, *, batch_size: int = 64) -> Agreement:
    """Compare the logits and decisions of a model with those of its integer form.

    Args:
        model: In evaluation mode.
        integer: What :func:`~empir_plugin.models.integer.convert.to_integer` made of it, or any other model.
        images: ``(N, C, H, W)`` in [0, 1].
        batch_size: Images per forward pass.

    Raises:
        InputError: If the model is in training mode or there are no images.

    Example:
        >>> agree(nn.Flatten().eval(), nn.Flatten().eval(), torch.rand(3, 1, 1, 2)).differing_decisions
        0
    """
    if model.training:
        raise InputError("the model is in training mode, in which it may compute something else: call eval() first")
    if not len(images):
        raise InputError("comparing two models takes at least one image, got none")
    pairs = [(model(batch), integer(batch)) for batch in images.split(batch_size)]
    gaps = torch.cat([(own - other).abs().flatten(1).amax(1) for own, other in pairs])
    differing = sum(int((own.argmax(1) != other.argmax(1)).sum()) for own, other in pairs)
    return Agreement(gaps.max().item(), gaps.median().item(), differing, len(images))


def outcomes(network: nn.Module, decided: dict[str, LayerOutcome]) -> Iterator[LayerOutcome]:
    """The outcomes of the quantized layers, and those of the others with weights, in order of registration."""
    for name, module in network.named_modules():
        if name in decided:
            yield decided[name]
        elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)):
            yield LayerOutcome(name, "fp", False, "its weights and its input have full precision")
