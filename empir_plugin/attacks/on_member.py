"""An attack on one member of an ensemble, its images then shown to the ensemble."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.surrogates import Model, member_of
from empir_plugin.attacks.threat import Threat


@dataclass(frozen=True)
class OnMember:
    """An attack that is carried out, and whose success is judged, on one member alone.

    What comes back is what the attack made, whether the ensemble falls for it or not. It is transfer from the member to
    the ensemble, https://arxiv.org/abs/1605.07277, with the source looked up in the very model under attack; and it is
    what EMPIR's released BIM and Carlini-Wagner attacks do, with the full-precision member.

    Args:
        index: Which member, from 0.
        attack: How it is attacked.

    Raises:
        InputError: When called with a model that has no such member.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from empir_plugin.attacks.gradient import bim
        >>> from empir_plugin.models.ensemble import Ensemble
        >>> x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
        >>> attack = OnMember(1, bim(1))
        >>> attack(Ensemble([nn.Flatten(), nn.Flatten()]), x, y, Threat.parse("Linf:0.1"))
        tensor([[[[0.4000, 0.6000]]]])
    """

    index: int
    attack: Attack

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> Tensor:
        """Attack a batch.

        Args:
            model: An ensemble.
            x: Images ``(N, C, H, W)`` in [0, 1].
            y: Labels ``(N,)`` to push away from.
            threat: How far to go.
            seed: Of the attack.
            indices: Numbers of the images in the data set ``(N,)``.

        Returns:
            What the attack made of the images on that member ``(N, C, H, W)``.
        """
        return self.attack(member_of(model, self.index, self), x, y, threat, seed=seed, indices=indices)
