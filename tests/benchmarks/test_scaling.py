"""The benchmark of growing cost: equal computation per image, and ratios within rounds."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import nn

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scaling(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("scaling")


def test_broken_images_stay_in_the_batch(scaling: ModuleType) -> None:
    tally = {}
    x, y = torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(8, dtype=torch.int64)
    for name, n in (("few", 2), ("many", 8)):
        contender = scaling.Contender(name, scaling.Role.OURS, nn.Flatten(), scaling._attack(n))
        (row,) = scaling.measure(scaling.Series("s", "images", (contender,), 8), x, y, 2)["rows"]
        tally[name] = row["image_passes"]
    assert tally == {
        "few": {"forward": 0, "gradient": 2 * scaling.STEPS},
        "many": {"forward": 0, "gradient": 8 * scaling.STEPS},
    }


def test_ratios_are_taken_within_rounds_of_processor_time(scaling: ModuleType) -> None:
    timing = importlib.import_module("attack_timing")

    def timed(*cpu: float) -> object:
        contender = scaling.Contender("c", scaling.Role.OURS, nn.Flatten(), scaling._attack(1))
        return timing.Timed(contender, (9.0,) * len(cpu), cpu, torch.zeros(1), timing.Tally())

    row = scaling._row(timed(2, 8, 3), timed(1, 2, 3))
    assert row["ratio"] == 2
    assert row["ratio_by_round"] == [1, 4]


def test_the_series_are_what_their_titles_say(scaling: ModuleType) -> None:
    members = scaling.members_series(4).contenders
    assert [len(each.network.members) for each in members] == [1, 2, 3, 4]
    precision = scaling.precision_series(4, 0).contenders
    assert [each.name for each in precision] == ["fp", "w8a8", "w4a4", "w2a2"]
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = [each.network(x) for each in precision]
    assert not any(torch.equal(outputs[0], other) for other in outputs[1:])


def test_the_script_writes_what_it_prints(scaling: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    contenders = tuple(scaling.Contender(str(n), scaling.Role.OURS, nn.Flatten(), scaling._attack(n)) for n in (1, 2))
    for name in ("images", "members", "precision"):
        series = scaling.Series(name, f"more {name}", contenders, 2)
        monkeypatch.setattr(scaling, f"{name}_series", lambda *_, series=series: series)
    arguments = ["--threads", str(torch.get_num_threads()), "--repeats", "2", "--out", str(tmp_path / "s.json")]
    result = CliRunner().invoke(scaling.main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "s.json").read_text())
    assert list(report["series"]) == ["images", "members", "precision"]
    assert report["versions"]["code_sha256"]
    for series in report["series"].values():
        assert series["title"] in result.output
        assert all(f"{row['ratio']:.2f} (" in result.output for row in series["rows"])
    result = CliRunner().invoke(scaling.main, ["--out", str(tmp_path / "none" / "s.json")])
    assert result.exit_code == 1
    assert "make it first" in result.output


@pytest.mark.usefixtures("scaling")
def test_the_committed_record_shows_what_the_page_says() -> None:
    report = json.loads((FOLDER / "records" / "scaling.json").read_text())
    ratios = {name: {row["name"]: row["ratio"] for row in each["rows"]} for name, each in report["series"].items()}
    assert list(ratios["images"]) == ["8", "16", "32", "64"]
    assert list(ratios["members"]) == ["1", "2", "3", "4"]
    assert list(ratios["precision"]) == ["fp", "w8a8", "w4a4", "w2a2"]
    for series in ("images", "members"):
        values = list(ratios[series].values())
        assert values == sorted(values)
        assert values[0] == 1
    for rows in report["series"].values():
        assert all(row["image_passes"]["forward"] == 0 for row in rows["rows"])
