"""What every attack checks before it begins, and of every output of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.attacks import (
    AutoAttackSuite,
    CarliniWagner,
    OnMember,
    Threat,
    Transfer,
    bim,
    fgsm,
    mim,
    pgd,
    transfer_matrix,
    uniform_noise,
)
from empir_plugin.attacks.batch import Attack, is_zero
from empir_plugin.attacks.registry import load_attack
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.models.ensemble import Ensemble

ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm(),
    "bim": bim(2),
    "pgd": pgd(2),
    "mim": mim(2),
    "cw": CarliniWagner(iterations=2, search_steps=1),
    "noise": uniform_noise(2),
    "autoattack": AutoAttackSuite(attacks=("apgd-ce",)),
    "square": AutoAttackSuite(attacks=("square",), queries=5),
    "by name": load_attack("rfgsm"),
}
WITH_GRADIENT = {name: attack for name, attack in ATTACKS.items() if name not in ("noise", "square")}
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
@pytest.mark.parametrize("kind", [torch.complex64, torch.bool])
def test_outputs_that_are_no_real_numbers(kind: torch.dtype, attack: Attack) -> None:
    with pytest.raises(InputError, match=rf"real numbers, got {kind}"):
        attack(lambda x: logits(x).to(kind), X, Y, THREAT)


def test_a_member_that_does_not_return_a_tensor_is_named() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return logits(x), None

    for attack in (fgsm(), OnMember(0, fgsm()), AutoAttackSuite(attacks=("apgd-ce",))):
        with pytest.raises(InputError, match=r"logits \(N, K\), got a tuple: wrap"):
            attack(Ensemble([Pair(), nn.Flatten()]), X, Y, THREAT)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("convert", [Tensor.numpy, Tensor.tolist])
def test_arrays_and_lists_are_refused_by_name(convert: Callable[[Tensor], object], attack: Attack) -> None:
    with pytest.raises(InputError, match=r"x must be a torch\.Tensor, got (ndarray|list): .*torch\.as_tensor"):
        attack(logits, convert(X), Y, THREAT)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"y must be a torch\.Tensor, got (ndarray|list): .*torch\.as_tensor"):
        attack(logits, X, convert(Y), THREAT)  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("threat", ["Linf:0.1", 0.1, None])
def test_a_threat_is_no_text_and_no_number(threat: object, attack: Attack) -> None:
    with pytest.raises(InputError, match=rf"Threat, got {threat!r}: write Threat\.parse"):
        attack(logits, X, Y, threat)  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_inference_mode_is_refused_by_its_name(attack: Attack) -> None:
    with torch.inference_mode(), pytest.raises(InputError, match=r"torch\.inference_mode\(\)"):
        attack(logits, X.clone(), Y, THREAT)  # type: ignore[arg-type]
    with torch.no_grad():
        assert attack(logits, X, Y, THREAT).shape == X.shape  # type: ignore[arg-type]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_images_and_labels_made_inside_inference_mode_are_as_good_as_others(attack: Attack) -> None:
    with torch.inference_mode():
        x, y = X.clone(), Y.clone()
    assert torch.equal(attack(logits, x, y, THREAT), attack(logits, X, Y, THREAT))


@pytest.mark.parametrize("attack", WITH_GRADIENT.values(), ids=WITH_GRADIENT)
def test_weights_made_inside_inference_mode_are_named(attack: Attack) -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))
    with torch.no_grad():
        y = model(X).argmax(1)
    with pytest.raises(InputError, match=r"made inside torch\.inference_mode\(\).*copy\.deepcopy"):
        attack(model, X, y, THREAT)
    assert attack(copy.deepcopy(model), X, y, THREAT).shape == X.shape


@pytest.mark.parametrize("attack", WITH_GRADIENT.values(), ids=WITH_GRADIENT)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_pass_without_gradients_is_named(mode: Callable[[], Callable[..., object]], attack: Attack) -> None:
    model = mode()(lambda x: logits(x) + torch.tensor([9.0, 0, 0, 0, 0]))
    with pytest.raises(EvaluationError, match=r"gives no gradient.*torch\.inference_mode\(\)"):
        attack(model, X, torch.zeros_like(Y), THREAT)  # type: ignore[arg-type]


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "normalisation": lambda x: logits(x.sub_(0.25).div_(0.5)),
    "first layer": lambda x: logits(F.hardtanh(x, 0.1, 0.4, inplace=True)),
    "a channel": lambda x: logits(x.index_fill_(1, torch.tensor([0]), 0.25)),
    "a view": lambda x: logits(x.flatten(1).mul_(0.5).view_as(x)),
    "behind autograd's back": lambda x: (x.data.mul_(0.5), logits(x))[1],
    "afterwards": lambda x: (logits(x), x.detach().mul_(0.5))[0],
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("model", WRITES.values(), ids=WRITES)
def test_models_that_write_to_their_input(model: Callable[[Tensor], Tensor], attack: Attack) -> None:
    x = X.clone()
    with pytest.raises(EvaluationError, match=r"writes to its input.*x = x - mean"):
        attack(model, x, Y, THREAT)
    with pytest.raises(EvaluationError, match="writes to its input"):
        transfer_matrix([model], x, Y, THREAT, attack=attack)
    assert torch.equal(x, X)


def test_a_write_that_changes_nothing_matters_only_to_a_gradient() -> None:
    def rectified(x: Tensor) -> Tensor:
        return logits(F.relu(x, inplace=True))

    assert uniform_noise(2)(rectified, X, Y, THREAT).shape == X.shape
    with pytest.raises(EvaluationError, match="inplace=True"):
        fgsm()(rectified, X, Y, THREAT)


def test_a_transfer_checks_too() -> None:
    with pytest.raises(InputError, match="got a tuple"):
        Transfer(OUTPUTS["tuple"], fgsm())(logits, X, Y, THREAT)  # type: ignore[arg-type]


def test_where_a_gradient_is_zero() -> None:
    grad = torch.zeros(3, 1, 2, 2)
    grad[1, 0, 1, 1] = 1e-30
    assert is_zero(grad).tolist() == [True, False, True]
