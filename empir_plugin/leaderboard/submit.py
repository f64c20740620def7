"""Prepare a submission to RobustBench: a folder with the entry, the text of the issue, and a row for its model zoo."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from empir_plugin._files.atomic import write_atomically
from empir_plugin.data.image_set import load_images
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.adversarial_images import ExportedImages, export_images
from empir_plugin.leaderboard.check import check_entry
from empir_plugin.leaderboard.entry import Entry, unescape_html
from empir_plugin.leaderboard.evidence import Evidence, Findings
from empir_plugin.leaderboard.papers import Facts
from empir_plugin.leaderboard.publication import settle, sweep
from empir_plugin.leaderboard.tree import CORRUPTIONS, Board, Place, Tree
from empir_plugin.zoo.card import cards
from empir_plugin.zoo.registry import load_model, timm_name

CODE_URL = "(fill in: address of the code)"
"""Placeholder for an address that was not given."""

TENSOR_URL = "(fill in: address of the uploaded file)"


@dataclass(frozen=True)
class Submission:
    """An entry that can be submitted.

    Args:
        place: Of the entry.
        entry: The entry.
        findings: What it was composed from.
    """

    place: Place
    entry: Entry
    findings: Findings


def find(tree: Tree, name: str) -> Submission:
    """Find an entry by name, and check that it follows from its sources.

    Args:
        tree: The leaderboard.
        name: Of the model, as ``load_model`` takes it; or the stem; or board and stem: ``cifar10/Linf/Sen2020EMPIR``.

    Raises:
        InputError: If there is no such entry, or more than one.
        EvaluationError: If the entry does not pass :func:`empir_plugin.leaderboard.check.check_entry`.
    """
    settle(tree.root)
    places = [place for place in tree.places() if place.is_own]
    matches = [place for place in places if name in (place.stem, str(place), _model(place))]
    if len(matches) != 1:
        options = " or ".join(map(str, matches or places))
        cure = f"name {options}" if options else "make one with `empir leaderboard add`"
        raise InputError(f"{tree.root} has {len(matches)} entries for {name!r}, and it must be one: {cure}")
    (place,) = matches
    if wrong := check_entry(tree, place):
        raise EvaluationError(f"{place} is not ready to be submitted: {'; '.join(wrong)}")
    return Submission(place, Entry.read(place.entry), Evidence.read(place.evidence).findings(tree.runs))


def _model(place: Place) -> str:
    try:
        return Evidence.read(place.evidence).model
    except InputError:
        return ""


def submit(
    found: Submission,
    out: Path,
    *,
    images: Path | None = None,
    data_dir: Path | None = None,
    code_url: str = CODE_URL,
) -> list[Path]:
    """Write the files that RobustBench asks for with a new model.

    For a board that RobustBench does not have, these are the entry and the text of an issue that proposes the board:
    its model zoo and its form for external evaluations accept only models of its own data sets.

    Args:
        found: The entry: see :func:`find`.
        out: Folder to write to.
        images: Adversarial images that ``evaluate(images=...)`` wrote, to report an external evaluation as well.
        data_dir: Folder of the full data set, to measure the norms of the perturbations.
        code_url: Address of the code.

    Returns:
        The files written.

    Raises:
        InputError: If the folder cannot be written, or images are given for a board that RobustBench does not have.
        EvaluationError: If the images are not valid for an external evaluation.
    """
    stem, board = found.place.stem, found.place.board
    if images is not None and not board.in_robustbench:
        raise InputError(f"RobustBench has no board for {board}, so none to evaluate {stem} on: pass no images")
    if images is not None and board.threat is None:
        raise InputError(f"{board} is not about adversarial images, so there are none to report: pass no images")
    texts = {
        f"model_info/{board}/{stem}.json": found.place.entry.read_text(encoding="ascii"),
        "new-model.md": new_model(stem, found.entry, found.findings, board, code_url),
    }
    if board.in_robustbench:
        texts["zoo_row.py"] = zoo_row(stem, found.findings.facts, board)
    tensor = out / f"{stem}.pt"
    if images is not None:
        exported, norm = _export(found, images, tensor, data_dir), board.threat_model
        texts["new-external-evaluation.md"] = external_evaluation(stem, found.entry, norm, exported, tensor.name)
    return [*_write(out, texts), *([tensor] if images is not None else [])]


def _export(found: Submission, images: Path, tensor: Path, data_dir: Path | None) -> ExportedImages:
    facts, record = found.findings.facts, found.findings.records[0]
    model = load_model(facts.model, dataset=facts.dataset, threat_model=found.place.board.threat_model)
    clean = load_images(facts.dataset, data_dir=data_dir) if data_dir is not None else None
    return export_images(images, tensor, model, record, below=float(found.entry.board_acc), clean=clean)


def _write(out: Path, texts: Mapping[str, str]) -> list[Path]:
    paths = {out / name: text for name, text in texts.items()}
    sweep(out)
    try:
        for path, text in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
    except OSError as error:
        raise InputError(
            f"the submission cannot be written to {out} ({error.strerror or error}): choose another"
        ) from error
    return list(paths)


# The texts of RobustBench's issue forms; headings and fields are those of
# https://github.com/RobustBench/robustbench/tree/master/.github/ISSUE_TEMPLATE


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
    norm = board.threat_model
    function = re.sub(r"\W", "_", timm_name(stem, board.dataset, norm))
    return _TEMPLATE.format(stem=stem, norm=norm, dataset=board.dataset, model=facts.model, function=function)


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
        f"> **Note**: RobustBench has no board for {board.dataset} under {board.threat_model}. This proposes one, with "
        f"eps = {board.eps_text} and all {board.n:,} test images. Until there is one, the entry "
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
    yield f"- **Threat Model**: {board.threat_model}"
    yield f"- **eps**: {entry.eps or 'none'}"
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
    if entry.corruptions_acc:
        return f"{entry.corruptions_acc}% on average under corruptions"
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
    if record.threat == CORRUPTIONS:
        images = record.data["corruptions"]["name"]
        return f"{images}: {len(names)} corruptions and severities ({releases}), {record.data['n']:,} images each."
    return f"{', '.join(names)} (seed {record.run.get('seed')}, {releases}), on all {record.data['n']:,} test images."


_PACKAGES = ("empir-plugin", "pyautoattack", "torch")


def _code(findings: Findings, code_url: str) -> Iterator[str]:
    model = findings.facts.model
    yield f'{code_url}; `empir_plugin.load_model("{model}")`.'
    card = cards().get(model)
    if card is not None and card.has_weights:
        weights = ", ".join(f"`{network.weights}` ({network.sha256})" for network in card.networks)
        yield f"The weights travel with the package (safetensors, SHA-256): {weights}."
