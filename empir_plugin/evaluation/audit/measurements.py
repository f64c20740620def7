"""The attacks of the masking audit, which images each of them breaks, and properties of the gradients themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack, view
from empir_plugin.attacks.gradient import bim, fgsm, pgd, uniform_noise
from empir_plugin.attacks.losses import CrossEntropy, Loss, cross_entropy, dlr, margin
from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.surrogates import (
    Surrogate,
    Through,
    has_member_logits,
    mean_logits,
    mean_probability,
    member,
    plain,
)
from empir_plugin.attacks.threat import Linf, Threat
from empir_plugin.attacks.transfer import OnMember
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Evaluator, error_context
from empir_plugin.evaluation.outcome import Shard
from empir_plugin.evaluation.summary import attack_record, left_out_flag
from empir_plugin.models.backward import identity, soft
from empir_plugin.models.layers import is_full_precision

STEPS, FEW_STEPS, MANY_STEPS, UNBOUNDED_STEPS = 20, 10, 50, 40
"""Steps of PGD, of PGD with few long steps, of PGD with many short ones as long in all, of BIM without a budget."""
TEMPERATURES = 0.1, 10.0, 100.0
QUERIES = 300
"""Of Square, per image."""
TRIALS = 20
"""Points of random noise per image."""


@dataclass(frozen=True)
class AuditAttack:
    """One attack of the audit.

    Args:
        group: The attacks it is compared with.
        name: Its name in reports.
        attack: With its settings.
        follows: The surrogate whose gradient it needs; None for an attack that needs none.
        unbounded: Whether it may return any image.
    """

    group: str
    name: str
    attack: Attack
    follows: Surrogate | None = plain
    unbounded: bool = False


def reference() -> AuditAttack:
    """PGD on the cross-entropy of the model's own output: what most evaluations rest on.

    Example:
        >>> reference().name
        'PGD on cross-entropy'
    """
    return AuditAttack("losses", "PGD on cross-entropy", pgd(STEPS))


def audit_attacks(model: nn.Module, classes: int) -> Iterator[AuditAttack]:
    """All attacks for a model with that many classes.

    Example:
        >>> len(list(audit_attacks(nn.Flatten(), 10)))
        12
    """
    yield AuditAttack("one step", "FGSM", fgsm())
    yield AuditAttack("few steps", f"PGD with {FEW_STEPS} long steps", pgd(FEW_STEPS))
    yield AuditAttack("many steps", f"PGD with {MANY_STEPS} short steps", pgd(MANY_STEPS))
    yield reference()
    losses: list[tuple[str, Loss]] = [("CW's margin", margin), *([("DLR", dlr)] if classes > 2 else [])]
    for name, loss in losses:
        yield AuditAttack("losses", f"PGD on {name}", pgd(STEPS, loss=loss))
    for heat in TEMPERATURES:
        yield AuditAttack("temperatures", f"PGD at temperature {heat:g}", pgd(STEPS, loss=CrossEntropy(heat)))
    for surrogate in surrogates_of(model):
        yield AuditAttack("surrogates", f"PGD on {surrogate}", pgd(STEPS, surrogate=surrogate), surrogate)
    yield from _black_boxes(model)
    yield AuditAttack("noise", "random noise", uniform_noise(TRIALS), None)
    yield AuditAttack(
        "unbounded", f"BIM with {UNBOUNDED_STEPS} steps to any image", bim(UNBOUNDED_STEPS), unbounded=True
    )


def _black_boxes(model: nn.Module) -> Iterator[AuditAttack]:
    """Square, and adversarial images of one member of an ensemble, transferred to all of it."""
    yield AuditAttack(
        "black box", f"Square with {QUERIES} queries", AutoAttackSuite(attacks=("square",), queries=QUERIES), None
    )
    for index in range(len(list(model.members)) if has_member_logits(model) else 0):
        attack = OnMember(index, replace(pgd(STEPS, loss=margin), return_last=True))
        yield AuditAttack("black box", f"transfer from member {index}", attack, member(index))


def flag_suite(classes: int, *, has_gradient: bool, batch_size: int) -> AutoAttackSuite:
    """AutoAttack, run for its flags: the parts that use gradients, if the model has any, and Square last."""
    gradients = ("apgd-ce", "apgd-dlr") if classes > 2 else ("apgd-ce",)
    parts = (*gradients, "square") if has_gradient else ("square",)
    return AutoAttackSuite(attacks=parts, batch_size=batch_size, queries=QUERIES)


def surrogates_of(model: nn.Module) -> tuple[Surrogate, ...]:
    """What can be differentiated in place of a model: an ensemble's smooth votes, and quantizers without their clip.

    Example:
        >>> from empir_plugin.models.ensemble import Ensemble
        >>> [str(surrogate) for surrogate in surrogates_of(Ensemble([nn.Flatten(), nn.Flatten()]))]
        ['mean_probability', 'mean_logits']
    """
    full = is_full_precision(model)
    everybody = mean_probability if has_member_logits(model) else plain
    smooth = (mean_probability, mean_logits) if has_member_logits(model) else ()
    if full:
        return smooth
    return (*smooth, Through(everybody, identity), Through(everybody, soft))


def gives_gradient(surrogate: Surrogate, model: nn.Module, x: Tensor) -> bool:
    """Whether the surrogate has a gradient with respect to the images ``(N, C, H, W)`` at all, even if it is zero.

    Example:
        >>> gives_gradient(plain, nn.Flatten(), torch.rand(1, 1, 1, 3))
        True
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        logits = view(surrogate, model, x).logits
        if not logits.requires_grad:
            return False
        (grad,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    return grad is not None


BrokenByAttack = Mapping[str, Tensor]
"""Which images ``(N,)`` were broken, by name of the attack."""

OnMeasurement = Callable[[str, int, int], None]
"""Called with the name of the next measurement, the number of measurements done, and their number in all."""

_ROBUST_SHARE = 1 / 3
_HALVINGS = 5


@dataclass(frozen=True, eq=False)
class Measurements:
    """All measurements on the N images that the model classifies correctly.

    Args:
        compared_at: The budget of the attacks below.
        broken: Which images each attack broke, by group and by name.
        zero_gradient: Whether the gradient of the cross-entropy is zero in every pixel at PGD's random start, ``(N,)``.
        zero_pixels: Share of pixels in which the gradient of the margin is zero at that start, ``(N,)``.
        kept: By how much a step of half the radius along the margin's gradient raises the margin, as a share of what
            the gradient promises, ``(N,)``.
        has_gradient: Whether the model's own output has a gradient at all.
        batch_dependent: For which images the output depends on the rest of the batch, ``(N,)``.
        flags: AutoAttack's warnings.
    """

    compared_at: Threat
    broken: Mapping[str, BrokenByAttack]
    zero_gradient: Tensor
    zero_pixels: Tensor
    kept: Tensor
    has_gradient: bool
    batch_dependent: Tensor
    flags: tuple[str, ...]

    def only(self, group: str) -> Tensor:
        """Which images ``(N,)`` the single attack of a group broke."""
        (column,) = self.broken[group].values()
        return column


@dataclass(frozen=True, eq=False)
class Auditor:
    """Runs the attacks of the audit and measures gradients.

    Args:
        evaluator: The prepared model, on images it classifies correctly.
    """

    evaluator: Evaluator

    def measure(self, on_progress: OnMeasurement | None = None) -> Measurements:
        """Measure everything, calling ``on_progress`` before each measurement."""
        model, data = self.evaluator.model, self.evaluator.data
        attacks = [each for each in audit_attacks(model, data.num_classes) if not self._undefined_parts(each.attack)]
        total, done = len(attacks) + 2, 0

        def report(name: str) -> None:
            nonlocal done
            if on_progress is not None:
                on_progress(name, done, total)
            done += 1

        report("radius to compare at")
        compared_at = self.comparable_threat()
        broken: dict[str, dict[str, Tensor]] = {}
        for attack in attacks:
            report(attack.name)
            threat = whole_box(self.evaluator.threat, self._images()) if attack.unbounded else compared_at
            broken.setdefault(attack.group, {})[attack.name] = self.broken(attack, threat)
        broken.setdefault("surrogates", {})
        broken.setdefault("black box", {})
        report("AutoAttack")
        flags = self._autoattack_flags()
        has_gradient = self._gives_gradient(plain)
        with error_context("the measurement of gradients", self._shard):
            zero_gradient, zero_pixels = self._zero_gradients()
            kept, batch_dependent = self._kept(compared_at), self._batch_dependent()
        report("done")
        return Measurements(
            compared_at=compared_at,
            broken=broken,
            zero_gradient=zero_gradient,
            zero_pixels=zero_pixels,
            kept=kept,
            has_gradient=has_gradient,
            batch_dependent=batch_dependent,
            flags=flags,
        )

    def comparable_threat(self) -> Threat:
        """The threat, or the nearest half, quarter, ... of it under which a third of the images is robust to PGD.

        Where every attack breaks everything, no two can be compared, however badly the gradient misleads.
        """
        threat = self.evaluator.threat
        for _ in range(_HALVINGS):
            if not int(self.broken(reference(), threat).sum()) > (1 - _ROBUST_SHARE) * len(self.evaluator.data):
                break
            threat = Threat(threat.norm, threat.eps / 2)
        return threat

    def broken(self, attack: AuditAttack, threat: Threat) -> Tensor:
        """Which images ``(N,)`` an attack breaks; none if it needs a gradient that does not exist."""
        labels = self.evaluator.data.labels
        if attack.follows is not None and not self._gives_gradient(attack.follows):
            return torch.zeros_like(labels, dtype=torch.bool)
        spec = AttackSpec(attack.name, attack.attack, threat=threat)
        outcome, _ = self.evaluator.attack(
            spec, self._shard, torch.ones_like(labels, dtype=torch.bool), labels, _ignore
        )
        return torch.tensor(outcome.decisions) != labels

    @property
    def _shard(self) -> Shard:
        return Shard(0, 0, len(self.evaluator.data))

    def _images(self) -> Tensor:
        """Two images, as some networks do not take a single one."""
        return self.evaluator.data.batch(0, 2)[0].to(self.evaluator.settings.device)

    def _gives_gradient(self, surrogate: Surrogate) -> bool:
        images = self._images()
        with error_context("the first gradient", Shard(0, 0, len(images))):
            return gives_gradient(surrogate, self.evaluator.model, images)

    def _undefined_parts(self, attack: Attack) -> dict[str, str]:
        """The parts of AutoAttack that are not defined on the images, with the reason."""
        if not isinstance(attack, AutoAttackSuite):
            return {}
        data = self.evaluator.data
        return attack.undefined_parts(data.num_classes, data.images.shape[1:], self.evaluator.threat)

    def _autoattack_flags(self) -> tuple[str, ...]:
        """AutoAttack's warnings under the threat of the evaluation itself."""
        data, threat = self.evaluator.data, self.evaluator.threat
        batch_size = self.evaluator.settings.batch_size
        suite = flag_suite(data.num_classes, has_gradient=self._gives_gradient(plain), batch_size=batch_size)
        if len(undefined := self._undefined_parts(suite)) == len(suite.parts):
            return left_out_flag([f"{part} {reason}" for part, reason in undefined.items()])
        spec = AttackSpec("AutoAttack", suite).for_data(data.num_classes, data.images.shape[1:], threat)
        every_image = torch.ones_like(data.labels, dtype=torch.bool)
        outcome, _ = self.evaluator.attack(spec, self._shard, every_image, data.labels, _ignore)
        return attack_record(spec, threat, [outcome], data.labels).flags

    def _batch_dependent(self) -> Tensor:
        unstable = torch.zeros(len(self.evaluator.data), dtype=torch.bool)
        unstable[self.evaluator.batch_dependent(self._shard, self.evaluator.data.labels).cpu()] = True
        return unstable

    def _zero_gradients(self) -> tuple[Tensor, Tensor]:
        """Measured at PGD's start and not at the image: a network without biases is dead on a digit's black border."""
        images, pixels = [], []
        for x, y in self._starts(self.evaluator.threat):
            images.append((self._gradient(x, y, cross_entropy) == 0).flatten(1).all(1))
            pixels.append((self._gradient(x, y, margin) == 0).flatten(1).double().mean(1))
        return torch.cat(images).cpu(), torch.cat(pixels).cpu()

    def _kept(self, threat: Threat) -> Tensor:
        """Actual over promised rise of the margin, 0 where nothing is promised."""
        parts, model = [], self.evaluator.model
        for x, y in self._starts(threat):
            grad = self._gradient(x, y, margin)
            there = threat.norm.ascent(grad).mul_(threat.eps / 2).add_(x).clamp_(0, 1)
            promised = (grad.double() * (there - x).double()).flatten(1).sum(1)
            with torch.no_grad():
                rise = (margin(model(there), y) - margin(model(x), y)).double()
            parts.append(torch.where(promised > 0, rise / promised.clamp_min(torch.finfo(torch.double).tiny), 0.0))
        return torch.cat(parts).cpu()

    def _starts(self, threat: Threat) -> Iterator[tuple[Tensor, Tensor]]:
        """PGD's random starts ``(n, C, H, W)`` with their labels ``(n,)``, batch by batch."""
        data, settings = self.evaluator.data, self.evaluator.settings
        for start in range(0, len(data), settings.batch_size):
            x, y = (part.to(settings.device) for part in data.batch(start, start + settings.batch_size))
            rows = torch.arange(start, start + len(x), device=settings.device)
            yield threat.norm.random(x, threat.eps, Draw(settings.seed, rows)).add_(x).clamp_(0, 1), y

    def _gradient(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        """Gradients of the loss of each image, shaped as ``x``; zero where there is none."""
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_(True)
            total = loss(self.evaluator.model(x), y).sum()
            found = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
        return torch.zeros_like(x) if found is None else found


def _ignore(images: int, work: float, note: str) -> None:
    """No progress within a measurement."""


def whole_box(threat: Threat, x: Tensor) -> Threat:
    """The threat under which an image ``(C, H, W)`` of ``x`` may become any other.

    Example:
        >>> whole_box(Threat.parse("L2:0.5"), torch.rand(8, 1, 28, 28)).eps
        28.0
    """
    return Threat(threat.norm, 1.0 if isinstance(threat.norm, Linf) else math.sqrt(x[0].numel()))
