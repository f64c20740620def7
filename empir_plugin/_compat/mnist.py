"""MNIST as one of RobustBench's data sets, for those who ask."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from empir_plugin._compat.hooks import on_robustbench_import

if TYPE_CHECKING:
    from torch import Tensor

CleanLoader = Callable[[int | None, str, Callable[..., Any]], "tuple[Tensor, Tensor]"]


def enable_mnist(loader: CleanLoader) -> None:
    """Make ``dataset="mnist"`` known to RobustBench's own functions: https://github.com/RobustBench/robustbench.

    RobustBench's enum of data sets gains a member that looks up, copies and pickles as the others do (a process that
    unpickles it must have called this, too), but is not iterated over: RobustBench has no MNIST leaderboard. Takes
    effect at once, or as soon as RobustBench is imported. Called again, it replaces the loader.

    Args:
        loader: Takes the number of images (None for all), the data directory and RobustBench's preprocessing; returns
            images ``(N, 1, 28, 28)`` in [0, 1] and labels ``(N,)``.

    Example:
        >>> def loader(n_examples, data_dir, preprocessing):
        ...     return load_mnist_test(data_dir, n_examples)
        >>> enable_mnist(loader)  # doctest: +SKIP
        >>> robustbench.benchmark(model, dataset="mnist", eps=0.3)  # doctest: +SKIP
    """
    on_robustbench_import(partial(_add_mnist, loader))


def _add_mnist(loader: CleanLoader) -> None:
    from robustbench import data, utils
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    mnist = _member(BenchmarkDataset, "mnist")
    utils.DATASET_CLASSES[mnist] = 10
    data._clean_dataset_loaders[mnist] = loader
    models: Any = model_dicts.setdefault(mnist, OrderedDict())
    for threat in ThreatModel:
        models.setdefault(threat, OrderedDict())


def _member(enum: Any, value: str) -> Any:
    """The enum's member of this value, made where it has none."""
    try:
        return enum(value)
    except ValueError:
        member: Any = object.__new__(enum)
    member._name_ = member._value_ = value
    missing = enum._missing_
    enum._missing_ = classmethod(lambda _, sought: member if sought == value else missing(sought))
    # Some releases of Python copy and pickle members by name, and the enum's own __setattr__ may refuse names.
    type.__setattr__(enum, value, member)
    return member
