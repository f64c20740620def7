"""Latency, measured with a fake clock: interleaved rounds, the baseline's faster layout, other backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.overhead import latency as latency_module
from empir_plugin.evaluation.overhead.latency import (
    BackendTime,
    Execution,
    LatencySettings,
    Spread,
    measure_latency,
    take_turns,
)


class Clock:
    """A clock that only the tests advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rounds_are_interleaved_and_warm_up_is_not_timed() -> None:
    clock, order = Clock(), []

    def run(name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            order.append(name)
            clock.now += seconds

        return work

    times = take_turns({"a": run("a", 1.0), "b": run("b", 2.0), "c": run("c", 4.0)}, 3, clock, warm_up=1)
    assert times == {"a": [1.0] * 3, "b": [2.0] * 3, "c": [4.0] * 3}
    assert "".join(order) == "cab" + "abc" + "bca" + "cab"


class Slow(nn.Module):
    """A network that advances the fake clock, by a time that depends on the memory layout of its weights."""

    def __init__(self, clock: Clock, contiguous: float, channels_last: float, drift: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.clock, self.seconds, self.drift = clock, (contiguous, channels_last), drift
        self.threads: list[int] = []

    def __deepcopy__(self, memo: dict[int, object]) -> Slow:
        copy = Slow(self.clock, *self.seconds, self.drift)
        copy.threads = self.threads
        return copy

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.threads.append(torch.get_num_threads())
        last = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        self.clock.now += self.seconds[last] * (1 + self.drift * self.clock.now)
        return self.conv(x)


@pytest.mark.parametrize(("layout", "seconds"), [("contiguous", (1.0, 2.0)), ("channels_last", (2.0, 1.0))])
def test_the_baseline_is_measured_in_its_faster_layout(layout: str, seconds: tuple[float, float]) -> None:
    clock = Clock()
    model, baseline = Slow(clock, 9.0, 3.0), Slow(clock, *seconds)
    latency = measure_latency(model, baseline, (3, 8, 8), LatencySettings(batch_size=2, repeats=4), clock=clock)
    assert latency.baseline_layout == layout
    assert latency.model == Spread(3000.0, 3000.0, 3000.0), "the model as an evaluation prepares it: channels last"
    assert latency.baseline == Spread(1000.0, 1000.0, 1000.0)
    assert latency.ratio == Spread(3.0, 3.0, 3.0)
    assert (latency.batch_size, latency.repeats, latency.device.split(":")[0]) == (2, 4, "cpu")
    assert "simulated" in latency.backend
    again = measure_latency(model, baseline, (3, 8, 8), LatencySettings(1, 1), backend="int8", clock=clock)
    assert again.backend == "int8"


def test_other_backends_are_measured_and_unavailable_ones_say_why() -> None:
    clock = Clock()
    model, baseline, quick = Slow(clock, 9.0, 3.0), Slow(clock, 1.0, 2.0), Slow(clock, 0.5, 0.5)
    others = Execution("int8 (toy)", quick), Execution("int4", unavailable="no such kernel")
    how = LatencySettings(batch_size=2, repeats=3)
    latency = measure_latency(model, baseline, (3, 8, 8), how, others=others, clock=clock)
    rows = {(row.network, row.backend): row for row in latency.backends}
    assert list(rows) == [
        ("model", "float32, quantization simulated"),
        ("baseline", "float32, contiguous"),
        ("baseline", "float32, channels_last"),
        ("model", "int8 (toy)"),
        ("model", "int4"),
    ]
    measured = [row for row in latency.backends if not row.unavailable]
    assert [row.milliseconds and row.milliseconds.median for row in measured] == [3000.0, 1000.0, 2000.0, 500.0]
    assert [row.ratio and row.ratio.median for row in measured] == [3.0, 1.0, 2.0, 0.5]
    assert rows["model", "int4"] == BackendTime("model", "int4", None, None, "no such kernel")
    assert (latency.model, latency.ratio) == (measured[0].milliseconds, measured[0].ratio), "those of the first row"
    assert len(quick.threads) == 3 + 2, "once per round, including two rounds of warm-up"


def test_a_machine_that_slows_down_hardly_changes_the_ratio() -> None:
    clock = Clock()
    model, baseline = Slow(clock, 3.0, 3.0, drift=1e-3), Slow(clock, 1.0, 1.5, drift=1e-3)
    latency = measure_latency(model, baseline, (3, 8, 8), LatencySettings(batch_size=1, repeats=31), clock=clock)
    assert latency.model.p90 / latency.model.p10 > 1.1, "the times themselves changed"
    assert latency.ratio.median == pytest.approx(3.0, rel=0.02)


def test_threads_are_set_during_the_measurement_only() -> None:
    before, clock = torch.get_num_threads(), Clock()
    model = Slow(clock, 1.0, 1.0)
    latency = measure_latency(model, model, (3, 8, 8), LatencySettings(1, 2, threads=2), clock=clock)
    assert latency.threads == 2
    assert set(model.threads) == {2}
    assert torch.get_num_threads() == before


def test_spread_by_hand() -> None:
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 5.0)
    assert Spread.of([float(i) for i in range(11)]) == Spread(5.0, 1.0, 9.0)


@pytest.mark.parametrize("name", ["batch_size", "repeats", "threads"])
def test_numbers_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} .*1 or more, got 0"):
        replace(LatencySettings(), **{name: 0})


def test_a_gpu_is_synchronized(monkeypatch: pytest.MonkeyPatch) -> None:
    synchronized: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", synchronized.append)

    class OnGpu(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

    latency_module._forward(nn.Identity(), torch.zeros(1).as_subclass(OnGpu))
    assert len(synchronized) == 1
    latency_module._forward(nn.Identity(), torch.zeros(1))
    assert len(synchronized) == 1
