"""Pretrained weights from files of several kinds, and trained networks under any decision rule."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from empir_plugin.attacks.gradient import fgsm
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import DataError, WeightsError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.run import evaluate
from empir_plugin.models.ensemble import MaxVote, MeanProbability
from empir_plugin.models.layers import bake_
from empir_plugin.models.packing import save_packed
from empir_plugin.models.quantize import Precision
from empir_plugin.training.networks import load_pretrained, load_trained, load_trained_member
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import JointRecipe, MemberRecipe

STATE = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}


def _linear() -> nn.Linear:
    model = nn.Linear(2, 1)
    model.load_state_dict({key: torch.zeros_like(value) for key, value in STATE.items()})
    return model


def _packed(path: Path) -> None:
    model = nn.Linear(2, 1)
    model.load_state_dict(STATE)
    save_packed(model, path)


KINDS = {
    "plain.safetensors": lambda path: save_file(STATE, path),
    "packed.safetensors": _packed,
    "state.pt": lambda path: torch.save(STATE, path),
    "wrapped.pth": lambda path: torch.save({"epoch": 3, "state_dict": STATE}, path),
    "parallel.ckpt": lambda path: torch.save({f"module.{key}": value for key, value in STATE.items()}, path),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    KINDS[name](tmp_path / name)
    load_pretrained(model := _linear(), tmp_path / name)
    assert {key: value.tolist() for key, value in model.state_dict().items()} == {
        "weight": [[1.0, 2.0]],
        "bias": [3.0],
    }


class _Code:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def _half(path: Path) -> None:
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:20])


def _save(content: object) -> Any:
    return lambda path: torch.save(content, path)


def _plain(state: dict[str, Tensor]) -> Any:
    return lambda path: save_file(state, path)


BAD = {
    "code.pt": (_save(_Code()), "cannot be read without executing code from it"),
    "pickle.pt": (lambda path: path.write_bytes(pickle.dumps(_Code(), 2)), "cannot be read without executing code"),
    "empty.pt": (lambda path: path.write_bytes(b""), "truncated or no PyTorch file"),
    "text.pth": (lambda path: path.write_text("git clone"), "truncated or no PyTorch file|without executing code"),
    "unmarked.pth": (lambda path: path.write_text("hello"), "truncated or no PyTorch file|without executing code"),
    "stack.pth": (lambda path: path.write_text("."), "truncated or no PyTorch file"),
    "short.pth": (lambda path: path.write_bytes(b"r1"), "truncated or no PyTorch file"),
    "half.safetensors": (_half, "truncated or no safetensors file"),
    "list.pt": (_save([1, 2]), "holds no state dict"),
    "optimizer.pt": (_save({"state_dict": {"lr": 0.1}}), "holds no state dict"),
    "nan.safetensors": (_plain({**STATE, "bias": torch.tensor([torch.nan])}), "'bias' has values that are not finite"),
    "other.safetensors": (_plain({"weight": STATE["weight"], "b": STATE["bias"]}), "it lacks bias; it has besides b"),
    "shape.pt": (_save({**STATE, "bias": torch.zeros(2)}), r"of another shape are bias \(2,\) instead of \(1,\)"),
    "nowhere.pt": (lambda path: None, "no weight file at"),
    "nowhere.safetensors": (lambda path: None, "no weight file at"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_and_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, sentence = BAD[name]
    make(tmp_path / name)
    with pytest.raises(WeightsError, match=sentence):
        load_pretrained(model := _linear(), tmp_path / name)
    assert not any(value.any() for value in model.state_dict().values())
    assert not (tmp_path / "ran").exists()


TEACHER = MemberRecipe("first", 1, 1, 16, precision=Precision(), in_ensemble=False)
FP = MemberRecipe("full", 2, 0, 16, precision=Precision(), start="first")
LP = MemberRecipe("low", 3, 0, 16, precision=Precision(2, 4), scale="max", start="first")
RECIPE = Recipe("both", "mnistconv", "mnist", (TEACHER, FP, LP), JointRecipe("both", 4, 1, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    images = torch.randint(0, 256, (16, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train_recipe(RECIPE, ImageSet("mnist", "train", images, torch.arange(16) % 10, tuple("0123456789")), out)
    return out


def test_a_loaded_ensemble_computes_what_was_trained(folder: Path, tiny_mnist: ImageSet) -> None:
    model, x = load_trained(RECIPE, folder, MeanProbability()), tiny_mnist.batch(0, 8)[0]
    assert [type(member).__name__ for member in model.members] == ["MNISTConv", "MNISTConv"], "no teacher among them"
    assert not model.training
    expected = load_trained(RECIPE, folder, MeanProbability())
    expected.load_state_dict(load_file(folder / "both.safetensors"))
    bake_(expected)
    assert torch.equal(model(x), expected(x))


def test_vote_and_mean_probability_of_the_same_weights_give_a_record_each(folder: Path, tiny_mnist: ImageSet) -> None:
    data, threat, attacks = tiny_mnist.first(4), Threat.parse("Linf:0.3"), [AttackSpec("FGSM", fgsm())]
    models = [load_trained(RECIPE, folder, rule) for rule in (MaxVote(), MeanProbability())]
    records = [evaluate(model, data, threat, attacks, name="both") for model in models]
    assert records[0].model["sha256"] != records[1].model["sha256"], "another rule is another model"


def test_a_data_set_this_package_does_not_have_needs_images(tmp_path: Path) -> None:
    recipe = Recipe("hundred", "cifarconv", "cifar100", (MemberRecipe("one", 1, 1, 4, precision=Precision()),))
    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    images = ImageSet("cifar100", "train", pixels, torch.arange(4), tuple(map(str, range(100))))
    train_recipe(recipe, images, tmp_path)
    model = load_trained(recipe, tmp_path, images=images)
    assert model(images.as_float()).shape == (4, 100)
    assert load_trained_member(recipe, tmp_path, "one", images=images)(images.as_float()).shape == (4, 100)
    with pytest.raises(DataError, match="cifar100"):
        load_trained(recipe, tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weight file at .*full\.safetensors"):
        load_trained(RECIPE, tmp_path)


def _rewritten(folder: Path, tmp_path: Path, **changes: str) -> Path:
    """The folder with another report of the member ``low``."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    report = json.loads((tmp_path / "low.json").read_text())
    (tmp_path / "low.json").write_text(json.dumps({**report, "recipe": {**report["recipe"], **changes}}))
    return tmp_path


@pytest.mark.parametrize(
    ("key", "trained", "wanted"),
    [("precision", "w4a4", "w2a4"), ("precision", "w2a2", "w2a4"), ("scale", "mean", "max"),
     ("activations", "signed", "unsigned")],
)  # fmt: skip
def test_weights_whose_report_has_other_settings_are_refused(
    key: str, trained: str, wanted: str, folder: Path, tmp_path: Path
) -> None:
    changed = _rewritten(folder, tmp_path, **{key: trained})
    sentence = rf"low.safetensors .*{key} '{trained}', .*'{wanted}'"
    with pytest.raises(WeightsError, match=sentence):
        load_trained(RECIPE, changed)
    with pytest.raises(WeightsError, match=sentence):
        load_trained_member(RECIPE, changed, "low")
    load_trained_member(RECIPE, changed, "full")


def test_the_report_reveals_a_scale_the_weights_do_not_show(folder: Path, tiny_mnist: ImageSet) -> None:
    first, full, low = RECIPE.members
    for scale in ("none", "mean"):
        recipe = replace(RECIPE, members=(first, full, replace(low, scale=scale)))
        with pytest.raises(WeightsError, match=f"scale 'max', .*'{scale}'"):
            load_trained(recipe, folder)


def test_weights_need_no_report_but_a_damaged_one_is_refused(
    folder: Path, tmp_path: Path, tiny_mnist: ImageSet
) -> None:
    changed, x = _rewritten(folder, tmp_path), tiny_mnist.batch(0, 4)[0]
    for text, reason in (("{", "not valid JSON"), ("{}", "KeyError"), ("[]", "TypeError")):
        (changed / "low.json").write_text(text)
        with pytest.raises(WeightsError, match=rf"low.json is not a training report.*{reason}"):
            load_trained(RECIPE, changed)
    (changed / "low.json").unlink()
    assert torch.equal(load_trained(RECIPE, changed)(x), load_trained(RECIPE, folder)(x))
