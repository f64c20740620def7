"""Accuracy under corruptions: known answers for every severity, the mean as the headline, and a record that resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.corruptions import CORRUPTIONS, PublishedCorruptions
from empir_plugin.data.image_set import load_images
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.corruptions import (
    KIND,
    Corruption,
    corruptions_protocol,
    evaluate_corruptions,
    mean_accuracies,
)
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.summary import attack_kind


class Lookup(nn.Module):
    """Knows the labels of some images by heart; everything else, such as a black image, is class 0."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.register_buffer("images", images)
        self.register_buffer("labels", labels)

    def forward(self, x: Tensor) -> Tensor:
        near = (x[:, None] - self.images).abs().amax((2, 3, 4)) < 1e-6
        known = near.float() @ nn.functional.one_hot(self.labels, 10).float()
        return 10 * known + torch.eye(10)[0] * (1 - known.sum(1, keepdim=True))


@pytest.fixture
def corrupted(corrupted_dir: Path) -> PublishedCorruptions:
    return PublishedCorruptions(load_images("cifar10", n_examples=12), corrupted_dir)


@pytest.fixture
def model(corrupted: PublishedCorruptions) -> nn.Module:
    return Lookup(corrupted.clean.as_float(), corrupted.clean.labels).eval()


def test_every_severity_has_its_known_accuracy(model: nn.Module, corrupted: PublishedCorruptions) -> None:
    """At severity s the first s images are black, and class 0 is wrong for all but the image with that label."""
    record = evaluate_corruptions(model, corrupted, name="toy")
    assert record.clean == "1" * 12
    labels = corrupted.clean.labels.tolist()
    for attack in record.attacks:
        severity = int(attack.name[-1])
        right = [row >= severity or label == 0 for row, label in enumerate(labels)]
        assert attack.robust == "".join("1" if each else "0" for each in right), attack.name
    assert [attack.name for attack in record.attacks][:6] == [
        *(f"shot_noise {s}" for s in range(1, 6)),
        "motion_blur 1",
    ]
    assert len(record.attacks) == 75


def test_the_headline_is_the_mean_and_not_the_worst_case(model: nn.Module, corrupted: PublishedCorruptions) -> None:
    record = evaluate_corruptions(model, corrupted)
    accuracies = [attack.accuracy for attack in record.attacks]
    assert record.headline_accuracy == round(sum(accuracies) / 75, 2)
    assert record.worst_case_accuracy == min(accuracies) < record.headline_accuracy
    assert dict(mean_accuracies(record)) == pytest.approx(
        dict.fromkeys(CORRUPTIONS, record.headline_accuracy), abs=0.01
    )


def test_the_record_names_the_images(model: nn.Module, corrupted: PublishedCorruptions, tmp_path: Path) -> None:
    record = evaluate_corruptions(model, corrupted)
    assert record.threat == "corruptions"
    assert {attack.threat for attack in record.attacks} == {"corruptions"}
    assert {attack.kind for attack in record.attacks} == {KIND}
    assert record.data["corruptions"] == corrupted.describe()
    assert record.data["sha256"] == corrupted.clean.fingerprint
    assert "CIFAR-10-C (folder)" in record.protocol["description"]
    record.write(tmp_path / "record.json")
    assert Record.read(tmp_path / "record.json") == record


def test_a_misclassified_image_counts_if_its_corrupted_version_is_right(corrupted: PublishedCorruptions) -> None:
    labels = corrupted.clean.labels.clone()
    assert labels[3] == 0
    labels[3] = 1
    record = evaluate_corruptions(Lookup(corrupted.clean.as_float(), labels).eval(), corrupted)
    assert record.clean == "111011111111"
    assert {attack.name[-1]: attack.robust[3] for attack in record.attacks} == dict(zip("12345", "00011", strict=True))


def test_shards_and_a_store_change_nothing(
    model: nn.Module, corrupted: PublishedCorruptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate_corruptions(model, corrupted)
    settings = Settings(shard_size=5, batch_size=2)
    stored = evaluate_corruptions(model, corrupted, settings=settings, store=tmp_path / "store")
    assert [attack.robust for attack in stored.attacks] == [attack.robust for attack in first.attacks]
    monkeypatch.setattr(PublishedCorruptions, "read", None)
    again = evaluate_corruptions(model, corrupted, settings=settings, store=tmp_path / "store")
    assert again.attacks == stored.attacks, "taken from the store, no image is read"


def test_the_model_is_still_checked(corrupted: PublishedCorruptions) -> None:
    with pytest.raises(Exception, match=r"the model must return logits of shape \(12, 10\), got \(12, 3072\)"):
        evaluate_corruptions(nn.Flatten(), corrupted)


def test_a_corruption_needs_indices(corrupted: PublishedCorruptions) -> None:
    fog = Corruption("fog", 2, "", corrupted)
    x, y = corrupted.clean.batch(0, 4)
    with pytest.raises(InputError, match="pass indices"):
        fog(nn.Flatten(), x, y, Threat.parse("L2:inf"))
    found = fog(nn.Flatten(), x, y, Threat.parse("L2:inf"), indices=torch.arange(4))
    assert torch.equal(found[2:], x[2:])
    assert not found[:2].any()


def test_the_kind_is_reserved_for_this_package(corrupted: PublishedCorruptions) -> None:
    class Fake(Corruption):
        pass

    Fake.__module__ = "elsewhere"
    assert attack_kind(Corruption("fog", 1, "", corrupted)) == (KIND, 1)
    assert attack_kind(Fake("fog", 1, "", corrupted)) == ("custom", 1)


def test_the_protocol_attacks_all_images(corrupted: PublishedCorruptions) -> None:
    specs = corruptions_protocol(corrupted).attacks(nn.Flatten())
    assert all(isinstance(spec, AttackSpec) and spec.attack_all for spec in specs)
    assert {spec.name.rpartition(" ")[0] for spec in specs} == set(CORRUPTIONS)
