"""Latency, measured with a fake clock: interleaved rounds, the baseline's faster layout, other backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.overhead import latency as latency_module
from empir_plugin.evaluation.overhead.latency import (
    BackendTime,
    Execution,
    Latency,
    LatencySettings,
    Spread,
    measure_latency,
    take_turns,
)
from empir_plugin.evaluation.processor import processor


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


def measure(clock: Clock, model: nn.Module, baseline: nn.Module, how: LatencySettings, **options: Any) -> Latency:
    """The latency at the one batch size of some settings, in as much time as it takes."""
    (found,) = measure_latency(
        model, baseline, (3, 8, 8), replace(how, seconds=float("inf")), clock=clock, **options
    ).values()
    assert isinstance(found, Latency)
    return found


@pytest.mark.parametrize(("layout", "seconds"), [("contiguous", (1.0, 2.0)), ("channels_last", (2.0, 1.0))])
def test_the_baseline_is_measured_in_its_faster_layout(layout: str, seconds: tuple[float, float]) -> None:
    clock = Clock()
    model, baseline = Slow(clock, 9.0, 3.0), Slow(clock, *seconds)
    latency = measure(clock, model, baseline, LatencySettings((2,), repeats=4))
    assert latency.baseline_layout == layout
    assert latency.model == Spread(3000.0, 3000.0, 3000.0), "the model as an evaluation prepares it: channels last"
    assert latency.baseline == Spread(1000.0, 1000.0, 1000.0)
    assert latency.ratio == Spread(3.0, 3.0, 3.0)
    assert (latency.batch_size, latency.repeats, latency.device.split(":")[0]) == (2, 4, "cpu")
    assert "simulated" in latency.backend
    again = measure(clock, model, baseline, LatencySettings((1,), 1), backend="int8")
    assert again.backend == "int8"


def test_other_backends_are_measured_and_unavailable_ones_say_why() -> None:
    clock = Clock()
    model, baseline, quick = Slow(clock, 9.0, 3.0), Slow(clock, 1.0, 2.0), Slow(clock, 0.5, 0.5)
    others = Execution("int8 (toy)", quick), Execution("int4", unavailable="no such kernel")
    latency = measure(clock, model, baseline, LatencySettings((2,), repeats=3), others=others)
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
    assert len(quick.threads) == 2 + 3 + 2, "twice on one image, then once per round, two rounds of warm-up included"


def test_a_machine_that_slows_down_hardly_changes_the_ratio() -> None:
    clock = Clock()
    model, baseline = Slow(clock, 3.0, 3.0, drift=1e-3), Slow(clock, 1.0, 1.5, drift=1e-3)
    latency = measure(clock, model, baseline, LatencySettings((1,), repeats=31))
    assert latency.model.p90 / latency.model.p10 > 1.1, "the times themselves changed"
    assert latency.ratio.median == pytest.approx(3.0, rel=0.02)


def test_threads_are_set_during_the_measurement_only() -> None:
    before, clock = torch.get_num_threads(), Clock()
    model = Slow(clock, 1.0, 1.0)
    latency = measure(clock, model, model, LatencySettings((1,), 2, threads=2))
    assert latency.threads == 2
    assert set(model.threads) == {2}
    assert torch.get_num_threads() == before


def test_spread_by_hand() -> None:
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 5.0)
    assert Spread.of([float(i) for i in range(11)]) == Spread(5.0, 1.0, 9.0)


class PerImage(nn.Module):
    """A network that advances the fake clock by some seconds per image, and remembers its batch sizes."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.sizes: list[int] = []

    def __deepcopy__(self, memo: dict[int, object]) -> PerImage:
        copy = PerImage(self.clock, self.seconds)
        copy.sizes = self.sizes
        return copy

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        self.clock.now += self.seconds * len(x)
        return x.flatten(1)


def test_slow_networks_run_fewer_rounds_and_large_batches_are_left_out() -> None:
    clock = Clock()
    model, baseline = PerImage(clock, 0.6), PerImage(clock, 0.2)  # 1 s a round and image, the baseline in two layouts
    model.sizes, baseline.sizes = [], []
    how = LatencySettings((64, 8, 1), repeats=20, seconds=40.0)
    found = measure_latency(model, baseline, (1, 2, 2), how, clock=clock)
    assert list(found) == [1, 8, 64], "the smallest first"
    one, eight = found[1], found[8]
    assert isinstance(one, Latency)
    assert isinstance(eight, Latency)
    assert (one.batch_size, one.repeats, eight.batch_size, eight.repeats) == (1, 20, 8, 3)
    assert eight.ratio.median == pytest.approx(3.0)
    assert found[64] == "a round of it would take about 64 s of the 40 s it may"
    assert 64 not in model.sizes
    assert model.sizes.count(8) == 5, "two rounds of warm-up"


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, (2, 9)), (1.0, (2, 9)), (4.0, (1, 1)), (6.0, (0, 1))])
def test_rounds_that_end_in_time(seconds: float, expected: tuple[int, int]) -> None:
    assert latency_module._rounds_in_time(9, seconds, 11.0) == expected
    assert latency_module._rounds_in_time(9, 11.1, 11.0)[1] == 0
    assert latency_module._rounds_in_time(1, 4.0, 12.0) == (2, 1), "one round is asked for"


def test_the_processor_and_its_instructions_are_named() -> None:
    clock = Clock()
    latency = measure(clock, PerImage(clock, 1.0), PerImage(clock, 1.0), LatencySettings((1,), 1))
    assert latency.processor == processor()
    assert latency.device == f"cpu: {latency.processor.name}"


@pytest.mark.parametrize("name", ["batch_sizes", "repeats", "threads"])
def test_numbers_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} .*1 or more, got 0"):
        replace(LatencySettings(), **{name: (4, 0) if name == "batch_sizes" else 0})


def test_there_must_be_a_batch_size_and_time() -> None:
    with pytest.raises(InputError, match=r"batch_sizes .*one number or more, got none"):
        LatencySettings(batch_sizes=())
    with pytest.raises(InputError, match=r"seconds must be above 0, got 0"):
        LatencySettings(seconds=0.0)
    with pytest.raises(InputError, match=r"seconds must be above 0, got nan"):
        LatencySettings(seconds=float("nan"))


def test_a_gpu_is_synchronized(monkeypatch: pytest.MonkeyPatch) -> None:
    synchronized: list[object] = []
    monkeypatch.setattr(torch.cuda, "synchronize", synchronized.append)

    class OnGpu(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

    latency_module._forward(nn.Identity(), torch.zeros(1).as_subclass(OnGpu))
    assert len(synchronized) == 1
    latency_module._forward(nn.Identity(), torch.zeros(1))
    assert len(synchronized) == 1
