"""Measurements on networks whose gradients are known exactly."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import Threat, mean_probability, plain
from empir_plugin.data.image_set import ImageSet
from empir_plugin.evaluation.audit.measurements import (
    AuditAttack,
    Auditor,
    audit_attacks,
    flag_suite,
    gives_gradient,
    reference,
    surrogates_of,
    whole_box,
)
from empir_plugin.evaluation.evaluator import Evaluator, Settings
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import QuantLinear
from empir_plugin.models.quantize import Precision

THREAT = Threat.parse("Linf:8/255")


def auditor(model: nn.Module, data: ImageSet, batch_size: int = 250) -> Auditor:
    return Auditor(Evaluator(model, data, THREAT, Settings(batch_size=batch_size)))


def grey(n: int = 8, *, contrast: int = 3) -> ImageSet:
    """Two grey pixels per image, the left one slightly brighter."""
    pixels = torch.tensor([127 + contrast, 127], dtype=torch.uint8).view(1, 1, 1, 2)
    return ImageSet("toy", "test", pixels.repeat(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64), ("a", "b", "c"))


class Scaled(nn.Module):
    """Differences of two pixels, with a gradient that is so many times theirs."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        steep = self.factor * x
        left, right = (steep + (x - steep).detach()).flatten(1).unbind(1)
        return torch.stack([left - right, right - left, torch.full_like(left, -5)], 1)


class Vote(nn.Module):
    """A hard decision, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x.flatten(1).argmax(1), 3).float()


def on_grey(model: nn.Module, n: int = 8, *, contrast: int = 3) -> Auditor:
    return auditor(model, grey(n, contrast=contrast))


@pytest.mark.parametrize("factor", [1.0, 4.0, 0.5])
def test_what_is_kept_of_a_promise(factor: float) -> None:
    """A gradient four times too steep keeps a quarter of what it promises."""
    kept = on_grey(Scaled(factor))._kept(THREAT)
    assert kept == pytest.approx(torch.full((8,), 1 / factor, dtype=torch.float64), rel=1e-4)


def test_a_network_without_gradient_promises_nothing() -> None:
    assert torch.equal(on_grey(Scaled(0.0))._kept(THREAT), torch.zeros(8, dtype=torch.float64))


def test_which_gradients_are_zero() -> None:
    images, pixels = on_grey(Scaled(0.0))._zero_gradients()
    assert images.all()
    assert (pixels == 1).all()
    images, pixels = on_grey(Scaled(1.0))._zero_gradients()
    assert not images.any()
    assert (pixels == 0).all()


def test_saturation_is_zero_for_cross_entropy_and_not_for_the_margin() -> None:
    """Logits thousands apart: in float32 every probability is 0 or 1."""
    steep = nn.Sequential(Scaled(1.0), _Times(20_000.0))
    images, pixels = on_grey(steep, contrast=28)._zero_gradients()
    assert images.all()
    assert (pixels == 0).all()


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.parametrize(("differences", "expected"), [([20] * 6, 8), ([1] * 3 + [20] * 3, 8), ([3] * 5 + [7] * 1, 2)])
def test_attacks_are_compared_at_the_largest_half_that_leaves_enough_robust_images(
    toys: ModuleType, differences: list[int], expected: int
) -> None:
    data = toys.pairs(differences, [0] * len(differences))
    assert auditor(toys.Compare(), data).comparable_threat().eps == pytest.approx(expected / 255)


def test_halving_ends(toys: ModuleType) -> None:
    """Images on the boundary itself are broken under any budget."""
    data = toys.pairs([0] * 6, [0] * 6)
    assert auditor(toys.Compare(), data).comparable_threat().eps == pytest.approx(8 / 255 / 32)


def test_batches_change_nothing(toys: ModuleType) -> None:
    data = toys.pairs([*range(1, 12)], [0] * 11)
    whole, cut = auditor(toys.Compare(), data), auditor(toys.Compare(), data, batch_size=4)
    assert torch.equal(whole.broken(reference(), THREAT), cut.broken(reference(), THREAT))
    assert torch.equal(whole._kept(THREAT), cut._kept(THREAT))


def test_without_a_gradient_only_black_boxes_break_anything() -> None:
    measured = on_grey(Vote()).measure()
    assert not measured.has_gradient
    assert not any(column.any() for column in measured.broken["losses"].values())
    assert measured.only("noise").all()
    assert measured.broken["black box"]["Square with 300 queries"].any()
    assert (measured.kept == 0).all()


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[str, int, int]] = []
    on_grey(Scaled(1.0), n=2).measure(lambda *step: seen.append(step))
    total = seen[0][2]
    assert [done for _, done, _ in seen] == list(range(total + 1))
    assert seen[1][0] == "FGSM"


def test_an_ensemble_gets_its_surrogates_and_transfer_from_its_members() -> None:
    model = Ensemble([Scaled(1.0), Vote()])
    assert not gives_gradient(plain, Ensemble([Vote()]), grey().batch(0, 1)[0])
    assert gives_gradient(mean_probability, model, grey().batch(0, 1)[0])
    attacks = {attack.name: attack for attack in audit_attacks(model, 3)}
    assert {"PGD on mean_probability", "transfer from member 0", "transfer from member 1"} <= set(attacks)
    found = on_grey(model)
    assert found.broken(attacks["transfer from member 0"], THREAT).all()
    assert not found.broken(attacks["transfer from member 1"], THREAT).any()


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


def test_two_classes_do_without_dlr() -> None:
    assert not [attack for attack in audit_attacks(nn.Flatten(), 2) if "DLR" in attack.name]
    assert flag_suite(2, has_gradient=True, batch_size=8).parts == ("apgd-ce", "square")
    assert flag_suite(3, has_gradient=True, batch_size=8).parts == ("apgd-ce", "apgd-dlr", "square")
    assert flag_suite(3, has_gradient=False, batch_size=8).parts == ("square",)


def test_the_whole_box() -> None:
    x = torch.zeros(2, 1, 28, 28)
    assert whole_box(Threat.parse("L2:1"), x).eps == 28
    assert whole_box(THREAT, x).eps == 1


def test_only_one_attack_per_name_and_group() -> None:
    names = [(attack.group, attack.name) for attack in audit_attacks(Ensemble([nn.Flatten(), nn.Flatten()]), 10)]
    assert len(set(names)) == len(names)
    assert isinstance(next(audit_attacks(nn.Flatten(), 10)), AuditAttack)
