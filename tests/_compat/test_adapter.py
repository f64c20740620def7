"""The adapter to AutoAttack's original interface: attacks, flags, logs, memory layouts, and global state."""

import logging
import sys
from pathlib import Path
from typing import Any

import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from empir_plugin._compat import isolate_autoattack_state
from empir_plugin._compat.adapter import AutoAttack
from empir_plugin.errors import InputError


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def linear(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).eval()


def quick(model: Any, eps: float = 0.5, **kwargs: Any) -> AutoAttack:
    settings = {"attacks_to_run": ["apgd-ce"], "version": "custom", "device": "cpu", "seed": 0}
    adversary = AutoAttack(model, "Linf", eps, **(settings | kwargs))
    adversary.apgd.n_iter = adversary.square.n_queries = 5
    adversary.apgd.n_restarts = 1
    return adversary


def run_attack(model: Any, images: Tensor, eps: float = 0.5, **kwargs: Any) -> tuple[AutoAttack, float]:
    """The adversary after its run, and the accuracy under attack."""
    adversary = quick(model, eps, **kwargs)
    labels = model(images).argmax(1)
    found = adversary.run_standard_evaluation(images, labels, bs=4)
    return adversary, (model(found).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize(("eps", "accuracy"), [(0.5, 0.0), (1e-6, 1.0)])
def test_the_adapter_attacks(images: Tensor, eps: float, accuracy: float) -> None:
    assert run_attack(linear(), images, eps)[1] == accuracy


def test_decisions_are_returned_on_request_as_in_the_original(images: Tensor) -> None:
    model = linear()
    labels = model(images).argmax(1)
    found, decisions = quick(model).run_standard_evaluation(images, labels, 4, return_labels=True)
    assert torch.equal(decisions, model(found).argmax(1))


def test_each_attack_alone(images: Tensor) -> None:
    model = linear()
    adversary = quick(model, attacks_to_run=["apgd-ce", "apgd-dlr"])
    found = adversary.run_standard_evaluation_individual(images, model(images).argmax(1), bs=4)
    assert {name: x.shape for name, x in found.items()} == dict.fromkeys(["apgd-ce", "apgd-dlr"], images.shape)
    assert adversary.attacks_to_run == ["apgd-ce", "apgd-dlr"]


def test_the_standard_version_is_the_default() -> None:
    adversary = AutoAttack(linear(), device="cpu")
    assert adversary.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    adversary.set_version("rand")
    assert adversary.attacks_to_run == ["apgd-ce", "apgd-dlr"]


def test_attacks_are_chosen_with_the_custom_version_only() -> None:
    with pytest.raises(ValueError, match="custom"):
        AutoAttack(linear(), attacks_to_run=["apgd-ce"], device="cpu")


def test_a_state_path_is_refused_before_anything_runs(images: Tensor, tmp_path: Path) -> None:
    def model(_: Tensor) -> Tensor:
        pytest.fail("the model was called")

    with pytest.raises(InputError, match=r"state_path must be None, got .*cannot resume"):
        quick(model).run_standard_evaluation(images, torch.zeros(6), state_path=tmp_path / "state.json")


def test_tensorflow_is_refused() -> None:
    with pytest.raises(InputError, match=r"is_tf_model .*True: .*PyTorch models only"):
        AutoAttack(linear(), is_tf_model=True)


def test_flags_are_data(images: Tensor) -> None:
    softmax, _ = run_attack(nn.Sequential(linear(), nn.Softmax(1)), images)
    assert [flag for flag in softmax.flags if "probability distribution" in flag] == softmax.flags != []
    assert run_attack(linear(), images)[0].flags == []


def test_the_log_goes_to_a_file(images: Tensor, tmp_path: Path) -> None:
    level = logging.getLogger("auto-attack").level
    run_attack(linear(), images, log_path=tmp_path / "log")
    run_attack(linear(), images, log_path=tmp_path / "log")
    assert (tmp_path / "log").read_text().count("initial accuracy: 100.00%") == 2
    assert logging.getLogger("auto-attack").level == level
    assert logging.getLogger("auto-attack").handlers == []


def test_a_quiet_adapter_logs_flags_only(images: Tensor, tmp_path: Path) -> None:
    run_attack(linear(), images, log_path=tmp_path / "log", verbose=False)
    assert "initial accuracy" not in (tmp_path / "log").read_text()


def channels_last() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channels_last_can_be_attacked(images: Tensor, layout: torch.memory_format) -> None:
    assert run_attack(channels_last(), images.to(memory_format=layout), attacks_to_run=["apgd-dlr"])[1] < 1


def test_pyautoattack_alone_cannot_attack_images_in_channels_last(images: Tensor) -> None:
    model = channels_last()
    adversary = pyautoattack.AutoAttack(model, attacks=["apgd-dlr"], version="custom", eps=0.5)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        adversary.run_standard_evaluation(images.to(memory_format=torch.channels_last), model(images).argmax(1))


def test_the_attacks_get_contiguous_gradients(images: Tensor) -> None:
    model = channels_last()
    x = images.requires_grad_()
    (plain,) = torch.autograd.grad(model(x).sum(), x)
    (contiguous,) = torch.autograd.grad(quick(model).apgd.model(x).sum(), x)
    assert not plain.is_contiguous()
    assert contiguous.is_contiguous()
    assert torch.equal(plain, contiguous)


class Dynamic(nn.Module):
    """AutoAttack flags any Python function of this name called in forward as a dynamic defence."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def backward(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        self.backward()
        return self.inner(x)


def test_a_dynamic_model_does_not_flag_the_next_one(images: Tensor) -> None:
    assert "dynamic" in run_attack(Dynamic(), images)[0].flags[0]
    assert run_attack(linear(), images)[0].flags == []


def test_counts_of_earlier_runs_cause_no_flags(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyautoattack import checks

    monkeypatch.setitem(checks.funcs, "backward", 3)
    assert run_attack(linear(), images)[0].flags == []
    assert set(checks.funcs.values()) == {0}


def test_the_trace_function_is_restored(images: Tensor) -> None:
    def trace(*_: object) -> None:
        return None

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        run_attack(linear(), images)
        after = sys.gettrace()
        with pytest.raises(ZeroDivisionError):
            fail_without_trace_function()
        after_an_error = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is trace
    assert after_an_error is trace


def fail_without_trace_function() -> None:
    with isolate_autoattack_state():
        sys.settrace(None)
        raise ZeroDivisionError


def test_pyautoattack_alone_removes_the_trace_function(images: Tensor) -> None:
    from pyautoattack import checks

    before = sys.gettrace()
    try:
        sys.settrace(lambda *_: None)
        checks.check_dynamic(linear(), images)
        assert sys.gettrace() is None
    finally:
        sys.settrace(before)
