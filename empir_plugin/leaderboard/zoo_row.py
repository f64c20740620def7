"""A model as RobustBench's zoo would list it."""

from __future__ import annotations

import re

from empir_plugin.leaderboard.boards import Board
from empir_plugin.leaderboard.papers import Facts
from empir_plugin.zoo.registry import timm_name

_TEMPLATE = '''"""{stem} for RobustBench's model zoo.

The function goes to robustbench/model_zoo/architectures, the row to the table of {norm} models in
robustbench/model_zoo/{dataset}.py. RobustBench's load_model("{stem}") then finds the function in timm's registry; the
weights travel with the package that is imported here, and there is nothing to download.
"""

from empir_plugin import load_model
from timm.models import register_model


@register_model
def {function}(pretrained=False, **kwargs):
    return load_model("{model}", dataset="{dataset}", threat_model="{norm}")


ROW = ("{stem}", {{"model": {function}, "gdrive_id": None}})
'''


def zoo_row(stem: str, facts: Facts, board: Board) -> str:
    """Python source of a function for timm's registry and of a row for RobustBench's ``model_dicts``."""
    norm = str(board.threat.norm)
    function = re.sub(r"\W", "_", timm_name(stem, board.dataset, norm))
    return _TEMPLATE.format(stem=stem, norm=norm, dataset=board.dataset, model=facts.model, function=function)
