"""What an attack climbs: values that map logits and labels to one number per image, higher being more adversarial.

All of them read log-probabilities as well as logits. With targets they measure how near an image is to its target.
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
    """What a loss must offer."""

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        """Loss per image ``(N,)``.

        Args:
            logits: Logits or log-probabilities ``(N, K)``.
            y: True labels ``(N,)``.
            targets: Classes ``(N,)`` to come near to, for a targeted attack.
        """
        ...


def _of(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None]).squeeze(1)


def _best_other(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], float("-inf")).amax(1)


def _need_classes(logits: Tensor, least: int, loss: str) -> None:
    if logits.shape[1] < least:
        raise InputError(f"{loss} needs at least {least} classes, got {logits.shape[1]}: use cross_entropy or margin")


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy, at a temperature as in PGD++, https://arxiv.org/abs/2003.13511.

    Args:
        temperature: What the logits are divided by: above 1 it revives the gradient of a saturated network.

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
        """Cross-entropy to the label, or minus that to the target."""
        scaled = logits if self.temperature == 1 else logits / self.temperature
        if targets is None:
            return F.cross_entropy(scaled, y, reduction="none")
        return -F.cross_entropy(scaled, targets, reduction="none")


@dataclass(frozen=True)
class SoftmaxTwice:
    """Cross-entropy that takes the probabilities for logits: the loss EMPIR's released code climbs, by accident.

    It lives in [log(e + K - 1) - 1, log(e + K - 1)] and hardly moves for a confident network. For the protocol
    ``released`` only.

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
    """Best other logit minus the label's: Carlini and Wagner's margin, https://arxiv.org/abs/1608.04644.

    Positive exactly where the image is misclassified (or, with targets, where it is classified as its target).

    Example:
        >>> import torch
        >>> Margin()(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([-1.])
    """

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        """Margin against the label, or in favour of the target."""
        _need_classes(logits, 2, "margin")
        if targets is None:
            return _best_other(logits, y) - _of(logits, y)
        return _of(logits, targets) - _best_other(logits, targets)


@dataclass(frozen=True)
class Dlr:
    """Difference of logits ratio, blind to the scale of the logits, https://arxiv.org/abs/2003.01690.

    Raises:
        InputError: When called with fewer than 3 classes, or fewer than 4 with targets.

    Example:
        >>> import torch
        >>> Dlr()(torch.tensor([[4.0, 1.0, 2.0, 0.0]]), torch.tensor([0]))
        tensor([-0.6667])
    """

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        """The margin over the gap between the first logit and the third (or the mean of third and fourth)."""
        _need_classes(logits, 3 if targets is None else 4, "dlr" if targets is None else "targeted dlr")
        top = logits.topk(3 if targets is None else 4, dim=1).values
        if targets is None:
            return (_best_other(logits, y) - _of(logits, y)) / (top[:, 0] - top[:, 2] + 1e-12)
        return (_of(logits, targets) - _of(logits, y)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


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
