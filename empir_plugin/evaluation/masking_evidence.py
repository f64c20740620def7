"""What the masking audit looks at: cheap attacks of many kinds on the same images, and the gradients themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.gradient import bim, fgsm, pgd
from empir_plugin.attacks.losses import CrossEntropy, Loss, cross_entropy, dlr, margin
from empir_plugin.attacks.noise import uniform_noise
from empir_plugin.attacks.norms import Linf
from empir_plugin.attacks.on_member import OnMember
from empir_plugin.attacks.surrogates import Surrogate, mean_logits, mean_probability, plain
from empir_plugin.attacks.threat import Threat
from empir_plugin.attacks.through import Through
from empir_plugin.evaluation.judge import check_attack_result, decisions
from empir_plugin.models.backward import identity, soft
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import is_full_precision

Columns = Mapping[str, Tensor]
"""Which images ``(N,)`` were broken, by name of the attack."""


@dataclass(frozen=True)
class Effort:
    """How hard the audit's attacks try.

    Args:
        steps: Of PGD.
        few: Of the PGD with long steps; each is 2.5 eps over their number.
        many: Of the PGD with short steps, which walks as far.
        queries: Of Square, per image.
        trials: Points of random noise per image.
    """

    steps: int = 20
    few: int = 10
    many: int = 50
    queries: int = 300
    trials: int = 20


@dataclass(frozen=True, eq=False)
class Evidence:
    """All measurements on the N images that the model classifies correctly.

    Args:
        one_step: Broken by FGSM on the model's own gradient, ``(N,)``.
        few_steps: Broken by PGD with few long steps.
        many_steps: Broken by PGD with many short steps that walk as far.
        losses: Broken by PGD on the model's own gradient, by loss.
        temperatures: Broken by PGD on cross-entropy with logits divided by a temperature.
        surrogates: Broken by PGD on cross-entropy through surrogates.
        black_box: Broken without the gradients of the whole model: Square's queries, transfer from members.
        noise: Broken by random noise.
        unbounded: Broken by BIM that may paint any image.
        zero_images: Whether the gradient of the cross-entropy is zero in every pixel, ``(N,)``.
        zero_pixels: Share of pixels whose gradient of the margin is zero, ``(N,)``.
        flags: AutoAttack's warnings.
    """

    one_step: Tensor
    few_steps: Tensor
    many_steps: Tensor
    losses: Columns
    temperatures: Columns
    surrogates: Columns
    black_box: Columns
    noise: Tensor
    unbounded: Tensor
    zero_images: Tensor
    zero_pixels: Tensor
    flags: tuple[str, ...]


OnProgress = Callable[[str, int, int], None]
"""Told what is measured next, how many measurements are done, and how many there are."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A prepared model and the images ``(N, C, H, W)`` and labels ``(N,)`` it classifies correctly."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    effort: Effort
    seed: int
    batch_size: int

    def gather(self, on_progress: OnProgress | None = None) -> Evidence:
        """Measure everything."""
        plan = dict(self._attacks())
        broken = {}
        for done, (name, (attack, threat)) in enumerate(plan.items()):
            if on_progress is not None:
                on_progress(name, done, len(plan) + 1)
            broken[name] = self._broken(attack, threat)
        if on_progress is not None:
            on_progress("AutoAttack", len(plan), len(plan) + 1)
        square, flags = self._autoattack()
        zero_images, zero_pixels = self._zeros()
        return Evidence(
            one_step=broken["FGSM"],
            few_steps=broken["few long steps"],
            many_steps=broken["many short steps"],
            losses=_named("loss ", broken),
            temperatures=_named("temperature ", broken),
            surrogates=_named("surrogate ", broken),
            black_box={"Square": square, **_named("black box ", broken)},
            noise=broken["noise"],
            unbounded=broken["unbounded"],
            zero_images=zero_images,
            zero_pixels=zero_pixels,
            flags=flags,
        )

    def _attacks(self) -> Iterator[tuple[str, tuple[Attack, Threat]]]:
        effort, threat = self.effort, self.threat
        yield "FGSM", (fgsm(), threat)
        yield "few long steps", (pgd(effort.few), threat)
        yield "many short steps", (pgd(effort.many), threat)
        for loss, name in self._losses():
            yield f"loss {name}", (pgd(effort.steps, loss=loss), threat)
        for heat in (0.1, 10.0, 100.0):
            yield f"temperature {heat:g}", (pgd(effort.steps, loss=CrossEntropy(heat)), threat)
        for surrogate in surrogates_of(self.model):
            yield f"surrogate {surrogate}", (pgd(effort.steps, surrogate=surrogate), threat)
        for index in range(len(self.model.members) if isinstance(self.model, Ensemble) else 0):
            attack = replace(pgd(effort.steps, loss=margin), return_last=True)
            yield f"black box transfer from member {index}", (OnMember(index, attack), threat)
        yield "noise", (uniform_noise(effort.trials), threat)
        yield "unbounded", (bim(2 * effort.steps), whole_box(threat, self.x))

    def _losses(self) -> Iterator[tuple[Loss, str]]:
        yield from ((cross_entropy, "cross-entropy"), (margin, "margin"))
        with torch.no_grad():
            if self.model(self.x[:1]).shape[1] > 2:
                yield dlr, "DLR"

    def _broken(self, attack: Attack, threat: Threat) -> Tensor:
        parts = []
        for rows in torch.arange(len(self.y), device=self.y.device).split(self.batch_size):
            x, y = self.x[rows], self.y[rows]
            made = attack(self.model, x.clone(), y, threat, seed=self.seed, indices=rows)
            parts.append(decisions(self.model, check_attack_result(x, made, threat)) != y)
        return torch.cat(parts)

    def _autoattack(self) -> tuple[Tensor, tuple[str, ...]]:
        """Who falls to Square, and every flag. Flags come from the parts that look at gradients, too."""
        parts = ("square", "apgd-ce", "apgd-dlr") if len(list(self._losses())) > 2 else ("square", "apgd-ce")
        suite = AutoAttackSuite(attacks=parts, batch_size=self.batch_size, queries=self.effort.queries)
        result = suite.run(self.model, self.x, self.y, self.threat, seed=self.seed)
        return ~result.robust["square"], result.flags

    def _zeros(self) -> tuple[Tensor, Tensor]:
        images, pixels = [], []
        for x, y in zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True):
            images.append((_gradient(self.model, x, y, cross_entropy) == 0).all(1))
            pixels.append((_gradient(self.model, x, y, margin) == 0).double().mean(1))
        return torch.cat(images), torch.cat(pixels)


def surrogates_of(model: nn.Module) -> tuple[Surrogate, ...]:
    """What may be differentiated in place of a model: an ensemble's smooth votes, and quantizers without their clip.

    Example:
        >>> [str(surrogate) for surrogate in surrogates_of(Ensemble([nn.Flatten(), nn.Flatten()]))]
        ['mean_probability', 'mean_logits']
    """
    everybody = mean_probability if isinstance(model, Ensemble) else plain
    smooth = (mean_probability, mean_logits) if isinstance(model, Ensemble) else ()
    if is_full_precision(model):
        return smooth
    return (*smooth, Through(everybody, identity), Through(everybody, soft))


def whole_box(threat: Threat, x: Tensor) -> Threat:
    """The threat under which an image ``(C, H, W)`` of ``x`` may become any other."""
    return Threat(threat.norm, 1.0 if isinstance(threat.norm, Linf) else math.sqrt(x[0].numel()))


def _named(kind: str, broken: Columns) -> Columns:
    return {name.removeprefix(kind): column for name, column in broken.items() if name.startswith(kind)}


def _gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Gradients ``(N, C * H * W)`` of the loss of each image."""
    x = x.detach().clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss(model(x), y).sum(), x)
    return grad.flatten(1)
