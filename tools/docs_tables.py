"""Write the generated parts of the README and the documentation: ``python tools/docs_tables.py``.

These are the tables between ``<!-- name -->`` and ``<!-- /name -->``, the code of ``examples/blurred`` in
docs/extend.md, and the drawing of the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import accuracy_tables
import architecture
import benchmark_tables
import integer_tables
import robust_tables
from markdown_tables import markdown_table
from run_records import ROOT, RUNS

from empir_plugin.evaluation.audit.report import AuditReport
from empir_plugin.evaluation.protocols import PROTOCOLS

DRAWING = ROOT / "docs" / "architecture.svg"
EXAMPLE = ROOT / "examples" / "blurred"
AUDITED = ("empir-cifar", "empir-mnist", "empir-cifar-at", "empir-mnist-at")


def protocols_list() -> str:
    """Each protocol's own description, as a list."""
    lines = []
    for name, protocol in PROTOCOLS.items():
        lines.append(f"- **`{name}`**: {protocol.summary}")
        lines += [f"    - {rule}" for rule in (*protocol.rules, f"The number to quote: {protocol.headline.value}.")]
    return re.sub(r"(https://[^\s()]+)", r"<\1>", "\n".join(lines))


def checks_table() -> str:
    """The checks of the masking audit: threshold, reason, and the values in the committed audits."""
    reports = [AuditReport.read(RUNS / "audits" / f"{name}.json") for name in AUDITED]
    images = (f"{report.images} of {report.data['n']}" for report in reports)
    rows = [
        ("images", "", "those classified correctly", *images),
        ("compared under", "", "not every attack breaks every image there", *(each.compared_at for each in reports)),
    ]
    for findings in zip(*(report.checks for report in reports), strict=True):
        first = findings[0]
        values = [f"{each.value:.2f}{'' if each.passed else ' (fails)'}" for each in findings]
        rows.append((first.name, f"{first.threshold:.2f}", first.reason, *values))
    rows.append(("verdict", "", "", *(report.verdict for report in reports)))
    return markdown_table(("check", "at most", "reason", *AUDITED), rows, "lrlr")


BLOCKS: Mapping[str, Mapping[str, Callable[[], str]]] = MappingProxyType(
    {
        "README.md": {
            "headline": accuracy_tables.headline_table,
            "ensembles": accuracy_tables.ensembles_table,
        },
        "docs/architecture.md": {"rooms": architecture.table},
        "docs/believe.md": {"protocols": protocols_list, "checks": checks_table},
        "docs/benchmarks.md": {
            "pgd": partial(benchmark_tables.attack_times_table, "attacks", "pgd"),
            "pgd without broken images": partial(benchmark_tables.attack_times_table, "attacks", "pgd-standing"),
            "pgd record": partial(benchmark_tables.machine_line, "attacks"),
            "autoattack": partial(benchmark_tables.attack_times_table, "autoattack", "autoattack"),
            "autoattack record": partial(benchmark_tables.machine_line, "autoattack"),
            "images": partial(benchmark_tables.scaling_table, "images", "images"),
            "members": partial(benchmark_tables.scaling_table, "members", "members"),
            "precision": partial(benchmark_tables.scaling_table, "precision", "precision"),
            "scaling record": partial(benchmark_tables.machine_line, "scaling"),
            "integer": benchmark_tables.integer_times_table,
            "integer record": partial(benchmark_tables.machine_line, "integer"),
            "agreement": benchmark_tables.agreement_table,
            "definition": integer_tables.definition_table,
            "gradients": integer_tables.gradients_table,
            "builds": integer_tables.builds_table,
            "builds record": partial(benchmark_tables.machine_line, "builds"),
            "faults": benchmark_tables.faults_table,
        },
        "docs/models.md": {"models": accuracy_tables.models_table},
        "docs/quantize.md": {"quantized": accuracy_tables.quantized_table},
        "docs/results.md": {
            "protocols": accuracy_tables.protocols_table,
            "single attacks": accuracy_tables.single_attacks_table,
        },
        "docs/robust.md": {
            "accuracy": robust_tables.accuracy_table,
            "longer attacks": robust_tables.longer_attacks_table,
            "ablations": robust_tables.ablations_table,
            "comparisons": robust_tables.comparisons_table,
            "training": robust_tables.training_table,
            "cost": robust_tables.cost_table,
        },
    }
)
"""The generated blocks of each page, by name."""

EXAMPLE_PAGE = "docs/extend.md"
_EXAMPLE_CODE = re.compile(
    r'^```python title="(?P<path>blurred/\w+\.py)"\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL
)


def update(page: str, text: str) -> str:
    """The text of a page with its generated blocks rewritten.

    Raises:
        ValueError: If a block is missing.
    """
    for name, write in BLOCKS.get(page, {}).items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        before, found_start, rest = text.partition(start)
        _, found_end, after = rest.partition(end)
        if not (found_start and found_end):
            raise ValueError(f"{page} must have the lines {start.strip()} and {end.strip()}: put them back")
        text = f"{before}{start}\n{write()}\n\n{end}{after}"
    return _EXAMPLE_CODE.sub(_example_code, text) if page == EXAMPLE_PAGE else text


def _example_code(match: re.Match[str]) -> str:
    return match[0].replace(match["code"], (EXAMPLE / match["path"]).read_text(encoding="utf-8"))


def main() -> None:
    """Rewrite every page and the drawing."""
    for page in (*BLOCKS, EXAMPLE_PAGE):
        path = Path(ROOT, page)
        path.write_text(update(page, path.read_text(encoding="utf-8")), encoding="utf-8")
    DRAWING.write_text(architecture.drawing(), encoding="utf-8")


if __name__ == "__main__":
    main()
