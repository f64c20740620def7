from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from empir_plugin.attacks import Threat
from empir_plugin.evaluation.audit.checks import CHECKS
from empir_plugin.evaluation.audit.mcnemar import Duel
from empir_plugin.evaluation.audit.measurements import Evidence
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


def evidence(broken: Mapping[str, Mapping[str, Tensor]] | None = None, **changes: object) -> Evidence:
    """What an honest model shows: half of the images fall to whatever is any good."""
    honest = Evidence(
        compared_at=Threat.parse("Linf:0.1"),
        broken={**HONEST, **(broken or {})},
        no_slope=first(0),
        flat_pixels=torch.full((N,), 0.01, dtype=torch.float64),
        kept=torch.full((N,), 0.9, dtype=torch.float64),
        has_gradient=True,
        flags=(),
    )
    return replace(honest, **changes)  # type: ignore[arg-type]


def findings(facts: Evidence) -> dict[str, Finding]:
    return {finding.name: finding for finding in (check(facts) for check in CHECKS)}


def losses(cross_entropy: Tensor, margin: Tensor, dlr: Tensor) -> dict[str, dict[str, Tensor]]:
    return {"losses": {"PGD on cross-entropy": cross_entropy, "PGD on CW's margin": margin, "PGD on DLR": dlr}}


def test_an_honest_model_passes_every_check_with_a_reason_each() -> None:
    found = findings(evidence())
    assert len(found) == len(CHECKS) == 12
    assert all(finding.passed for finding in found.values())
    assert all(finding.reason and finding.measured.endswith(".") for finding in found.values())


def flat(count: int) -> Tensor:
    """Most pixels of the first images without a slope."""
    return torch.where(first(count), 0.51, 0.0).double()


def kept(count: int) -> Tensor:
    return torch.where(first(count), 0.09, 1.0).double()


SIGNS: Mapping[str, Evidence] = {
    "zero gradients": evidence(no_slope=first(12)),
    "zero pixels": evidence(flat_pixels=flat(12)),
    "gradient misleads": evidence(kept=kept(63)),
    "one step beats many": evidence({"one step": {"FGSM": first(58)}}),
    "more steps help the defender": evidence({"few steps": {"long": first(58)}}),
    "black box beats white box": evidence({"black box": {"Square": first(20), "transfer": first(62)}}),
    "surrogate beats plain": evidence({"surrogates": {"mean_logits": first(50), "plain/identity": first(70)}}),
    "loss dependence": evidence(losses(first(50), first(64), first(55))),
    "temperature": evidence({"temperatures": {"0.1": first(0), "100": first(65)}}),
    "noise as strong as the attack": evidence({"noise": {"random noise": first(46)}}),
    "eps to 1": evidence({"unbounded": {"BIM": first(95)}}),
    "AutoAttack's flags": evidence(flags=("there are 3 points with zero gradient!",)),
}


@pytest.mark.parametrize("name", SIGNS)
def test_every_check_fails_on_its_sign_and_alone(name: str) -> None:
    found = findings(SIGNS[name])
    assert [finding.name for finding in found.values() if not finding.passed] == [name]
    assert found[name].value > found[name].threshold


NEARLY: Mapping[str, Evidence] = {
    "zero gradients": evidence(no_slope=first(5)),
    "zero pixels": evidence(flat_pixels=flat(5)),
    "gradient misleads": evidence(kept=kept(50)),
    "one step beats many": evidence({"one step": {"FGSM": first(52)}}),
    "more steps help the defender": evidence({"few steps": {"long": first(52)}}),
    "black box beats white box": evidence({"black box": {"Square": first(54)}}),
    "surrogate beats plain": evidence({"surrogates": {"mean_logits": first(60)}}),
    "loss dependence": evidence(losses(first(50), first(60), first(55))),
    "temperature": evidence({"temperatures": {"100": first(60)}}),
    "noise as strong as the attack": evidence({"noise": {"random noise": first(33)}}),
    "eps to 1": evidence({"unbounded": {"BIM": first(99)}}),
    "AutoAttack's flags": evidence(flags=("Square Attack has decreased the robust accuracy of 0.50%.",)),
}


@pytest.mark.parametrize("name", NEARLY)
def test_the_threshold_itself_passes(name: str) -> None:
    finding = findings(NEARLY[name])[name]
    assert finding.passed
    assert finding.value <= finding.threshold


ONE_OR_TWO: Mapping[str, Evidence] = {
    "one step beats many": evidence({"one step": {"FGSM": first(53)}}),
    "zero gradients": evidence(no_slope=first(6)),
    "eps to 1": evidence({"unbounded": {"BIM": first(98)}}),
    "noise as strong as the attack": evidence({"noise": {"random noise": first(34)}}),
}


@pytest.mark.parametrize("name", ONE_OR_TWO)
def test_one_or_two_images_beyond_the_threshold_are_chance(name: str) -> None:
    finding = findings(ONE_OR_TWO[name])[name]
    assert finding.value > finding.threshold
    assert finding.chance > 0.01
    assert finding.passed


def test_a_draw_is_no_win() -> None:
    """Attacks that break as many, but other, images differ by nothing but chance."""
    assert findings(evidence({"one step": {"FGSM": last(50)}}))["one step beats many"].passed
    assert findings(evidence({"surrogates": {"mean_logits": last(50)}}))["surrogate beats plain"].passed


def test_the_chance_of_a_duel_by_hand() -> None:
    """Seven wins and no loss: 1/128. Two wins and a loss: 4 of the 8 outcomes of three coins have two heads or more."""
    assert Duel.of("a", first(57), "b", first(50)).chance == pytest.approx(1 / 128)
    lucky = torch.isin(torch.arange(N), torch.tensor([0, 2, 3]))
    other = torch.isin(torch.arange(N), torch.tensor([0, 1]))
    assert Duel.of("a", lucky, "b", other).chance == pytest.approx(0.5)
    assert Duel.of("a", first(57), "b", first(50), duels=3).chance == pytest.approx(3 / 128)


def test_more_challengers_need_more_wins() -> None:
    """Of many fair coins one is often lucky."""
    alone = {"black box": {"Square": first(59)}}
    assert not findings(evidence(alone))["black box beats white box"].passed
    many = {"black box": {f"transfer from member {i}": first(59) for i in range(4)}}
    assert findings(evidence(many))["black box beats white box"].passed


def test_the_black_box_is_held_against_the_best_of_all_losses() -> None:
    each = losses(first(50), last(30), first(0))
    found = findings(evidence({**each, "black box": {"Square": first(50) | last(30)}}))
    assert found["black box beats white box"].value == 0


def test_nothing_broken_says_nothing_about_noise() -> None:
    none = {**losses(first(0), first(0), first(0)), "noise": {"random noise": first(0)}}
    assert findings(evidence(none))["noise as strong as the attack"].passed
    blind = {**none, "noise": {"random noise": first(12)}}
    assert not findings(evidence(blind))["noise as strong as the attack"].passed


def test_what_does_not_apply_passes_and_says_so() -> None:
    finding = findings(evidence({"surrogates": {}}))["surrogate beats plain"]
    assert finding.passed
    assert finding.measured == "Does not apply to this model."


def test_no_gradient_is_a_finding_with_its_own_reason() -> None:
    finding = findings(evidence(has_gradient=False))["zero gradients"]
    assert not finding.passed
    assert "gives no gradient" in finding.measured
    assert finding.evidence == {"has_gradient": False}


def test_evidence_names_the_counts() -> None:
    found = findings(evidence())
    assert found["loss dependence"].evidence == {
        "images_broken": {"PGD on cross-entropy": 50, "PGD on CW's margin": 52, "PGD on DLR": 51},
        "images": N,
    }
    assert found["one step beats many"].evidence["images_broken"] == {"FGSM": 30, "PGD on cross-entropy": 50}
