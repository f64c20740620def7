"""What every attack checks before it begins, and of every output of the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from empir_plugin.attacks import AutoAttackSuite, CarliniWagner, Threat, Transfer, bim, fgsm, mim, pgd, uniform_noise
from empir_plugin.attacks.batch import Attack, is_zero
from empir_plugin.errors import InputError

ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm(),
    "bim": bim(2),
    "pgd": pgd(2),
    "mim": mim(2),
    "cw": CarliniWagner(iterations=2, search_steps=1),
    "noise": uniform_noise(2),
    "autoattack": AutoAttackSuite(attacks=("apgd-ce",)),
    "square": AutoAttackSuite(attacks=("square",), queries=5),
}
X, Y, THREAT = torch.full((2, 3, 5, 5), 0.5), torch.tensor([0, 1]), Threat.parse("Linf:0.1")


def logits(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :5]


class Output:
    """What some libraries return."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


OUTPUTS: dict[str, Callable[[Tensor], object]] = {
    "tuple": lambda x: (logits(x), None),
    "list": lambda x: [logits(x)],
    "dict": lambda x: {"logits": logits(x)},
    "object": lambda x: Output(logits(x)),
    "None": lambda x: None,
    "array": lambda x: logits(x.detach()).numpy(),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("model", OUTPUTS.values(), ids=OUTPUTS)
def test_models_that_do_not_return_a_tensor(model: Callable[[Tensor], object], attack: Attack) -> None:
    with pytest.raises(InputError, match=r"logits \(N, K\).*wrap the model"):
        attack(model, X, Y, THREAT)  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_inference_mode_is_refused_by_its_name(attack: Attack) -> None:
    with torch.inference_mode(), pytest.raises(InputError, match=r"torch\.inference_mode\(\)"):
        attack(logits, X.clone(), Y, THREAT)  # type: ignore[arg-type]
    with torch.no_grad():
        assert attack(logits, X, Y, THREAT).shape == X.shape  # type: ignore[arg-type]


def test_a_transfer_checks_too() -> None:
    with pytest.raises(InputError, match="got a tuple"):
        Transfer(OUTPUTS["tuple"], fgsm())(logits, X, Y, THREAT)  # type: ignore[arg-type]


def test_where_a_gradient_is_zero() -> None:
    grad = torch.zeros(3, 1, 2, 2)
    grad[1, 0, 1, 1] = 1e-30
    assert is_zero(grad).tolist() == [True, False, True]
