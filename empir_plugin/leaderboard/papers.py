"""Facts about models that no experiment measures: paper, architecture, reported accuracies, and name on a board."""

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
from empir_plugin._files.names import check_name
from empir_plugin._files.tables import build, check_keys, tables_of
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.leaderboard.entry import escape_html

_STEM = re.compile(r"[A-Z][A-Za-z-]*(?:19|20)[0-9]{2}[A-Za-z0-9-]+(?:_[A-Za-z0-9-]+)*")
_PERCENT = re.compile(r"\d+(?:\.\d+)?")
_PAPER = "title", "link", "authors", "venue"


@dataclass(frozen=True)
class Claim:
    """A robust accuracy that a paper reports.

    Args:
        threat: Of the paper's evaluation.
        accuracy: Robust accuracy under the paper's strongest attack, in percent, as text with two decimals.
        attack: Name of that attack.
    """

    threat: Threat
    accuracy: str
    attack: str

    def __post_init__(self) -> None:
        if not _PERCENT.fullmatch(self.accuracy):
            raise InputError(f'accuracy must be a percentage as text, such as "1.50", got {self.accuracy!r}')


@dataclass(frozen=True)
class Facts:
    """What an entry says about a model, except for measured numbers. Texts are plain, without markup.

    Args:
        model: Name for ``load_model``.
        stem: Of its file: first author, year, first word of the title, and a variant, as RobustBench names models.
        dataset: That the model classifies.
        title: Of the paper.
        link: Address of the paper.
        authors: Names, separated by commas.
        venue: Where and when the paper appeared.
        architecture: Of the model.
        number_forward_passes: Forward passes for one decision.
        additional_data: Whether it was trained on additional data.
        note: For the footnote, with its markup.
        claims: Robust accuracies that the paper reports for this model.

    Raises:
        InputError: If the model's name is not plain, or the stem is none that RobustBench would use.
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
        check_name("a model", self.model)
        require_stem(self.stem)

    def fields(self) -> dict[str, Any]:
        """The fields of an entry that follow from the facts."""
        texts = {"name": self.title, "authors": self.authors, "venue": self.venue, "architecture": self.architecture}
        return {
            "link": self.link,
            **{key: escape_html(text) for key, text in texts.items()},
            "additional_data": self.additional_data,
            "number_forward_passes": self.number_forward_passes,
            "dataset": self.dataset,
        }

    def reported_accuracy(self, threat: Threat) -> str:
        """Robust accuracy that the paper reports for exactly this threat, in percent; empty if it reports none."""
        return next((claim.accuracy for claim in self.claims if claim.threat == threat), "")


def require_stem(stem: str) -> None:
    """Check that the stem of a file follows RobustBench's convention.

    Raises:
        InputError: If it does not.

    Example:
        >>> require_stem("Sen2020EMPIR_w2a2")
    """
    if not isinstance(stem, str) or not _STEM.fullmatch(stem):
        form = "<Name><Year><FirstWordOfTitle>, and _<variant> if need be, as in Sen2020EMPIR_fp"
        raise InputError(f"the stem of an entry must be {form}, got {stem!r}: rename it")
    check_name("an entry", stem)


@cache
def all_facts() -> Mapping[str, Facts]:
    """The facts about this package's models, by model name.

    Example:
        >>> all_facts()["empir-cifar"].stem
        'Sen2020EMPIR'
    """
    folder = files("empir_plugin.leaderboard").joinpath("papers")
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.iterdir(), key=lambda file: file.name)]
    return MappingProxyType({facts.model: facts for text in texts for facts in _parse(text)})


def facts_of(model: str) -> Facts:
    """The facts about a model of this package.

    Raises:
        InputError: If this package knows no paper of the model.
    """
    if model not in all_facts():
        raise InputError(f"no paper is known for {model!r}, only for {', '.join(all_facts())}: write one for --paper")
    return all_facts()[model]


def model_of(stem: str, dataset: str) -> str:
    """Name for ``load_model`` of the model whose entries have this stem.

    Raises:
        InputError: If there is no such model.

    Example:
        >>> model_of("Sen2020EMPIR", "mnist"), model_of("Sen2020EMPIR_fp", "cifar10")
        ('empir-mnist', 'cifarconv-fp')
    """
    for facts in all_facts().values():
        if (facts.stem, facts.dataset) == (stem, dataset):
            return facts.model
    raise InputError(f"no model of this package has entries named {stem!r} on {dataset}: see `empir list`")


def read_facts(path: Path, model: str) -> Facts:
    """The facts about a model in a TOML file, which has the form of those in this package's ``leaderboard/papers``.

    Raises:
        InputError: If the file is missing, has another form, or does not contain the model.
    """
    try:
        by_model = {facts.model: facts for facts in _parse(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, RecursionError) as error:
        form = f"{', '.join(_PAPER)}, and a table [[models]] for each model"
        raise InputError(f"{path} describes no paper ({type(error).__name__}: {error}): it must have {form}") from error
    if model not in by_model:
        raise InputError(f"{path} contains {', '.join(by_model) or 'no model'}, not {model!r}: add it there")
    return by_model[model]


def _parse(text: str) -> Iterator[Facts]:
    table = tables.loads(text)
    check_keys(table, required={*_PAPER, "models"}, known=table, where="the file")
    paper = {key: table[key] for key in _PAPER}
    for row in tables_of(table["models"], "[[models]]"):
        yield build(Facts, {**paper, **row}, f"model {row.get('model', '?')!r}")
