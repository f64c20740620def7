"""The page: known numbers in their places, nothing for a browser to fetch or run, and an atomic write."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.record import PartRecord, percent
from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.page.details import footnote, headline
from empir_plugin.leaderboard.page.entries import PublishedEntry
from empir_plugin.leaderboard.page.render import render, write_page
from empir_plugin.leaderboard.tree import Place, Tree

VOID = {"meta", "link", "br", "input", "img", "hr"}
HOSTILE = '"><img src=x onerror=alert(1)></td><script>alert("it\'s")</script>'
PAPER = """
title = '''{0}'''
link = "https://example.org/paper"
authors = '''{0}'''
venue = '''{0}'''
[[models]]
model = "my-model"
stem = "Other2021Standing"
dataset = "cifar10"
architecture = '''{0}'''
note = "<b>bold</b> {1}"
claims = [{{ threat = "Linf:8/255", accuracy = "50.00", attack = '''{0}''' }}]
"""


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def all(self, *tags: str) -> list[Node]:
        """Every descendant with one of these tags, or with any, in document order."""
        nodes: list[Node] = []
        for child in self.children:
            if isinstance(child, Node):
                nodes += [child] if not tags or child.tag in tags else []
                nodes += child.all(*tags)
        return nodes

    @property
    def text(self) -> str:
        parts = (child if isinstance(child, str) else child.text for child in self.children)
        return " ".join(" ".join(parts).split())


class Parser(HTMLParser):
    """Parses a page into a tree; fails unless tags are properly nested."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        node = Node(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(text: str) -> Node:
    parser = Parser()
    parser.feed(text)
    parser.close()
    (root,) = parser.open
    return root


def ranking(page: Node, board: int = 0) -> list[dict[str, str]]:
    """The rows of a ranking table, by the keys of its columns."""
    table = [table for table in page.all("table") if table.attributes["class"] == "ranking"][board]
    names = [head.attributes.get("data-column", "record") for head in table.all("thead")[0].all("th")]
    rows = [row.all("td", "th") for row in table.all("tbody")[0].all("tr")]
    return [dict(zip(names, (cell.text for cell in row), strict=True)) for row in rows]


def article(page: Node, key: str) -> Node:
    return next(node for node in page.all("article") if node.attributes["id"] == key)


def bars(entry: Node) -> list[tuple[str, str, str]]:
    """Name, width and number of every bar."""
    (table,) = [table for table in entry.all("table") if table.attributes["class"] == "bars"]
    rows = table.all("tbody")[0].all("tr")
    return [(row.all("th")[0].text, row.all("rect")[1].attributes["width"], row.all("td")[1].text) for row in rows]


def facts(node: Node) -> dict[str, str]:
    pairs = zip(node.all("dt"), node.all("dd"), strict=True)
    return {name.text: value.text for name, value in pairs}


def external_references(page: Node) -> list[str]:
    """Everything a browser would load: all addresses except those of links."""
    addresses = [
        value
        for node in page.all()
        for key, value in node.attributes.items()
        if key in ("src", "srcset", "href", "xlink:href", "poster", "data", "action", "formaction")
        and node.tag != "a"
        and value != "data:,"
    ]
    code = " ".join(node.text for node in page.all("style", "script"))
    return addresses + re.findall(r"url\(|@import|\bimport\b|fetch\(|XMLHttpRequest|WebSocket|https?://", code)


def add_hostile(tree: Tree, folder: Path, make: Any) -> None:
    """Add an entry whose every text tries to inject markup."""
    folder.mkdir()
    (folder / "paper.toml").write_text(PAPER.format(HOSTILE, "1 &lt; 2"))
    attack = make.attack(HOSTILE, make.robust(0, 9), HOSTILE, rules=HOSTILE, flags=(HOSTILE,))
    versions = {"python": HOSTILE, "torch": HOSTILE, HOSTILE: HOSTILE}
    whole = make.record(
        make.autoattack(flags=(HOSTILE,)), attack, model="my-model", model_={"sha256": "ab" * 32},
        data={"source": HOSTILE}, versions=versions,
    )  # fmt: skip
    replace(whole, protocol={**whole.protocol, "name": HOSTILE}).write(folder / "hostile.json")
    audit = make.audit(whole, masked=True)
    audit = replace(audit, checks=(replace(audit.checks[0], name=HOSTILE, measured=HOSTILE),))
    audit.write(folder / "hostile-audit.json")
    costs = make.overhead(whole, "empir-cifar")
    spread = {"median": 2.0, "p10": 1.0, "p90": 3.0}
    rows = [
        {"network": "model", "backend": HOSTILE, "milliseconds": spread, "ratio": spread, "unavailable": ""},
        {"network": "baseline", "backend": f"float32, {HOSTILE}", "milliseconds": spread, "ratio": spread},
    ]
    costs["measured"] = {
        "device": f"cpu: {HOSTILE}", "backend": HOSTILE, "threads": 1, "batch_size": 32, "repeats": 20,
        "execution": "sequential", "baseline_layout": HOSTILE, "model": spread, "baseline": spread, "ratio": spread,
        "backends": rows,
    }  # fmt: skip
    (folder / "hostile-overhead.json").write_text(json.dumps(costs))
    names = ("hostile.json", "hostile-audit.json", "hostile-overhead.json", "paper.toml")
    record, judged, cost, paper = (folder / name for name in names)
    add(tree, "my-model", Files((record,), judged, cost, paper))


def test_a_tree_without_entries_says_so(tmp_path: Path) -> None:
    text = render(Tree(tmp_path))
    assert "There are no entries yet" in text
    assert parse(text).all("table", "svg", "section") == []


def test_a_missing_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no leaderboard at"):
        render(Tree(tmp_path / "none"))


def test_the_row_of_an_entry(place: Place, tree: Tree) -> None:
    (row,) = ranking(parse(render(tree)))
    assert row == {
        "rank": "1",
        "model": "Sen2020EMPIR CIFARconv, max vote of 3 "
        "(4-bit weights and 2-bit activations; 2-bit both; full precision)",
        "clean": "75.23",
        "autoattack": "1.40",
        "worst": "0.90",
        "claim": "13.55 at L∞, ε = 0.1",
        "audit": "passed",
        "storage": "1.77",
        "time": "1.19",
        "record": "2 runs",
    }


def test_a_missing_measurement_is_neither_blank_nor_zero(tree: Tree, tmp_path: Path, make: Any) -> None:
    make.record(make.autoattack(), model="cifarconv-w2a2").write(tmp_path / "aa.json")
    add(tree, "cifarconv-w2a2", Files((tmp_path / "aa.json",)))
    page = parse(render(tree))
    (row,) = ranking(page)
    assert (row["audit"], row["storage"], row["time"], row["claim"]) == (*["not measured"] * 3, "none")
    charts = {figure.all("figcaption")[0].text: figure.text for figure in page.all("figure")}
    assert charts["Robust accuracy against storage"].endswith("Not measured for any entry.")
    assert charts["Robust accuracy against time"].endswith("Not measured for any entry.")
    entry = article(page, "cifar10-Linf-Sen2020EMPIR_w2a2")
    assert "Masking audit: not measured." in entry.text
    values = facts(entry)
    costs = "Weight file", "Time, Equation 6, as built", "Latency, measured", "Relative to"
    assert {values[name] for name in costs} == {"not measured"}
    assert values["Device"] == "cpu"
    drawn = [cell for cell in page.all("td") if cell.attributes.get("class") == "drawn"]
    assert all(cell.text for cell in page.all("td") if cell not in drawn and not cell.all("svg"))


def test_boards_and_ranks(place: Place, tree: Tree, tmp_path: Path, make: Any) -> None:
    for model, robust in (("cifarconv-fp", 0), ("cifarconv-w2a2", 95)):
        make.record(make.autoattack(0, robust), model=model).write(tmp_path / f"{model}.json")
        add(tree, model, Files((tmp_path / f"{model}.json",)))
    about = {"model": "empir-mnist", "dataset": "mnist", "clean": 9901}
    make.record(make.autoattack(0, 3, threat="Linf:0.3"), **about).write(tmp_path / "mnist.json")
    add(tree, "empir-mnist", Files((tmp_path / "mnist.json",)))
    page = parse(render(tree))
    headings = [node.text for node in page.all("h2")]
    assert headings[:2] == ["CIFAR-10, L∞, ε = 8/255", "MNIST, L∞, ε = 0.3"]
    # By AutoAttack alone, Sen2020EMPIR (1.40) would be first; its lowest known accuracy is 0.90.
    ranks = [(row["rank"], row["model"].split()[0], row["worst"]) for row in ranking(page)]
    assert ranks == [
        ("1", "Sen2020EMPIR_w2a2", "0.95"), ("2", "Sen2020EMPIR", "0.90"), ("3", "Sen2020EMPIR_fp", "0.00"),
    ]  # fmt: skip
    assert [(row["worst"], row["claim"]) for row in ranking(page, 1)] == [("0.03", "17.51 same radius")]


def test_a_claim_is_shown_beside_the_worst_case_and_runs_under_its_own_threat(
    place: Place, tree: Tree, make: Any
) -> None:
    def claim_cells() -> list[str]:
        (table,) = [table for table in parse(render(tree)).all("table") if table.attributes["class"] == "claims"]
        (row,) = table.all("tbody")[0].all("tr")
        assert row.all("svg")[0].attributes["aria-label"] == "Claimed 13.55 %, measured 0.90 %"
        return [cell.text for cell in row.all("td")]

    assert claim_cells() == ["13.55 PGD, L∞, ε = 0.1", "0.90 all attacks, L∞, ε = 8/255", "", "not measured"]
    attacks = [make.attack(name, make.robust(0, n), threat="Linf:0.1") for name, n in (("PGD", 0), ("FGSM", 1330))]
    paper = make.record(*attacks, threat="Linf:0.1")
    replace(paper, protocol={**paper.protocol, "name": "paper"}).write(tree.runs / "paper.json")
    replace(paper, protocol={**paper.protocol, "name": "released", "headline": "AVERAGE"}).write(
        tree.runs / "released.json"
    )
    make.record(*attacks, threat="Linf:0.2").write(tree.runs / "other.json")
    assert claim_cells()[-1] == (
        "0.00 %, the worst case over 2 attacks (protocol paper, 10,000 images) "
        "6.65 %, the average of 2 attacks (protocol released, 10,000 images)"
    )


def test_a_claim_under_the_threat_of_the_board(tree: Tree, tmp_path: Path, make: Any) -> None:
    about = {"model": "empir-mnist", "dataset": "mnist", "clean": 9901}
    make.record(make.autoattack(0, 3, threat="Linf:0.3"), **about).write(tmp_path / "mnist.json")
    add(tree, "empir-mnist", Files((tmp_path / "mnist.json",)))
    text = render(tree)
    assert "17.51" in text
    assert "the same threat" in text


def test_bars_of_every_attack_and_part(tree: Tree, tmp_path: Path, make: Any) -> None:
    parts = [PartRecord(name, make.robust(0, n), percent(make.robust(0, n))) for name, n in (
        ("clean", 7523), ("apgd-ce", 200), ("square", 140),
    )]  # fmt: skip
    excluded = make.attack("CW", make.robust(0, 5080), threat="L2:inf", in_worst_case=False)
    record = make.record(make.autoattack(parts=tuple(parts), flags=("Square wins",)), excluded)
    record.write(tmp_path / "aa.json")
    add(tree, "empir-cifar", Files((tmp_path / "aa.json",)))
    entry = article(parse(render(tree)), "cifar10-Linf-Sen2020EMPIR")
    assert bars(entry) == [
        ("No attack", "75.23", "75.23"),
        ("AutoAttack flag: Square wins", "1.4", "1.40"),
        ("after apgd-ce", "2.0", "2.00"),
        ("after square", "1.4", "1.40"),
        ("CW L2, any size; not counted", "50.8", "50.80"),
        ("Worst case over 1 attack", "1.4", "1.40"),
    ]
    assert "Unreliable: AutoAttack's own number is likely to be too high. It warns: Square wins." in entry.text


def test_later_attacks_of_a_cascade_are_marked(tree: Tree, tmp_path: Path, make: Any) -> None:
    attacks = make.autoattack(), make.attack("PGD", make.robust(0, 120))
    for cascade, expected in ((False, "PGD"), (True, "PGD accuracy after all attacks so far")):
        make.record(*attacks, cascade=cascade).write(tmp_path / str(cascade) / "aa.json")
        shutil.rmtree(tree.root, ignore_errors=True)
        add(tree, "empir-cifar", Files((tmp_path / str(cascade) / "aa.json",)))
        entry = article(parse(render(tree)), "cifar10-Linf-Sen2020EMPIR")
        assert [name for name, _, _ in bars(entry)][2] == expected


def test_the_key_facts_of_a_run_record(place: Place, tree: Tree, standard: Any) -> None:
    page = parse(render(tree))
    first, second = [node for node in page.all("section") if node.attributes.get("class") == "run"]
    values = facts(first)
    assert first.all("h5")[0].text == "runs/aa.json"
    assert second.all("h5")[0].text == "runs/adaptive.json"
    assert values["SHA-256 of the model"] == standard.model["sha256"]
    assert values["SHA-256 of the images and labels"] == standard.data["sha256"]
    assert values["SHA-256 of this record"] == hashlib.sha256((tree.runs / "aa.json").read_bytes()).hexdigest()
    assert (values["Seed"], values["Cascade"], values["Flags of AutoAttack"]) == ("0", "no", "none")
    assert values["Versions"] == "python 3.11.7, empir-plugin 0.1.0, torch 2.15.0"
    assert values["Images"] == "10,000 images of cifar10 test (official)"
    assert "AutoAttackSuite(version='standard'" in first.text


def test_a_masked_model_is_shown_as_such(tree: Tree, tmp_path: Path, make: Any) -> None:
    record = make.record(make.autoattack())
    record.write(tmp_path / "aa.json")
    make.audit(record, masked=True).write(tmp_path / "audit.json")
    add(tree, "empir-cifar", Files((tmp_path / "aa.json",), tmp_path / "audit.json"))
    page = parse(render(tree))
    (row,) = ranking(page)
    assert (row["audit"], row["autoattack"]) == ("masked zero gradients", "1.40 unreliable")
    assert "masked: 1 of 1 checks on 150 images" in article(page, "cifar10-Linf-Sen2020EMPIR").text
    assert "zero gradients failed Some. 0.5 0.02" in page.text


def test_all_text_of_the_data_is_escaped(tree: Tree, tmp_path: Path, make: Any) -> None:
    add_hostile(tree, tmp_path / "hostile", make)
    text = render(tree)
    page = parse(text)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert page.all("img", "iframe", "object", "form") == []
    assert [key for node in page.all() for key in node.attributes if key.startswith("on") or key == "style"] == []
    assert external_references(page) == []
    # Title, authors, venue, architecture (twice), the claim's attack, and all of what the files say.
    assert page.text.count(HOSTILE) >= 18
    assert "<img" not in text
    assert {node.text for node in page.all("b")} == {"bold"}
    assert "1 < 2" in page.text


def test_a_footnote_with_other_markup_is_rejected_by_the_entry_and_escaped_by_the_page(
    place: Place, tree: Tree
) -> None:
    table = json.loads(place.entry.read_text())
    place.entry.write_text(json.dumps(table | {"footnote": HOSTILE}))
    with pytest.raises(EvaluationError, match=r"footnote.*markup"):
        render(tree)
    row = cast("PublishedEntry", SimpleNamespace(entry=SimpleNamespace(footnote=HOSTILE)))
    assert "<" not in footnote(row)
    row = cast("PublishedEntry", SimpleNamespace(entry=SimpleNamespace(footnote="a <sub>b</sub>")))
    assert str(footnote(row)) == "a <sub>b</sub>"


def test_the_page_loads_nothing_and_runs_only_its_own_script(place: Place, tree: Tree) -> None:
    text = render(tree)
    page = parse(text)
    assert external_references(page) == []
    assert {link.attributes["href"][:8] for link in page.all("a") if link.attributes["href"][0] != "#"} == {"https://"}
    (policy,) = [
        node.attributes["content"]
        for node in page.all("meta")
        if node.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="https://example.org/x.js"></script>',
        '<link rel="stylesheet" href="https://example.org/x.css">',
        "<style>@import 'x.css';</style>",
        "<style>b { background: url(x.png) }</style>",
        "<script>fetch(1)</script>",
    ],
)
def test_external_references_are_detected(planted: str, tmp_path: Path) -> None:
    assert external_references(parse(render(Tree(tmp_path)) + planted))


def test_references_and_roles(place: Place, tree: Tree) -> None:
    """References resolve, drawings have accessible names, and table headings have a scope."""
    page = parse(render(tree))
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(set(ids)) == len(ids)
    for node in page.all():
        for key in ("aria-labelledby", "for"):
            assert set(node.attributes.get(key, "").split()) <= set(ids)
        if node.tag == "a" and node.attributes["href"].startswith("#"):
            assert node.attributes["href"][1:] in ids
    assert all("scope" in head.attributes for head in page.all("th"))
    assert [head.attributes["aria-sort"] for head in page.all("th") if "aria-sort" in head.attributes] == ["descending"]
    for drawing in page.all("svg"):
        named = {"aria-label", "aria-labelledby"} & set(drawing.attributes)
        assert drawing.attributes.get("aria-hidden") == "true" or (drawing.attributes["role"] == "img" and named)
    (chart,) = [node for node in page.all("desc") if node.attributes["id"] == "cifar10-Linf-clean-desc"]
    assert chart.text.endswith("Sen2020EMPIR: 75.23 % clean, 0.90 % in the worst case.")


def test_the_same_tree_gives_the_same_text_in_any_folder(place: Place, tree: Tree, tmp_path: Path) -> None:
    shutil.copytree(tree.root, tmp_path / "elsewhere")
    text = render(tree)
    assert text == render(tree) == render(Tree(tmp_path / "elsewhere"))
    assert str(tmp_path) not in text
    place.entry.write_text(place.entry.read_text().replace("\n", " \n"))
    assert text == render(tree)


def test_a_tree_whose_numbers_disagree_with_its_records_makes_no_page(place: Place, tree: Tree, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("old")
    place.entry.write_text(place.entry.read_text().replace('"0.90"', '"0.80"'))
    with pytest.raises(
        EvaluationError, match=r"external is \"0\.80\", its sources make it \"0\.90\".*leaderboard check"
    ):
        write_page(tree, out)
    assert out.read_text() == "old"


def test_the_page_is_written_atomically(
    place: Place, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "page.html"
    write_page(tree, out)
    assert out.read_bytes() == render(tree).encode()
    out.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"page cannot be written.*No space left on device.*choose another"):
        write_page(tree, out)
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert out.read_text() == "old"


def test_an_unwritable_path_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(InputError, match="the page cannot be written to"):
        write_page(Tree(tmp_path / "tree"), tmp_path / "tree")
    assert list((tmp_path / "tree").iterdir()) == []


def test_the_headline_of_a_protocol(make: Any) -> None:
    record = make.record(make.attack("PGD", make.robust(0, 10)))
    assert headline(record) == "0.10 %, the worst case over 1 attack"
    average = replace(record, protocol={"headline": "AVERAGE"})
    assert headline(average) == "0.10 %, the average of 1 attack"


def test_the_command(place: Place, tree: Tree, tmp_path: Path) -> None:
    from empir_cli.commands.leaderboard import leaderboard

    out = tmp_path / "page.html"
    result = CliRunner().invoke(leaderboard, ["html", "--tree", str(tree.root), "--out", str(out)])
    assert (result.exit_code, result.output) == (0, f"Page: {out}\n")
    assert out.read_text(encoding="utf-8") == render(tree)
    result = CliRunner().invoke(leaderboard, ["html", "--tree", str(tmp_path / "none"), "--out", str(out)])
    assert result.exit_code == 2
    assert "there is no leaderboard at" in result.output


def test_entries_of_others_are_in_the_ranking_of_the_whole_board(place: Place, tree: Tree) -> None:
    others = {
        "Best2020File": {"clean_acc": "60", "autoattack_acc": "50.1", "name": HOSTILE, "link": "javascript:alert(1)"},
        "Bad2020File": {"autoattack_acc": None},
    }
    for stem, table in others.items():
        (place.entry.parent / f"{stem}.json").write_text(json.dumps(table))
    page = parse(render(tree))
    (whole,) = [node for node in page.all("table") if node.attributes.get("class") == "whole"]
    cells = [[cell.text for cell in row.all("td", "th")] for row in whole.all("tr")[1:]]
    assert [row[:2] for row in cells] == [["1", "Best2020File"], ["2", "Sen2020EMPIR"]]
    assert cells[0][2:6] == [" ".join(HOSTILE.split()), "60.00", "50.10", "50.10"]
    assert [link.attributes["href"] for link in whole.all("a")] == [
        "#cifar10-Linf-Sen2020EMPIR",
        "https://openreview.net/forum?id=HJem3yHKwH",
    ]
    assert "Bad2020File.json" in page.all("ul")[-1].text
    assert len(ranking(page)) == 1, "only entries with records have a row with their measurements"


def test_a_board_with_entries_of_others_only(tmp_path: Path) -> None:
    board = tmp_path / "model_info" / "cifar100" / "corruptions"
    board.mkdir(parents=True)
    (board / "Any2020File.json").write_text(json.dumps({"clean_acc": "60", "corruptions_acc": "50.1"}))
    page = parse(render(Tree(tmp_path)))
    assert page.all("h2")[0].text == "CIFAR-100, common corruptions"
    assert [cell.text for cell in page.all("tr")[1].all("td", "th")][:5] == [
        "1",
        "Any2020File",
        "Any2020File",
        "60.00",
        "50.10",
    ]


def test_an_entry_of_corruptions(tree: Tree, tmp_path: Path, make: Any) -> None:
    make.corruptions().write(tmp_path / "c.json")
    add(tree, "empir-cifar", Files((tmp_path / "c.json",)))
    page = parse(render(tree))
    (row,) = ranking(page)
    assert (row["clean"], row["autoattack"], row["worst"]) == ("75.23", "50.00", "50.00 shot noise")
    labels = [node.text.split()[0] for node in page.all("th") if "data-column" in node.attributes]
    assert "Corruptions" in labels
    assert "AutoAttack" not in labels
    assert "Mean over 15 corruptions" in page.text
