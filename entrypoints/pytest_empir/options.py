"""The options ``--rb-...`` and their settings in the ini file."""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class _Option:
    """One option; ``setting`` is its name in :class:`empir_plugin.suite.case.Case` and in the marker."""

    setting: str
    help: str
    metavar: str
    type: Any = str
    many: bool = False

    @property
    def flag(self) -> str:
        return f"--rb-{self.setting.replace('_', '-')}"

    def add_to(self, group: pytest.OptionGroup) -> None:
        action = "append" if self.many else "store"
        group.addoption(self.flag, action=action, type=self.type, metavar=self.metavar, default=None, help=self.help)


def _yes_no(text: str) -> bool:
    if text.lower() not in ("yes", "no"):
        raise ArgumentTypeError(f"must be yes or no, got {text!r}")
    return text.lower() == "yes"


_OPTIONS = (
    _Option("model", "Evaluate this model, by its name (repeatable).", "NAME", many=True),
    _Option("dataset", "Data set. [the model's own]", "NAME"),
    _Option("threat", "Norm, Linf or L2. [Linf]", "NORM"),
    _Option("eps", "Radius, such as 8/255. [the model card's]", "EPS"),
    _Option("attack", "Run this attack, by its name (repeatable). [all of the protocol]", "NAME", many=True),
    _Option("protocol", "Run this protocol's attacks: default, standard, adaptive, paper or released.", "NAME"),
    _Option("n_examples", "Number of test images, counted from the first. [100; all of --rb-data]", "N", int),
    _Option("data", "Folder of the full data set, laid out as torchvision does.", "DIR", Path),
    _Option("checkpoint", "Weights to use instead of the model's own (safetensors, or PyTorch's .pt).", "FILE", Path),
    _Option(
        "ema", "Load the moving average in --rb-checkpoint (yes), or the weights beside it (no).", "YES|NO", _yes_no
    ),
    _Option("batch_size", "Images per forward pass. [250]", "N", int),
    _Option("device", "cpu, cuda or cuda:N. [cpu]", "DEVICE"),
    _Option("seed", "Seed of everything random in the attacks. [0]", "N", int),
    _Option("min_robust", "Fail below this robust accuracy (worst case per image), in percent.", "PERCENT", float),
    _Option("min_clean", "Fail below this clean accuracy, in percent.", "PERCENT", float),
)
_OUTPUTS = (
    _Option("json", "Write the report of the session to this file.", "FILE", Path),
    _Option("state", "Folder for finished shards; an interrupted run resumes there.", "DIR", Path),
    _Option("adv_out", "Folder for adversarial images (safetensors); needs --rb-state.", "DIR", Path),
)
_BASELINE = (
    _Option("compare", "Compare with this baseline, of --rb-save, --rb-json or empir evaluate.", "FILE", Path),
    _Option(
        "compare_fail",
        "With --rb-compare: fail if clean or robust accuracy fell by more than this.",
        "POINTS",
        float,
    ),
    _Option("save", "Write the report of the session to this file if every test passed: a baseline.", "FILE", Path),
)
_FILES = ("json", "save")
"""Options that name a file to write."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options ``--rb-...`` and the ini settings ``rb_...``."""
    group = parser.getgroup("robustness", "robustness under attack (empir-plugin)")
    for option in (*_OPTIONS, *_OUTPUTS, *_BASELINE):
        option.add_to(group)
    parser.addini("rb_models", "Models to evaluate if --rb-model is not given.", type="linelist")
    parser.addini("rb_attacks", "Attacks to run if --rb-attack is not given.", type="linelist")
    parser.addini(
        "rb_data", "Folder of the data sets, relative to the ini file, if --rb-data is not given.", default=""
    )


def option_settings(config: pytest.Config) -> dict[str, Any]:
    """The settings on the command line and in the ini file; those that neither gives are left out."""
    ini = {"model": config.getini("rb_models"), "attack": _ini_attacks(config), "data": _ini_data(config)}
    given = {option.setting: config.getoption(f"rb_{option.setting}") for option in _OPTIONS}
    chosen = {key: ini.get(key) if value is None else value for key, value in given.items()}
    return {key: value for key, value in chosen.items() if value not in (None, [])}


def _ini_attacks(config: pytest.Config) -> list[str]:
    """The ini file's attacks; none if the command line names a protocol."""
    return [] if config.getoption("rb_protocol") else config.getini("rb_attacks")


def _ini_data(config: pytest.Config) -> Path | None:
    text = config.getini("rb_data")
    folder = config.inipath.parent if config.inipath else config.rootpath
    return folder / text if text else None


def option_path(config: pytest.Config, name: str) -> Path | None:
    """The path in an option, relative to the folder pytest was started in; None if it is not given."""
    path = config.getoption(f"rb_{name}")
    return None if path is None else config.invocation_params.dir / path


def baseline_arguments(config: pytest.Config) -> list[str]:
    """The options that compare with a baseline, as command-line arguments."""
    given = {name: config.getoption(f"rb_{name}") for name in ("compare", "compare_fail")}
    flags = {option.setting: option.flag for option in _BASELINE}
    return [text for name, value in given.items() if value is not None for text in (flags[name], _as_text(value))]


def as_arguments(settings: dict[str, Any]) -> list[str]:
    """Settings as command-line arguments."""
    arguments: list[str] = []
    for option in _OPTIONS:
        value = settings.get(option.setting)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if each is not None:
                arguments += [option.flag, _as_text(each)]
    return arguments


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_outputs(config: pytest.Config) -> None:
    """Check that every output path can be written to.

    Raises:
        pytest.UsageError: If one cannot, or images are requested without a store.
    """
    paths = {name: option_path(config, name) for name in (*_FILES, "state", "adv_out")}
    given = {name: path for name, path in paths.items() if path is not None}
    if given:
        _check_paths(given)
    if "adv_out" in given and "state" not in given:
        raise pytest.UsageError("--rb-adv-out collects images from the store: pass --rb-state, too")
    if config.getoption("rb_compare_fail") is not None and config.getoption("rb_compare") is None:
        raise pytest.UsageError("--rb-compare-fail needs a baseline: pass --rb-compare FILE, too")


def _check_paths(given: dict[str, Path]) -> None:
    from empir_plugin._files.atomic import check_output_file, check_output_folder
    from empir_plugin.errors import InputError

    try:
        for name, path in given.items():
            check = check_output_file if name in _FILES else check_output_folder
            check(f"--rb-{name.replace('_', '-')}", path)
    except InputError as error:
        raise pytest.UsageError(str(error)) from error
