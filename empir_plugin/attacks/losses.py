"""Losses that attacks maximise: cross-entropy, margin, DLR, and the double softmax of EMPIR's release.

They map logits and labels to one number per image; higher is more adversarial. All take log-probabilities as well as
logits. With targets, the loss increases as an image approaches its target class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from empir_plugin.errors import InputError


class Loss(Protocol):
    """The interface of a loss."""

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        """Loss per image ``(N,)``.

        Args:
            logits: Logits or log-probabilities ``(N, K)``.
            y: True labels ``(N,)``.
            targets: Target classes ``(N,)`` of a targeted attack.
        """
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with a temperature, as in PGD++, https://arxiv.org/abs/2003.13511.

    Args:
        temperature: Divides the logits. Above 1 it restores the gradient of a saturated network.

    Raises:
        InputError: If the temperature is not positive.

    Example:
        >>> import torch
        >>> CrossEntropy()(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.6931])
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        """Cross-entropy with the label; with targets, minus the cross-entropy with the target."""
        scaled = logits if self.temperature == 1 else logits / self.temperature
        if targets is None:
            return F.cross_entropy(scaled, y, reduction="none")
        return -F.cross_entropy(scaled, targets, reduction="none")


@dataclass(frozen=True)
class SoftmaxTwice:
    """Cross-entropy with softmax applied twice: the loss EMPIR's released code maximises, by accident.

    Its values lie in [log(e + K - 1) - 1, log(e + K - 1)], and it hardly changes for a confident network. Only the
    protocol ``released`` uses it.

    Example:
        >>> import torch
        >>> SoftmaxTwice()(torch.tensor([[50.0] + [0.0] * 9]), torch.tensor([0]))
        tensor([1.4612])
    """

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        """Cross-entropy of the softmax of the softmax."""
        return CrossEntropy()(logits.softmax(1), y, targets)


@dataclass(frozen=True)
class Margin:
    """Largest other logit minus the label's: Carlini and Wagner's margin, https://arxiv.org/abs/1608.04644.

    Positive exactly if the image is misclassified or, with targets, if it is classified as its target.

    Example:
        >>> import torch
        >>> Margin()(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        """Margin of the best other class over the label or, with targets, of the target over the best other class."""
        _check_classes(logits, 2, "margin")
        if targets is None:
            return _best_other_logit(logits, y) - _logit(logits, y)
        return _logit(logits, targets) - _best_other_logit(logits, targets)


@dataclass(frozen=True)
class Dlr:
    """Difference of logits ratio (DLR), invariant to the scale of the logits, https://arxiv.org/abs/2003.01690.

    Raises:
        InputError: When called with fewer than 3 classes, or fewer than 4 with targets.

    Example:
        >>> import torch
        >>> Dlr()(torch.tensor([[4.0, 1.0, 2.0, 0.0]]), torch.tensor([0]))
        tensor([-0.6667])
    """

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        """The margin over the largest logit minus the third; with targets, minus the mean of third and fourth."""
        _check_classes(logits, 3 if targets is None else 4, "dlr" if targets is None else "targeted dlr")
        top = logits.topk(3 if targets is None else 4, dim=1).values
        if targets is None:
            return (_best_other_logit(logits, y) - _logit(logits, y)) / (top[:, 0] - top[:, 2] + 1e-12)
        return (_logit(logits, targets) - _logit(logits, y)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def _logit(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None]).squeeze(1)


def _best_other_logit(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], float("-inf")).amax(1)


def _check_classes(logits: Tensor, least: int, loss: str) -> None:
    if logits.shape[1] < least:
        raise InputError(f"{loss} needs at least {least} classes, got {logits.shape[1]}: use cross_entropy or margin")


cross_entropy = CrossEntropy()
margin = Margin()
dlr = Dlr()
softmax_twice = SoftmaxTwice()

_LOSSES: Mapping[str, Loss] = MappingProxyType(
    {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr, "softmax_twice": softmax_twice}
)


def parse_loss(text: str) -> Loss:
    """Read ``"cross_entropy"``, ``"margin"``, ``"dlr"`` or ``"softmax_twice"``.

    Raises:
        InputError: If the text names another loss.

    Example:
        >>> parse_loss("dlr")
        Dlr()
    """
    if text not in _LOSSES:
        raise InputError(f"a loss is one of {', '.join(_LOSSES)}, got {text!r}")
    return _LOSSES[text]
