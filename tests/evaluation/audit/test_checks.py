from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from empir_plugin.attacks import Threat
from empir_plugin.evaluation.audit.checks import CHECKS
from empir_plugin.evaluation.audit.measurements import Measurements
from empir_plugin.evaluation.audit.report import Finding

N = 100


def first(count: int) -> Tensor:
    """The first images broken, the others not."""
    return torch.arange(N) < count


def last(count: int) -> Tensor:
    return torch.arange(N) >= N - count


HONEST: Mapping[str, Mapping[str, Tensor]] = {
    "one step": {"FGSM": first(30)},
    "few steps": {"long": first(49)},
    "many steps": {"short": first(50)},
    "losses": {"PGD on cross-entropy": first(50), "PGD on CW's margin": first(52), "PGD on DLR": first(51)},
    "temperatures": {"0.1": first(48), "10": first(50), "100": first(50)},
    "surrogates": {"mean_probability": first(47)},
    "black box": {"Square": first(20), "transfer from member 0": first(25)},
    "noise": {"random noise": first(3)},
    "unbounded": {"BIM": first(N)},
}


def measured(broken: Mapping[str, Mapping[str, Tensor]] | None = None, **changes: object) -> Measurements:
    """Measurements on a model without masking: every good attack breaks half of the images."""
    honest = Measurements(
        compared_at=Threat.parse("Linf:0.1"),
        broken={**HONEST, **(broken or {})},
        zero_gradient=first(0),
        zero_pixels=torch.full((N,), 0.01, dtype=torch.float64),
        kept=torch.full((N,), 0.9, dtype=torch.float64),
        has_gradient=True,
        batch_dependent=first(0),
        flags=(),
    )
    return replace(honest, **changes)  # type: ignore[arg-type]


def findings(measurements: Measurements) -> dict[str, Finding]:
    return {finding.name: finding for finding in (check(measurements) for check in CHECKS)}


def losses(cross_entropy: Tensor, margin: Tensor, dlr: Tensor) -> dict[str, dict[str, Tensor]]:
    return {"losses": {"PGD on cross-entropy": cross_entropy, "PGD on CW's margin": margin, "PGD on DLR": dlr}}


def test_an_honest_model_passes_every_check_with_a_reason_each() -> None:
    found = findings(measured())
    assert len(found) == len(CHECKS) == 13
    assert all(finding.passed for finding in found.values())
    assert all(finding.reason and finding.measured.endswith(".") for finding in found.values())


def flat(count: int) -> Tensor:
    """Most pixels of the first images with a gradient of zero."""
    return torch.where(first(count), 0.51, 0.0).double()


def kept(count: int) -> Tensor:
    return torch.where(first(count), 0.09, 1.0).double()


SIGNS: Mapping[str, Measurements] = {
    "zero gradients": measured(zero_gradient=first(12)),
    "zero pixels": measured(zero_pixels=flat(12)),
    "gradient misleads": measured(kept=kept(63)),
    "batch dependence": measured(batch_dependent=first(6)),
    "one step beats many": measured({"one step": {"FGSM": first(58)}}),
    "more steps help the defender": measured({"few steps": {"long": first(58)}}),
    "black box beats white box": measured({"black box": {"Square": first(20), "transfer": first(62)}}),
    "surrogate beats plain": measured({"surrogates": {"mean_logits": first(50), "plain/identity": first(70)}}),
    "loss dependence": measured(losses(first(50), first(64), first(55))),
    "temperature": measured({"temperatures": {"0.1": first(0), "100": first(65)}}),
    "noise as strong as the attack": measured({"noise": {"random noise": first(46)}}),
    "eps to 1": measured({"unbounded": {"BIM": first(95)}}),
    "AutoAttack's flags": measured(flags=("there are 3 points with zero gradient!",)),
}


@pytest.mark.parametrize("name", SIGNS)
def test_every_check_fails_on_its_sign_and_alone(name: str) -> None:
    found = findings(SIGNS[name])
    assert [finding.name for finding in found.values() if not finding.passed] == [name]
    assert found[name].value > found[name].threshold


NEARLY: Mapping[str, Measurements] = {
    "zero gradients": measured(zero_gradient=first(5)),
    "zero pixels": measured(zero_pixels=flat(5)),
    "gradient misleads": measured(kept=kept(50)),
    "batch dependence": measured(batch_dependent=first(1)),
    "one step beats many": measured({"one step": {"FGSM": first(52)}}),
    "more steps help the defender": measured({"few steps": {"long": first(52)}}),
    "black box beats white box": measured({"black box": {"Square": first(54)}}),
    "surrogate beats plain": measured({"surrogates": {"mean_logits": first(60)}}),
    "loss dependence": measured(losses(first(50), first(60), first(55))),
    "temperature": measured({"temperatures": {"100": first(60)}}),
    "noise as strong as the attack": measured({"noise": {"random noise": first(33)}}),
    "eps to 1": measured({"unbounded": {"BIM": first(99)}}),
    "AutoAttack's flags": measured(flags=("Square Attack has decreased the robust accuracy of 0.50%.",)),
}


@pytest.mark.parametrize("name", NEARLY)
def test_the_threshold_itself_passes(name: str) -> None:
    finding = findings(NEARLY[name])[name]
    assert finding.passed
    assert finding.value <= finding.threshold


ONE_OR_TWO: Mapping[str, Measurements] = {
    "one step beats many": measured({"one step": {"FGSM": first(53)}}),
    "zero gradients": measured(zero_gradient=first(6)),
    "eps to 1": measured({"unbounded": {"BIM": first(98)}}),
    "noise as strong as the attack": measured({"noise": {"random noise": first(34)}}),
}


@pytest.mark.parametrize("name", ONE_OR_TWO)
def test_one_or_two_images_beyond_the_threshold_are_not_significant(name: str) -> None:
    finding = findings(ONE_OR_TWO[name])[name]
    assert finding.value > finding.threshold
    assert finding.p_value > 0.01
    assert finding.passed


def test_attacks_that_break_as_many_images_do_not_differ() -> None:
    """Attacks that break as many, but other, images do not differ significantly."""
    assert findings(measured({"one step": {"FGSM": last(50)}}))["one step beats many"].passed
    assert findings(measured({"surrogates": {"mean_logits": last(50)}}))["surrogate beats plain"].passed


def test_the_p_value_is_corrected_for_the_number_of_attacks() -> None:
    """Among many attacks, one is often the best by chance."""
    alone = {"black box": {"Square": first(59)}}
    assert not findings(measured(alone))["black box beats white box"].passed
    many = {"black box": {f"transfer from member {i}": first(59) for i in range(4)}}
    assert findings(measured(many))["black box beats white box"].passed


def test_the_black_box_is_held_against_the_best_of_all_losses() -> None:
    each = losses(first(50), last(30), first(0))
    found = findings(measured({**each, "black box": {"Square": first(50) | last(30)}}))
    assert found["black box beats white box"].value == 0


def test_nothing_broken_says_nothing_about_noise() -> None:
    none = {**losses(first(0), first(0), first(0)), "noise": {"random noise": first(0)}}
    assert findings(measured(none))["noise as strong as the attack"].passed
    blind = {**none, "noise": {"random noise": first(12)}}
    assert not findings(measured(blind))["noise as strong as the attack"].passed


def test_what_does_not_apply_passes_and_says_so() -> None:
    finding = findings(measured({"surrogates": {}}))["surrogate beats plain"]
    assert finding.passed
    assert finding.measured == "Does not apply to this model."


def test_no_gradient_is_a_finding_with_its_own_reason() -> None:
    finding = findings(measured(has_gradient=False))["zero gradients"]
    assert not finding.passed
    assert "gives no gradient" in finding.measured
    assert finding.evidence == {"has_gradient": False}


def test_evidence_names_the_counts() -> None:
    found = findings(measured())
    assert found["loss dependence"].evidence == {
        "images_broken": {"PGD on cross-entropy": 50, "PGD on CW's margin": 52, "PGD on DLR": 51},
        "images": N,
    }
    assert found["one step beats many"].evidence["images_broken"] == {"FGSM": 30, "PGD on cross-entropy": 50}
