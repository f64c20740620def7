"""``empir reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from empir_cli.console import Progress
from empir_cli.options import DATA_DIR, DEVICE, THREADS, set_threads

if TYPE_CHECKING:
    from empir_plugin.reproduce.run import TargetProgress


@click.command()
@click.argument("what")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs", "reproduce"), show_default=True,
    help="Folder for records, figures, trained networks and the report; an interrupted run resumes there.",
)  # fmt: skip
@click.option("--n-examples", type=int, default=1000, show_default=True, help="Number of test images, from the first.")
@DATA_DIR
@click.option(
    "--report", type=click.Path(path_type=Path),
    help="Also copy the report to this file, such as docs/reproduction.md, with records and figures beside it.",
)  # fmt: skip
@DEVICE
@THREADS
def reproduce(
    what: str,
    out: Path,
    n_examples: int | None,
    data_dir: Path | None,
    report: Path | None,
    device: str,
    threads: int | None,
) -> None:
    """Measure WHAT, a table or figure of a paper, and compare it with the published numbers.

    WHAT is table2, fig1, fig3a, fig3b, fig4, fig5, discretization, weight-quantized, or all. Networks that do not come
    with this package are trained on demand, on the images in --data-dir; without it, evaluation runs on the bundled
    sample of the test sets.
    """
    from empir_plugin.evaluation.evaluator import Settings
    from empir_plugin.evaluation.prepare import parse_device
    from empir_plugin.reproduce.context import Images
    from empir_plugin.reproduce.run import parse_targets
    from empir_plugin.reproduce.run import reproduce as run_reproduction
    from empir_plugin.reproduce.workspace import Workspace

    set_threads(threads)
    targets, settings = parse_targets(what), Settings(device=parse_device(device))
    images, workspace = Images(data_dir, n_examples), Workspace(out)
    with _ReproductionProgress() as progress:
        reproduction = run_reproduction(
            targets, workspace, images, settings=settings, publish=report, on_progress=progress.show
        )
    for slug, reason in reproduction.skipped:
        click.echo(f"Not run: {slug} ({reason})")
    click.echo(f"Report: {reproduction.report}")


class _ReproductionProgress(Progress):
    def show(self, progress: TargetProgress) -> None:
        self.update(progress.target, progress.done, progress.parts, progress.note)
