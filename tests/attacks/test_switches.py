"""Process-wide switches of PyTorch stay as they are while an attack runs with gradients in bfloat16.

At each operation of the attack, another thread reads them, as the user's own code might.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from queue import Queue
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from empir_plugin.attacks.gradient import pgd
from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.integer import convert
from empir_plugin.models.integer.convert import run_on_integers
from empir_plugin.models.integer.kernels import IntMM
from empir_plugin.models.layers import QuantConv2d, QuantLinear, quantized_layers
from empir_plugin.models.quantize import Precision

CPU = torch.device("cpu")
X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4)


def switches() -> dict[str, Any]:
    """All switches that this release has, by name."""
    backends: Any = torch.backends
    places = {
        "cudnn": backends.cudnn,
        "cudnn.conv": getattr(backends.cudnn, "conv", None),
        "cuda.matmul": backends.cuda.matmul,
        "mkldnn": backends.mkldnn,
        "mkldnn.conv": getattr(backends.mkldnn, "conv", None),
        "mkldnn.matmul": getattr(backends.mkldnn, "matmul", None),
        "backends": backends,
    }
    names = "fp32_precision", "allow_tf32", "allow_bf16_reduced_precision_reduction", "benchmark", "deterministic"
    found = {
        f"{place}.{name}": getattr(owner, name)
        for place, owner in places.items()
        for name in names
        if hasattr(owner, name)
    }
    return found | {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "default_dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
    }


class OtherThread:
    """A thread that reads the switches whenever it is asked to."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.operations: set[str] = set()
        self._asked: Queue[bool] = Queue()
        self._answered: Queue[bool] = Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        while self._asked.get():
            self.seen.append(switches())
            self._answered.put(True)

    def look(self, operation: str) -> None:
        """Read the switches now, while the asking thread waits."""
        self.operations.add(operation)
        self._asked.put(True)
        self._answered.get(timeout=10)

    def __enter__(self) -> OtherThread:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._asked.put(False)
        self._thread.join(timeout=10)

    def changed(self) -> set[str]:
        """Names of switches that had more than one value, or another one than now."""
        return {name for name, value in switches().items() if any(each[name] != value for each in self.seen)}


@contextmanager
def watched() -> Iterator[OtherThread]:
    """Let another thread look before each operation of the block, those of backward passes included."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            other.look(func.name())
            return func(*args, **(kwargs or {}))

    with OtherThread() as other, Watch():
        yield other


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network on integer kernels with gradients in bfloat16, which every processor computes, some of them slowly."""
    monkeypatch.setattr(convert, "kernel_for", lambda device: IntMM())
    monkeypatch.setattr(convert, "_without_bf16", lambda device: "")
    low = Precision.parse("w4a4")
    torch.manual_seed(0)
    conv, head = QuantConv2d(3, 4, 3, precision=low), QuantLinear(4 * 36, 4, precision=low)
    fast, backend = run_on_integers(prepare(nn.Sequential(conv, nn.Flatten(), head).eval(), CPU), X, gradients="bf16")
    assert backend.backward == "bf16"
    assert all(layer.on_integers is not None for _, layer in quantized_layers(fast))
    return fast


def attack(model: nn.Module) -> Tensor:
    return pgd(2)(model, X, Y, Threat.parse("Linf:8/255"))


def test_an_attack_with_bfloat16_gradients_changes_no_switch_at_any_time(model: nn.Module) -> None:
    before = switches()
    with watched() as other:
        attack(model)
    assert {"aten::convolution_backward", "aten::mm"} <= other.operations, "backward passes were watched, too"
    assert len(other.seen) > 50
    assert other.changed() == set()
    assert switches() == before


@pytest.mark.parametrize(
    ("place", "name", "value"), [("cudnn", "benchmark", True), ("mkldnn.conv", "fp32_precision", "bf16")]
)
def test_a_switch_that_is_set_for_a_backward_pass_only_is_seen(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, place: str, name: str, value: object
) -> None:
    if f"{place}.{name}" not in switches():
        pytest.skip(f"torch {torch.__version__} has no switch {place}.{name}")
    owner = attrgetter(place)(torch.backends)
    layer: Any = next(iter(quantized_layers(model)))[1]
    gradient = type(layer.on_integers).gradient

    def leaking(self: Any, output: Tensor, shape: torch.Size) -> Tensor:
        found = getattr(owner, name)
        setattr(owner, name, value)
        try:
            return gradient(self, output, shape)
        finally:
            setattr(owner, name, found)

    monkeypatch.setattr(type(layer.on_integers), "gradient", leaking)
    before = switches()
    with watched() as other:
        attack(model)
    assert f"{place}.{name}" in other.changed()
    assert switches() == before, "as it is set back"
