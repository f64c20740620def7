"""What an entry says of a model that no experiment tells: paper, architecture, claims; and how boards call it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from empir_plugin._files import tables
from empir_plugin._files.tables import build, check_keys, tables_of
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.leaderboard.entry import escaped

_STEM = re.compile(r"[A-Z][A-Za-z-]*(?:19|20)\d\d[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*")
_PERCENT = re.compile(r"\d+(?:\.\d+)?")
_PAPER = "title", "link", "authors", "venue"


@dataclass(frozen=True)
class Claim:
    """A robust accuracy that a paper publishes.

    Args:
        threat: Under which it was measured.
        accuracy: Percent left by the strongest attack the paper ran under that threat, as text with two decimals.
        attack: Which that is.
    """

    threat: Threat
    accuracy: str
    attack: str

    def __post_init__(self) -> None:
        if not _PERCENT.fullmatch(self.accuracy):
            raise InputError(f'accuracy must be a percentage as text, such as "1.50", got {self.accuracy!r}')


@dataclass(frozen=True)
class Facts:
    """One model on a leaderboard, but for the numbers. Texts are plain.

    Args:
        model: Name for ``load_model``.
        stem: Of its file: first author, year, first word of the title, and a variant, as RobustBench names models.
        dataset: What it classifies.
        title: Of the paper.
        link: Address of the paper.
        authors: Names, separated by commas.
        venue: Where and when it appeared.
        architecture: Of the model.
        number_forward_passes: Networks that run for one decision.
        additional_data: Whether it was trained on more than the data set.
        note: For the footnote, in its markup.
        claims: Of the paper about this model.

    Raises:
        InputError: If the stem is none that RobustBench would use.
    """

    model: str
    stem: str
    dataset: str
    title: str
    link: str
    authors: str
    venue: str
    architecture: str
    number_forward_passes: int = 1
    additional_data: bool = False
    note: str = ""
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        require_stem(self.stem)

    def fields(self) -> dict[str, Any]:
        """Their part of an entry's table."""
        texts = {"name": self.title, "authors": self.authors, "venue": self.venue, "architecture": self.architecture}
        return {
            "link": self.link,
            **{key: escaped(text) for key, text in texts.items()},
            "additional_data": self.additional_data,
            "number_forward_passes": self.number_forward_passes,
            "dataset": self.dataset,
        }

    def reported(self, threat: Threat) -> str:
        """Percent the paper claims under exactly this threat; empty if it claims none."""
        return next((claim.accuracy for claim in self.claims if claim.threat == threat), "")


def require_stem(stem: str) -> None:
    """Check that a file's stem is one RobustBench would use.

    Raises:
        InputError: If it is not.

    Example:
        >>> require_stem("Sen2020EMPIR_w2a2")
    """
    if not _STEM.fullmatch(stem):
        form = "<Name><Year><FirstWordOfTitle>, and _<variant> if need be, as in Sen2020EMPIR_fp"
        raise InputError(f"the stem of an entry must be {form}, got {stem!r}: rename it")


@cache
def all_facts() -> Mapping[str, Facts]:
    """What this package knows of its models, by model name.

    Example:
        >>> all_facts()["empir-cifar"].stem
        'Sen2020EMPIR'
    """
    folder = files("empir_plugin.leaderboard").joinpath("papers")
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.iterdir(), key=lambda file: file.name)]
    return MappingProxyType({facts.model: facts for text in texts for facts in _parse(text)})


def facts_of(model: str) -> Facts:
    """What this package knows of a model.

    Raises:
        InputError: If that is nothing.
    """
    if model not in all_facts():
        raise InputError(f"no paper is known for {model!r}, only for {', '.join(all_facts())}: write one for --paper")
    return all_facts()[model]


def model_of(stem: str, dataset: str) -> str:
    """Name for ``load_model`` of the model whose entries have that stem.

    Raises:
        InputError: If there is none.

    Example:
        >>> model_of("Sen2020EMPIR", "mnist"), model_of("Sen2020EMPIR_fp", "cifar10")
        ('empir-mnist', 'cifarconv-fp')
    """
    for facts in all_facts().values():
        if (facts.stem, facts.dataset) == (stem, dataset):
            return facts.model
    raise InputError(f"no model of this package has entries named {stem!r} on {dataset}: see `empir list`")


def read_facts(path: Path, model: str) -> Facts:
    """What a TOML file of the form of this package's ``leaderboard/papers`` says of a model.

    Raises:
        InputError: If the file is missing, of another form, or does not speak of the model.
    """
    try:
        found = {facts.model: facts for facts in _parse(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError) as error:
        form = f"{', '.join(_PAPER)}, and a table [[models]] for each model"
        raise InputError(f"{path} describes no paper ({type(error).__name__}: {error}): it must have {form}") from error
    if model not in found:
        raise InputError(f"{path} speaks of {', '.join(found) or 'no model'}, not of {model!r}: add it there")
    return found[model]


def _parse(text: str) -> Iterator[Facts]:
    table = tables.loads(text)
    check_keys(table, required={*_PAPER, "models"}, known=table, where="the file")
    paper = {key: table[key] for key in _PAPER}
    for row in tables_of(table["models"], "[[models]]"):
        yield build(Facts, {**paper, **row}, f"model {row.get('model', '?')!r}")
