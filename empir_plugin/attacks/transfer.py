"""Transfer attacks: adversarial images of one model, or of one member, used against another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeGuard

import torch
from torch import Tensor

from empir_plugin.attacks.batch import Attack, Batch, GradientAttackResult, freeze_parameters, view
from empir_plugin.attacks.carlini_wagner import CarliniWagner
from empir_plugin.attacks.gradient import GradientAttack
from empir_plugin.attacks.surrogates import Model, member_of, plain
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError


@dataclass(frozen=True)
class Transfer:
    """An attack on a source model, its images used against the target, https://arxiv.org/abs/1605.07277.

    The target is queried once per image, at the end, and never differentiated.

    Args:
        source: The model the attack runs on.
        attack: The attack. It transfers best if it returns its last iterate: the first that fools the source has
            hardly crossed the decision boundary.

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
            threat: Norm and radius the perturbations must respect.
            seed: Seed of the attack on the source.
            indices: Indices of the images in the data set ``(N,)``.

        Returns:
            Adversarial images ``(N, C, H, W)``; images for which the target is not fooled are returned unchanged.
        """
        adv = self.attack(self.source, x, y, threat, seed=seed, indices=indices)
        return self._successes(model, x, y, adv, indices)

    def run(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> GradientAttackResult:
        """Attack a batch as a call does, and report where the source's gradient was exactly zero.

        Raises:
            TypeError: If the attack is not a gradient attack: see :func:`reports_zero_gradients`.
        """
        result = _run(self.attack, self.source, x, y, threat, seed, indices)
        return result._replace(images=self._successes(model, x, y, result.images, indices))

    def _successes(self, model: Model, x: Tensor, y: Tensor, adv: Tensor, indices: Tensor | None) -> Tensor:
        batch = Batch.of(x, y, indices=indices)
        return torch.where(_fooled(model, batch, adv).view(-1, 1, 1, 1), adv, batch.x)


@dataclass(frozen=True)
class OnMember:
    """An attack on one member of an ensemble, successful if that member is fooled.

    Its images are returned whether or not they fool the ensemble. This is transfer from the member to the ensemble,
    https://arxiv.org/abs/1605.07277, where the source is part of the model under attack. EMPIR's released BIM and
    Carlini-Wagner attacks do this with the full-precision member.

    Args:
        index: Index of the member, from 0.
        attack: The attack on the member.

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
            y: True labels ``(N,)``.
            threat: Norm and radius the perturbations must respect.
            seed: Seed of the attack.
            indices: Indices of the images in the data set ``(N,)``.

        Returns:
            The images ``(N, C, H, W)`` the attack on the member returns.
        """
        return self.attack(member_of(model, self.index, self), x, y, threat, seed=seed, indices=indices)

    def run(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> GradientAttackResult:
        """Attack a batch as a call does, and report where the member's gradient was exactly zero.

        Raises:
            TypeError: If the attack is not a gradient attack: see :func:`reports_zero_gradients`.
        """
        return _run(self.attack, member_of(model, self.index, self), x, y, threat, seed, indices)


def _run(
    attack: Attack, model: Model, x: Tensor, y: Tensor, threat: Threat, seed: int, indices: Tensor | None
) -> GradientAttackResult:
    if not reports_zero_gradients(attack):
        raise TypeError(f"only gradient attacks report zero gradients, got a {type(attack).__name__}: call it")
    return attack.run(model, x, y, threat, seed=seed, indices=indices)


def reports_zero_gradients(attack: object) -> TypeGuard[GradientAttack | CarliniWagner | OnMember | Transfer]:
    """Whether an attack has a method ``run`` that reports where the gradient was exactly zero.

    Example:
        >>> from empir_plugin.attacks.gradient import fgsm, uniform_noise
        >>> reports_zero_gradients(OnMember(0, fgsm())), reports_zero_gradients(uniform_noise())
        (True, False)
    """
    if isinstance(attack, (OnMember, Transfer)):
        return reports_zero_gradients(attack.attack)
    return isinstance(attack, CarliniWagner) or (isinstance(attack, GradientAttack) and attack.steps > 0)


def transfer_matrix(
    models: Sequence[Model], x: Tensor, y: Tensor, threat: Threat, *, attack: Attack, seed: int = 0
) -> Tensor:
    """Transfer rates between models, such as the members of an ensemble, https://arxiv.org/abs/1605.07277.

    Args:
        models: M models, from images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: True labels ``(N,)``.
        threat: Norm and radius the perturbations must respect.
        attack: The attack on each model; it transfers best if it returns its last iterate.
        seed: Seed of the attack.

    Returns:
        ``(M, M)``, float64: the share of adversarial images of the row's model that fool the column's model, over the
        images that all models classify correctly.

    Raises:
        InputError: If no image is classified correctly by all models.

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
        raise InputError(
            f"some images must be classified correctly by all {len(models)} models, got none of {len(x)}: use other "
            "images or models"
        )
    rows = []
    for source in models:
        adv = attack(source, batch.x, batch.y, threat, seed=seed, indices=batch.indices)
        rows.append(torch.stack([_fooled(target, batch, adv).double().mean() for target in models]))
    return torch.stack(rows)


def _fooled(model: Model, batch: Batch, adv: Tensor) -> Tensor:
    """Where ``(N,)`` the images fool the model."""
    with torch.no_grad(), freeze_parameters(model):
        found = view(plain, model, adv)
    batch.check_logits(found.logits)
    return batch.fooled(found.decide())
