"""Black-box transfer: images made on one model, judged on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from empir_plugin.attacks.batch import Attack, Batch, parameters_frozen
from empir_plugin.attacks.surrogates import Model, member_of
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError


@dataclass(frozen=True)
class Transfer:
    """An attack on a source model whose images are then shown to the target, https://arxiv.org/abs/1605.07277.

    The target is asked once per image, at the end, and never differentiated.

    Args:
        source: Where the images are made.
        attack: How. One that returns its last iterate transfers best: the first that fools the source has hardly
            crossed its boundary.

    Example:
        >>> from dataclasses import replace
        >>> from empir_plugin.attacks.gradient import bim
        >>> x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
        >>> attack = Transfer(lambda x: 2 * x.flatten(1), replace(bim(), return_last=True))
        >>> attack(lambda x: x.flatten(1), x, y, Threat.parse("Linf:0.1"))
        tensor([[[[0.4000, 0.6000]]]])
    """

    kind: ClassVar[str] = "transfer"
    algorithm_version: ClassVar[int] = 1

    source: Model
    attack: Attack

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> Tensor:
        """Attack a batch.

        Args:
            model: The target.
            x: Images ``(N, C, H, W)`` in [0, 1].
            y: True labels ``(N,)``.
            threat: How far to go.
            seed: Of the attack on the source.
            indices: Numbers of the images in the data set ``(N,)``.

        Returns:
            Adversarial images ``(N, C, H, W)``; one that does not fool the target is returned unchanged.
        """
        batch = Batch.of(x, y, indices=indices)
        adv = self.attack(self.source, x, y, threat, seed=seed, indices=indices)
        fooled = _fooled(model, batch, adv)
        return torch.where(fooled.view(-1, 1, 1, 1), adv, batch.x)


def transfer_matrix(
    models: Sequence[Model], x: Tensor, y: Tensor, threat: Threat, *, attack: Attack, seed: int = 0
) -> Tensor:
    """How well adversarial images travel between models, such as the members of an ensemble.

    Args:
        models: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``; M of them.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: True labels ``(N,)``.
        threat: How far to go.
        attack: How the images are made; one that returns its last iterate transfers best.
        seed: Of the attack.

    Returns:
        ``(M, M)``, float64: of the images that every model classifies correctly, the share that was made on the model
        of the row and fools the model of the column.

    Raises:
        InputError: If there is no image that every model classifies correctly.

    Example:
        >>> from dataclasses import replace
        >>> from empir_plugin.attacks.gradient import fgsm
        >>> attack = replace(fgsm(), return_last=True)
        >>> x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
        >>> models = [lambda x: x.flatten(1), lambda x: x.flatten(1) * torch.tensor([9.0, 1.0])]
        >>> transfer_matrix(models, x, y, Threat.parse("Linf:0.1"), attack=attack)
        tensor([[1., 0.],
                [1., 0.]], dtype=torch.float64)
    """
    batch = Batch.of(x, y)
    wrong = torch.stack([_fooled(model, batch, batch.x) for model in models]).any(0)
    batch = batch.keep(~wrong)
    if not len(batch):
        raise InputError(f"none of {len(x)} images is classified correctly by all {len(models)} models")
    rows = []
    for source in models:
        adv = attack(source, batch.x, batch.y, threat, seed=seed, indices=batch.indices)
        rows.append(torch.stack([_fooled(target, batch, adv).double().mean() for target in models]))
    return torch.stack(rows)


def _fooled(model: Model, batch: Batch, adv: Tensor) -> Tensor:
    with torch.no_grad(), parameters_frozen(model):
        logits = model(adv)
    batch.check_logits(logits)
    return batch.fooled(logits.argmax(1))


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

    kind: ClassVar[str] = "on-member"
    algorithm_version: ClassVar[int] = 1

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
