"""An attack by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from empir_plugin import InputError, Threat
from empir_plugin.attacks import Draw


@dataclass(frozen=True)
class Corners:
    """Random points on the border of the budget: for Linf, every pixel as far up or down as it may go.

    It needs no gradient. A model that falls to it needs no better attack; one that stands has not been attacked yet.

    Args:
        tries: Points per image; an image that falls is not tried again.

    Raises:
        InputError: If there is no try.

    Example:
        >>> x, y = torch.tensor([[[[0.51, 0.5]]]]), torch.tensor([0])
        >>> found = Corners(tries=20)(lambda x: x.flatten(1), x, y, Threat.parse("Linf:0.1"))
        >>> found.flatten(1).argmax(1)
        tensor([1])
    """

    tries: int = 10

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise InputError(f"tries must be 1 or more, got {self.tries}")

    @torch.no_grad()
    def __call__(
        self,
        model: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int = 0,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Attack a batch: see :class:`empir_plugin.attacks.Attack`."""
        found, left = x.clone(), torch.arange(len(x), device=x.device)
        numbers = left if indices is None else indices.to(x.device)
        for number in range(self.tries):
            # An image's random numbers are its own: the same in any batch, whichever of the others have fallen.
            direction = threat.norm.ascent(Draw(seed, numbers[left], number).normal(x[left]))
            tried = (x[left] + threat.eps * direction).clamp(0, 1)
            fooled = model(tried).argmax(1) != y[left]
            found[left[fooled]] = tried[fooled]
            left = left[~fooled]
            if not len(left):
                break
        return found
