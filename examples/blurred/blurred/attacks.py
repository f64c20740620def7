"""The attack ``corners``: random points on the border of the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from empir_plugin import InputError, Threat
from empir_plugin.attacks import Draw


@dataclass(frozen=True)
class Corners:
    """Random points on the border of the budget: for Linf, every pixel is moved by eps, up or down.

    It needs no gradient, and it is weak: a model that it does not break still has to be attacked properly.

    Args:
        tries: Points per image; a broken image is not tried again.

    Raises:
        InputError: If ``tries`` is less than 1.

    Example:
        >>> x, y = torch.tensor([[[[0.51, 0.5]]]]), torch.tensor([0])
        >>> adversarial = Corners(tries=20)(lambda x: x.flatten(1), x, y, Threat.parse("Linf:0.1"))
        >>> adversarial.flatten(1).argmax(1)
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
        adversarial, active = x.clone(), torch.arange(len(x), device=x.device)
        numbers = active if indices is None else indices.to(x.device)
        for number in range(self.tries):
            # Random numbers depend on the image, not on the batch or on which other images are already broken.
            direction = threat.norm.ascent(Draw(seed, numbers[active], number).normal(x[active]))
            tried = (x[active] + threat.eps * direction).clamp(0, 1)
            fooled = model(tried).argmax(1) != y[active]
            adversarial[active[fooled]] = tried[fooled]
            active = active[~fooled]
            if not len(active):
                break
        return adversarial
