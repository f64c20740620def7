"""The attacks of the masking audit: many small ones, of which it is known in advance which should be the stronger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.gradient import bim, fgsm, pgd, uniform_noise
from empir_plugin.attacks.losses import CrossEntropy, Loss, dlr, margin
from empir_plugin.attacks.surrogates import Surrogate, Through, mean_logits, mean_probability, member, plain
from empir_plugin.attacks.transfer import OnMember
from empir_plugin.models.backward import identity, soft
from empir_plugin.models.ensemble import Ensemble
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
    for index in range(len(model.members) if isinstance(model, Ensemble) else 0):
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
        >>> [str(surrogate) for surrogate in surrogates_of(Ensemble([nn.Flatten(), nn.Flatten()]))]
        ['mean_probability', 'mean_logits']
    """
    everybody = mean_probability if isinstance(model, Ensemble) else plain
    smooth = (mean_probability, mean_logits) if isinstance(model, Ensemble) else ()
    if is_full_precision(model):
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
        logits = surrogate(model, x).logits
        if not logits.requires_grad:
            return False
        (grad,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    return grad is not None
