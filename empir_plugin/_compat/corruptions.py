"""What RobustBench's evaluation under corruptions needs to run.

Its loaders for CIFAR lack the keyword that its evaluation passes, and the evaluation ends with a mean corruption error
relative to AlexNet, of which only a checkout has results, and only on ImageNet: without them it fails after the last of
75 measurements. Both are detected by feature; where AlexNet's results are present, RobustBench's own function runs.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

_BASELINE = "AlexNet"
_SEVERITIES = range(1, 6)


def repair_corruptions() -> None:
    """Let ``robustbench.benchmark(threat_model="corruptions")`` run: https://github.com/RobustBench/robustbench.

    RobustBench must have been imported; without it, and at a second call, nothing changes.
    """
    data, evaluation = (sys.modules.get(f"robustbench.{name}") for name in ("data", "eval"))
    # A release without these has nothing to repair.
    loaders: Any = getattr(data, "CORRUPTION_DATASET_LOADERS", {})
    measure: Any = getattr(evaluation, "corruptions_evaluation", None)
    for by_threat in loaders.values():
        for threat, loader in by_threat.items():
            if "prepr" not in signature(loader).parameters:
                by_threat[threat] = _with_preprocessing(loader)
    if measure is not None and _BASELINE in measure.__code__.co_consts:
        names: Any = vars(evaluation)
        names["corruptions_evaluation"] = _without_baseline(measure)
        names["update_json"] = _without_error(names["update_json"])


def _with_preprocessing(loader: Callable[..., Any]) -> Callable[..., Any]:
    """A loader that accepts the keyword ``prepr``; the arrays of CIFAR need no preprocessing."""

    def load(*args: Any, prepr: object = None, **kwargs: Any) -> Any:
        return loader(*args, **kwargs)

    return load


def _without_baseline(original: Callable[..., Any]) -> Callable[..., tuple[float, float]]:
    """The evaluation, with NaN for the error relative to AlexNet where AlexNet has no results."""
    parameters = signature(original)

    def evaluate(*args: Any, **kwargs: Any) -> tuple[float, float]:
        given = parameters.bind(*args, **kwargs).arguments
        path = _results_file(given["dataset"], given["threat_model"])
        if _has_baseline(path) or (given["to_disk"] and given["model_name"] is None):
            return original(*args, **kwargs)
        accuracies = _measure(given)
        if given["to_disk"]:
            _write_results(path, given["model_name"], accuracies)
        return sum(accuracies.values()) / len(accuracies), math.nan

    return evaluate


def _measure(given: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """The accuracy under every corruption and severity, printed as RobustBench prints it."""
    from robustbench import data
    from robustbench import eval as evaluation

    corruptions: Any = data.CORRUPTIONS_DICT
    loaders: Any = data.CORRUPTION_DATASET_LOADERS
    dataset, threat_model = given["dataset"], given["threat_model"]
    load = loaders[dataset][threat_model]
    accuracies: dict[tuple[str, int], float] = {}
    for name in evaluation.tqdm(corruptions[dataset][threat_model]):
        for severity in _SEVERITIES:
            options = {"shuffle": False, "corruptions": [name], "prepr": given["prepr"]}
            images, labels = load(given["n_examples"], severity, given["data_dir"], **options)
            accuracies[name, severity] = evaluation.clean_accuracy(
                given["model"], images, labels, batch_size=given["batch_size"], device=given["device"]
            )
            print(f"corruption={name}, severity={severity}: {accuracies[name, severity]:.2%} accuracy")  # noqa: T201
    return accuracies


def _results_file(dataset: Any, threat_model: Any) -> Path:
    suffix = "_3d" if threat_model.value.endswith("_3d") else ""
    return Path("model_info", dataset.value, "corruptions", f"unaggregated_results{suffix}.csv")


def _has_baseline(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", newline="") as file:
        return any(row[:1] == [_BASELINE] for row in csv.reader(file))


def _write_results(path: Path, model_name: str, accuracies: Mapping[tuple[str, int], float]) -> None:
    """Add a model's row to the file with one column for each corruption and severity, in place of an older one."""
    import pandas as pd

    results = pd.DataFrame(dict(accuracies), index=[model_name])
    if path.is_file():
        known = pd.read_csv(path, header=[0, 1], index_col=0)
        known.columns = pd.MultiIndex.from_tuples([(name, int(severity)) for name, severity in known.columns])
        results = pd.concat([known.drop(index=model_name, errors="ignore"), results])
    path.parent.mkdir(parents=True, exist_ok=True)
    results.to_csv(path)


def _without_error(original: Callable[..., None]) -> Callable[..., None]:
    """The writer of leaderboard files, which leaves an error that was not computed as it was, or null in a new file."""
    parameters = signature(original)

    def update(*args: Any, **kwargs: Any) -> None:
        given = parameters.bind(*args, **kwargs).arguments
        if not math.isnan(given.get("extra_metrics", {}).get("corruptions_mce", 0.0)):
            original(*args, **kwargs)
            return
        path = Path("model_info", given["dataset"].value, "corruptions", f"{given['model_name']}.json")
        key = given["threat_model"].value.replace("corruptions", "corruptions_mce")
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        original(*args, **kwargs)
        after = {**json.loads(path.read_text(encoding="utf-8")), key: before.get(key)}
        if before and key not in before:
            del after[key]
        path.write_text(json.dumps(after, indent=2), encoding="utf-8")

    return update
