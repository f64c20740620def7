"""The training loop's parts: augmentation, weight averages, and bfloat16 arithmetic."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.models.architectures import MNISTConv
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.models.quantize import Precision
from empir_plugin.training.adversary import pgd
from empir_plugin.training.loop import Step, WeightAverage, compute_in, random_flip, random_shift
from empir_plugin.training.objectives import Adversarial
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import MemberRecipe


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.rand(64, 3, 4, 5)
    flipped = random_flip(images, _generator(0))
    mirrored = torch.tensor([torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True)])
    kept = torch.tensor([torch.equal(new, old) for new, old in zip(flipped, images, strict=True)])
    assert (mirrored ^ kept).all()
    assert 16 < int(mirrored.sum()) < 48


@given(st.integers(0, 1000), st.integers(1, 3))
def test_shift_is_a_translation_with_zero_padding(seed: int, pixels: int) -> None:
    images = torch.rand(4, 2, 6, 7) + 0.1
    shifted = random_shift(images, pixels, _generator(seed))
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    for new, old in zip(shifted, padded, strict=True):
        windows = [old[:, i : i + 6, j : j + 7] for i in range(2 * pixels + 1) for j in range(2 * pixels + 1)]
        assert any(torch.equal(new, window) for window in windows)


def test_images_of_a_batch_are_shifted_differently() -> None:
    same = torch.rand(1, 1, 8, 8).expand(32, 1, 8, 8)
    assert len({tuple(image.flatten().tolist()) for image in random_shift(same, 2, _generator(1))}) > 8


def test_the_same_generator_gives_the_same_batch() -> None:
    images = torch.rand(8, 3, 6, 6)
    assert torch.equal(random_shift(images, 2, _generator(3)), random_shift(images, 2, _generator(3)))
    assert not torch.equal(random_shift(images, 2, _generator(3)), random_shift(images, 2, _generator(4)))


def _scale(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def _set(model: nn.Module, value: float) -> None:
    for weight in model.parameters():
        nn.init.constant_(weight, value)


def _weights(average: WeightAverage) -> list[float]:
    return [weight.item() for weight in average.model.parameters()]


def test_an_average_follows_with_its_decay() -> None:
    model = _scale(0.0)
    average = WeightAverage(model, [0.75])
    seen = []
    for value in (4.0, 4.0, -8.0):
        _set(model, value)
        average.update()
        seen += _weights(average)
    assert seen == [1.0, 1.75, -0.6875]


def test_each_member_has_its_own_decay_and_zero_means_no_average() -> None:
    ensemble = Ensemble([_scale(0.0), _scale(0.0), _scale(0.0)])
    average = WeightAverage(ensemble, [0.5, 0.0, 0.75])
    _set(ensemble, 4.0)
    average.update()
    assert _weights(average) == [2.0, 4.0, 1.0]


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, [0.5])
    model(torch.tensor([[0.0], [20.0]]))
    average.update()
    assert average.model.running_mean.item() == model.running_mean.item() / 2 == 0.5  # type: ignore[union-attr,operator]
    assert average.model.num_batches_tracked == 1


def test_an_average_needs_no_gradient() -> None:
    average = WeightAverage(_scale(1.0), [0.5])
    assert not any(weight.requires_grad for weight in average.model.parameters())


ATTACKED = Adversarial(pgd("Linf:0.1", steps=1))
FP = MemberRecipe("full", 1, 2, 16, precision=Precision(), objective=ATTACKED)
X = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))


class _KilledError(Exception):
    pass


class _Seen(nn.Linear):
    """A layer that keeps the kind of number it computes in."""

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        self.kind = out.dtype
        return out


def test_matrix_products_are_in_bfloat16_and_outputs_and_weights_in_float32() -> None:
    model = _Seen(2, 1, bias=False)
    nn.init.constant_(model.weight, 1 + 2**-9)
    x = torch.tensor([[1.0, 1.0]])
    with compute_in(model, "bfloat16"):
        rounded = model(x)
        assert model.kind == torch.bfloat16
    assert (rounded.dtype, rounded.item()) == (torch.float32, 2.0), "8 bits of mantissa do not hold 2**-9"
    assert model.weight[0, 0] == 1 + 2**-9
    with compute_in(model, "float32"):
        assert model(x).item() == 2 + 2**-8
        assert model.kind == torch.float32


def test_members_compute_in_bfloat16_and_decide_in_float32() -> None:
    members = [_Seen(2, 3), _Seen(2, 3)]
    ensemble = Ensemble(members, MeanProbability())
    with compute_in(ensemble, "bfloat16"):
        assert ensemble.member_logits(torch.rand(4, 2)).dtype == torch.float32
        assert ensemble(torch.rand(4, 2)).exp().sum(1).sub(1).abs().max() < 1e-6
    assert [member.kind for member in members] == [torch.bfloat16] * 2


def test_a_network_is_restored_even_after_an_error() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(_KilledError), compute_in(model, "bfloat16"):
        raise _KilledError
    assert "forward" not in vars(model)
    assert torch.equal(model(torch.ones(1, 2)), F.linear(torch.ones(1, 2), model.weight, model.bias))


@pytest.mark.parametrize("precision", ["fp", "w4a4"])
def test_gradients_are_near_those_of_float32(precision: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MNISTConv(Precision.parse(precision), scale="none" if precision == "fp" else "max")

    def gradients() -> Tensor:
        loss = F.cross_entropy(model(X), torch.arange(8))
        return torch.cat([one.flatten() for one in torch.autograd.grad(loss, list(model.parameters()))])

    exact = gradients()
    with compute_in(model, "bfloat16"):
        rounded = gradients()
    assert not torch.equal(exact, rounded)
    assert F.cosine_similarity(exact, rounded, dim=0) > 0.95


def test_killed_and_resumed_gives_the_same_bits_and_only_in_its_own_arithmetic(
    tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    recipe = Recipe("both", "mnistconv", "mnist", (replace(FP, compute="bfloat16"),))
    exact = Recipe("both", "mnistconv", "mnist", (FP,))
    whole = train_recipe(recipe, tiny_mnist, tmp_path / "whole")[0].sha256

    def kill(at: Step) -> None:
        if at.step == 5:
            raise _KilledError

    with pytest.raises(_KilledError):
        train_recipe(recipe, tiny_mnist, tmp_path / "cut", on_step=kill)
    shutil.copytree(tmp_path / "cut", tmp_path / "other")
    assert train_recipe(recipe, tiny_mnist, tmp_path / "cut")[0].sha256 == whole
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        train_recipe(exact, tiny_mnist, tmp_path / "other")
    assert train_recipe(exact, tiny_mnist, tmp_path / "exact")[0].sha256 != whole


def test_a_recipe_sets_the_arithmetic_for_all_runs_or_for_one() -> None:
    text = """
        name = "r"
        architecture = "mnistconv"
        dataset = "mnist"
        [defaults]
        epochs = 1
        compute = "bfloat16"
        [[members]]
        name = "m"
        precision = "fp"
        seed = 1
        [joint]
        seed = 2
        compute = "float32"
    """
    recipe = Recipe.parse(text)
    assert recipe.joint is not None
    assert (recipe.members[0].compute, recipe.joint.compute) == ("bfloat16", "float32")
    with pytest.raises(InputError, match=r"compute of .* must be one of 'float32', 'bfloat16', got 'float16'"):
        Recipe.parse(text.replace("bfloat16", "float16"))
    with pytest.raises(InputError, match="compute of member 'full' must be one of float32, bfloat16, got 'half'"):
        replace(FP, compute="half")  # type: ignore[arg-type]
