"""Retraining on images near the decision boundary, following the published description of feedback learning.

Song et al., "Feedback learning for improving the robustness of neural networks", https://arxiv.org/abs/1909.05443, is
used and summarised by https://arxiv.org/abs/2012.14965: measure the distances of images to the decision boundary of a
trained network, generate examples from them, more for classes closer to the boundary, and retrain the network to
enlarge its margins. The papers leave the details open, so this is not a reproduction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from empir_plugin._files.tables import check_positive
from empir_plugin.attacks.batch import freeze_parameters
from empir_plugin.attacks.losses import cross_entropy
from empir_plugin.attacks.randomness import Draw
from empir_plugin.errors import InputError
from empir_plugin.training.adversary import attack_mode
from empir_plugin.training.batch import LossOutput, TrainingBatch


class Boundary(NamedTuple):
    """The nearest decision boundary found for each image.

    Args:
        radius: L2 distance ``(N,)`` in units of the image, before clipping to [0, 1].
        direction: Unit vectors ``(N, C, H, W)`` from the images to the boundary.
    """

    radius: Tensor
    direction: Tensor

    def at(self, x: Tensor, share: Tensor | float) -> Tensor:
        """Images ``(N, C, H, W)``, moved by a share of the distance to the boundary and clipped to [0, 1].

        Args:
            x: Images ``(N, C, H, W)``.
            share: A number, or one per image ``(N, 1, 1, 1)``; 1 is the boundary, above 1 lies beyond it.
        """
        return (x + share * self.radius.view(-1, 1, 1, 1) * self.direction).clamp(0, 1)


@dataclass(frozen=True)
class BoundarySearch:
    """Search for the decision boundary by bisection, along the gradient of the loss and along random directions.

    If the decision changes several times along one direction, one of the changes is found. A misclassified image has
    radius 0; an image whose decision changes in no direction has the radius ``reach`` along the gradient.

    Args:
        reach: The largest distance searched, L2 in units of the image.
        directions: Number of random directions per image, in addition to the gradient.
        halvings: Bisection steps; radii are too large by at most ``reach / 2**halvings``.

    Raises:
        InputError: If the reach is not above 0, or a number of directions or halvings is impossible.

    Example:
        >>> batch = TrainingBatch(torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([0]))
        >>> round(BoundarySearch(1.0, halvings=20)(nn.Flatten(), batch).radius.item(), 4)
        0.1414
    """

    reach: float
    directions: int = 4
    halvings: int = 8

    def __post_init__(self) -> None:
        check_positive("reach", self.reach)
        if self.directions < 0 or self.halvings < 1:
            raise InputError(
                f"directions must be 0 or more and halvings 1 or more, got {self.directions} and {self.halvings}"
            )

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> Boundary:
        """Search around the images of a batch; the network's modes and weights are left unchanged."""
        with attack_mode(model), freeze_parameters(model):
            found = [Boundary(self._bisect(model, batch, each), each) for each in self._directions(model, batch)]
        radii = torch.stack([each.radius for each in found])  # (1 + directions, N)
        nearest = radii.argmin(0)
        rows = torch.arange(len(batch.x), device=nearest.device)
        return Boundary(radii[nearest, rows], torch.stack([each.direction for each in found])[nearest, rows])

    def _directions(self, model: nn.Module, batch: TrainingBatch) -> Iterator[Tensor]:
        with torch.enable_grad():
            x = batch.x.detach().clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(cross_entropy(model(x), batch.y).sum(), x)
        yield _unit(gradient)
        images = torch.arange(len(batch.x), device=batch.x.device)
        for number in range(self.directions):
            yield _unit(Draw(batch.seed, images, number).normal(batch.x))

    @torch.no_grad()
    def _bisect(self, model: nn.Module, batch: TrainingBatch, direction: Tensor) -> Tensor:
        low = batch.x.new_zeros(len(batch.x))
        high = torch.full_like(low, self.reach)
        for _ in range(self.halvings):
            middle = (low + high) / 2
            changed = model(Boundary(middle, direction).at(batch.x, 1.0)).argmax(1) != batch.y
            low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
        return high


def _unit(direction: Tensor) -> Tensor:
    length = direction.flatten(1).norm(dim=1).clamp_min(torch.finfo(direction.dtype).tiny)
    return direction / length.view(-1, 1, 1, 1)


def class_weights(radius: Tensor, y: Tensor, least: float) -> Tensor:
    """Sampling weight of each image ``(N,)``, so that each class is drawn in inverse proportion to its mean radius.

    Args:
        radius: Distances ``(N,)`` to the boundary.
        y: Labels ``(N,)``.
        least: Lower bound of the mean radius of a class.

    Example:
        >>> class_weights(torch.tensor([0.1, 0.3, 0.4]), torch.tensor([0, 0, 1]), 0.01)
        tensor([2.5000, 2.5000, 2.5000])
    """
    _, group, size = y.unique(return_inverse=True, return_counts=True)
    mean = radius.new_zeros(len(size)).index_add_(0, group, radius) / size
    return (1 / (mean.clamp_min(least) * size))[group]


@dataclass(frozen=True)
class BoundaryRetrain:
    """Train on images on both sides of the decision boundary with their true labels: "boundary_retrain" in recipes.

    Each step searches for the current network's boundary and draws as many examples as the batch has images. Classes
    are drawn in inverse proportion to their mean distance; examples lie alternately ``spread`` short of the boundary
    and ``spread`` beyond it. Intended for a network that is already trained.

    Args:
        reach: See :class:`BoundarySearch`; images whose decision does not change within it are moved by it.
        directions: See :class:`BoundarySearch`.
        halvings: See :class:`BoundarySearch`.
        spread: Distance of the examples from the boundary, as a share of the image's distance to it.
        clean_share: Share of the loss that is computed on the unmodified images, in [0, 1).

    Raises:
        InputError: If a setting is out of its range.

    Example:
        >>> batch = TrainingBatch(torch.tensor([[[[0.6, 0.4]]], [[[0.3, 0.5]]]]), torch.tensor([0, 1]))
        >>> BoundaryRetrain(reach=1.0)(nn.Flatten(), batch).loss > 0.6
        tensor(True)
    """

    reach: float
    directions: int = 4
    halvings: int = 8
    spread: float = 0.1
    clean_share: float = 0.5

    def __post_init__(self) -> None:
        BoundarySearch(self.reach, self.directions, self.halvings)
        if not 0 < self.spread < 1:
            raise InputError(f"spread must lie between 0 and 1, got {self.spread!r}")
        if not 0 <= self.clean_share < 1:
            raise InputError(f"clean_share must lie in [0, 1), got {self.clean_share!r}")

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> LossOutput:
        """Search for the boundary, draw examples, then compute the loss."""
        x, y = self.examples(model, batch)
        near_output = batch.criterion(model, x, y)
        clean_output = batch.criterion(model, batch.x, batch.y)
        return LossOutput(torch.lerp(near_output.loss, clean_output.loss, self.clean_share), clean_output.logits)

    def examples(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Draw images ``(N, C, H, W)`` near the boundary, with their labels ``(N,)``."""
        boundary = BoundarySearch(self.reach, self.directions, self.halvings)(model, batch)
        weights = class_weights(boundary.radius, batch.y, self.reach / 100)
        generator = torch.Generator().manual_seed(batch.seed)
        drawn = torch.multinomial(weights.cpu(), len(weights), replacement=True, generator=generator)
        drawn = drawn.to(batch.x.device)
        share = torch.ones_like(boundary.radius) + self.spread
        share[::2] = 1 - self.spread
        moved = Boundary(boundary.radius[drawn], boundary.direction[drawn])
        return moved.at(batch.x[drawn], share.view(-1, 1, 1, 1)), batch.y[drawn]
