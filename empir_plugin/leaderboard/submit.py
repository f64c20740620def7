"""What to send to RobustBench: a folder with the entry, the text of the issue to open, and a row for its model zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from empir_plugin._files.atomic import write_atomically
from empir_plugin.data.image_set import load_images
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.leaderboard.check import check_entry
from empir_plugin.leaderboard.entry import Entry
from empir_plugin.leaderboard.evidence import Evidence, Findings
from empir_plugin.leaderboard.issues import CODE_URL, external_evaluation, new_model, zoo_row
from empir_plugin.leaderboard.tensor import Left, export
from empir_plugin.leaderboard.tree import Place, Tree
from empir_plugin.zoo.registry import load_model


@dataclass(frozen=True)
class Submission:
    """One entry with all that is known of it.

    Args:
        place: Of the entry.
        entry: The entry.
        findings: What it was made of.
    """

    place: Place
    entry: Entry
    findings: Findings


def find(tree: Tree, name: str) -> Submission:
    """The entry of a name, once it is found to follow from its sources.

    Args:
        tree: The leaderboard.
        name: Of the model, as ``load_model`` takes it; or the stem; or both, as ``cifar10/Linf/Sen2020EMPIR``.

    Raises:
        InputError: If there is no such entry, or more than one.
        EvaluationError: If the entry does not pass :func:`empir_plugin.leaderboard.check.check_entry`.
    """
    places = list(tree.places())
    named = [place for place in places if name in (place.stem, str(place), _model(place))]
    if len(named) != 1:
        options = " or ".join(map(str, named or places))
        cure = f"name {options}" if options else "make one with `empir leaderboard add`"
        raise InputError(f"{tree.root} has {len(named)} entries for {name!r}, and it must be one: {cure}")
    (place,) = named
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
    """Write what RobustBench asks for when a model is to join its leaderboard.

    For a board it does not have, that is an entry and the text of an issue that proposes the board: its model zoo and
    its form for external evaluations take no model of another data set.

    Args:
        found: The entry: see :func:`find`.
        out: Folder to write to.
        images: Adversarial images that ``evaluate(images=...)`` wrote, to be reported as an external evaluation, too.
        data_dir: Folder of the full data set: the images' norms are measured against it.
        code_url: Where the code can be found.

    Returns:
        The files written.

    Raises:
        InputError: If the folder cannot be written, or there are images and no board for them.
        EvaluationError: If the images are not what an external evaluation needs.
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
        left, norm = _exported(found, images, tensor, data_dir), str(board.threat.norm)
        texts["new-external-evaluation.md"] = external_evaluation(stem, found.entry, norm, left, tensor.name)
    return [*_written(out, texts), *([tensor] if images is not None else [])]


def _exported(found: Submission, images: Path, tensor: Path, data_dir: Path | None) -> Left:
    facts, record = found.findings.facts, found.findings.records[0]
    model = load_model(facts.model, dataset=facts.dataset, threat_model=str(found.place.board.threat.norm))
    clean = load_images(facts.dataset, data_dir=data_dir) if data_dir is not None else None
    return export(images, tensor, model, record, below=float(found.entry.autoattack_acc), clean=clean)


def _written(out: Path, texts: Mapping[str, str]) -> list[Path]:
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
