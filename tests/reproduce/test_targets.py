"""The targets: what they measure exists, names are unique, and what they show follows from the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.protocols import adaptive
from empir_plugin.reproduce.attacks import BLACK, NOISE, WHITE, strong
from empir_plugin.reproduce.document import Picture, Table
from empir_plugin.reproduce.parts import Confusion, Cost, Evaluation, Matrix, Part
from empir_plugin.reproduce.results import Results, Target
from empir_plugin.reproduce.run import TARGETS, parse_targets
from empir_plugin.reproduce.subjects import SUBJECTS, Altered, Discrete, Subject, Trained, Voting, Zoo
from empir_plugin.reproduce.workspace import Workspace
from empir_plugin.training.recipe import find_recipe
from empir_plugin.zoo.card import cards
from empir_plugin.zoo.registry import load_model

Write = Callable[..., None]


def _all_parts() -> list[Part]:
    return [part for target in TARGETS.values() for part in (*target.parts, *target.extras)]


def test_names() -> None:
    assert parse_targets("all") == tuple(TARGETS.values())
    with pytest.raises(InputError, match=r"one of table2, fig1, fig3a, fig3b, fig4, fig5.*, all, got 'table3'"):
        parse_targets("table3")


def test_records_of_one_name_are_of_one_piece_of_work() -> None:
    parts: dict[str, Part] = {}
    for part in _all_parts():
        assert parts.setdefault(part.slug, part) == part


def _leaves(subject: Subject) -> list[Subject]:
    if isinstance(subject, Altered):
        return _leaves(subject.of)
    if isinstance(subject, Discrete):
        return [Trained(subject.recipe, subject.member)]
    return [leaf for each in subject.members for leaf in _leaves(each)] if isinstance(subject, Voting) else [subject]


def test_every_network_exists() -> None:
    leaves = [leaf for part in _all_parts() for subject in part.subjects for leaf in _leaves(subject)]
    assert leaves
    for leaf in leaves:
        if isinstance(leaf, Trained):
            assert leaf.name in {member.name for member in find_recipe(leaf.recipe).members}
        elif isinstance(leaf, Zoo):
            assert cards()[leaf.name].has_weights
        else:
            assert not cards()[leaf.name].has_weights


def _fill(target: Target, workspace: Workspace, write_record: Write) -> None:
    for index, part in enumerate(target.parts):
        if isinstance(part, Evaluation):
            names = [each.name for each in part.protocol.attacks(nn.Flatten(), part.dataset)]
            left = {} if part.protocol in (adaptive, strong) else dict.fromkeys(names, index % 90)
            write_record(part.slug, 95, left, worst=index % 7)
        elif isinstance(part, Confusion):
            counts = tuple(tuple(10 if row == column else 0 for column in range(10)) for row in range(10))
            data = {"n": 100, "sha256": "1" * 64}
            Matrix({"name": "m", "sha256": ""}, data, "FGSM", "Linf:0.3", counts, {}).write(
                workspace.records / f"{part.slug}.json"
            )
        else:
            assert isinstance(part, Cost)
            ratios = {"ideal": 1.5, "as_built": 2.5}
            table = {"eq6": {"time": ratios, "storage": ratios}, "storage_ratio": 3.5, "members": []}
            (workspace.records / f"{part.slug}.json").write_text(json.dumps(table))


def test_strong_is_the_part_of_adaptive_that_is_pgd_and_square() -> None:
    network, vote = SUBJECTS["mnist", "baseline"], SUBJECTS["mnist", "empir"]
    for subject, count in ((network, 4), (vote, 6)):
        model = load_model(subject.name)
        names = [planned.name for planned in strong.attacks(model, "mnist")]
        assert len(names) == count + 1
        assert names.pop() == "Square", "last: in a cascade it costs something only where PGD fails"
        assert set(names) < {planned.name for planned in adaptive.attacks(model, "mnist")}
        assert not any("apgd" in name or name == "AutoAttack" for name in names)


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_target_draws_its_pictures_and_shows_every_record(
    name: str, workspace: Workspace, write_record: Write
) -> None:
    target = TARGETS[name]
    with workspace.opened():
        _fill(target, workspace, write_record)
        blocks = target.show(Results(workspace.records), workspace.figures)
    pictures = [block for block in blocks if isinstance(block, Picture)]
    assert pictures
    for picture in pictures:
        for ending in (".svg", ".png"):
            assert (workspace.figures / f"{picture.stem}{ending}").stat().st_size > 5000
    for block in blocks:
        if isinstance(block, Table):
            assert {len(row) for row in block.rows} == {len(block.header)}


def test_table2_shows_published_and_measured_numbers(workspace: Workspace, write_record: Write, tmp_path: Path) -> None:
    target = TARGETS["table2"]
    with workspace.opened():
        _fill(target, workspace, write_record)
        write_record("cifar10-empir-released", 74, {"CW": 50, "FGSM": 22, "BIM": 16, "PGD": 10})
        write_record("cifar10-empir-adaptive", 74, worst=3)
        blocks = target.show(Results(workspace.records), workspace.figures)
    tables = {
        block.caption.split(",")[0] + str(len(block.header)): block for block in blocks if isinstance(block, Table)
    }
    rows = [row[1:9] for row in tables["CIFARconv11"].rows if row[0] == "EMPIR"]
    assert rows[0] == ("paper", "72.56", "48.51", "20.61", "24.59", "13.34", "26.76", "-")
    assert rows[1] == ("repository", "72.56", "48.51", "20.45", "24.59", "13.55", "26.78", "-")
    assert rows[2] == ("ours, released", "74.00", "50.00", "22.00", "16.00", "10.00", "24.50", "-")
    assert rows[4] == ("ours, adaptive", "74.00", "-", "-", "-", "-", "-", "3.00")
    gaps = [row[1:] for row in tables["CIFARconv9"].rows if row[0] == "EMPIR"]
    assert gaps[0][:-1] == ("released", "+1.44", "+1.49", "+1.55", "-8.59", "-3.55", "-2.28")
    assert gaps[2][:-1] == ("adaptive", "+1.44", "-", "-", "-", "-", "-23.78")


def test_figure4_sets_the_papers_words_beside_ours(workspace: Workspace, write_record: Write) -> None:
    target = TARGETS["fig4"]
    with workspace.opened():
        _fill(target, workspace, write_record)
        write_record("mnist-3lp-0fp-released-fgsm", 97, {"FGSM": 40})
        blocks = target.show(Results(workspace.records), workspace.figures)
    told = [block for block in blocks if isinstance(block, Table)][-2]
    assert told.rows[1] == ("3 low, 0 full", "fgsm", "56.90", "40.00", "-16.90", "W N B")
    assert told.rows[2] == ("3 low, 0 full", "time", "0.38", "1.50", "+1.12", "W N B")


def test_the_worst_case_of_two_records_is_image_by_image(workspace: Workspace, write_record: Write) -> None:
    target = TARGETS["weight-quantized"]
    with workspace.opened():
        _fill(target, workspace, write_record)
        write_record("mnist-orig-attacks", 95, dict.fromkeys((*WHITE, *BLACK, *NOISE), 50), worst=30)
        write_record("mnist-orig-strong", 95, worst=8)
        blocks = target.show(Results(workspace.records), workspace.figures)
    white = next(block for block in blocks if isinstance(block, Table))
    assert white.rows[0] == ("Orig.", "paper", "99.17", "39.40", "73.53", "7.67", "4.38", "5.68", "6.77", "-")
    assert white.rows[1] == ("Orig.", "ours", "95.00", *("50.00",) * 6, "8.00")


def test_discretization_shows_the_three_ways_beside_the_paper(workspace: Workspace, write_record: Write) -> None:
    target = TARGETS["discretization"]
    with workspace.opened():
        _fill(target, workspace, write_record)
        for eps, left in ((0.1, 90), (0.2, 40), (0.3, 39)):
            write_record(f"fcn2-full-2bit-inside-{eps}", 97, {"FGSM": left})
            write_record(f"fcn2-full-2bit-strong-{eps}", 97, worst=left // 10)
        blocks = target.show(Results(workspace.records), workspace.figures)
    table = next(block for block in blocks if isinstance(block, Table))
    assert table.rows[0][2:] == ("paper, Table 5 (FCN1)", "97.80", "97.40", "35.40", "35.30")
    assert table.rows[1][2:] == ("ours, FGSM on the discretized image", "97.00", "90.00", "40.00", "39.00")
    assert table.rows[3][2:] == ("ours, strong attacks, raw image", "97.00", "9.00", "4.00", "3.00")


def test_a_confusion_matrix_with_a_weak_digit_says_so(workspace: Workspace, write_record: Write) -> None:
    target = TARGETS["fig3b"]
    with workspace.opened():
        _fill(target, workspace, write_record)
        path = workspace.records / f"{target.parts[0].slug}.json"
        table = json.loads(path.read_text())
        table["counts"][4] = [5, 0, 0, 0, 5, 0, 0, 0, 0, 0]
        path.write_text(json.dumps(table))
        blocks = target.show(Results(workspace.records), workspace.figures)
    (shown,) = [block for block in blocks if isinstance(block, Table)]
    assert shown.rows[0][2:] == ("95.00", "50.00", "100")
