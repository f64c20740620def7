"""The judge: only the real model's decision counts, on an image within the budget, and nothing an attack reports."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, cause

_PIXEL_ROUNDING = 2.0**-23
"""By how much rounding may move a float32 pixel of [0, 1] beyond the perturbation an attack computed: two units in the
last place, one when it is added and one when it is clipped."""
_ROUNDING = 1e-6
"""Share of eps that the sum of an L2 norm may be off in float32."""

_ALONE = 16
"""Images at most that are also shown to a model one by one."""
_DEPENDENT = 1e-2
"""Change of logits with the batch, as a share of the largest, that no rounding explains, in half precision either."""
_SHARE = 0.25
"""Of these images for which that is so: rounding may move an activation of few images to another level."""
_NOTICEABLE = 1e-3
"""Change of the logits of one image that counts in a model whose output does depend on the batch."""


@torch.no_grad()
def decisions(
    model: nn.Module,
    images: Tensor,
    *,
    num_classes: int | None = None,
    batch_size: int = 500,
    refuse_probabilities: bool = False,
) -> Tensor:
    """The model's decisions ``(N,)``: the class with the largest logit.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        images: ``(N, C, H, W)``, float32 in [0, 1].
        num_classes: K; not checked by default.
        batch_size: Images per forward pass.
        refuse_probabilities: Whether to raise if the output looks like probabilities. Adversarial images could make
            logits look like that, clean images hardly ever do.

    Raises:
        EvaluationError: If the model returns anything but logits ``(N, K)``, or NaN.

    Example:
        >>> decisions(nn.Flatten(), torch.tensor([[[[0.2, 0.7]]]]))
        tensor([1])
    """
    logits = [_logits(model, part, num_classes) for part in images.split(batch_size)]
    if refuse_probabilities:
        _refuse_probabilities(torch.cat(logits))
    return torch.cat([part.argmax(1) for part in logits])


_FLOAT = "real scores, before they are rounded or made into classes"


def _logits(model: nn.Module, images: Tensor, num_classes: int | None) -> Tensor:
    logits = model(images)
    wanted = f"({len(images)}, {num_classes or 'K'})"
    if not isinstance(logits, Tensor):
        got = type(logits).__name__
        raise EvaluationError(f"the model must return logits {wanted}, got a {got}: wrap it and return its logits")
    if logits.is_complex():
        raise EvaluationError(f"the model must return real numbers as logits, got {logits.dtype}: return its scores")
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] != (num_classes or logits.shape[1]):
        hint = "is it a model for another data set?" if logits.ndim == 2 else "one row per image, one column per class"
        raise EvaluationError(f"the model must return logits of shape {wanted}, got {tuple(logits.shape)}: {hint}")
    if not logits.is_floating_point():
        raise EvaluationError(f"the model must return floating-point logits, got {logits.dtype}: return {_FLOAT}")
    if torch.isnan(logits).any():
        raise EvaluationError("the model returned NaN, so no verdict means anything: check its weights")
    return logits


def _refuse_probabilities(logits: Tensor) -> None:
    low, high = logits.aminmax()
    if low >= 0 and high <= 1 and ((logits.sum(1) - 1).abs() < 1e-3).all():
        raise EvaluationError(
            "the model must return logits, got probabilities (every row sums to 1), whose gradients vanish where it is "
            "confident: remove its softmax, or return the logarithm"
        )


@torch.no_grad()
def batch_dependent(
    model: nn.Module, images: Tensor, decided: Tensor, *, num_classes: int | None = None, batch_size: int = 500
) -> Tensor:
    """Rows ``(n,)`` of the images for which the output depends on the other images of the batch, or on chance.

    The images are decided again in another order and in batches of another size. Since robust decisions may stay the
    same, the first images are also shown to the model one by one: if the logits of a quarter of them change, every
    image counts whose logits change, whatever its decision. Of a single image nothing can be said.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        images: ``(N, C, H, W)``, float32 in [0, 1].
        decided: The decisions ``(N,)`` on them in batches of ``batch_size``.
        num_classes: K; not checked by default.
        batch_size: Images per forward pass.

    Raises:
        EvaluationError: If the model returns anything but logits ``(N, K)``, or NaN, or cannot take a single image.

    Example:
        >>> x = torch.tensor([[0.2, 0.7], [0.3, 0.9]]).view(2, 1, 1, 2)
        >>> batch_dependent(nn.Flatten(), x, torch.tensor([1, 1]))
        tensor([], dtype=torch.int64)
        >>> batch_dependent(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()), x, torch.tensor([1, 1]))
        tensor([0, 1])
    """
    used = min(batch_size, len(images))
    size = used // 2 + 1 if used > 2 else 3 - used
    order = torch.arange(len(images), device=images.device).flip(0).roll(1)
    again = torch.cat([_logits(model, part, num_classes) for part in images[order].split(size)])
    again = torch.empty_like(again).index_copy_(0, order, again)
    differs = again.argmax(1) != decided
    first = images[: min(_ALONE, max(used, size))]
    together = _logits(model, first, num_classes)
    alone = _one_by_one(model, first, num_classes)
    differs[: len(first)] |= alone.argmax(1) != together.argmax(1)
    changes = _change(alone, together)
    if (changes > _DEPENDENT).double().mean() > _SHARE:
        in_order = torch.cat([_logits(model, part, num_classes) for part in images.split(batch_size)])
        differs |= _change(again, in_order) > _NOTICEABLE
        differs[: len(first)] |= changes > _NOTICEABLE
    return differs.nonzero().squeeze(1)


def _one_by_one(model: nn.Module, images: Tensor, num_classes: int | None) -> Tensor:
    """Logits ``(N, K)`` of images that the model has already taken together."""
    try:
        return torch.cat([_logits(model, image, num_classes) for image in images.split(1)])
    except EvaluationError:
        raise
    except Exception as error:
        raise EvaluationError(
            f"the model takes a batch of {len(images)} images and not a single one ({cause(error)}), "
            "so its output depends on the other images of the batch: look for statistics of the batch in its forward"
        ) from error


def _change(logits: Tensor, expected: Tensor) -> Tensor:
    """By how much the logits ``(N, K)`` of each image differ, as a share of the largest finite one, ``(N,)``."""
    difference = torch.where(logits == expected, 0.0, (logits - expected).abs())  # Infinite ones may be equal.
    largest = expected.abs().nan_to_num(posinf=0.0).amax() if expected.numel() else expected.new_ones(())
    return difference.amax(1) / largest.clamp_min(torch.finfo(expected.dtype).tiny)


def check_attack_result(x: Tensor, adversarial: object, threat: Threat) -> Tensor:
    """Check that an attack returned images within the threat of ``x``.

    Distances are measured in float64 between the images themselves, whatever the attack reports; the only excess over
    eps that is allowed is the rounding of float32 pixels.

    Args:
        x: Clean images ``(N, C, H, W)`` in [0, 1]; the attack was given a copy.
        adversarial: What the attack returned.
        threat: The budget.

    Returns:
        The adversarial images ``(N, C, H, W)``, detached.

    Raises:
        EvaluationError: If shape, type or device differ, a pixel is not a number in [0, 1], or a perturbation is too
            large.

    Example:
        >>> x = torch.full((1, 1, 1, 2), 0.5)
        >>> check_attack_result(x, x + 0.25, Threat.parse("Linf:0.25"))
        tensor([[[[0.7500, 0.7500]]]])
    """
    if not isinstance(adversarial, Tensor):
        raise EvaluationError(f"an attack must return a tensor of images, got a {type(adversarial).__name__}")
    if (adversarial.shape, adversarial.dtype, adversarial.device) != (x.shape, x.dtype, x.device):
        got = f"{adversarial.dtype} {tuple(adversarial.shape)} on {adversarial.device}"
        expected = f"{x.dtype} {tuple(x.shape)} on {x.device}"
        raise EvaluationError(f"an attack must return images like those it was given, {expected}, got {got}")
    images = adversarial.detach()
    if len(x):
        _check_box(images)
        _check_budget(x, images, threat)
    return images


def _check_box(images: Tensor) -> None:
    low, high = (end.item() for end in images.aminmax())
    if low != low or high != high:
        raise EvaluationError("an attack returned NaN pixels: its result is discarded")
    if not (low >= 0 and high <= 1):
        raise EvaluationError(f"an attack left [0, 1]: pixels from {low:.9g} to {high:.9g}; its result is discarded")


def _check_budget(x: Tensor, images: Tensor, threat: Threat) -> None:
    sizes = threat.norm.size(images.double() - x.double())
    rounding = threat.norm.size(torch.full_like(x[:1], _PIXEL_ROUNDING).double()).item()
    largest, row = (end.item() for end in sizes.max(0))
    if not largest <= threat.eps * (1 + _ROUNDING) + rounding:
        raise EvaluationError(
            f"an attack left its budget {threat}: a perturbation of {largest:.9g} (image {row} of its batch); "
            "its result is discarded"
        )


def correct(model: nn.Module, images: Tensor, y: Tensor, *, batch_size: int = 500) -> Tensor:
    """Which images ``(N,)`` a model classifies correctly.

    Raises:
        EvaluationError: If the model does not return logits ``(N, K)``, or returns NaN.

    Example:
        >>> correct(nn.Flatten(), torch.tensor([[[[0.2, 0.7]]]]), torch.tensor([0]))
        tensor([False])
    """
    return decisions(model, images, batch_size=batch_size) == y
