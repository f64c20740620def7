"""``empir audit``: check a model for gradient masking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from empir_cli.console import ProgressBar, console, table
from empir_cli.model_options import ModelArguments, model_arguments
from empir_cli.options import DATA_DIR, DEVICE, SEED

if TYPE_CHECKING:
    from empir_plugin.evaluation.audit.report import AuditReport, Finding


@click.command()
@model_arguments
@click.option("--threat", help="Norm and radius, such as Linf:8/255.  [the model card's]")
@click.option(
    "--n-examples", type=int, default=64, show_default=True, help="Number of test images, counted from the first."
)
@DATA_DIR
@DEVICE
@SEED
@click.option("--out", "target", type=click.Path(path_type=Path), help="Also write the report to this file (JSON).")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of tables.")
@click.option("--fail-on-masking", is_flag=True, help="Exit with code 1 if the audit finds masking.")
def audit(
    source: ModelArguments,
    threat: str | None,
    n_examples: int,
    data_dir: Path | None,
    device: str,
    seed: int,
    target: Path | None,
    as_json: bool,
    fail_on_masking: bool,
) -> None:
    """Check MODEL for gradient masking: can gradient-based attacks on it be trusted?

    Compares many small attacks that should agree, and examines the gradients themselves. Every check reports what it
    measured, its threshold and the reason for that threshold. A model that passes every check may still mask gradients.
    """
    from empir_plugin._files.atomic import check_output_file
    from empir_plugin.attacks.threat import Threat
    from empir_plugin.data.image_set import load_images
    from empir_plugin.evaluation.audit.run import audit as run_audit
    from empir_plugin.evaluation.evaluator import Settings
    from empir_plugin.evaluation.prepare import parse_device, require_weights
    from empir_plugin.zoo.find import threat_of

    if target is not None:
        check_output_file("--out", target)
    settings, audited = Settings(seed=seed, device=parse_device(device)), source.find()
    budget = threat_of(audited) if threat is None else Threat.parse(threat)
    network = audited.load(str(budget.norm))
    require_weights(network, audited.name)
    data = load_images(audited.dataset, data_dir=data_dir, n_examples=n_examples)
    with ProgressBar() as progress:
        report = run_audit(
            network,
            data,
            budget,
            settings=settings,
            name=audited.name,
            on_progress=lambda measurement, done, total: progress.update("audit", done, total, measurement),
        )
    if target is not None:
        report.write(target)
    if as_json:
        click.echo(report.to_json(), nl=False)
    else:
        _print_report(report)
        if target is not None:
            console().print(f"Report: {target}", markup=False, soft_wrap=True)
    if fail_on_masking and report.masked:
        raise click.exceptions.Exit(1)


def _print_report(report: AuditReport) -> None:
    out = console()
    images = f"{report.images:,} correctly classified of {report.data['n']:,} images of {report.data['name']}"
    out.print(f"{report.model['name']} under {report.threat}, {images}", style="bold", markup=False)
    if report.compared_at != report.threat:
        where = f"Attacks are compared under {report.compared_at}"
        out.print(f"{where}: under a larger budget, too few images stay robust to compare them.", markup=False)
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
