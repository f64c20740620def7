"""The texts of RobustBench's two issue forms, a new model and a new evaluation of one, and a row for its model zoo.

Headings and fields are those of RobustBench's forms
(https://github.com/RobustBench/robustbench/tree/master/.github/ISSUE_TEMPLATE).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.adversarial_images import ExportedImages
from empir_plugin.leaderboard.entry import Entry, unescape_html
from empir_plugin.leaderboard.evidence import Findings
from empir_plugin.leaderboard.papers import Facts
from empir_plugin.leaderboard.tree import Board
from empir_plugin.zoo.card import cards
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


CODE_URL = "(fill in: address of the code)"
"""Placeholder for an address that was not given."""

TENSOR_URL = "(fill in: address of the uploaded file)"


def new_model(stem: str, entry: Entry, findings: Findings, board: Board, code_url: str = CODE_URL) -> str:
    """The text of a "New Model(s)" issue; for a board that RobustBench does not have, it proposes the board first.

    Args:
        stem: The model's name on the leaderboard.
        entry: Its entry.
        findings: What the entry was composed from.
        board: Of the entry.
        code_url: Address of the code.
    """
    lines = [
        "---",
        f'title: "[New Model] {stem}"',
        "labels: new-model",
        "---",
        "",
        *([] if board.in_robustbench else _proposal(stem, board)),
        *_paper(entry),
        *_claim(entry, findings, board, code_url),
        *_zoo(findings.facts.model, board),
    ]
    return "\n".join(lines) + "\n"


def external_evaluation(stem: str, entry: Entry, norm: str, images: ExportedImages, tensor: str) -> str:
    """The text of a "New external evaluation(s)" issue.

    Args:
        stem: The model's name on the leaderboard.
        entry: Its entry.
        norm: Of the board's threat.
        images: The adversarial images.
        tensor: Name of the file that holds them.
    """
    checked = "; the norm of each measured against the official images" if images.checked else ""
    lines = [
        "---",
        f'title: "[New evaluation] {stem}"',
        "---",
        "",
        "## Target model",
        "",
        f"- **Model identifier(s):** {stem}",
        f"- **Leaderboard(s):** {entry.dataset}, {norm}, eps = {entry.eps}",
        "",
        "## New evaluation",
        "",
        f"- **Link to adversarial images:** {TENSOR_URL}: `{tensor}`, one float32 tensor, {images.n:,} images in the "
        "order of the test set",
        f"- **Robust accuracy:** {images.accuracy:.2f}% ({entry.autoattack_acc}% under AutoAttack)",
        "- **Author(s):** the empir-plugin developers",
        "- **Description of the method used:** for each image, the first of the attacks of empir-plugin that broke the "
        f"model's own decision; true labels{checked}.",
    ]
    return "\n".join(lines) + "\n"


def _proposal(stem: str, board: Board) -> Iterator[str]:
    yield (
        f"> **Note**: RobustBench has no board for {board.dataset} under {board.threat.norm}. This proposes one, with "
        f"eps = {board.threat.eps_text} and all {board.n:,} test images. Until there is one, the entry "
        f"(`model_info/{board}/{stem}.json`) belongs in a tree of your own."
    )
    yield ""


def _paper(entry: Entry) -> Iterator[str]:
    yield from ("# Paper Information", "")
    yield f"- **Paper Title**: {unescape_html(entry.name)}"
    yield f"- **Paper URL**: {entry.link}"
    yield f"- **Paper authors**: {unescape_html(entry.authors)}"
    yield ""


def _claim(entry: Entry, findings: Findings, board: Board, code_url: str) -> Iterator[str]:
    yield from ("# Leaderboard Claim(s)", "", "## Model 1", "")
    yield f"- **Architecture**: {unescape_html(entry.architecture)}"
    yield f"- **Threat Model**: {board.threat.norm}"
    yield f"- **eps**: {entry.eps}"
    yield f"- **Clean accuracy**: {entry.clean_acc}%"
    yield f"- **Robust accuracy**: {_robust(entry)}"
    yield f"- **Additional data**: {str(entry.additional_data).lower()}"
    yield f"- **Evaluation method**: {' '.join(_methods(entry, findings))}"
    yield f"- **Checkpoint and code**: {' '.join(_code(findings, code_url))}"
    if entry.footnote:
        yield f"- **Footnote**: {entry.footnote}"
    yield ""


def _zoo(model: str, board: Board) -> Iterator[str]:
    yield from ("# Model Zoo:", "")
    if board.in_robustbench:
        yield "- [x] I want to add my models to the Model Zoo (`zoo_row.py`)"
    else:
        yield (
            f"- [ ] I want to add my models to the Model Zoo: RobustBench's `load_model` takes no {board.dataset}, "
            f'`empir_plugin.load_model("{model}")` does'
        )
    yield (
        "- [x] The architecture is in `timm`, or a link to its implementation is given: it registers itself with "
        "`timm`, from the code linked above"
    )
    yield "- [x] I agree to release my model(s) under MIT license"


def _robust(entry: Entry) -> str:
    known = f", {entry.external}% in the worst case per image over all attacks" if entry.external else ""
    return f"{entry.autoattack_acc}% under AutoAttack{known}"


def _methods(entry: Entry, findings: Findings) -> Iterator[str]:
    for record in findings.records:
        yield _method(record)
    if entry.unreliable:
        yield "AutoAttack's number is flagged as potentially unreliable."


def _method(record: Record) -> str:
    versions, names = record.run.get("versions", {}), [attack.name for attack in record.attacks]
    releases = ", ".join(f"{package} {versions[package]}" for package in _PACKAGES if package in versions)
    return f"{', '.join(names)} (seed {record.run.get('seed')}, {releases}), on all {record.data['n']:,} test images."


_PACKAGES = ("empir-plugin", "pyautoattack", "torch")


def _code(findings: Findings, code_url: str) -> Iterator[str]:
    model = findings.facts.model
    yield f'{code_url}; `empir_plugin.load_model("{model}")`.'
    card = cards().get(model)
    if card is not None and card.has_weights:
        weights = ", ".join(f"`{network.weights}` ({network.sha256})" for network in card.networks)
        yield f"The weights travel with the package (safetensors, SHA-256): {weights}."
