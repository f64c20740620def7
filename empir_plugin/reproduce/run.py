"""The targets by name, and :func:`reproduce`: measure what is missing, draw the figures, and write the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from empir_plugin._files.atomic import write_atomically
from empir_plugin.errors import DataError, InputError
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.reproduce.context import Context, ImageSource
from empir_plugin.reproduce.document import markdown
from empir_plugin.reproduce.figures import require_matplotlib
from empir_plugin.reproduce.parts import missing_input
from empir_plugin.reproduce.report import build_report
from empir_plugin.reproduce.results import Target
from empir_plugin.reproduce.targets.discretization import DISCRETIZATION
from empir_plugin.reproduce.targets.fig3b import FIG3B
from empir_plugin.reproduce.targets.fig4 import FIG4
from empir_plugin.reproduce.targets.fig5 import FIG5
from empir_plugin.reproduce.targets.precisions import FIG1, FIG3A
from empir_plugin.reproduce.targets.table2 import TABLE2
from empir_plugin.reproduce.targets.weight_quantized import WEIGHT_QUANTIZED
from empir_plugin.reproduce.workspace import Workspace, check_publishable
from empir_plugin.training.recipe import find_recipe

TARGETS: Mapping[str, Target] = MappingProxyType(
    {target.name: target for target in (TABLE2, FIG1, FIG3A, FIG3B, FIG4, FIG5, DISCRETIZATION, WEIGHT_QUANTIZED)}
)
"""Targets in the order of the report."""

ALL = "all"


def parse_targets(text: str) -> tuple[Target, ...]:
    """The target of a name, or all targets for ``all``.

    Raises:
        InputError: If no target has that name.

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
class TargetProgress:
    """Progress on one target.

    Args:
        target: Name of the target.
        done: Number of finished parts.
        parts: Number of all parts.
        note: The current step, in a few words.
    """

    target: str
    done: int
    parts: int
    note: str


OnProgress = Callable[[TargetProgress], None]

_SHARD_SIZE = 500
"""Of the committed records: AutoAttack's random numbers belong to a shard."""


def _with_shard_size(settings: Settings) -> Settings:
    return replace(settings, shard_size=settings.shard_size or _SHARD_SIZE)


@dataclass(frozen=True)
class Reproduction:
    """The result of a reproduction.

    Args:
        report: Path of the report.
        skipped: Record and reason of each part that could not run.
    """

    report: Path
    skipped: tuple[tuple[str, str], ...]


def reproduce(
    targets: Sequence[Target],
    workspace: Workspace,
    images: ImageSource,
    *,
    settings: Settings | None = None,
    publish: Path | None = None,
    known: Sequence[Target] | None = None,
    on_progress: OnProgress | None = None,
) -> Reproduction:
    """Measure the parts of some targets, and write a report on all targets that are complete.

    An interrupted run resumes where it stopped, at a shard of an evaluation or an epoch of a training. Finished work is
    reused as long as network, images, settings and code are the same.

    Args:
        targets: Targets to measure.
        workspace: Output folder.
        images: Source of the images.
        settings: Settings of all evaluations.
        publish: Path to which the report is copied too, with its records and figures beside it.
        known: Targets in the report; None for all targets of this package.
        on_progress: Called before and during each part.

    Raises:
        InputError: If the folder holds other files, or there are fewer images than asked for.
        DataError: If images are missing.
        EvaluationError: If an evaluation fails.
        CompatibilityError: If matplotlib is not installed.
    """
    require_matplotlib()
    workspace.check()
    if publish is not None:
        check_publishable(publish)
    context = Context(workspace, images, _with_shard_size(settings or Settings()))
    _check_images(targets, context)
    with workspace.lock():
        skipped = [skip for target in targets for skip in _measure(target, context, on_progress)]
        write_report(workspace, tuple(known or TARGETS.values()))
        if publish is not None:
            workspace.publish(publish)
    return Reproduction(publish or workspace.report, tuple(skipped))


def _check_images(targets: Sequence[Target], context: Context) -> None:
    """Raise for missing images before anything is computed."""
    for dataset in dict.fromkeys(dataset for target in targets for dataset in target.datasets):
        context.test(dataset)
    for training in dict.fromkeys(training for target in targets for training in target.trainings):
        if not context.trainer.is_trained(training):
            _check_training_images(training.recipe, context)


def _check_training_images(name: str, context: Context) -> None:
    recipe = find_recipe(name)
    try:
        context.images.train(recipe.dataset)
    except (DataError, InputError) as error:
        raise DataError(f"recipe {recipe.name} has to be trained first, and {error}") from error


def _measure(target: Target, context: Context, on_progress: OnProgress | None) -> list[tuple[str, str]]:
    """Run all parts of a target and return those that could not run, each with the reason."""
    parts, skipped = (*target.parts, *target.extras), []
    for index, part in enumerate(parts):
        reason = missing_input(part, context)
        if reason:
            skipped.append((part.slug, reason))
        elif on_progress is None:
            part.run(context)
        else:
            report = partial(_report_progress, on_progress, TargetProgress(target.name, index, len(parts), part.slug))
            report("")
            part.run(replace(context, on_progress=report))
    if on_progress is not None:
        on_progress(TargetProgress(target.name, len(parts), len(parts), "done"))
    return skipped


def _report_progress(on_progress: OnProgress, progress: TargetProgress, note: str) -> None:
    """Report progress within a part, whose name comes before the note."""
    on_progress(replace(progress, note=f"{progress.note}: {note}") if note else progress)


def write_report(workspace: Workspace, targets: Sequence[Target]) -> None:
    """Write the report on some targets, and its figures, from the records in the folder; nothing is measured.

    Raises:
        EvaluationError: If a record is damaged.
    """
    figures = workspace.figures.relative_to(workspace.root).as_posix()
    write_atomically(workspace.report, markdown(build_report(workspace, targets), figures).encode())
