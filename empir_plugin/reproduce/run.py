"""Reproduce: measure what is missing, draw, and write the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from empir_plugin._files.atomic import write_atomically
from empir_plugin.errors import DataError, InputError
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.reproduce.context import Desk, Source
from empir_plugin.reproduce.document import Document
from empir_plugin.reproduce.figures import require_matplotlib
from empir_plugin.reproduce.page import html
from empir_plugin.reproduce.parts import Part, lacking
from empir_plugin.reproduce.report import markdown, report
from empir_plugin.reproduce.results import Target
from empir_plugin.reproduce.targets.discretization import DISCRETIZATION
from empir_plugin.reproduce.targets.fig1 import FIG1
from empir_plugin.reproduce.targets.fig3a import FIG3A
from empir_plugin.reproduce.targets.fig3b import FIG3B
from empir_plugin.reproduce.targets.fig4 import FIG4
from empir_plugin.reproduce.targets.fig5 import FIG5
from empir_plugin.reproduce.targets.table2 import TABLE2
from empir_plugin.reproduce.targets.weight_quantized import WEIGHT_QUANTIZED
from empir_plugin.reproduce.workspace import Workspace, check_publishable
from empir_plugin.training.recipe import find_recipe

TARGETS: Mapping[str, Target] = MappingProxyType(
    {target.name: target for target in (TABLE2, FIG1, FIG3A, FIG3B, FIG4, FIG5, DISCRETIZATION, WEIGHT_QUANTIZED)}
)
"""Targets in the order of a report."""

ALL = "all"


def parse_targets(text: str) -> tuple[Target, ...]:
    """A target by its name, or all of them.

    Raises:
        InputError: If there is none of that name.

    Example:
        >>> [target.name for target in parse_targets("table2")]
        ['table2']
    """
    if text == ALL:
        return tuple(TARGETS.values())
    if text not in TARGETS:
        raise InputError(f"what to reproduce is one of {', '.join((*TARGETS, ALL))}, got {text!r}")
    return (TARGETS[text],)


@dataclass(frozen=True)
class Standing:
    """How far a reproduction is.

    Args:
        target: What is being reproduced.
        done: Parts finished.
        parts: Parts in all.
        note: What is being done, in a few words.
    """

    target: str
    done: int
    parts: int
    note: str


@dataclass(frozen=True)
class Outcome:
    """What a reproduction left.

    Args:
        report: The report in Markdown.
        page: The report as one file of HTML, if that was asked for.
        skipped: Parts that could not run, each with the reason.
    """

    report: Path
    page: Path | None
    skipped: tuple[tuple[str, str], ...]


def reproduce(
    targets: Sequence[Target],
    workspace: Workspace,
    images: Source,
    *,
    settings: Settings | None = None,
    page: bool = False,
    publish: Path | None = None,
    known: Sequence[Target] | None = None,
    on_progress: Callable[[Standing], None] | None = None,
) -> Outcome:
    """Measure the parts of some targets, and write a report of everything that is complete in the folder.

    It can be killed at any moment and goes on where it stopped: with the shard of an evaluation, or the epoch of a
    training. What is finished is used again as long as network, images, settings and code are the same.

    Args:
        targets: What to reproduce.
        workspace: Where everything goes.
        images: Where images come from.
        settings: How evaluations run.
        page: Whether to write the report as HTML too.
        publish: A second place for the report in Markdown, with records and figures beside it.
        known: The targets a report speaks of; all of this package by default.
        on_progress: Told what is being done.

    Raises:
        InputError: If the folder holds anything else, or more images are asked for than there are.
        DataError: If images are missing.
        EvaluationError: If an evaluation cannot go on.
        CompatibilityError: If matplotlib is not installed.
    """
    require_matplotlib()
    workspace.check()
    if publish is not None:
        check_publishable(publish)
    desk = Desk(workspace, images, settings or Settings())
    _check_images(targets, desk)
    with workspace.opened():
        skipped = [skip for target in targets for skip in _measure(target, desk, on_progress)]
        told = tuple(known or TARGETS.values())
        _write(report(workspace, told), workspace, page=page)
        if publish is not None:
            workspace.publish(publish)
    return Outcome(publish or workspace.report, workspace.page if page else None, tuple(skipped))


def _check_images(targets: Sequence[Target], desk: Desk) -> None:
    """Find out about missing images before anything is computed."""
    for dataset in dict.fromkeys(dataset for target in targets for dataset in target.datasets):
        desk.test(dataset)
    for training in dict.fromkeys(training for target in targets for training in target.trainings):
        if not desk.trainer.is_trained(training):
            _require_training(training.recipe, desk)


def _require_training(recipe: str, desk: Desk) -> None:
    plan = find_recipe(recipe)
    try:
        desk.images.train(plan.dataset)
    except (DataError, InputError) as error:
        raise DataError(f"recipe {plan.name} has to be trained first, and {error}") from error


def _measure(target: Target, desk: Desk, on_progress: Callable[[Standing], None] | None) -> list[tuple[str, str]]:
    parts, skipped = (*target.parts, *target.extras), []
    for index, part in enumerate(parts):
        reason = lacking(part, desk)
        if reason:
            skipped.append((part.slug, reason))
        else:
            part.run(_telling(desk, target, part, index, len(parts), on_progress))
    if on_progress is not None:
        on_progress(Standing(target.name, len(parts), len(parts), "done"))
    return skipped


def _telling(
    desk: Desk, target: Target, part: Part, index: int, count: int, on_progress: Callable[[Standing], None] | None
) -> Desk:
    """The desk, with a voice that says which part speaks."""
    if on_progress is None:
        return desk
    told = on_progress
    told(Standing(target.name, index, count, part.slug))
    return replace(desk, tell=lambda text: told(Standing(target.name, index, count, f"{part.slug}: {text}")))


def _write(document: Document, workspace: Workspace, *, page: bool) -> None:
    figures = workspace.figures.relative_to(workspace.root).as_posix()
    write_atomically(workspace.report, markdown(document, figures).encode())
    if page:
        write_atomically(workspace.page, html(document, workspace.figures).encode())
