"""Checkpoints of several kinds give the same weights, and damaged ones give none."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from empir_plugin.errors import WeightsError
from empir_plugin.models.packing import save_packed
from empir_plugin.training.networks import load_pretrained

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
    "code.pt": (_save(_Code()), "cannot be read without running code from it"),
    "pickle.pt": (lambda path: path.write_bytes(pickle.dumps(_Code(), 2)), "cannot be read without running code"),
    "empty.pt": (lambda path: path.write_bytes(b""), "cannot be read"),
    "text.pth": (lambda path: path.write_text("git clone"), "cannot be read without running code"),
    "unmarked.pth": (lambda path: path.write_text("hello"), "cannot be read without running code"),
    "stack.pth": (lambda path: path.write_text("."), "cannot be read without running code"),
    "short.pth": (lambda path: path.write_bytes(b"r1"), "cannot be read without running code"),
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
