"""A checkpoint is quantized, fine-tuned and resumed, and finished files are never lost."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from empir_plugin.data.image_set import ImageSet, load_images
from empir_plugin.errors import EvaluationError, InputError, WeightsError
from empir_plugin.models.activations import Activations
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.packing import load_packed, save_packed
from empir_plugin.models.quantize import Precision
from empir_plugin.training.loop import Step
from empir_plugin.training.networks import Extent, initial_network
from empir_plugin.training.quantization import QuantizationPlan, QuantizedNetwork, quantize_checkpoint
from empir_plugin.training.schedules import MemberRecipe, parse_objective
from empir_plugin.zoo.quantized.architectures import network

ARCHITECTURE = "WideResNet-10-1"
AFTER = MemberRecipe(
    "low", seed=3, epochs=0, batch_size=32, precision=Precision(4, 4), scale="max", activations=Activations.AUTO
)
TUNED = replace(AFTER, epochs=2, flip=True, shift=1, ema=0.5)


def _images(number: int, split: str) -> ImageSet:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (number, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet("cifar10", split, images, torch.arange(number) % 10, tuple("0123456789"))


TRAINING, TEST = _images(96, "train"), _images(20, "test")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = network(ARCHITECTURE, num_classes=10)
    path = tmp_path_factory.mktemp("checkpoint") / "full.safetensors"
    save_file(model.state_dict(), path)
    return path


def _quantize(member: MemberRecipe, checkpoint: Path, out: Path, **options: object) -> QuantizedNetwork:
    plan = QuantizationPlan(ARCHITECTURE, member)
    return quantize_checkpoint(plan, checkpoint, TRAINING, TEST, out, **options)  # type: ignore[arg-type]


def _full(checkpoint: Path) -> nn.Module:
    model = network(ARCHITECTURE, num_classes=10)
    model.load_state_dict(load_file(checkpoint))
    return model.eval()


@torch.no_grad()
def _accuracy(model: nn.Module) -> float:
    return (model(TEST.as_float()).argmax(1) == TEST.labels).float().mean().item()


def test_without_fine_tuning_the_file_holds_the_converted_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    result = _quantize(AFTER, checkpoint, tmp_path / "new" / "folder")
    by_hand = _full(checkpoint)
    quantize_(by_hand, "w4a4", calibration=TRAINING.as_float())
    again = initial_network(ARCHITECTURE, AFTER, TRAINING)
    with torch.no_grad():
        wanted = by_hand.eval()(TEST.as_float())
        assert not torch.equal(again.eval()(TEST.as_float()), wanted)
        load_packed(again, result.weights, expected_sha256=result.sha256)
        assert torch.equal(again.eval()(TEST.as_float()), wanted)
        assert torch.equal(result.model(TEST.as_float()), wanted)
    assert result.history == ()
    assert {path.name for path in result.weights.parent.iterdir()} == {"low.safetensors", "low.json"}


def test_the_report_names_inputs_and_results(checkpoint: Path, tmp_path: Path) -> None:
    result = _quantize(AFTER, checkpoint, tmp_path)
    report = json.loads((tmp_path / "low.json").read_text())
    assert report["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert report["sha256"] == hashlib.sha256(result.weights.read_bytes()).hexdigest() == result.sha256
    assert report["accuracies"]["full_precision"] == pytest.approx(_accuracy(_full(checkpoint)))
    assert report["accuracies"]["converted"] == pytest.approx(_accuracy(result.model))
    assert report["accuracies"]["fine_tuned"] is None
    assert [line["name"] for line in report["conversion"]["kept"]] == ["conv1", "fc"]
    assert (report["recipe"]["precision"], report["recipe"]["activations"]) == ("w4a4", "auto")
    assert report["test_images"] == {"source": "folder", "number": 20, "sha256": TEST.fingerprint}
    full = tmp_path / "full.safetensors"
    save_packed(_full(checkpoint), full)
    assert (report["bytes"], report["full_precision_bytes"]) == (result.weights.stat().st_size, full.stat().st_size)
    assert report["bytes"] < 0.2 * report["full_precision_bytes"], "nearly all weights take 4 of 32 bits"


def test_resumed_fine_tuning_gives_the_same_bits_and_repeats_no_epoch(
    toys: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    whole = _quantize(TUNED, checkpoint, tmp_path / "whole")
    with pytest.raises(toys.KilledError):
        _quantize(TUNED, checkpoint, tmp_path / "cut", on_step=toys.kill_at(5))
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {"low.checkpoint.safetensors"}
    seen: list[int] = []
    resumed = _quantize(TUNED, checkpoint, tmp_path / "cut", on_step=lambda at: seen.append(at.step))
    assert seen == [4, 5, 6], "the first epoch was finished"
    assert resumed.sha256 == whole.sha256
    assert len(resumed.history) == 2
    assert whole.accuracies.fine_tuned == pytest.approx(_accuracy(whole.model))
    seen.clear()
    assert (
        _quantize(TUNED, checkpoint, tmp_path / "cut", on_step=lambda at: seen.append(at.step)).sha256 == whole.sha256
    )
    assert seen == [], "all was finished"


def test_files_of_other_settings_are_replaced_only_on_restart(checkpoint: Path, tmp_path: Path) -> None:
    first = _quantize(AFTER, checkpoint, tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fewer = replace(AFTER, precision=Precision(2, 2))
    for other in (fewer, TUNED):
        with pytest.raises(WeightsError, match=r"low.json .*other settings.*--restart"):
            _quantize(other, checkpoint, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    assert _quantize(AFTER, checkpoint, tmp_path).sha256 == first.sha256, "the same settings are not refused"
    assert _quantize(fewer, checkpoint, tmp_path, resume=False).sha256 != first.sha256


def test_another_checkpoint_or_schedule_does_not_resume_a_run(
    toys: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(toys.KilledError):
        _quantize(TUNED, checkpoint, tmp_path, on_step=toys.kill_at(4))
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        _quantize(replace(TUNED, learning_rate=1e-4), checkpoint, tmp_path)
    with pytest.raises(WeightsError, match=r"epochs are 0.*--restart"):
        _quantize(AFTER, checkpoint, tmp_path)
    state = {key: value * 2 for key, value in _full(checkpoint).state_dict().items()}
    save_file(state, tmp_path / "doubled.safetensors")
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        _quantize(TUNED, tmp_path / "doubled.safetensors", tmp_path)


def test_files_of_unknown_origin_are_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "low.safetensors").write_bytes(b"precious")
    with pytest.raises(WeightsError, match=r"low.safetensors .*--restart"):
        _quantize(AFTER, checkpoint, tmp_path)
    (tmp_path / "low.json").write_text("{")
    with pytest.raises(WeightsError, match=r"low.json is not a training report.*--restart"):
        _quantize(AFTER, checkpoint, tmp_path)
    assert (tmp_path / "low.safetensors").read_bytes() == b"precious"


def test_a_run_stopped_between_weights_and_report_resumes(checkpoint: Path, tmp_path: Path) -> None:
    whole = _quantize(TUNED, checkpoint, tmp_path)
    report = (tmp_path / "low.json").read_bytes()
    (tmp_path / "low.json").unlink()
    for other in (replace(TUNED, learning_rate=1e-4), AFTER):
        with pytest.raises(WeightsError, match=r"low.safetensors .*--restart"):
            _quantize(other, checkpoint, tmp_path)
    steps: list[Step] = []
    assert _quantize(TUNED, checkpoint, tmp_path, on_step=steps.append).sha256 == whole.sha256
    assert not steps, "all was finished but the report"
    assert (tmp_path / "low.json").read_bytes() == report


def test_a_damaged_checkpoint_does_not_identify_weights(checkpoint: Path, tmp_path: Path) -> None:
    _quantize(TUNED, checkpoint, tmp_path)
    (tmp_path / "low.json").unlink()
    tuned = tmp_path / "low.checkpoint.safetensors"
    tuned.write_bytes(tuned.read_bytes()[:100])
    (tmp_path / "low.checkpoint.previous.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"low.checkpoint.safetensors is damaged"):
        _quantize(TUNED, checkpoint, tmp_path)
    save_file({"a": torch.zeros(1)}, tuned)
    with pytest.raises(WeightsError, match=r"low.safetensors .*--restart"):
        _quantize(TUNED, checkpoint, tmp_path)


def test_finished_files_survive_a_failing_restart(checkpoint: Path, tmp_path: Path) -> None:
    _quantize(AFTER, checkpoint, tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(WeightsError, match="no weight file"):
        _quantize(AFTER, tmp_path / "nowhere.safetensors", tmp_path, resume=False)
    with pytest.raises(EvaluationError, match="lower learning_rate"):
        _quantize(replace(TUNED, learning_rate=1e30), checkpoint, tmp_path, resume=False)
    assert {path.name: (tmp_path / path.name).read_bytes() for path in tmp_path.iterdir()} == kept | {
        path.name: path.read_bytes() for path in tmp_path.glob("*.checkpoint.safetensors")
    }


def test_a_checkpoint_of_another_architecture_names_the_keys(checkpoint: Path, tmp_path: Path) -> None:
    state = dict(_full(checkpoint).state_dict())
    state["head.weight"] = state.pop("fc.weight")
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    save_file(state, tmp_path / "other.safetensors")
    wrong = r"lacks fc.weight; it has besides head.weight; of another shape are conv1.weight \(16, 1, 3, 3\)"
    with pytest.raises(WeightsError, match=wrong):
        _quantize(AFTER, tmp_path / "other.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_to_quantize_or_an_unknown_layer_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    def quantize(extent: Extent) -> None:
        quantize_checkpoint(QuantizationPlan(ARCHITECTURE, AFTER, extent), checkpoint, TRAINING, TEST, tmp_path / "out")

    with pytest.raises(InputError, match="nothing to quantize in WideResNet"):
        quantize(Extent(layers=()))
    with pytest.raises(InputError, match=r"layers names 'block9\.\*', but the network's layers are conv1"):
        quantize(Extent(layers=("block9.*",)))
    assert not (tmp_path / "out").exists()


def test_images_of_the_wrong_kind_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    def quantize(training: ImageSet, test: ImageSet = TEST, member: MemberRecipe = AFTER) -> None:
        quantize_checkpoint(QuantizationPlan(ARCHITECTURE, member), checkpoint, training, test, tmp_path / "out")

    with pytest.raises(InputError, match="the bundled sample is for evaluation only, pass --data-dir"):
        quantize(load_images("cifar10"))
    with pytest.raises(InputError, match="got test images"):
        quantize(TEST)
    with pytest.raises(InputError, match=r"WideResNet does not take images of shape \(1, 1, 28, 28\)"):
        quantize(replace(TRAINING, images=TRAINING.images[:, :1, :28, :28]))
    with pytest.raises(InputError, match="training images are of cifar10, test images of cifar100"):
        quantize(TRAINING, replace(TEST, name="cifar100"))
    with pytest.raises(InputError, match="96 training images are fewer than a batch of 128: lower batch_size"):
        quantize(TRAINING, member=replace(TUNED, batch_size=128))
    assert not (tmp_path / "out").exists()


def test_impossible_plans_are_refused() -> None:
    teacher = parse_objective({"kind": "distilled", "teacher": "other", "temperature": 10.0})
    for member, sentence in (
        (replace(AFTER, precision=Precision()), "precision 'fp' leaves every layer as it is"),
        (replace(AFTER, start="other"), "member 'low'.*leave out"),
        (replace(AFTER, objective=teacher), "member 'low'.*leave out"),
    ):
        with pytest.raises(InputError, match=sentence):
            QuantizationPlan(ARCHITECTURE, member)
    with pytest.raises(InputError, match=r"name.*up/low"):
        QuantizationPlan(ARCHITECTURE, replace(AFTER, name="up/low"))


def test_learned_ranges_are_trained_and_saved(checkpoint: Path, tmp_path: Path) -> None:
    member = replace(TUNED, epochs=1, activations=Activations.PACT)
    result = _quantize(member, checkpoint, tmp_path)
    started = {line.name: line.bound for line in result.conversion.converted}
    ranges = {key: value for key, value in result.model.state_dict().items() if key.endswith("activation_bound")}
    assert len(ranges) == len(started) == 8
    assert any(value.item() != started[key.removesuffix(".activation_bound")] for key, value in ranges.items())
    again = initial_network(ARCHITECTURE, member, TRAINING)
    load_packed(again, result.weights)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in ranges.items())


def test_a_network_with_learned_ranges_starts_from_another_one(checkpoint: Path, tmp_path: Path) -> None:
    first = replace(TUNED, epochs=1, activations=Activations.PACT)
    tuned = _quantize(first, checkpoint, tmp_path).model.state_dict()
    ranges = {key for key in tuned if key.endswith("activation_bound")}
    assert len(ranges) == 8
    for activations, expected in ((Activations.PACT, ranges), (Activations.AUTO, set[str]())):
        second = replace(first, name="second", start="low", activations=activations, precision=Precision(2, 2))
        state = initial_network(ARCHITECTURE, second, TRAINING, tuned).state_dict()
        assert {key for key in state if key.endswith("activation_bound")} == expected
        assert torch.equal(state["fc.weight"], tuned["fc.weight"])
    lacking = {key: value for key, value in tuned.items() if key != "fc.weight"}
    with pytest.raises(WeightsError, match=r"lacks fc.weight"):
        initial_network(ARCHITECTURE, replace(first, start="low"), TRAINING, lacking)


def test_architectures_of_empir_keep_the_layers_of_the_release(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        full = initial_network("cifarconv", replace(AFTER, precision=Precision()), TRAINING)
    save_packed(full, tmp_path / "full.safetensors")
    plan = QuantizationPlan("cifarconv", AFTER)
    result = quantize_checkpoint(plan, tmp_path / "full.safetensors", TRAINING, TEST, tmp_path)
    assert [layer.name for layer in result.conversion.converted] == ["conv1", "conv2", "conv3"]
    assert {layer.reason for layer in result.conversion.kept} == {"as in the release"}
    assert torch.equal(dict(result.model.state_dict())["conv1.weight"], dict(full.state_dict())["conv1.weight"])
    plan = QuantizationPlan("cifarconv", replace(AFTER, name="all"), Extent("all"))
    with pytest.raises(InputError, match=r"'all'.*leave out layers"):
        quantize_checkpoint(plan, tmp_path / "full.safetensors", TRAINING, TEST, tmp_path)
    with pytest.raises(WeightsError, match=r"3 of its weights, such as 'conv1.weight'.*full-precision"):
        quantize_checkpoint(QuantizationPlan("cifarconv", AFTER), result.weights, TRAINING, TEST, tmp_path)


def test_fine_tuning_minimizes_the_loss_of_its_schedule(checkpoint: Path, tmp_path: Path) -> None:
    one = replace(TUNED, epochs=1)
    plain = _quantize(one, checkpoint, tmp_path / "plain").history[0]["loss"]
    for name, key, value in (("bounded", "gce_q", 1.0), ("smoothed", "label_smoothing", 0.5)):
        result = _quantize(replace(one, **{key: value}), checkpoint, tmp_path / name)  # type: ignore[arg-type]
        assert result.history[0]["loss"] != plain, key
    bounded = _quantize(replace(one, gce_q=1.0), checkpoint, tmp_path / "bounded").history[0]["loss"]
    assert 0 < bounded < 1, "one minus a probability"
