"""Training survives damaged checkpoints, kills and full disks: the same bits, or one sentence; never other weights."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from empir_plugin._files import atomic
from empir_plugin._files.tensor_files import checksum, read_tensors, save_tensors
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.models.quantize import Precision
from empir_plugin.training import checkpoint as checkpoints
from empir_plugin.training.checkpoint import (
    TrainingState,
    checkpoint_file,
    load_checkpoint,
    previous_file,
    save_checkpoint,
)
from empir_plugin.training.networks import load_trained_member
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import MemberRecipe

IDENTITY = json.dumps({"architecture": "toy", "seed": 3}, sort_keys=True)
Run = tuple[nn.Module, nn.Module, torch.optim.Optimizer]
MEMBER = MemberRecipe("full", 1, 2, 16, precision=Precision())
RECIPE = Recipe("solo", "mnistconv", "mnist", (MEMBER,))


class KilledError(BaseException):
    """Stands for SIGKILL: nothing is cleaned up behind it."""


def state_at(epoch: int) -> TrainingState:
    return TrainingState(epoch, IDENTITY, ({"loss": 0.5, "accuracy": 0.25, "seconds": 1.0},) * epoch)


def new_run() -> Run:
    model, average = nn.Linear(3, 2), nn.Linear(3, 2)
    return model, average, torch.optim.AdamW(model.parameters())


def step(run: Run) -> None:
    model, average, optimizer = run
    optimizer.zero_grad()
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        average.weight.lerp_(model.weight, 0.5)


def contents(run: Run) -> dict[str, torch.Tensor]:
    model, average, optimizer = run
    state = optimizer.state_dict()["state"]
    return {
        **{f"model.{key}": value.clone() for key, value in model.state_dict().items()},
        **{f"average.{key}": value.clone() for key, value in average.state_dict().items()},
        **{f"{index}.{key}": value.clone() for index, each in state.items() for key, value in each.items()},
    }


def is_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture
def two_epochs(tmp_path: Path) -> tuple[Path, dict[int, dict[str, torch.Tensor]]]:
    """A checkpoint of the second epoch with that of the first beside it, and what both hold."""
    torch.manual_seed(0)
    run, path, held = new_run(), checkpoint_file(tmp_path, "toy"), {}
    for epoch in (1, 2):
        step(run)
        held[epoch] = contents(run)
        save_checkpoint(path, state_at(epoch), *run, keep=epoch > 1)
    return path, held


def survives(path: Path, held: dict[int, dict[str, torch.Tensor]]) -> bool:
    """Whether a run resumes with what one of its epochs held, or is refused in a sentence."""
    run = new_run()
    try:
        found = load_checkpoint(path, IDENTITY, *run)
    except WeightsError:
        return True
    return found == state_at(found.epoch) and is_same(contents(run), held[found.epoch])


def damaged(two: tuple[Path, dict[int, dict[str, torch.Tensor]]], toys: ModuleType, n: int, keep: bool) -> int:
    path, held = two
    now, before = path.read_bytes(), previous_file(path).read_bytes()
    survived = 0
    for content in toys.damaged_bytes(now, n, seed=1):
        path.write_bytes(content)
        previous_file(path).write_bytes(before) if keep else previous_file(path).unlink(missing_ok=True)
        survived += survives(path, held)
    return survived


@pytest.mark.parametrize("keep", [True, False], ids=["with-the-one-before", "alone"])
def test_a_damaged_checkpoint_gives_the_epoch_before_or_one_sentence(
    two_epochs: Any, keep: bool, toys: ModuleType, tally: Callable[[str, int, int], None]
) -> None:
    tally("training checkpoint, damaged", 120, damaged(two_epochs, toys, 120, keep))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False], ids=["with-the-one-before", "alone"])
def test_many_damaged_checkpoints(
    two_epochs: Any, keep: bool, toys: ModuleType, tally: Callable[[str, int, int], None]
) -> None:
    tally("training checkpoint, damaged", 5_000, damaged(two_epochs, toys, 5_000, keep))


def test_every_flipped_bit_of_a_tensor_is_noticed(
    two_epochs: Any, tally: Callable[[str, int, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    path, held = two_epochs
    now, before = path.read_bytes(), previous_file(path).read_bytes()
    start = 8 + int.from_bytes(now[:8], "little")
    chance, noticed = random.Random(2), 0
    for _ in range(100):
        place = chance.randrange(start, len(now))
        path.write_bytes(now[:place] + bytes([now[place] ^ 1 << chance.randrange(8)]) + now[place + 1 :])
        previous_file(path).write_bytes(before)
        caplog.clear()
        found = load_checkpoint(path, IDENTITY, *(run := new_run()))
        said = f"{path} is damaged (its checksum is wrong): the run goes on from the checkpoint before it"
        noticed += found.epoch == 1 and is_same(contents(run), held[1]) and said in caplog.text
    tally("training checkpoint, one bit of a tensor", 100, noticed)
    assert path.read_bytes() == before
    assert not previous_file(path).exists()


def with_facts(path: Path, **changes: str) -> None:
    """Rewrite what a checkpoint says of its run, with the checksum of the new text."""
    tensors, facts = read_tensors(path)
    del facts["sha256"]
    facts |= changes
    save_tensors(path, tensors, {**facts, "sha256": checksum(tensors, facts)})


FACTS = {
    "a letter": {"epoch": "x"},
    "negative": {"epoch": "-1"},
    "none": {"epoch": "0"},
    "a fraction": {"epoch": "2.0"},
    "thousands of digits": {"epoch": "9" * 5_000},
    "another epoch": {"epoch": "3"},
    "other digits": {"epoch": "\u0662"},
    "no history": {"history": "{}"},
    "not JSON": {"history": "["},
    "nested": {"history": "[" * 10_000 + "]" * 10_000},
    "texts": {"history": '[{"loss": "x"}, {"loss": 1.0}]'},
    "not finite": {"history": '[{"loss": NaN}, {"loss": 1.0}]'},
}


@pytest.mark.parametrize("changes", FACTS.values(), ids=FACTS)
def test_impossible_progress_is_one_sentence(two_epochs: Any, changes: dict[str, str]) -> None:
    path, _ = two_epochs
    previous_file(path).unlink()
    with_facts(path, **changes)
    with pytest.raises(WeightsError, match=f"{path.name} is damaged .*delete it"):
        load_checkpoint(path, IDENTITY, *new_run())


@pytest.mark.parametrize("text", ["x", "[]", "[" * 10_000 + "]" * 10_000, "1" * 5_000])
def test_an_identity_that_is_no_table_is_one_sentence(two_epochs: Any, text: str) -> None:
    path, _ = two_epochs
    previous_file(path).unlink()
    with_facts(path, identity=text)
    with pytest.raises(WeightsError, match="is damaged"):
        checkpoints.facts_of(path)
    with pytest.raises(WeightsError, match="belongs to another"):
        load_checkpoint(path, IDENTITY, *new_run())


def test_a_checkpoint_of_another_network_is_one_sentence(two_epochs: Any) -> None:
    path, _ = two_epochs
    previous_file(path).unlink()
    model, average = nn.Linear(3, 4), nn.Linear(3, 4)
    before = contents(run := (model, average, torch.optim.AdamW(model.parameters())))
    with pytest.raises(WeightsError, match=r"tensor 'bias' is not the network's"):
        load_checkpoint(path, IDENTITY, *run)
    assert is_same(contents(run), before)


def test_the_first_checkpoints_without_a_checksum_are_still_read(two_epochs: Any) -> None:
    path, held = two_epochs
    tensors, facts = read_tensors(path)
    del facts["sha256"]
    save_tensors(path, tensors, facts)
    assert load_checkpoint(path, IDENTITY, *(run := new_run())).epoch == 2
    assert is_same(contents(run), held[2])


def test_both_damaged_is_one_sentence_that_names_both(two_epochs: Any) -> None:
    path, _ = two_epochs
    for each in (path, previous_file(path)):
        each.write_bytes(each.read_bytes()[:50])
    with pytest.raises(WeightsError, match=f"{path.name}.*{previous_file(path).name}.*delete both"):
        load_checkpoint(path, IDENTITY, *new_run())


@contextmanager
def killed_at(call: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ends the block at a call that changes the disk, as a kill does: before it happens, without cleaning up."""
    calls: list[str] = []

    def at(name: str, then: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if len(calls) >= call:
                raise KilledError
            calls.append(name)
            return then(*args, **kwargs)

        return counted

    with monkeypatch.context() as patch:
        for module, name in ((os, "replace"), (os, "fsync"), (os, "chmod"), (os, "open"), (Path, "unlink")):
            patch.setattr(module, name, at(name, getattr(module, name)))
        yield calls


def test_a_kill_at_any_moment_of_writing_leaves_an_epoch_to_resume(
    two_epochs: Any, monkeypatch: pytest.MonkeyPatch, tally: Callable[[str, int, int], None]
) -> None:
    path, held = two_epochs
    files = {each: each.read_bytes() for each in (path, previous_file(path))}
    load_checkpoint(path, IDENTITY, *(run := new_run()))
    step(run)
    held[3] = contents(run)
    tried = survived = 0
    for keep in (True, False):
        for call in range(20):
            for each, content in files.items():
                each.write_bytes(content)
            try:
                with killed_at(call, monkeypatch):
                    save_checkpoint(path, state_at(3), *run, keep=keep)
            except KilledError:
                tried += 1
                found = load_checkpoint(path, IDENTITY, *(again := new_run()))
                survived += found.epoch in (2, 3) and is_same(contents(again), held[found.epoch])
    tally("training checkpoint, killed while it is written", tried, survived)
    assert tried > 10


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow beyond that many bytes: the quota of a user, whose error is that of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 10_000, 300_000])
def test_training_on_a_full_disk_is_one_sentence_and_resumes(size: int, tiny_mnist: ImageSet, tmp_path: Path) -> None:
    recipe = replace(RECIPE, members=(replace(MEMBER, epochs=1, batch_size=48),))
    with (
        full_disk(size),
        pytest.raises(WeightsError, match=r"checkpoint\.safetensors cannot be written \(.*free"),
    ):
        train_recipe(recipe, tiny_mnist, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (member,) = train_recipe(recipe, tiny_mnist, tmp_path)
    assert member.weights.is_file()


def test_weights_that_do_not_fit_are_one_sentence(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    recipe = replace(RECIPE, members=(replace(MEMBER, epochs=1, batch_size=48),))
    (member,) = train_recipe(recipe, tiny_mnist, tmp_path)
    content = member.weights.read_bytes()
    with full_disk(100), pytest.raises(WeightsError, match=r"full\.safetensors cannot be written"):
        train_recipe(recipe, tiny_mnist, tmp_path)
    assert member.weights.read_bytes() == content
    (tmp_path / "solo.safetensors").unlink()
    (tmp_path / "solo.safetensors").mkdir()
    with pytest.raises(WeightsError, match=r"solo\.safetensors cannot be written"):
        train_recipe(recipe, tiny_mnist, tmp_path)


def test_damaged_weights_of_a_member_are_refused(
    tiny_mnist: ImageSet, toys: ModuleType, tmp_path: Path, tally: Callable[[str, int, int], None]
) -> None:
    recipe = replace(RECIPE, members=(replace(MEMBER, epochs=1, batch_size=48),))
    (member,) = train_recipe(recipe, tiny_mnist, tmp_path)
    refused = 0
    for content in toys.damaged_bytes(member.weights.read_bytes(), 20, seed=6):
        member.weights.write_bytes(content)
        try:
            load_trained_member(recipe, tmp_path, "full", images=tiny_mnist)
        except WeightsError:
            refused += 1
    tally("weights of a trained member, damaged", 20, refused)


def test_an_output_folder_that_is_a_file_is_one_sentence(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(WeightsError, match=r"out cannot be created.*another --out"):
        train_recipe(RECIPE, tiny_mnist, tmp_path / "out")


NESTED = {
    "lists": "x = " + "[" * 10_000 + "]" * 10_000,
    "tables": "x = " + "{a=" * 10_000 + "1" + "}" * 10_000,
    "names": ".".join(["a"] * 2_000) + " = 1",
    "headers": "[" + ".".join(["a"] * 2_000) + "]",
    "tables of one recipe": "[defaults]\n" + ".".join(["a"] * 100) + " = 1",
    "digits": "seed = " + "9" * 5_000,
}


@pytest.mark.parametrize("text", NESTED.values(), ids=NESTED)
def test_a_recipe_nested_without_end_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match="a recipe must be TOML") as error:
        Recipe.parse(text)
    assert len(str(error.value)) < 300


TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from empir_plugin.data.image_set import ImageSet
from empir_plugin.models.quantize import Precision
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import JointRecipe, MemberRecipe
torch.set_num_threads(1)
images = torch.randint(0, 256, (64, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
data = ImageSet("mnist", "train", images, torch.arange(64) % 10, tuple("0123456789"))
full = MemberRecipe("full", 1, 60, 16, precision=Precision())
low = MemberRecipe("low", 2, 0, 16, precision=Precision(4, 4), scale="max", ema=0.5, start="full")
recipe = Recipe("both", "mnistconv", "mnist", (full, low), JointRecipe("both", 3, 40, 16, member_share=0.2))
print(*(member.sha256 for member in train_recipe(recipe, data, Path(sys.argv[1]))))
"""


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path, tally: Callable[[str, int, int], None]) -> None:
    def start(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", TRAIN, str(folder)], stdout=subprocess.PIPE, text=True)

    whole, _ = start(tmp_path / "whole").communicate()
    chance, kills, folder = random.Random(4), 0, tmp_path / "cut"
    process = start(folder)
    while kills < 12:
        while not list(folder.glob("*.checkpoint.safetensors")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 8))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        process = start(folder)
    resumed, _ = process.communicate()
    assert whole.strip()
    tally("training, SIGKILL at random moments", kills, kills * (resumed == whole))


def test_a_link_in_the_place_of_an_unfinished_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    outside, path = tmp_path / "precious", tmp_path / "out" / "x.json"
    outside.write_text("precious")
    path.with_name(f".{path.name}.{os.getpid()}{atomic.PARTIAL}").symlink_to(outside)
    atomic.write_atomically(path, b"{}")
    assert outside.read_text() == "precious"
    assert path.read_bytes() == b"{}"
    assert not path.is_symlink()
