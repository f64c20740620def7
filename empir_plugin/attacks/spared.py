"""APGD without the images that fell: the running batch keeps its shape, the model sees only what still stands."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from empir_plugin.attacks.surrogates import Model


class SparingModel:
    """A model for one run of an attack that watches which images fall, and is asked no more about them.

    For an image that fell it returns, without a gradient, logits that name the true class: an attack that keeps, image
    by image, what last fooled the model, as APGD does, then keeps what it has. Nothing else in APGD passes between
    images, so the others' way is the same.

    Args:
        model: From images ``(N, C, H, W)`` to logits ``(N, K)``.
        y: True labels ``(N,)`` of the images of that run.

    Example:
        >>> model = SparingModel(lambda x: x.flatten(1), torch.tensor([0, 1]))
        >>> x = torch.tensor([[0.2, 0.8], [0.1, 0.9]]).view(2, 1, 1, 2)
        >>> model(x).argmax(1), model(x).argmax(1)
        (tensor([1, 1]), tensor([0, 1]))
    """

    def __init__(self, model: Model, y: Tensor) -> None:
        self._model = model
        self._y = y
        self._standing = torch.ones_like(y, dtype=torch.bool)
        self._classes = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)``, which belong to the labels row by row."""
        if self._standing.all():
            logits = self._model(x)
            self._classes = logits.shape[1]
        else:
            logits = self._of_standing(x)
        self._standing &= logits.detach().max(1)[1] == self._y
        return logits

    def _of_standing(self, x: Tensor) -> Tensor:
        named = F.one_hot(self._y, self._classes).to(x.dtype)
        rows = self._standing.nonzero().squeeze(1)
        if not len(rows):
            return named + 0 * x.flatten(1).sum(1, keepdim=True)  # Differentiable, as its caller expects.
        return named.index_copy(0, rows, self._model(x[rows]))


def spare_the_fallen(ascent: Any) -> None:
    """Change an APGD attack of AutoAttack so that its runs ask a :class:`SparingModel`.

    Args:
        ascent: With ``model`` and ``attack_single_run(x, y, x_init)``, and a single look at each iterate.

    Example:
        >>> from pyautoattack.autopgd_base import APGDAttack
        >>> spare_the_fallen(APGDAttack(lambda x: x.flatten(1), eps=0.1, device="cpu"))
    """
    whole_run = ascent.attack_single_run

    def run(x: Tensor, y: Tensor, x_init: Tensor | None = None) -> Any:
        model = ascent.model
        ascent.model = SparingModel(model, y)
        try:
            return whole_run(x, y, x_init)
        finally:
            ascent.model = model

    ascent.attack_single_run = run
