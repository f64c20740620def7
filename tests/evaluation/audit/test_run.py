from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin import load_model
from empir_plugin.attacks import Threat, pgd
from empir_plugin.data.image_set import ImageSet, load_images
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.audit.checks import CHECKS
from empir_plugin.evaluation.audit.report import AuditReport
from empir_plugin.evaluation.audit.run import FEWEST_IMAGES, audit
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.judge import correct
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.models.layers import QuantLinear
from empir_plugin.models.mu_law import mu_law_
from empir_plugin.models.quantize import Precision, Scale

THREAT = Threat.parse("Linf:0.1")


def images(start: int, stop: int) -> ImageSet:
    sample = load_images("mnist")
    return replace(sample, images=sample.images[start:stop], labels=sample.labels[start:stop])


TESTED = 800, 870


def failed(report: AuditReport) -> set[str]:
    return {finding.name for finding in report.failed}


def told(report: AuditReport) -> str:
    return "\n".join(f"{finding.name}: {finding.measured}" for finding in report.failed)


# -- Controls: networks of which we know the answer, trained here on 600 digits.


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def two_bit(scale: Scale) -> nn.Sequential:
    """No batch norm. Unscaled, sums of 100 weights of 1/3 and 1 lie far outside the next layer's clip to [0, 1]."""
    torch.manual_seed(0)
    bits = Precision.parse("w2a2")
    return nn.Sequential(
        nn.Flatten(),
        QuantLinear(784, 100, bias=False, precision=bits, scale=scale),
        nn.ReLU(),
        QuantLinear(100, 100, bias=False, precision=bits, scale=scale),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


Adversary = Callable[[nn.Module, Tensor, Tensor], Tensor]


def trained(model: nn.Sequential, epochs: int, adversary: Adversary | None = None) -> nn.Sequential:
    data = images(0, 600)
    x, y = data.as_float(), data.labels
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(50):
            batch = x[rows] if adversary is None else adversary(model, x[rows], y[rows])
            optimizer.zero_grad()
            F.cross_entropy(model(batch), y[rows]).backward()
            optimizer.step()
    return model.eval()


def hostile(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return replace(pgd(4), return_last=True)(model, x, y, THREAT)


@pytest.fixture(scope="module")
def plain_network() -> nn.Sequential:
    return trained(convolutional(), 20)


def accuracy(model: nn.Module) -> float:
    data = images(*TESTED)
    return correct(model, data.as_float(), data.labels).double().mean().item()


def robust_accuracy(model: nn.Module) -> float:
    data = images(*TESTED)
    made = pgd(20)(model, data.as_float(), data.labels, THREAT)
    return correct(model, made, data.labels).double().mean().item()


def test_a_plain_network_passes(plain_network: nn.Sequential) -> None:
    assert accuracy(plain_network) > 0.85
    report = audit(plain_network, images(*TESTED), THREAT)
    assert report.verdict == "passed", told(report)
    assert len(report.checks) == len(CHECKS)


def test_an_adversarially_trained_network_passes(plain_network: nn.Sequential) -> None:
    model = trained(convolutional(), 8, hostile)
    assert robust_accuracy(model) > 0.6 > robust_accuracy(plain_network)
    report = audit(model, images(*TESTED), THREAT)
    assert report.verdict == "passed", told(report)


def test_a_mu_law_mapped_network_is_caught(plain_network: nn.Sequential) -> None:
    """Its last three layers mapped, as the paper maps CIFAR's: logits grow until float32 knows no doubt.

    To PGD on cross-entropy it looks robust, and to whoever divides the logits, or climbs them, it does not.
    """
    model = copy.deepcopy(plain_network)
    assert mu_law_(model, 3) == ("0", "2", "5")
    assert accuracy(model) > 0.8
    assert robust_accuracy(model) > robust_accuracy(plain_network) + 0.1
    report = audit(model, images(*TESTED), THREAT)
    assert report.verdict == "masked"
    assert {"zero gradients", "loss dependence", "temperature", "eps to 1"} <= failed(report)


def test_an_unscaled_two_bit_network_is_caught() -> None:
    """Activations lie beyond the clip, whose slope there is 0, and what slope is left is far too steep."""
    model = trained(two_bit("none"), 15)
    assert accuracy(model) > 0.75
    report = audit(model, images(*TESTED), Threat.parse("Linf:0.2"))
    assert report.verdict == "masked"
    assert {"black box beats white box", "surrogate beats plain", "eps to 1"} <= failed(report)


@pytest.mark.slow
def test_a_scaled_two_bit_network_passes() -> None:
    """What is caught is the missing scale, not the two bits."""
    report = audit(trained(two_bit("max"), 15), images(*TESTED), Threat.parse("Linf:0.2"))
    assert report.verdict == "passed", told(report)
    assert report.compared_at == "Linf:0.1", "everything falls at 0.2, where no two attacks can be told apart"


# -- The audit itself.


def separable(n: int = 40, *, enlarged: int = 1) -> ImageSet:
    """Tiny images, labelled by their brightest pixel (or block of them): `nn.Flatten` classifies them all."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 1, 2, 2), generator=generator, dtype=torch.uint8)
    blocks = pixels.repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3)
    return ImageSet("toy", "test", blocks, pixels.flatten(1).argmax(1), ("a", "b", "c", "d"))


class Vote(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(x.flatten(1).argmax(1), 4) * 5.0


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * math.nan


class Network(nn.Module):
    """With weights, a training mode and a buffer to leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.scale


def test_a_report_says_what_it_ran_on_and_repeats() -> None:
    seen: list[tuple[str, int, int]] = []
    seeded = Settings(seed=3)
    report = audit(
        nn.Flatten(), separable(), THREAT, settings=seeded, name="toy", on_progress=lambda *step: seen.append(step)
    )
    assert report == audit(nn.Flatten(), separable(), THREAT, settings=seeded, name="toy")
    table = json.loads(report.to_json())
    assert table["model"]["name"] == "toy"
    assert (table["data"]["n"], table["data"]["sha256"]) == (40, separable().fingerprint)
    assert table["threat"] == "Linf:0.1"
    assert table["run"]["seed"] == 3
    assert seen[-1][1] == seen[-1][2]


def test_an_audit_leaves_the_model_as_it_is() -> None:
    model = Network().train()
    audit(model, separable(), THREAT)
    assert model.training
    assert model.scale.requires_grad
    assert model.scale.grad is None
    assert torch.equal(model.scale, torch.ones(1, 4))


def test_an_audit_under_l2() -> None:
    report = audit(nn.Sequential(nn.AvgPool2d(3), nn.Flatten()), separable(enlarged=3), Threat.parse("L2:0.1"))
    assert report.threat == "L2:0.1"
    assert report.verdict == "passed", told(report)


def test_no_gradient_is_masking_and_black_boxes_still_run() -> None:
    report = audit(Vote(), separable(), Threat.parse("Linf:0.2"))
    assert report.verdict == "masked"
    found = {finding.name: finding for finding in report.checks}
    assert found["zero gradients"].measured.startswith("The model gives no gradient")
    assert found["zero gradients"].evidence == {"has_gradient": False}
    assert not found["noise as strong as the attack"].passed
    assert found["noise as strong as the attack"].evidence["images_broken"]["random noise"] > 5


def test_only_correctly_classified_images_are_measured() -> None:
    data = separable()
    labels = data.labels.clone()
    labels[:10] = (labels[:10] + 1) % 4
    assert audit(nn.Flatten(), replace(data, labels=labels), THREAT).images == 30


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="needs 20 correctly classified images, got 19 of 19: pass more"):
        audit(nn.Flatten(), separable(FEWEST_IMAGES - 1), THREAT)
    data = separable()
    with pytest.raises(InputError, match="got 0 of 40"):
        audit(nn.Flatten(), replace(data, labels=(data.labels + 1) % 4), THREAT)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="name a finite eps"):
        audit(nn.Flatten(), separable(), Threat.parse("L2:inf"))
    with pytest.raises(EvaluationError, match="returned NaN"):
        audit(NotANumber(), separable(), THREAT)
    with pytest.raises(EvaluationError, match=r"must return logits of shape \(40, 4\)"):
        audit(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), separable(), THREAT)
    empty = Network()
    empty.weights_loaded = False  # type: ignore[assignment]
    with pytest.raises(EvaluationError, match="toy has no weights"):
        audit(empty, separable(), THREAT, name="toy")


class Fails(nn.Module):
    """Classifies `separable` and fails whenever ``when`` says so."""

    def __init__(self, when: Callable[[Tensor], bool], error: Exception) -> None:
        super().__init__()
        self.when, self.error = when, error

    def forward(self, x: Tensor) -> Tensor:
        if self.when(x):
            raise self.error
        return x.flatten(1)


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        raise ValueError("no way back")


class NoWayBack(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return FailsBackward.apply(x).flatten(1)


class InPlace(nn.Module):
    """Writes what is there already, which matters to gradients only."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True).flatten(1)


RED = RuntimeError("\x1b[31msizes differ\x1b[0m\nat line 3")
FAILING: dict[str, tuple[nn.Module, str]] = {
    "always": (Fails(lambda x: True, RED), r"^the clean images failed on shard 0 .* with RuntimeError: sizes differ$"),
    "many images": (Fails(lambda x: len(x) > 10, KeyError("big")), r"the clean images failed .* with KeyError: 'big'$"),
    "with gradients": (Fails(lambda x: x.requires_grad, RED), r"gradient failed .* with RuntimeError: sizes differ$"),
    "backward": (NoWayBack(), r"gradient failed .* with ValueError: no way back$"),
    "in place": (InPlace(), r"gradient.*writes to its input"),
}


@pytest.mark.parametrize(("model", "sentence"), FAILING.values(), ids=FAILING)
def test_a_failing_model_is_reported_as_in_an_evaluation(model: nn.Module, sentence: str) -> None:
    with pytest.raises(EvaluationError, match=sentence):
        audit(model, separable(), THREAT)


def test_a_model_that_does_not_take_a_single_image_is_refused_with_the_cause() -> None:
    model = Fails(lambda x: len(x) == 1, RED)
    with pytest.raises(EvaluationError, match=r"not a single one \(RuntimeError: sizes differ\).*other images"):
        audit(model, separable(), Threat.parse("Linf:1/255"))


@pytest.mark.parametrize("shape", [(3, 1, 64), (3, 2, 2), (1, 1, 9), (2, 4, 7)])
def test_images_too_small_for_square_under_l2(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, *shape), generator=generator, dtype=torch.uint8)
    data = ImageSet("toy", "test", pixels, (pixels / 255).mean((2, 3)).argmax(1), ("a", "b", "c")[: shape[0]])
    if shape[0] == 1:
        data = replace(data, class_names=("a", "b"))
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ConstantPad1d((0, len(data.class_names) - shape[0]), -9)
    )
    report = audit(model, data, Threat.parse("L2:0.05"))
    assert [flag for flag in report.flags if f"at least 5 rows under L2, got {shape[1]}" in flag]
    found = {finding.name: finding for finding in report.checks}
    assert found["black box beats white box"].measured == "Does not apply to this model."
    assert found["AutoAttack's flags"].passed


def test_an_ensemble_of_another_type_is_audited_as_one() -> None:
    members = [nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False, dtype=torch.float64)) for _ in range(2)]
    for member in members:
        nn.init.eye_(member[1].weight)  # type: ignore[arg-type]
    cast = [nn.Sequential(Double(), member) for member in members]
    report = audit(Ensemble(cast, MeanProbability()), separable(), THREAT)
    found = {finding.name: finding for finding in report.checks}
    assert "transfer from member 1" in found["black box beats white box"].evidence["images_broken"]


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


@pytest.mark.slow
def test_a_published_plain_network_passes() -> None:
    report = audit(load_model("cifarconv-fp"), load_images("cifar10", n_examples=64), Threat.parse("Linf:8/255"))
    assert report.verdict == "passed", told(report)


@pytest.mark.slow
def test_a_published_unscaled_network_is_caught() -> None:
    """Unscaled, w2a4, no batch norm."""
    data = load_images("mnist", n_examples=100)
    report = audit(load_model("mnistconv-w2a4", dataset="mnist"), data, Threat.parse("Linf:0.3"))
    assert "surrogate beats plain" in failed(report)
