"""Retraining on images near the decision boundary, after the description of feedback learning.

Song et al., "Feedback learning for improving the robustness of neural networks", https://arxiv.org/abs/1909.05443, is
used by https://arxiv.org/abs/2012.14965 and described there: distances to the decision boundary of a trained network
are measured, examples made from them, more of them for classes that lie closer, and the network is trained again so
that margins grow. How each of this is done is decided here: this is not a reproduction.
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
from empir_plugin.training.adversary import as_attacked
from empir_plugin.training.batch import Fit, Lesson


class Boundary(NamedTuple):
    """Where the decision on each image changes first.

    Args:
        radius: L2 distance ``(N,)`` in units of the image, before the way is clipped to [0, 1].
        direction: Unit vectors ``(N, C, H, W)``.
    """

    radius: Tensor
    direction: Tensor

    def at(self, x: Tensor, share: Tensor | float) -> Tensor:
        """Images ``(N, C, H, W)`` at shares of the way to the boundary, one number or ``(N, 1, 1, 1)``, in [0, 1]."""
        return (x + share * self.radius.view(-1, 1, 1, 1) * self.direction).clamp(0, 1)


@dataclass(frozen=True)
class BoundarySearch:
    """Look for the decision boundary along the gradient of the loss and along random directions, by bisection.

    Of several changes of the decision on one line, one is found. An image that is wrong from the start lies on the
    boundary; one whose decision changes nowhere has the radius ``reach`` along the gradient.

    Args:
        reach: The largest distance looked at, L2 in units of the image.
        directions: Random directions for each image, beside the gradient.
        halvings: Steps of bisection: radii are too large by at most ``reach / 2**halvings``.

    Raises:
        InputError: If the reach is not above 0, or a number of directions or halvings is impossible.

    Example:
        >>> lesson = Lesson(torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([0]))
        >>> round(BoundarySearch(1.0, halvings=20)(nn.Flatten(), lesson).radius.item(), 4)
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

    def __call__(self, model: nn.Module, lesson: Lesson) -> Boundary:
        """Search around the images of a lesson; the network is left as it was."""
        with as_attacked(model), freeze_parameters(model):
            found = [Boundary(self._radius(model, lesson, each), each) for each in self._directions(model, lesson)]
        radii = torch.stack([each.radius for each in found])  # (1 + directions, N)
        nearest = radii.argmin(0)
        rows = torch.arange(len(lesson.x), device=nearest.device)
        return Boundary(radii[nearest, rows], torch.stack([each.direction for each in found])[nearest, rows])

    def _directions(self, model: nn.Module, lesson: Lesson) -> Iterator[Tensor]:
        with torch.enable_grad():
            x = lesson.x.detach().clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(cross_entropy(model(x), lesson.y).sum(), x)
        yield _unit(gradient)
        images = torch.arange(len(lesson.x), device=lesson.x.device)
        for number in range(self.directions):
            yield _unit(Draw(lesson.seed, images, number).normal(lesson.x))

    @torch.no_grad()
    def _radius(self, model: nn.Module, lesson: Lesson, direction: Tensor) -> Tensor:
        low = lesson.x.new_zeros(len(lesson.x))
        high = torch.full_like(low, self.reach)
        for _ in range(self.halvings):
            middle = (low + high) / 2
            changed = model(Boundary(middle, direction).at(lesson.x, 1.0)).argmax(1) != lesson.y
            low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
        return high


def _unit(direction: Tensor) -> Tensor:
    length = direction.flatten(1).norm(dim=1).clamp_min(torch.finfo(direction.dtype).tiny)
    return direction / length.view(-1, 1, 1, 1)


def class_weights(radius: Tensor, y: Tensor, least: float) -> Tensor:
    """Weight of each image ``(N,)`` so that classes are drawn in inverse proportion to their mean radius.

    Args:
        radius: Distances ``(N,)`` to the boundary.
        y: Labels ``(N,)``.
        least: Means below it count as this.

    Example:
        >>> class_weights(torch.tensor([0.1, 0.3, 0.4]), torch.tensor([0, 0, 1]), 0.01)
        tensor([2.5000, 2.5000, 2.5000])
    """
    _, group, size = y.unique(return_inverse=True, return_counts=True)
    mean = radius.new_zeros(len(size)).index_add_(0, group, radius) / size
    return (1 / (mean.clamp_min(least) * size))[group]


@dataclass(frozen=True)
class BoundaryRetrain:
    """Learn images on both sides of the decision boundary with their true labels: "boundary_retrain" in recipes.

    In every step the boundary of the network as it is then is searched, and as many examples are drawn as the batch has
    images: of classes in inverse proportion to their mean distance, in turn ``spread`` short of the boundary and
    ``spread`` beyond it. Meant for a network that is trained already.

    Args:
        reach: See :class:`BoundarySearch`; also what images are moved by whose decision changes nowhere nearer.
        directions: See :class:`BoundarySearch`.
        halvings: See :class:`BoundarySearch`.
        spread: How far before and behind the boundary examples lie, as a share of the distance to it.
        clean_share: Share of the loss that is taken from the images as they are.

    Raises:
        InputError: If a setting is impossible.

    Example:
        >>> lesson = Lesson(torch.tensor([[[[0.6, 0.4]]], [[[0.3, 0.5]]]]), torch.tensor([0, 1]))
        >>> BoundaryRetrain(reach=1.0)(nn.Flatten(), lesson).loss > 0.6
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

    def __call__(self, model: nn.Module, lesson: Lesson) -> Fit:
        """Search, draw, then take the loss."""
        x, y = self.examples(model, lesson)
        near = lesson.criterion(model, x, y)
        unharmed = lesson.criterion(model, lesson.x, lesson.y)
        return Fit(torch.lerp(near.loss, unharmed.loss, self.clean_share), unharmed.logits)

    def examples(self, model: nn.Module, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Images ``(N, C, H, W)`` near the boundary, and their labels ``(N,)``."""
        boundary = BoundarySearch(self.reach, self.directions, self.halvings)(model, lesson)
        weights = class_weights(boundary.radius, lesson.y, self.reach / 100)
        generator = torch.Generator().manual_seed(lesson.seed)
        drawn = torch.multinomial(weights.cpu(), len(weights), replacement=True, generator=generator)
        drawn = drawn.to(lesson.x.device)
        share = torch.ones_like(boundary.radius) + self.spread
        share[::2] = 1 - self.spread
        moved = Boundary(boundary.radius[drawn], boundary.direction[drawn])
        return moved.at(lesson.x[drawn], share.view(-1, 1, 1, 1)), lesson.y[drawn]
