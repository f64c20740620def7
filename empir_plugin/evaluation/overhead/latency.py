"""Measured latency: the wall-clock time of a model, relative to that of one full-precision network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.prepare import exact_float32, prepare, prepare_for_images
from empir_plugin.evaluation.processor import Processor, processor

SIMULATED = "float32, quantization simulated"
"""How models are executed by default: the latency their users see, not that of low-precision hardware."""

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class LatencySettings:
    """Settings of a latency measurement.

    Args:
        batch_sizes: Images per forward pass; each number is measured by itself.
        repeats: Number of rounds; every network runs once per round.
        threads: Number of CPU threads; that of the process by default.
        device: Device to run on.
        seconds: About how long each batch size may take. Slow networks run fewer rounds, and batch sizes of which not
            even one round would end in time are left out.

    Raises:
        InputError: If a number is below 1, there is no batch size, or no time.
    """

    batch_sizes: tuple[int, ...] = (1, 32, 256)
    repeats: int = 20
    threads: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if not self.batch_sizes:
            raise InputError("batch_sizes must hold one number or more, got none")
        for name, numbers in {
            "batch_sizes": self.batch_sizes, "repeats": (self.repeats,), "threads": (self.threads,)
        }.items():  # fmt: skip
            for number in numbers:
                if number is not None and number < 1:
                    raise InputError(f"{name} must be 1 or more, got {number}")
        if not self.seconds > 0:
            raise InputError(f"seconds must be above 0, got {self.seconds}")


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
        processor: The processor, and the instructions that ran; None in the first reports, which do not state it.
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
    processor: Processor | None = None


def measure_latency(
    model: nn.Module,
    baseline: nn.Module,
    image_shape: tuple[int, ...],
    settings: LatencySettings | None = None,
    *,
    backend: str = SIMULATED,
    others: Sequence[Execution] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, Latency | str]:
    """Measure the latency of a model relative to a full-precision network in its faster memory layout.

    Runs are interleaved so that machine noise affects all networks equally; ratios are taken within each round. How
    many rounds end in time follows from the batch size before, at first from a single image.

    Args:
        model: The model; measured as :func:`~empir_plugin.evaluation.prepare.prepare` prepares it for an evaluation,
            with weights quantized once.
        baseline: The full-precision network.
        image_shape: ``(C, H, W)``.
        settings: Settings of the measurement.
        backend: How the model is executed, for the report.
        others: The model on other backends, measured in the same rounds.
        clock: Returns the time in seconds.

    Returns:
        The latency at each batch size, the smallest first; why it was left out for one that would take too long.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        >>> measure_latency(net, net, (1, 4, 4), LatencySettings(batch_sizes=(2,), repeats=3))[2].repeats
        3
    """
    settings = settings or LatencySettings()
    device, sizes = settings.device, sorted(set(settings.batch_sizes))
    found: dict[int, Latency | str] = {}
    with _set_threads(settings.threads), exact_float32(), torch.no_grad():
        few = _images(2, image_shape, device)
        networks = {backend: prepare_for_images(model, device, few, differentiable=False).model}
        supported = torch.contiguous_format, prepare_for_images(baseline, device, few, differentiable=False)[1]
        layouts = {name: layout for name, layout in _LAYOUTS.items() if layout in supported}
        for name, layout in layouts.items():
            networks[name] = prepare(baseline, device).to(memory_format=layout)  # type: ignore[call-overload]
        networks |= {other.backend: other.network for other in others if other.network is not None}

        def run(size: int, repeats: int, warm_up: int) -> dict[str, list[float]]:
            images = _images(size, image_shape, device)
            runs = {name: partial(_forward, network, images) for name, network in networks.items()}
            return take_turns(runs, repeats, clock, warm_up=warm_up)

        per_image = _round_of(run(1, 1, 1))
        for size in sizes:
            expected = per_image * size
            warm_up, repeats = _rounds_in_time(settings.repeats, expected, settings.seconds)
            if not repeats:
                found[size] = f"a round of it would take about {expected:.0f} s of the {settings.seconds:g} s it may"
                continue
            times = run(size, repeats, warm_up)
            per_image = _round_of(times) / size
            found[size] = _latency(times, layouts, backend, others, replace(settings, batch_sizes=(size,)))
    return found


def _images(number: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.rand(number, *shape, generator=torch.Generator().manual_seed(0)).to(device)


def _round_of(times: Mapping[str, Sequence[float]]) -> float:
    """Seconds of one round."""
    return sum(Spread.of(seconds).median for seconds in times.values())


def _rounds_in_time(repeats: int, seconds: float, limit: float) -> tuple[int, int]:
    """Rounds of warm-up, two or fewer, and timed ones that end within a limit if one takes some seconds."""
    wanted = repeats + _WARM_UP
    rounds = int(min(wanted, limit / seconds)) if seconds else wanted
    warm_up = max(min(_WARM_UP, rounds // 2), rounds - repeats)
    return warm_up, rounds - warm_up


_WARM_UP = 2


def _latency(
    times: Mapping[str, Sequence[float]],
    layouts: Iterable[str],
    backend: str,
    others: Sequence[Execution],
    settings: LatencySettings,
) -> Latency:
    """The latency at one batch size, from the seconds of every network in every round."""
    faster = min(layouts, key=lambda name: Spread.of(times[name]).median)
    rows = {name: _backend_time(name, seconds, times[faster]) for name, seconds in times.items()}
    unavailable = (BackendTime("model", other.backend, None, None, other.unavailable) for other in others)
    found = processor(settings.device)
    return Latency(
        f"{settings.device.type}: {found.name}",
        backend,
        torch.get_num_threads(),
        settings.batch_sizes[0],
        len(times[backend]),
        "sequential",
        faster,
        _milliseconds(times[backend]),
        _milliseconds(times[faster]),
        _ratio(times[backend], times[faster]),
        (*rows.values(), *(row for row in unavailable if row.backend not in rows)),
        found,
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
