"""Wall-clock time of a model beside that of one full-precision network."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.prepare import exact_float32, prepare


@dataclass(frozen=True)
class Spread:
    """Median and the 10th and 90th percentile of repeated measurements."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one or more numbers.

        Example:
            >>> Spread.of([1.0, 2.0, 3.0])
            Spread(median=2.0, p10=1.2, p90=2.8)
        """
        ranks = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
        return cls(*(round(value, 9) for value in torch.tensor(values, dtype=torch.float64).quantile(ranks).tolist()))


@dataclass(frozen=True, eq=False)
class Execution:
    """Another way to run the model.

    Args:
        backend: Its name, such as ``"int8 (onednn)"``.
        network: What runs; None where it cannot.
        unavailable: Why it cannot; empty where it can.
    """

    backend: str
    network: nn.Module | None = None
    unavailable: str = ""


@dataclass(frozen=True)
class BackendTime:
    """The time of one way to run the model, or the full-precision network.

    Args:
        network: ``"model"`` or ``"baseline"``.
        backend: Which way.
        milliseconds: Of one forward pass; None where it was not measured.
        ratio: To the baseline in its faster layout, in each round; None where it was not measured.
        unavailable: Why it was not; empty where it was.
    """

    network: str
    backend: str
    milliseconds: Spread | None
    ratio: Spread | None
    unavailable: str = ""


@dataclass(frozen=True)
class Latency:
    """Measured times of one forward pass.

    Args:
        device: ``"cpu"`` or ``"cuda"``, and which processor that is.
        backend: How the model was executed; the baseline is in float32.
        threads: Of the CPU.
        batch_size: Images per forward pass.
        repeats: Rounds.
        execution: How the members of an ensemble follow each other.
        baseline_layout: The memory layout in which the baseline was faster.
        model: Milliseconds.
        baseline: Milliseconds, in its faster layout.
        ratio: Of the times in each round; 3 is three times the baseline's.
        backends: Everything that took its turn, the above included, and what could not.
    """

    device: str
    backend: str
    threads: int
    batch_size: int
    repeats: int
    execution: str
    baseline_layout: str
    model: Spread
    baseline: Spread
    ratio: Spread
    backends: tuple[BackendTime, ...] = ()


SIMULATED = "float32, quantization simulated"
"""How models are executed unless told otherwise: what their user waits for, not what low-bit hardware would take."""

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class LatencySettings:
    """How to measure.

    Args:
        batch_size: Images per forward pass.
        repeats: Rounds; every network runs once in each.
        threads: Of the CPU; the process's own number by default.
        device: Where to run.

    Raises:
        InputError: If a number is below 1.
    """

    batch_size: int = 32
    repeats: int = 20
    threads: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "threads"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InputError(f"{name} must be 1 or more, got {number}")


def measure_latency(
    model: nn.Module,
    baseline: nn.Module,
    image_shape: tuple[int, ...],
    settings: LatencySettings | None = None,
    *,
    backend: str = SIMULATED,
    others: Sequence[Execution] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Time a model, prepared as for an evaluation, against a full-precision network in the better memory layout.

    The networks take turns, so that what else the machine does hits all of them; the ratio is taken within each round.

    Args:
        model: Measured as :func:`~empir_plugin.evaluation.prepare.prepare` makes it: weights quantized once.
        baseline: The full-precision network.
        image_shape: ``(C, H, W)``.
        settings: How to measure.
        backend: What to say of the model's execution.
        others: Other ways to run the model, measured in the same rounds.
        clock: Seconds.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        >>> measure_latency(net, net, (1, 4, 4), LatencySettings(batch_size=2, repeats=3)).repeats
        3
    """
    how = settings or LatencySettings()
    images = torch.rand(how.batch_size, *image_shape, generator=torch.Generator().manual_seed(0)).to(how.device)
    runs = {backend: _pass(prepare(model, how.device), images)}
    for name, layout in _LAYOUTS.items():
        runs[name] = _pass(prepare(baseline, how.device).to(memory_format=layout), images)  # type: ignore[call-overload]
    runs |= {other.backend: _pass(other.network, images) for other in others if other.network is not None}
    with _threads(how.threads), exact_float32(), torch.no_grad():
        threads, times = torch.get_num_threads(), take_turns(runs, how.repeats, clock)
    best = min(_LAYOUTS, key=lambda name: Spread.of(times[name]).median)
    rows = {name: _row(name, seconds, times[best]) for name, seconds in times.items()}
    left_out = (BackendTime("model", other.backend, None, None, other.unavailable) for other in others)
    return Latency(
        _processor(how.device),
        backend,
        threads,
        how.batch_size,
        how.repeats,
        "sequential",
        best,
        _milliseconds(times[backend]),
        _milliseconds(times[best]),
        _ratio(times[backend], times[best]),
        (*rows.values(), *(row for row in left_out if row.backend not in rows)),
    )


def _row(name: str, seconds: Sequence[float], full: Sequence[float]) -> BackendTime:
    network, backend = ("baseline", f"float32, {name}") if name in _LAYOUTS else ("model", name)
    return BackendTime(network, backend, _milliseconds(seconds), _ratio(seconds, full))


def _milliseconds(seconds: Sequence[float]) -> Spread:
    return Spread.of([1000 * each for each in seconds])


def _ratio(seconds: Sequence[float], full: Sequence[float]) -> Spread:
    """Within each round."""
    return Spread.of([own / other for own, other in zip(seconds, full, strict=True)])


def take_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float], *, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of every run in every round, by the name of the run.

    Each round starts with another run than the one before, so that none always follows the same one.

    Args:
        runs: What to time.
        repeats: Rounds that count.
        clock: Seconds.
        warm_up: Rounds before those, which do not count.

    Example:
        >>> ticks = iter(range(100))
        >>> take_turns({"a": lambda: next(ticks), "b": lambda: None}, 2, lambda: next(ticks), warm_up=0)
        {'a': [2, 2], 'b': [1, 1]}
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warm_up, repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            runs[name]()
            if turn >= 0:
                times[name].append(clock() - start)
    return times


def _pass(network: nn.Module, images: Tensor) -> Callable[[], None]:
    return partial(_run, network, images)


def _run(network: nn.Module, images: Tensor) -> None:
    network(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    found = torch.get_num_threads()
    torch.set_num_threads(number or found)
    try:
        yield
    finally:
        torch.set_num_threads(found)


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device.type}: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {platform.processor() or platform.machine()}"
