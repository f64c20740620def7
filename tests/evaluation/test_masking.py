from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin import load_model
from empir_plugin.attacks import Threat, pgd
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.data import ImageSet, load_images
from empir_plugin.evaluation.masking import Audit, AuditSettings, audit
from empir_plugin.evaluation.masking_checks import CHECKS, Finding
from empir_plugin.evaluation.masking_evidence import Effort, Evidence, surrogates_of, whole_box
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.precision import Precision

N = 100
THREAT = Threat.parse("Linf:0.1")


def first(count: int) -> Tensor:
    """The first images broken, the others not."""
    return torch.arange(N) < count


def last(count: int) -> Tensor:
    return torch.arange(N) >= N - count


def evidence(**changes: object) -> Evidence:
    """What an honest model shows: half of the images fall to whatever is any good."""
    half = first(50)
    losses = {"cross-entropy": half, "margin": first(52), "DLR": first(51)}
    honest = Evidence(
        one_step=first(30),
        few_steps=first(49),
        many_steps=half,
        losses=losses,
        temperatures={"0.1": first(48), "10": half, "100": half},
        surrogates={"mean_probability": first(47)},
        black_box={"Square": first(20), "transfer from member 0": first(25)},
        noise=first(3),
        unbounded=first(N),
        zero_images=first(0),
        zero_pixels=torch.full((N,), 0.01, dtype=torch.float64),
        flags=(),
    )
    return replace(honest, **changes)  # type: ignore[arg-type]


def findings(facts: Evidence) -> dict[str, Finding]:
    return {finding.name: finding for finding in (check(facts) for check in CHECKS)}


def test_an_honest_model_passes_every_check() -> None:
    found = findings(evidence())
    assert len(found) == len(CHECKS) == 11
    assert all(finding.passed for finding in found.values())
    assert all(finding.reason and finding.measured.endswith(".") for finding in found.values())


ALIKE = {"cross-entropy": first(50), "margin": first(50), "DLR": first(50)}

SIGNS: Mapping[str, Mapping[str, object]] = {
    "images without a gradient": {"zero_images": first(6)},
    "pixels without a gradient": {"zero_pixels": torch.full((N,), 0.51, dtype=torch.float64)},
    "one step beats many": {"one_step": first(58)},
    "more steps help the defender": {"few_steps": first(58)},
    "black box beats white box": {"black_box": {"Square": first(20), "transfer from member 1": first(62)}},
    "surrogate beats the model's own gradient": {"surrogates": {"mean_logits": first(50), "plain/identity": first(70)}},
    "the loss decides": {"losses": {"cross-entropy": first(50), "margin": first(61), "DLR": first(55)}},
    "the temperature decides": {"temperatures": {"0.1": first(0), "100": first(65)}},
    "noise is as strong": {"noise": first(40)},
    "unbounded attack fails": {"unbounded": first(98)},
    "AutoAttack's warnings": {"flags": ("The model is dynamic.",)},
}


@pytest.mark.parametrize("name", SIGNS)
def test_every_check_fails_on_its_sign_and_alone(name: str) -> None:
    found = findings(evidence(**SIGNS[name]))
    assert [finding.name for finding in found.values() if not finding.passed] == [name]
    assert found[name].value > found[name].threshold


NEARLY: Mapping[str, Mapping[str, object]] = {
    "images without a gradient": {"zero_images": first(5)},
    "pixels without a gradient": {"zero_pixels": torch.full((N,), 0.5, dtype=torch.float64)},
    "one step beats many": {"one_step": first(52)},
    "surrogate beats the model's own gradient": {"surrogates": {"mean_logits": first(60)}},
    "the loss decides": {"losses": {"cross-entropy": first(50), "margin": first(60), "DLR": first(55)}},
    "unbounded attack fails": {"unbounded": first(99)},
    "AutoAttack's warnings": {"flags": ("Square Attack has decreased the robust accuracy of 0.50%.",)},
}


@pytest.mark.parametrize("name", NEARLY)
def test_the_threshold_itself_passes(name: str) -> None:
    assert findings(evidence(**NEARLY[name]))[name].passed


def test_a_draw_is_no_win() -> None:
    """Attacks that break as many, but other, images differ by nothing but chance."""
    assert findings(evidence(one_step=last(50)))["one step beats many"].passed
    assert findings(evidence(surrogates={"mean_logits": last(50)}))["surrogate beats the model's own gradient"].passed


def test_a_gap_beyond_the_slack_can_still_be_chance() -> None:
    wins_29_of_46 = torch.arange(N) < 62
    wins_29_of_46[:17] = False
    column = findings(evidence(losses={**ALIKE, "margin": wins_29_of_46}))["the loss decides"]
    assert column.passed  # 12 against 17
    lucky = torch.arange(N) < 96
    lucky[:34] = False  # 46 images only the first breaks, 34 only the second: a gap of 12 points, chance 0.11
    finding = findings(evidence(losses={**ALIKE, "margin": lucky}))["the loss decides"]
    assert finding.value == pytest.approx(0.12)
    assert finding.value > finding.threshold
    assert finding.passed


def test_noise_is_only_asked_where_it_says_something() -> None:
    assert findings(evidence(noise=first(4), losses={name: first(4) for name in ALIKE}))["noise is as strong"].passed
    everything = {name: first(96) for name in ALIKE}
    assert findings(evidence(noise=first(90), losses=everything))["noise is as strong"].passed
    nothing = {name: first(0) for name in ALIKE}
    assert not findings(evidence(noise=first(6), losses=nothing))["noise is as strong"].passed


def test_what_does_not_apply_passes_and_says_so() -> None:
    finding = findings(evidence(surrogates={}))["surrogate beats the model's own gradient"]
    assert finding.passed
    assert finding.measured == "Does not apply to this model."


# -- Controls: networks of which we know the answer.


def images(start: int, stop: int) -> ImageSet:
    sample = load_images("mnist")
    return replace(sample, images=sample.images[start:stop], labels=sample.labels[start:stop])


def network(precision: str = "w32a32") -> nn.Sequential:
    """A small convolutional network; w32a32 is a plain one."""
    torch.manual_seed(0)
    bits = Precision.parse(precision)
    return nn.Sequential(
        QuantConv2d(1, 12, 5, stride=2, precision=bits, bias=False),
        nn.ReLU(),
        QuantConv2d(12, 24, 5, stride=2, precision=bits, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    )


Adversary = Callable[[nn.Module, Tensor, Tensor], Tensor]


def trained(model: nn.Sequential, epochs: int, adversary: Adversary | None = None) -> nn.Sequential:
    data = images(0, 700)
    x, y = data.as_float(), data.labels
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(70):
            batch = x[rows] if adversary is None else adversary(model, x[rows], y[rows])
            optimizer.zero_grad()
            F.cross_entropy(model(batch), y[rows]).backward()
            optimizer.step()
    return model.eval()


def hostile(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return replace(pgd(5), return_last=True)(model, x, y, THREAT)


def mu_law_(layer: nn.Linear, mu: float = 255.0) -> None:
    """The mapping of https://arxiv.org/abs/2012.14965, after training, on the last layer."""
    with torch.no_grad():
        w = layer.weight
        largest = w.abs().max()
        w.copy_(w.sign() * largest * torch.log1p(mu * w.abs() / largest) / math.log1p(mu))


@pytest.fixture(scope="module")
def plain_network() -> nn.Sequential:
    return trained(network(), 15)


def run(model: nn.Module, threat: Threat = THREAT, **effort: int) -> Audit:
    return audit(model, images(700, 1000), threat, settings=AuditSettings(effort=Effort(**effort)))


def report(found: Audit) -> str:
    return "\n".join(f"{item.name}: {item.measured}" for item in found.failed)


def test_a_plain_network_passes(plain_network: nn.Sequential) -> None:
    found = run(plain_network)
    assert found.passed, report(found)
    assert found.verdict.startswith("No sign of gradient masking in 11 checks on ")


def test_an_adversarially_trained_network_passes() -> None:
    found = run(trained(network(), 20, hostile))
    assert found.passed, report(found)


def test_a_mu_law_mapped_network_is_caught(plain_network: nn.Sequential) -> None:
    model = copy.deepcopy(plain_network)
    mu_law_(model[-1])  # type: ignore[arg-type]
    found = run(model)
    assert not found.passed
    assert "the temperature decides" in {item.name for item in found.failed}


def test_an_unscaled_two_bit_network_is_caught() -> None:
    found = run(trained(network("w2a2"), 15))
    assert not found.passed
    assert "Gradient masking: " in found.verdict


# -- The audit itself.


QUICK = {"steps": 3, "few": 2, "many": 4, "queries": 5, "trials": 2}


def test_an_audit_is_deterministic_and_says_what_it_ran_on(plain_network: nn.Sequential) -> None:
    seen: list[tuple[str, int, int]] = []
    settings = AuditSettings(effort=Effort(**QUICK))
    told = audit(
        plain_network, images(700, 800), THREAT, settings=settings, on_progress=lambda *step: seen.append(step)
    )
    again = audit(plain_network, images(700, 800), THREAT, settings=settings)
    assert told == again
    table = json.loads(told.to_json())
    assert table["threat"] == "Linf:0.1"
    assert table["data"]["n"] == 100
    assert table["verdict"] == told.verdict
    assert table["settings"]["effort"]["queries"] == 5
    assert len(table["findings"]) == len(CHECKS)
    assert [done for _, done, _ in seen] == list(range(seen[-1][2]))


def test_an_audit_leaves_the_model_as_it_is(plain_network: nn.Sequential) -> None:
    before = copy.deepcopy(plain_network.state_dict())
    plain_network.train()
    run(plain_network, **QUICK)
    assert plain_network.training
    plain_network.eval()
    assert all(torch.equal(value, before[key]) for key, value in plain_network.state_dict().items())


def test_an_audit_under_l2(plain_network: nn.Sequential) -> None:
    found = run(plain_network, Threat.parse("L2:1"), **QUICK)
    assert found.threat == "L2:1"
    assert whole_box(Threat.parse("L2:1"), torch.zeros(1, 1, 28, 28)).eps == 28


def test_too_few_images_are_refused(plain_network: nn.Sequential) -> None:
    with pytest.raises(InputError, match="needs 50 correctly classified images, got"):
        audit(plain_network, images(700, 740), THREAT)


def test_a_model_without_weights_is_refused(plain_network: nn.Sequential) -> None:
    model = copy.deepcopy(plain_network)
    model.weights_loaded = False  # type: ignore[assignment]
    with pytest.raises(EvaluationError, match="no weights"):
        audit(model, images(700, 1000), THREAT)


def test_surrogates_fit_the_model() -> None:
    quantized = nn.Sequential(nn.Flatten(), QuantLinear(4, 4, precision=Precision.parse("w2a2")))
    assert surrogates_of(nn.Flatten()) == ()
    assert [str(item) for item in surrogates_of(quantized)] == ["plain/identity", "plain/soft"]
    assert [str(item) for item in surrogates_of(Ensemble([quantized, nn.Flatten()]))] == [
        "mean_probability",
        "mean_logits",
        "mean_probability/identity",
        "mean_probability/soft",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sound"), [("cifarconv-fp", True), ("empir-cifar", False)])
def test_published_models(name: str, sound: bool) -> None:
    """A plain network passes; EMPIR's vote of unscaled members hides its gradient."""
    found = audit(load_model(name), load_images("cifar10").first(200), Threat.parse("Linf:8/255"), name=name)
    assert found.passed is sound, report(found)


def test_evidence_is_complete() -> None:
    """Every measurement is read by a check."""
    used = {name for signs in SIGNS.values() for name in signs}
    assert {field.name for field in fields(Evidence)} == used | {"many_steps"}
