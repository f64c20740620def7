"""Prepare a submission to RobustBench: a folder with the entry, the text of the issue, and a row for its model zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from empir_plugin._files.atomic import write_atomically
from empir_plugin.data.image_set import load_images
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.leaderboard.adversarial_images import ExportedImages, export_images
from empir_plugin.leaderboard.check import check_entry
from empir_plugin.leaderboard.entry import Entry
from empir_plugin.leaderboard.evidence import Evidence, Findings
from empir_plugin.leaderboard.issues import CODE_URL, external_evaluation, new_model, zoo_row
from empir_plugin.leaderboard.tree import Place, Tree
from empir_plugin.zoo.registry import load_model


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
    places = list(tree.places())
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
    texts = {
        f"model_info/{board}/{stem}.json": found.place.entry.read_text(encoding="ascii"),
        "new-model.md": new_model(stem, found.entry, found.findings, board, code_url),
    }
    if board.in_robustbench:
        texts["zoo_row.py"] = zoo_row(stem, found.findings.facts, board)
    tensor = out / f"{stem}.pt"
    if images is not None:
        exported, norm = _export(found, images, tensor, data_dir), str(board.threat.norm)
        texts["new-external-evaluation.md"] = external_evaluation(stem, found.entry, norm, exported, tensor.name)
    return [*_write(out, texts), *([tensor] if images is not None else [])]


def _export(found: Submission, images: Path, tensor: Path, data_dir: Path | None) -> ExportedImages:
    facts, record = found.findings.facts, found.findings.records[0]
    model = load_model(facts.model, dataset=facts.dataset, threat_model=str(found.place.board.threat.norm))
    clean = load_images(facts.dataset, data_dir=data_dir) if data_dir is not None else None
    return export_images(images, tensor, model, record, below=float(found.entry.autoattack_acc), clean=clean)


def _write(out: Path, texts: Mapping[str, str]) -> list[Path]:
    paths = {out / name: text for name, text in texts.items()}
    try:
        for path, text in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
    except OSError as error:
        raise InputError(
            f"the submission cannot be written to {out} ({error.strerror or error}): choose another"
        ) from error
    return list(paths)
