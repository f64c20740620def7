"""``empir audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from empir_cli.console import Progress, console, table
from empir_cli.options import DATA_DIR, DEVICE

if TYPE_CHECKING:
    from empir_plugin.evaluation.audit.report import AuditReport, Finding


@click.command()
@click.argument("model")
@click.option("--threat", help="Norm and radius, such as Linf:8/255.  [the model card's]")
@click.option("--n-examples", type=int, default=64, show_default=True, help="How many test images, from the first.")
@DATA_DIR
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights instead of the model's own (safetensors).")
@DEVICE
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything random in the attacks.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="File for the report.")
@click.option("--fail-on-masking", is_flag=True, help="Exit with 1 if the audit finds masking.")
def audit(
    model: str,
    threat: str | None,
    n_examples: int,
    data_dir: Path | None,
    checkpoint: Path | None,
    device: str,
    seed: int,
    target: Path | None,
    fail_on_masking: bool,
) -> None:
    """Look for gradient masking in MODEL: can attacks that follow its own gradient be believed?

    Compares many small attacks that ought to agree, and looks at the gradients themselves. Every check says what it
    measured and why its threshold is where it is. Passing them all is no proof that nothing is masked.
    """
    from empir_plugin._files.atomic import check_output_file
    from empir_plugin.attacks.threat import Threat
    from empir_plugin.data.image_set import load_images
    from empir_plugin.evaluation.audit.run import audit as run_audit
    from empir_plugin.evaluation.evaluator import Settings
    from empir_plugin.evaluation.prepare import parse_device, require_weights
    from empir_plugin.zoo.registry import load_model
    from empir_plugin.zoo.show import dataset_of, default_threat

    if target is not None:
        check_output_file("--json", target)
    settings, dataset = Settings(seed=seed, device=parse_device(device)), dataset_of(model)
    budget = Threat.parse(default_threat(model, dataset) if threat is None else threat)
    network = load_model(model, dataset=dataset, threat_model=str(budget.norm), custom_checkpoint=checkpoint or "")
    require_weights(network, model)
    data = load_images(dataset, data_dir=data_dir, n_examples=n_examples)
    with _AuditProgress() as progress:
        report = run_audit(network, data, budget, settings=settings, name=model, on_progress=progress.show)
    _show(report)
    if target is not None:
        report.write(target)
        console().print(f"Report: {target}", markup=False, soft_wrap=True)
    if fail_on_masking and report.masked:
        raise click.exceptions.Exit(1)


def _show(report: AuditReport) -> None:
    out = console()
    images = f"{report.images:,} correctly classified of {report.data['n']:,} images of {report.data['name']}"
    out.print(f"{report.model['name']} under {report.threat}, {images}", style="bold", markup=False)
    if report.compared_at != report.threat:
        where = f"Attacks compared under {report.compared_at}"
        out.print(f"{where}: a larger budget leaves too few images to tell them apart.", markup=False)
    rows = table(["check"], ["measured", "threshold", "verdict"])
    for finding in report.checks:
        rows.add_row(finding.name, *_numbers(finding), "passed" if finding.passed else "[bold]masked")
    out.print(rows)
    for finding in report.failed:
        out.print(f"{finding.name}: {finding.measured} Threshold: {finding.reason}.", markup=False)
    for flag in report.flags:
        out.print(f"AutoAttack warns: {flag}", markup=False)
    out.print(report.summary, style="bold", markup=False)


def _numbers(finding: Finding) -> tuple[str, str]:
    if isinstance(finding.evidence.get("flags"), list):
        return f"{finding.value:.0f} flags", f"{finding.threshold:.0f} flags"
    return f"{finding.value:.1%}".replace("%", " %"), f"{finding.threshold:.1%}".replace("%", " %")


class _AuditProgress(Progress):
    def show(self, measurement: str, done: int, total: int) -> None:
        self.update("audit", done, total, measurement)
