"""Measured latency: the wall-clock time of a model, relative to that of one full-precision network."""

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
from empir_plugin.evaluation.prepare import exact_float32, prepare, prepare_for_images

SIMULATED = "float32, quantization simulated"
"""How models are executed by default: the latency their users see, not that of low-precision hardware."""

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class LatencySettings:
    """Settings of a latency measurement.

    Args:
        batch_size: Images per forward pass.
        repeats: Number of rounds; every network runs once per round.
        threads: Number of CPU threads; that of the process by default.
        device: Device to run on.

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


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile of repeated measurements.

    Args:
        median: The median.
        p10: The 10th percentile.
        p90: The 90th percentile.
    """

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more numbers.

        Example:
            >>> Spread.of([1.0, 2.0, 3.0])
            Spread(median=2.0, p10=1.2, p90=2.8)
        """
        ranks = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
        return cls(*(round(value, 9) for value in torch.tensor(values, dtype=torch.float64).quantile(ranks).tolist()))


@dataclass(frozen=True, eq=False)
class Execution:
    """The model on another backend.

    Args:
        backend: Name of the backend, such as ``"int8 (onednn)"``.
        network: The network that runs on it; None if there is none.
        unavailable: Why there is none; empty otherwise.
    """

    backend: str
    network: nn.Module | None = None
    unavailable: str = ""


@dataclass(frozen=True)
class BackendTime:
    """The measured time of the model, or of the baseline, on one backend.

    Args:
        network: ``"model"`` or ``"baseline"``.
        backend: Name of the backend.
        milliseconds: Time of one forward pass; None if not measured.
        ratio: Time relative to the baseline in its faster layout, within each round; None if not measured.
        unavailable: Why it was not measured; empty if it was.
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
        device: ``"cpu"`` or ``"cuda"``, and the name of the processor.
        backend: How the model was executed; the baseline runs in float32.
        threads: Number of CPU threads.
        batch_size: Images per forward pass.
        repeats: Number of rounds.
        execution: How the members of an ensemble are executed: one after the other.
        baseline_layout: The memory layout in which the baseline was faster.
        model: Time of the model, in milliseconds.
        baseline: Time of the baseline in its faster layout, in milliseconds.
        ratio: Time of the model relative to the baseline, within each round; 3 is three times the baseline's.
        backends: The times of all backends and layouts, including the above, and those not available.
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
    """Measure the latency of a model relative to a full-precision network in its faster memory layout.

    Runs are interleaved so that machine noise affects all networks equally; ratios are taken within each round.

    Args:
        model: The model; measured as :func:`~empir_plugin.evaluation.prepare.prepare` prepares it for an evaluation,
            with weights quantized once.
        baseline: The full-precision network.
        image_shape: ``(C, H, W)``.
        settings: Settings of the measurement.
        backend: How the model is executed, for the report.
        others: The model on other backends, measured in the same rounds.
        clock: Returns the time in seconds.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        >>> measure_latency(net, net, (1, 4, 4), LatencySettings(batch_size=2, repeats=3)).repeats
        3
    """
    settings = settings or LatencySettings()
    device, generator = settings.device, torch.Generator().manual_seed(0)
    images = torch.rand(settings.batch_size, *image_shape, generator=generator).to(device)
    with _set_threads(settings.threads), exact_float32(), torch.no_grad():
        networks = {backend: prepare_for_images(model, device, images[:2], differentiable=False).model}
        supported = torch.contiguous_format, prepare_for_images(baseline, device, images[:2], differentiable=False)[1]
        layouts = {name: layout for name, layout in _LAYOUTS.items() if layout in supported}
        for name, layout in layouts.items():
            networks[name] = prepare(baseline, device).to(memory_format=layout)  # type: ignore[call-overload]
        networks |= {other.backend: other.network for other in others if other.network is not None}
        runs = {name: partial(_forward, network, images) for name, network in networks.items()}
        threads, times = torch.get_num_threads(), take_turns(runs, settings.repeats, clock)
    faster = min(layouts, key=lambda name: Spread.of(times[name]).median)
    rows = {name: _backend_time(name, seconds, times[faster]) for name, seconds in times.items()}
    unavailable = (BackendTime("model", other.backend, None, None, other.unavailable) for other in others)
    return Latency(
        _processor(device),
        backend,
        threads,
        settings.batch_size,
        settings.repeats,
        "sequential",
        faster,
        _milliseconds(times[backend]),
        _milliseconds(times[faster]),
        _ratio(times[backend], times[faster]),
        (*rows.values(), *(row for row in unavailable if row.backend not in rows)),
    )


def _backend_time(name: str, seconds: Sequence[float], baseline: Sequence[float]) -> BackendTime:
    network, backend = ("baseline", f"float32, {name}") if name in _LAYOUTS else ("model", name)
    return BackendTime(network, backend, _milliseconds(seconds), _ratio(seconds, baseline))


def _milliseconds(seconds: Sequence[float]) -> Spread:
    return Spread.of([1000 * each for each in seconds])


def _ratio(seconds: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Ratios within each round."""
    return Spread.of([own / other for own, other in zip(seconds, baseline, strict=True)])


def take_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float], *, warm_up: int = 2
) -> dict[str, list[float]]:
    """Time several functions in interleaved rounds.

    Each round starts with the next function, so each is timed in every position of a round.

    Args:
        runs: The functions to time, by name.
        repeats: Number of timed rounds.
        clock: Returns the time in seconds.
        warm_up: Number of untimed rounds before them.

    Returns:
        Seconds of every function in every round, by name.

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


def _forward(network: nn.Module, images: Tensor) -> None:
    """One forward pass, finished when the function returns."""
    network(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


@contextmanager
def _set_threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device.type}: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {platform.processor() or platform.machine()}"
