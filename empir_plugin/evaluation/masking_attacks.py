"""The attacks of the masking audit: many small ones, of which it is known beforehand which ought to be the stronger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.gradient import bim, fgsm, pgd
from empir_plugin.attacks.losses import CrossEntropy, Loss, dlr, margin
from empir_plugin.attacks.noise import uniform_noise
from empir_plugin.attacks.on_member import OnMember
from empir_plugin.attacks.surrogates import Surrogate, mean_logits, mean_probability, member, plain
from empir_plugin.attacks.through import Through
from empir_plugin.models.backward import identity, soft
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import is_full_precision

STEPS, FEW_STEPS, MANY_STEPS, UNBOUNDED_STEPS = 20, 10, 50, 40
"""Of PGD; of PGD with long steps, and with short ones that walk as far; and of BIM without a budget."""
TEMPERATURES = 0.1, 10.0, 100.0
QUERIES = 300
"""Of Square, per image."""
TRIALS = 20
"""Points of random noise per image."""


@dataclass(frozen=True)
class Probe:
    """One attack of the audit.

    Args:
        group: What it is compared as.
        name: What reports call it.
        attack: Settings bound.
        follows: Whose gradient it needs; None for an attack that needs none.
        unbounded: Whether it may paint any image.
    """

    group: str
    name: str
    attack: Attack
    follows: Surrogate | None = plain
    unbounded: bool = False


def reference() -> Probe:
    """PGD on the cross-entropy of the model's own output: what most evaluations rest on.

    Example:
        >>> reference().name
        'PGD on cross-entropy'
    """
    return Probe("losses", "PGD on cross-entropy", pgd(STEPS))


def probes(model: nn.Module, classes: int) -> Iterator[Probe]:
    """All attacks for a model with that many classes.

    Example:
        >>> len(list(probes(nn.Flatten(), 10)))
        12
    """
    yield Probe("one step", "FGSM", fgsm())
    yield Probe("few steps", f"PGD with {FEW_STEPS} long steps", pgd(FEW_STEPS))
    yield Probe("many steps", f"PGD with {MANY_STEPS} short steps", pgd(MANY_STEPS))
    yield reference()
    losses: list[tuple[str, Loss]] = [("CW's margin", margin), *([("DLR", dlr)] if classes > 2 else [])]
    for name, loss in losses:
        yield Probe("losses", f"PGD on {name}", pgd(STEPS, loss=loss))
    for heat in TEMPERATURES:
        yield Probe("temperatures", f"PGD at temperature {heat:g}", pgd(STEPS, loss=CrossEntropy(heat)))
    for surrogate in surrogates_of(model):
        yield Probe("surrogates", f"PGD on {surrogate}", pgd(STEPS, surrogate=surrogate), surrogate)
    yield from _black_boxes(model)
    yield Probe("noise", "random noise", uniform_noise(TRIALS), None)
    yield Probe("unbounded", f"BIM with {UNBOUNDED_STEPS} steps to any image", bim(UNBOUNDED_STEPS), unbounded=True)


def _black_boxes(model: nn.Module) -> Iterator[Probe]:
    """Square's queries; and images made on one member of an ensemble, shown to all of it."""
    yield Probe(
        "black box", f"Square with {QUERIES} queries", AutoAttackSuite(attacks=("square",), queries=QUERIES), None
    )
    for index in range(len(model.members) if isinstance(model, Ensemble) else 0):
        attack = OnMember(index, replace(pgd(STEPS, loss=margin), return_last=True))
        yield Probe("black box", f"transfer from member {index}", attack, member(index))


def flag_suite(classes: int, *, has_gradient: bool, batch_size: int) -> AutoAttackSuite:
    """AutoAttack for its flags: the parts that look at gradients, where there are any, and Square last."""
    gradients = ("apgd-ce", "apgd-dlr") if classes > 2 else ("apgd-ce",)
    parts = (*gradients, "square") if has_gradient else ("square",)
    return AutoAttackSuite(attacks=parts, batch_size=batch_size, queries=QUERIES)


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


def gives_gradient(surrogate: Surrogate, model: nn.Module, x: Tensor) -> bool:
    """Whether the images ``(N, C, H, W)`` have a gradient at all through the surrogate, be it zero.

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
