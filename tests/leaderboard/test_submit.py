"""Submissions contain everything RobustBench asks for, and entries that fail the check are refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.leaderboard import submit as module
from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.adversarial_images import ExportedImages
from empir_plugin.leaderboard.entry import Entry
from empir_plugin.leaderboard.submit import Submission, external_evaluation, find, submit
from empir_plugin.leaderboard.tree import Place, Tree
from empir_plugin.models.ensemble import Ensemble


def test_the_folder_has_entry_issue_and_row(place: Place, tree: Tree, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = submit(find(tree, "empir-cifar"), out, code_url="https://example.org/code")
    assert {path.relative_to(out).as_posix() for path in written} == {
        "model_info/cifar10/Linf/Sen2020EMPIR.json", "new-model.md", "zoo_row.py",
    }  # fmt: skip
    assert set(written) == {path for path in out.rglob("*") if path.is_file()}
    assert (out / "model_info/cifar10/Linf/Sen2020EMPIR.json").read_bytes() == place.entry.read_bytes()


def test_the_issue_answers_every_field_of_the_form(place: Place, tree: Tree, tmp_path: Path) -> None:
    submit(find(tree, "empir-cifar"), tmp_path, code_url="https://example.org/code")
    text = (tmp_path / "new-model.md").read_text()
    lines = text.splitlines()
    assert lines[:4] == ["---", 'title: "[New Model] Sen2020EMPIR"', "labels: new-model", "---"]
    answers = dict(line[4:].split("**: ", 1) for line in lines if line.startswith("- **"))
    assert answers["Paper Title"].startswith("EMPIR: Ensembles of Mixed Precision")
    assert answers["Paper URL"] == "https://openreview.net/forum?id=HJem3yHKwH"
    assert answers["Paper authors"] == "Sanchari Sen, Balaraman Ravindran, Anand Raghunathan"
    assert answers["Architecture"].startswith("CIFARconv, max vote of 3")
    assert (answers["Threat Model"], answers["eps"]) == ("Linf", "8/255")
    assert answers["Clean accuracy"] == "75.23%"
    assert answers["Robust accuracy"].startswith("1.40% under AutoAttack, 0.90% in the worst case")
    assert answers["Additional data"] == "false"
    assert "AutoAttack (seed 0, empir-plugin 0.1.0" in answers["Evaluation method"]
    assert answers["Checkpoint and code"].startswith(
        'https://example.org/code; `empir_plugin.load_model("empir-cifar")'
    )
    assert "cifarconv-fp.safetensors" in answers["Checkpoint and code"]
    assert sum(line.startswith("- [x]") for line in lines) == 3
    assert "fill in" not in text


def test_a_missing_address_has_a_placeholder(place: Place, tree: Tree, tmp_path: Path) -> None:
    submit(find(tree, "Sen2020EMPIR"), tmp_path)
    assert "(fill in: address of the code)" in (tmp_path / "new-model.md").read_text()


def test_the_row_builds_the_model_through_timm(place: Place, tree: Tree, tmp_path: Path) -> None:
    submit(find(tree, "cifar10/Linf/Sen2020EMPIR"), tmp_path)
    spec = importlib.util.spec_from_file_location("row_of_a_test", tmp_path / "zoo_row.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["row_of_a_test"] = row = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(row)
        import timm

        # The name RobustBench's load_model("Sen2020EMPIR") asks for, and the call it makes.
        model = timm.create_model("sen2020empir_cifar10_linf", num_classes=10, pretrained=True)
    finally:
        del sys.modules["row_of_a_test"]
    assert isinstance(model, Ensemble)
    assert ("Sen2020EMPIR", {"model": row.sen2020empir_cifar10_linf, "gdrive_id": None}) == row.ROW


def test_an_entry_is_found_by_each_of_its_names(place: Place, tree: Tree, tmp_path: Path, make: Any) -> None:
    assert {find(tree, name).place for name in ("empir-cifar", "Sen2020EMPIR", "cifar10/Linf/Sen2020EMPIR")} == {place}
    with pytest.raises(InputError, match=r"0 entries for 'other', and it must be one: name cifar10/Linf/Sen2020EMPIR"):
        find(tree, "other")
    submission_on_mnist(tree, tmp_path, make)
    with pytest.raises(InputError, match=r"must be one: name cifar10/Linf/Sen2020EMPIR or mnist/Linf/Sen2020EMPIR"):
        find(tree, "Sen2020EMPIR")
    assert str(find(tree, "empir-mnist").place) == "mnist/Linf/Sen2020EMPIR"


def submission_on_mnist(tree: Tree, folder: Path, make: Any) -> Submission:
    """An entry on a board that RobustBench does not have."""
    about = {"model": "empir-mnist", "dataset": "mnist", "clean": 9901}
    make.record(make.autoattack(0, 3, threat="Linf:0.3"), **about).write(folder / "mnist.json")
    add(tree, "empir-mnist", Files((folder / "mnist.json",)))
    return find(tree, "empir-mnist")


def test_a_board_that_robustbench_does_not_have_is_proposed(tree: Tree, tmp_path: Path, make: Any) -> None:
    found, out = submission_on_mnist(tree, tmp_path, make), tmp_path / "out"
    submit(found, out)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {"model_info/mnist/Linf/Sen2020EMPIR.json", "new-model.md"}
    assert (out / "model_info/mnist/Linf/Sen2020EMPIR.json").read_bytes() == found.place.entry.read_bytes()
    lines = (out / "new-model.md").read_text().splitlines()
    first = next(line for line in lines[4:] if line)
    assert first.startswith("> **Note**: RobustBench has no board for mnist under Linf. This proposes one, ")
    assert "with eps = 0.3 and all 10,000 test images" in first
    assert "`model_info/mnist/Linf/Sen2020EMPIR.json`" in first
    assert "- **Robust accuracy**: 0.03% under AutoAttack" in lines
    (zoo,) = (line for line in lines if "add my models to the Model Zoo" in line)
    assert zoo.startswith("- [ ]")
    assert "zoo_row.py" not in "\n".join(lines)


def test_a_board_of_robustbench_is_not_proposed(place: Place, tree: Tree, tmp_path: Path) -> None:
    submit(find(tree, "empir-cifar"), tmp_path)
    text = (tmp_path / "new-model.md").read_text()
    assert "Note" not in text
    assert "- [x] I want to add my models to the Model Zoo (`zoo_row.py`)" in text


def test_images_for_a_board_that_robustbench_does_not_have_are_refused(tree: Tree, tmp_path: Path, make: Any) -> None:
    found = submission_on_mnist(tree, tmp_path, make)
    with pytest.raises(InputError, match=r"no board for mnist/Linf.*pass no images"):
        submit(found, tmp_path / "out", images=tmp_path / "images.safetensors")
    assert not (tmp_path / "out").exists()


def test_an_entry_that_fails_the_check_is_refused(place: Place, tree: Tree, tmp_path: Path) -> None:
    table = json.loads(place.entry.read_text())
    place.entry.write_text(json.dumps({**table, "autoattack_acc": "1.50"}))
    with pytest.raises(EvaluationError, match=r"cifar10/Linf/Sen2020EMPIR.*autoattack_acc"):
        find(tree, "empir-cifar")


def test_an_unwritable_folder_is_refused(place: Place, tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(InputError, match=r"out .*choose another"):
        submit(find(tree, "empir-cifar"), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "in the way"


def test_images_add_an_external_evaluation(
    place: Place, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(images: Path, target: Path, *_: Any, below: float, **__: Any) -> ExportedImages:
        assert below == 1.40
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.zeros(1), target)
        return ExportedImages(0.90, 10_000, checked=False)

    monkeypatch.setattr(module, "export_images", export)
    written = submit(find(tree, "empir-cifar"), tmp_path / "out", images=tmp_path / "images.safetensors")
    names = {path.name for path in written}
    assert names == {"Sen2020EMPIR.json", "new-model.md", "zoo_row.py", "new-external-evaluation.md", "Sen2020EMPIR.pt"}
    text = (tmp_path / "out" / "new-external-evaluation.md").read_text()
    assert "- **Robust accuracy:** 0.90% (1.40% under AutoAttack)" in text


def test_the_issue_of_an_external_evaluation(place: Place) -> None:
    entry = Entry.read(place.entry)
    text = external_evaluation(
        "Sen2020EMPIR", entry, "Linf", ExportedImages(0.9, 10_000, checked=True), "Sen2020EMPIR.pt"
    )
    lines = text.splitlines()
    assert lines[1] == 'title: "[New evaluation] Sen2020EMPIR"'
    assert "- **Model identifier(s):** Sen2020EMPIR" in lines
    assert "- **Leaderboard(s):** cifar10, Linf, eps = 8/255" in lines
    assert "`Sen2020EMPIR.pt`, one float32 tensor, 10,000 images" in text
    assert "the norm of each measured against the official images" in text
    assert "measured" not in external_evaluation("S", entry, "Linf", ExportedImages(0.9, 10_000, checked=False), "S.pt")


def test_an_entry_of_corruptions_is_submitted(tree: Tree, tmp_path: Path, make: Any) -> None:
    make.corruptions().write(tmp_path / "c.json")
    add(tree, "empir-cifar", Files((tmp_path / "c.json",)))
    found = find(tree, "cifar10/corruptions/Sen2020EMPIR")
    paths = submit(found, tmp_path / "out")
    assert [path.name for path in paths] == ["Sen2020EMPIR.json", "new-model.md", "zoo_row.py"]
    text = (tmp_path / "out" / "new-model.md").read_text()
    assert "- **Threat Model**: corruptions\n- **eps**: none\n" in text
    assert "- **Robust accuracy**: 50.00% on average under corruptions" in text
    assert "CIFAR-10-C: 75 corruptions and severities" in text
    assert "AutoAttack" not in text
    assert 'threat_model="corruptions"' in (tmp_path / "out" / "zoo_row.py").read_text()
    with pytest.raises(InputError, match="not about adversarial images"):
        submit(found, tmp_path / "other", images=tmp_path / "images.safetensors")


def test_entries_of_others_are_not_ours_to_submit(place: Place, tree: Tree) -> None:
    (place.entry.parent / "Other2020Entry.json").write_bytes(place.entry.read_bytes())
    with pytest.raises(InputError, match=r"0 entries for 'Other2020Entry'.*name cifar10/Linf/Sen2020EMPIR$"):
        find(tree, "Other2020Entry")
