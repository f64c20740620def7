"""Write ``docs/reproduction.md`` and its figures again, from the records beside it: nothing is measured.

Usage: ``python tools/reproduction_report.py``.
"""

from __future__ import annotations

from pathlib import Path

from empir_plugin.reproduce.run import TARGETS, write_report
from empir_plugin.reproduce.workspace import Workspace

if __name__ == "__main__":
    write_report(Workspace(Path(__file__).parents[1] / "docs"), tuple(TARGETS.values()))
