"""What ``evaluate`` takes besides its own types: texts and tensors, with the same verdicts, and errors for others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import Normalize

from empir_plugin.attacks.gradient import fgsm
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import load_images
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.arguments import as_attacks, as_image_set, preprocess
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.named_attacks import named_attacks
from empir_plugin.evaluation.protocols import default, parse_protocol
from empir_plugin.evaluation.run import evaluate
from empir_plugin.evaluation.summary import chance_flag
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.zoo.registry import load_model

DATA = load_images("cifar10", n_examples=4)
X, Y = DATA.as_float(), DATA.labels


def loader(**settings: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=3, **settings)


@pytest.mark.parametrize("data", [(X, Y), (DATA.images, Y), [X, Y], loader()], ids=["float", "uint8", "list", "loader"])
def test_tensors_and_loaders_give_the_verdicts_of_the_image_set(data: Any) -> None:
    model = load_model("cifarconv-w2a2")
    expected = evaluate(model, DATA, Threat.parse("Linf:8/255"), [AttackSpec("FGSM", fgsm())])
    record = evaluate(model, data, "linf:8/255", "fgsm")
    assert (record.clean, record.worst_case) == (expected.clean, expected.worst_case)
    assert record.data["sha256"] == expected.data["sha256"]
    assert record.threat == "Linf:8/255"


BAD = {
    "shuffled": (lambda: loader(shuffle=True), "RandomSampler.*shuffle=False"),
    "images alone": (lambda: X, "got a Tensor.*pass \\(x, y\\)"),
    "three": (lambda: (X, Y, Y), "got a tuple"),
    "loader of images": (lambda: DataLoader(X, batch_size=2), "pairs \\(images, labels\\)"),  # pyright: ignore
    "labels": (lambda: (X, Y.float()), "torch.float32"),
    "list labels": (lambda: (X, Y.tolist()), "got list"),
    "normalised": (lambda: (X - 0.5, Y), "undo the normalisation"),
    "between steps": (lambda: (X * 0.77, Y), "multiples of 1/255"),
    "too many labels": (lambda: (X, Y[:3]), "shape \\(4,\\)"),
}


@pytest.mark.parametrize(("make", "sentence"), BAD.values(), ids=BAD)
def test_other_data_are_refused_with_a_cure(make: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        evaluate(load_model("cifarconv-w2a2"), make(), "Linf:8/255", "fgsm")


def test_a_model_that_does_not_run_is_named_with_its_own_error() -> None:
    with pytest.raises(EvaluationError, match=r"images of 3 x 32 x 32 .*mat1 and mat2"):
        as_image_set((X, Y), nn.Sequential(nn.Flatten(), nn.Linear(5, 10)))
    with pytest.raises(EvaluationError, match=r"got \(1, 3, 32, 32\)"):
        as_image_set((X, Y), nn.Identity())


def test_counting_the_classes_leaves_modes_alone() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(3072, 7)).train()
    assert as_image_set((X, Y.clamp_max(6)), model).num_classes == 7
    assert all(module.training for module in model)


def test_wrong_attacks_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'fgsm'"):
        as_attacks(["fgms"], nn.Flatten(), default)
    with pytest.raises(InputError, match="got 3"):
        as_attacks(["fgsm", 3], nn.Flatten(), default)


def test_a_name_of_the_protocol_is_its_own_attack_and_others_are_added() -> None:
    paper, model = parse_protocol("paper"), nn.Flatten()
    (own,) = named_attacks("pgd", model, paper)
    assert (own.name, own.attack.steps) == ("PGD", 40)  # pyright: ignore[reportAttributeAccessIssue]
    (square,) = named_attacks("Square", model, parse_protocol("standard"))
    assert square.name == "square"


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.flatten(1)


def test_preprocessing_reaches_every_member_and_leaves_the_model_unchanged() -> None:
    normalize, images = Normalize((0.5,) * 3, (0.25,) * 3), X[:, :, :1, :1]
    ensemble = Ensemble([Double(), nn.Flatten()])
    whole = preprocess(ensemble, normalize)
    assert isinstance(whole, Ensemble)
    assert torch.equal(whole.member_logits(images), ensemble.member_logits(normalize(images)))
    assert torch.equal(preprocess(Double(), normalize)(images), Double()(normalize(images)))
    with pytest.raises(InputError, match=r"torchvision\.transforms\.Normalize"):
        preprocess(Double(), lambda x: x)  # type: ignore[arg-type]


def test_preprocessing_changes_the_evaluated_model() -> None:
    model = load_model("cifarconv-w2a2")
    record = evaluate(model, (X, Y), "Linf:8/255", "fgsm", preprocessing=Normalize((0.5,) * 3, (0.25,) * 3))
    plain = evaluate(model, (X, Y), "Linf:8/255", "fgsm")
    assert record.model["sha256"] != plain.model["sha256"]


def test_an_accuracy_near_chance_is_flagged_and_a_higher_one_is_not() -> None:
    near, far, few = "1" * 5 + "0" * 35, "1" * 7 + "0" * 33, "0" * 19
    assert [len(list(chance_flag(clean, 10))) for clean in (near, far, few)] == [1, 0, 0]
    assert list(chance_flag("1" * 80 + "0" * 20, 2)) == []
    assert "--mean" in next(chance_flag("10" * 20, 2))
