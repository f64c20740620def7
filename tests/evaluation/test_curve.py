"""Curves over eps: known radii, what is not attacked again, and what a curve refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from empir_plugin.attacks import fgsm, uniform_noise
from empir_plugin.attacks.threat import Linf, Threat
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec, Labels
from empir_plugin.evaluation.curve import Curve, WarmStart, evaluate_curve, parse_radii
from empir_plugin.evaluation.run import evaluate

FGSM = [AttackSpec("FGSM", fgsm())]


def test_radii_continue_in_equal_steps() -> None:
    assert parse_radii("0,1/255,...,4/255") == ("1/255", "2/255", "3/255", "4/255")
    assert parse_radii("0, 0.1, ..., 0.4") == ("0.1", "0.2", "0.3", "0.4")
    assert parse_radii("8/255") == ("8/255",)


@given(st.integers(1, 8), st.integers(2, 12))
def test_an_ellipsis_is_the_written_out_list(step: int, count: int) -> None:
    written = [f"{step * number}/255" for number in range(count + 1)]
    assert parse_radii(f"0,{written[1]},...,{written[-1]}") == parse_radii(",".join(written))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "''"),
        ("0", "above 0"),
        ("1/255,x", "'x'"),
        ("2/255,1/255", "2/255, 1/255"),
        ("1/255,1/255", "ascend"),
        ("...,1/255", "stands between"),
        ("0,1/255,...", "stands between"),
        ("0,2/255,...,5/255", "do not lead"),
        ("0,1/100000,...,1", "do not lead"),
        ("-1/255,1/255", "'-1/255'"),
    ],
)
def test_other_radii_are_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_radii(text)
    assert named in str(caught.value)


@pytest.fixture(scope="module")
def curve(toys: ModuleType) -> Curve:
    """Images at distances of 2, 5, 7, 9 and 12 levels from the boundary; the last one is misclassified."""
    data = toys.pairs([2, 5, 7, 9, 12, 20], [0, 0, 0, 0, 0, 1])
    return evaluate_curve(toys.Compare(), data, Linf(), parse_radii("0,3/255,...,9/255"), FGSM, name="toy")


def test_the_radius_decides_which_image_is_broken(curve: Curve) -> None:
    assert curve.eps == (0.0, 3 / 255, 6 / 255, 9 / 255)
    assert curve.verdicts("FGSM") == ("111110", "011110", "001110", curve.records[-1].worst_case)
    assert curve.verdicts() == curve.verdicts("FGSM")
    assert curve.accuracy()[:3] == (83.33, 66.67, 50.0)
    assert curve.minimal_eps()[:3] == (3 / 255, 6 / 255, 9 / 255)
    assert curve.minimal_eps()[4:] == (None, 0.0)


def test_it_is_that_of_separate_evaluations(curve: Curve, toys: ModuleType) -> None:
    data = toys.pairs([2, 5, 7, 9, 12, 20], [0, 0, 0, 0, 0, 1])
    for radius, record in zip(curve.radii, curve.records, strict=True):
        alone = evaluate(toys.Compare(), data, Threat.parse(f"Linf:{radius}"), FGSM)
        assert record.worst_case == alone.worst_case


def test_a_broken_image_is_not_attacked_again(toys: ModuleType) -> None:
    seen: list[list[int]] = []

    def logged(model: Any, x: Tensor, y: Tensor, threat: Threat, **rest: Any) -> Tensor:
        seen.append(rest["indices"].tolist())
        return fgsm()(model, x, y, threat, **rest)

    data = toys.pairs([2, 5, 7, 12], [0, 0, 0, 0])
    evaluate_curve(toys.Compare(), data, Linf(), parse_radii("3/255,6/255,8/255"), [AttackSpec("FGSM", logged)])
    assert seen == [[0, 1, 2, 3], [1, 2, 3], [2, 3]]


def test_a_weaker_attack_at_a_larger_radius_cannot_repair_an_image(toys: ModuleType) -> None:
    """Of an attack by chance alone: without the warm start, accuracy would go up and down."""
    spec = [AttackSpec("noise", uniform_noise(1))]
    radii = parse_radii("0,1/255,...,12/255")
    curve = evaluate_curve(toys.network(), toys.noise_images(), Linf(), radii, spec)
    assert list(curve.accuracy()) == sorted(curve.accuracy(), reverse=True)
    assert curve.accuracy()[-1] < curve.accuracy()[0]


def test_what_was_found_is_returned_without_a_pass() -> None:
    warm = WarmStart(fgsm(), {7: torch.full((1, 1, 2), 0.3)})
    adversarial = warm(lambda x: x.flatten(1) / 0, torch.zeros(1, 1, 1, 2), torch.tensor([0]), Threat.parse("Linf:0.5"),
        indices=torch.tensor([7]))  # fmt: skip
    assert adversarial.flatten().tolist() == pytest.approx([0.3, 0.3])


def test_a_curve_round_trips_and_refuses_what_contradicts_itself(curve: Curve, tmp_path: Path) -> None:
    curve.write(tmp_path / "curve.json")
    assert Curve.read(tmp_path / "curve.json") == curve
    with pytest.raises(EvaluationError, match="one record for each radius"):
        replace(curve, radii=curve.radii[:2])
    with pytest.raises(EvaluationError, match="one model"):
        replace(curve, records=(replace(curve.records[0], model={"name": "other"}), *curve.records[1:]))
    swapped = [replace(record, threat=f"Linf:{radius}") for radius, record in zip(curve.radii, curve.records[::-1])]  # noqa: B905
    with pytest.raises(EvaluationError, match="every larger one"):
        replace(curve, records=tuple(swapped))
    curve.records[0].write(tmp_path / "record.json")
    with pytest.raises(EvaluationError, match=r"record\.json"):
        Curve.read(tmp_path / "record.json")


def test_attacks_without_a_radius_to_follow_have_no_curve(toys: ModuleType) -> None:
    data, own = toys.pairs([2], [0]), Threat.parse("Linf:1/255")
    specs = [AttackSpec("own", fgsm(), threat=own), AttackSpec("labels", fgsm(), labels=Labels.OWN)]
    with pytest.raises(InputError, match="own, labels"):
        evaluate_curve(toys.Compare(), data, Linf(), ("1/255",), specs)
    assert evaluate_curve(toys.Compare(), data, Linf(), ("1/255",), [*specs, *FGSM]).attacks == ("FGSM",)


def test_progress_names_the_radius(toys: ModuleType) -> None:
    titles: list[str] = []
    data = toys.pairs([2], [0])
    report = lambda each: titles.append(each.title)  # noqa: E731
    evaluate_curve(toys.Compare(), data, Linf(), ("1/255",), FGSM, on_progress=report)
    assert set(titles) == {"eps 1/255: clean", "eps 1/255: FGSM"}
