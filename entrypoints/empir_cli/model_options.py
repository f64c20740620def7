"""The options that say which model a command is about, the same ones for every command that takes a model."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from empir_cli.group import CommandError
from empir_cli.names import check_name, complete_models
from empir_cli.options import CHECKPOINT, EMA

if TYPE_CHECKING:
    from empir_plugin.zoo.find import ModelSource

_F = TypeVar("_F", bound=Callable[..., Any])

RULE_NAMES = ("max_vote", "mean_probability", "mean_logits")
"""How the members of an ensemble may decide: the keys of :data:`empir_plugin.zoo.card.RULES`."""

DATASET = click.option("--dataset", help="mnist, cifar10, cifar100 or imagenet.  [the model's own, or cifar10]")
MODEL_ARGS = click.option(
    "--model-args", multiple=True, metavar="K=V", help="Keyword of an architecture or callable (repeatable)."
)
MEAN = click.option("--mean", help="Mean of each channel in [0, 1], as 0.49,0.48,0.45; for a network that needs it.")
STD = click.option("--std", help="Standard deviation of each channel, beside --mean.")
RULE = click.option("--rule", type=click.Choice(RULE_NAMES), help="How the members of an ensemble decide.  [max_vote]")
MEMBER = click.option(
    "--member",
    "members",
    multiple=True,
    metavar="MODEL",
    shell_complete=complete_models,
    help="Instead of MODEL: build an ensemble of these (repeatable).",
)
MODEL = click.argument("model", required=False, shell_complete=complete_models)


@dataclass(frozen=True)
class ModelArguments:
    """What the command line says about the model.

    Args:
        model: The argument MODEL; None if there is none.
        members: Members of an ensemble, instead.
        options: Keywords of :class:`~empir_plugin.zoo.spec.ModelOptions`.
    """

    model: str | None
    members: tuple[str, ...]
    options: dict[str, Any]

    def find(self) -> ModelSource:
        """The model, before it is loaded.

        Raises:
            CommandError: If there is no model, or one and members.
            InputError: If the options contradict each other.
        """
        if bool(self.members) == (self.model is not None):
            got = f"{self.model} and --member" if self.members else "neither"
            raise CommandError(f"pass MODEL, or --member for each member of an ensemble, got {got}")
        from empir_plugin.zoo.find import find_ensemble, find_model
        from empir_plugin.zoo.spec import ModelOptions

        options = ModelOptions(**self.options)
        if self.model is None:
            return find_ensemble(self.members, options.rule, options)
        return find_model(self.model, options)


def model_arguments(command: _F) -> _F:
    """Add the argument MODEL and the options about it; the command gets them as ``source``, a :class:`ModelArguments`.

    Modules of the current folder can be imported, as ``package.module:callable`` names them.
    """

    @functools.wraps(command)
    def run(
        *,
        model: str | None,
        members: tuple[str, ...],
        rule: str | None,
        checkpoint: Path | None,
        ema: bool | None,
        dataset: str | None,
        model_args: tuple[str, ...],
        mean: str | None,
        std: str | None,
        **others: Any,
    ) -> Any:
        for text in (*members, *([model] if model else [])):
            check_name(text)
        options = {
            "checkpoint": checkpoint,
            "ema": ema,
            "dataset": dataset or "",
            "settings": parse_settings(model_args),
            "mean": parse_channels("--mean", mean),
            "std": parse_channels("--std", std),
            "rule": rule or "",
        }
        import_from_here()
        return command(source=ModelArguments(model, members, options), **others)

    for option in (MEMBER, RULE, STD, MEAN, MODEL_ARGS, DATASET, EMA, CHECKPOINT, MODEL):
        run = option(run)
    return run  # type: ignore[return-value]


def import_from_here() -> None:
    """Let modules of the current folder be imported, as ``python -m`` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def parse_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """Read ``K=V`` of ``--model-args``; a value is a JSON value if it can be read as one, else text.

    Raises:
        CommandError: If a text has no ``=``, or a key occurs twice.

    Example:
        >>> parse_settings(("depth=28", "pretrained=true", "act=silu"))
        {'depth': 28, 'pretrained': True, 'act': 'silu'}
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise CommandError(f"--model-args is written KEY=VALUE, such as depth=28, got {text!r}")
        if key in settings:
            raise CommandError(f"--model-args gives {key} twice: leave one out")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings


def parse_channels(option: str, text: str | None) -> tuple[float, ...] | None:
    """Read the numbers of ``--mean`` or ``--std``.

    Raises:
        CommandError: If they are not numbers.

    Example:
        >>> parse_channels("--mean", "0.5,0.25,1/8"), parse_channels("--std", None)
        ((0.5, 0.25, 0.125), None)
    """
    if text is None:
        return None
    from fractions import Fraction

    try:
        return tuple(float(Fraction(number.strip())) for number in text.split(","))
    except (ValueError, ZeroDivisionError) as error:
        raise CommandError(f"{option} is written as numbers with commas, 0.49,0.48,0.45, got {text!r}") from error
