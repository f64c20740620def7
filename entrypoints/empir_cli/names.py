"""The names of models, from data alone: cards, entry points, and the sources of timm and RobustBench.

Importing these packages takes seconds, most of them for torch. Nothing here does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from empir_cli.group import CommandError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

_PLAIN = re.compile(r"[\w.+-]+")
_SIZED = re.compile(r"[a-z_-]*resnet[_-]?\d+.*", re.IGNORECASE)
"""RobustBench's architectures of any size, such as WideResNet-28-10; which sizes there are, only its code knows."""


@dataclass(frozen=True)
class ModelRow:
    """A model in the list.

    Args:
        name: Its id.
        datasets: The data sets it is for.
        precision: Of its members.
        clean_accuracy: In percent, on the full test set; None if not measured.
        parameters: Their number; None if unknown.
        bytes: Size of its weights; None without weights.
        package: The distribution it is from.
    """

    name: str
    datasets: tuple[str, ...]
    precision: str
    clean_accuracy: float | None = None
    parameters: int | None = None
    bytes: int | None = None
    package: str = "empir-plugin"

    def cells(self) -> tuple[str, ...]:
        """Name, data set, precision, clean accuracy (%), parameters (millions) and weights (kB), as text."""
        clean = "" if self.clean_accuracy is None else f"{self.clean_accuracy:.2f}"
        parameters = "" if self.parameters is None else f"{self.parameters / 1e6:,.3f}"
        size = "none" if self.bytes is None else f"{self.bytes / 1000:,.0f}"
        if self.package != "empir-plugin":
            size = f"of {self.package}"
        return self.name, ", ".join(self.datasets), self.precision, clean, parameters, size


@cache
def _folder(package: str) -> Path:
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else Path("nowhere")


def model_rows() -> Iterator[ModelRow]:
    """The models of this package in the order of their cards."""
    for path in sorted(_folder("empir_plugin").glob("zoo/cards/*.toml")):
        family = tomllib.loads(path.read_text("utf-8"))
        networks = {row["name"]: row for row in family["networks"]}
        ensembles = [(row, [networks[name] for name in row["networks"]]) for row in family.get("ensembles", [])]
        for row, members in [*ensembles, *((row, [row]) for row in networks.values())]:
            yield _row({**family, **row}, members)


def _row(about: dict[str, Any], members: list[dict[str, Any]]) -> ModelRow:
    files = [_folder("empir_plugin") / "zoo" / "weights" / each["weights"] for each in members if each.get("weights")]
    return ModelRow(
        about["name"],
        (about["dataset"],),
        " + ".join(each["precision"] for each in members),
        about.get("clean_accuracy"),
        sum(each["parameters"] for each in members),
        sum(path.stat().st_size for path in files) if len(files) == len(members) else None,
    )


def predefined_rows() -> Iterator[ModelRow]:
    """The predefined quantized networks, which have no weights."""
    table = _families()
    for family in table["families"]:
        datasets = tuple(family.get("datasets", ("cifar10", "cifar100", "imagenet")))
        for precision in table["precisions"]:
            yield ModelRow(f"dorefa-{precision}-{family['architecture']}", datasets, precision)


def _families() -> dict[str, Any]:
    path = _folder("empir_plugin") / "zoo" / "quantized" / "families.toml"
    return tomllib.loads(path.read_text("utf-8"))


def predefined_summary() -> str:
    """One line in place of all of :func:`predefined_rows`."""
    table = _families()
    precisions, families = table["precisions"], len(table["families"])
    names = f"dorefa-<precision>-<architecture>, {', '.join(precisions)} x {families} architectures"
    total = len(precisions) * families
    return f"and {total} networks without weights, for --checkpoint ({names}): empir list --all"


def other_rows() -> Iterator[ModelRow]:
    """The models of other packages, whose own code says what they are for: if there is one, torch is imported."""
    points = _other_points()
    if not points:
        return
    from empir_plugin.zoo.registry import builders

    for point in points:
        if (builder := builders().get(point.name)) is not None:
            yield ModelRow(point.name, (builder.dataset,), "?", package=_distribution(point))


def _other_points() -> list[EntryPoint]:
    return [point for point in _points() if _distribution(point) != "empir-plugin"]


@cache
def _points() -> list[EntryPoint]:
    return list(entry_points(group="robustbench.models"))


def _distribution(point: EntryPoint) -> str:
    if point.module.partition(".")[0] == "empir_plugin":
        return "empir-plugin"  # reading the name of a distribution parses its metadata
    return point.dist.name if point.dist is not None else "an unknown distribution"


def model_names() -> list[str]:
    """Every name that a model of this package or of another one has."""
    return [*(row.name for row in (*model_rows(), *predefined_rows())), *(point.name for point in _other_points())]


def complete_models(context: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    """The names of models that begin with a text, for the shell."""
    return [name for name in model_names() if name.startswith(text)]


def complete_attacks(context: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    """The names of attacks that begin with a text, for the shell."""
    return sorted(point.name for point in entry_points(group="robustbench.attacks") if point.name.startswith(text))


PROTOCOL_NAMES = ("default", "standard", "adaptive", "paper", "released")
"""The names of the protocols: the keys of :data:`empir_plugin.evaluation.protocols.PROTOCOLS`."""


def complete_protocols(context: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    """The names of protocols that begin with a text, for the shell."""
    return [name for name in PROTOCOL_NAMES if name.startswith(text)]


def check_name(text: str) -> None:
    """Refuse a name that nobody knows before torch is imported; paths and callables are not looked at.

    With models of other packages, whose code may register more names, nothing is refused.

    Raises:
        CommandError: If no model and no architecture has that name.

    Example:
        >>> check_name("EMPIR_cifar")
        >>> check_name("no")
        Traceback (most recent call last):
        empir_cli.group.CommandError: no model 'no' here, in RobustBench or in timm: empir list shows the ones here
    """
    if not _PLAIN.fullmatch(text) or _SIZED.fullmatch(text) or Path(text).suffix in (".json", ".safetensors"):
        return
    names, in_timm, in_robustbench = model_names(), _timm_names(), _robustbench_names()
    unsure = bool(_other_points()) or not in_timm or not in_robustbench
    known = {_normal(name) for name in names} | in_robustbench | in_timm | _OWN_ARCHITECTURES
    if unsure or {text, _normal(text), text.partition(".")[0]} & known or Path(text).exists():
        return
    candidates = {name.lower(): name for name in (*in_timm, *in_robustbench, *names)}
    close = get_close_matches(text.lower(), candidates, n=1)
    advice = f"did you mean {candidates[close[0]]!r}?" if close else "empir list shows the ones here"
    raise CommandError(f"no model {text!r} here, in RobustBench or in timm: {advice}")


_OWN_ARCHITECTURES = frozenset({"mnistconv", "mnistsmall", "cifarconv", "cifarconv-table3", "alexnet"})
"""The architectures of this package that images are classified with."""


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


@cache
def _timm_names() -> frozenset[str]:
    return _found("timm", "models/*.py", re.compile(r"^@register_model\s+def (\w+)", re.MULTILINE))


@cache
def _robustbench_names() -> frozenset[str]:
    keys = re.compile(r"""^\s+\(?['"]([\w.+-]+)['"](?::|,\s*(?:OrderedDict|\{|$))""", re.MULTILINE)
    architectures = re.compile(r"^@register_model\s+def (\w+)", re.MULTILINE)
    modules = _found("robustbench", "model_zoo/architectures/*.py", architectures)
    return _found("robustbench", "model_zoo/*.py", keys) | modules


def _found(package: str, pattern: str, names: re.Pattern[str]) -> frozenset[str]:
    paths = _folder(package).glob(pattern)
    return frozenset(name for path in paths for name in names.findall(path.read_text("utf-8", errors="replace")))
