"""The benchmark of attacks: interleaved runs, correct ratios, and contenders that break images."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.judge import correct
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import QuantConv2d, bake_
from empir_plugin.models.quantize import Precision


@pytest.fixture
def script(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("attacks")


@pytest.fixture
def timing(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("attack_timing")


@pytest.fixture
def contenders(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("attack_contenders")


@pytest.fixture
def peers(script: ModuleType) -> None:
    with warnings.catch_warnings():
        # foolbox 3.3.4 imports a name that SciPy has moved.
        warnings.filterwarnings("ignore", "Please import `gaussian_filter` from", DeprecationWarning)
        for peer in script.PEERS:
            pytest.importorskip(peer, reason=f"{peer} is not installed: see benchmarks/peers.txt")


def _member(precision: str) -> nn.Module:
    conv = QuantConv2d(3, 8, 3, stride=2, bias=False, precision=Precision.parse(precision))
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ensemble = Ensemble([_member("w4a4"), _member("fp"), _member("w4a4")]).eval()
    bake_(ensemble)
    return ensemble


@pytest.fixture
def batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 10
    return x, y


def _fakes(timing: ModuleType, model: nn.Module, ran: list[str]) -> list[Any]:
    def contender(name: str, role: Any) -> Any:
        def make(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            ran.append(name)
            network(x)
            return x.fill_(0.5) if name == "ours" else x

        return timing.Contender(name, role, model, make)

    roles = timing.Role
    names = {"ours": roles.OURS, "slow": roles.PLAIN_PEER, "fast": roles.PLAIN_PEER, "ready": roles.PREPARED_PEER}
    return [contender(name, role) for name, role in names.items()]


def test_all_contenders_run_in_every_round_and_none_is_always_first(
    timing: ModuleType, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    ran: list[str] = []
    timed = timing.race(_fakes(timing, model, ran), *batch, 3)
    assert ran == ["ours", "slow", "fast", "ready", "slow", "fast", "ready", "ours", "fast", "ready", "ours", "slow"]
    assert [each.contender.name for each in timed] == ["ours", "slow", "fast", "ready"]
    assert all(len(each.seconds) == len(each.cpu_seconds) == 3 for each in timed)
    assert all(each.tally == timing.Tally(forward=12, gradient=0) for each in timed), "of one round"
    assert torch.equal(timed[1].images, batch[0]), "what one contender does to its images is no other's"


def test_ratios_are_of_medians_and_the_fastest_library_counts(
    timing: ModuleType, script: ModuleType, model: nn.Module
) -> None:
    def timed(contender: Any, *seconds: float) -> Any:
        return timing.Timed(contender, seconds, seconds, torch.zeros(1), timing.Tally())

    ours, slow, fast, ready = _fakes(timing, model, [])
    found = [timed(ours, 1, 2, 9), timed(slow, 8, 8, 8), timed(fast, 6, 4, 5), timed(ready, 3, 1, 1)]
    assert found[2].ratio_to(found[0]) == 2.5
    assert found[2].ratios_to(found[0]) == pytest.approx((5 / 9, 6))
    speedups = script._speedups(found, found[0])
    assert speedups == {"peer on the network as written": 2.5, "peer on our prepared network": 0.5}


def test_a_clock_is_read_around_the_attack_alone(
    timing: ModuleType, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    ticks = itertools.count(step=5)
    timed = timing.race(_fakes(timing, model, []), *batch, 2, clock=lambda: next(ticks))
    assert {each.seconds for each in timed} == {(5, 5)}


def test_passes_are_counted_with_and_without_gradient_and_in_every_form(
    timing: ModuleType, contenders: ModuleType, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    network = timing.Counter(model, timing.Tally())
    with torch.no_grad():
        network(x)
        network.around(contenders.prepare(model, contenders.CPU))(x[:5])
    assert (network.tally.forward, network.tally.gradient) == (17, 0)
    contenders._bare_passes(network, x, y)
    assert (network.tally.forward, network.tally.gradient) == (17, 12 * 40)


def test_as_written_quantizes_at_every_pass(contenders: ModuleType, model: nn.Module, batch: Any) -> None:
    network = contenders.copy_as_written(model)
    assert all(p.requires_grad for p in network.parameters())
    assert all(m.baked_weight is None for m in network.modules() if isinstance(m, QuantConv2d))
    assert all(m.baked_weight is not None for m in model.modules() if isinstance(m, QuantConv2d)), "a copy"
    assert torch.equal(network(batch[0]), model(batch[0]))


@pytest.mark.usefixtures("peers")
@pytest.mark.parametrize("name", ["pgd-standing", "pgd"])
def test_pgd_cases(name: str, script: ModuleType, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    case = script.CASES[name]
    found = script.measure(case, model, *batch, 1, 0)
    rows = {row["name"]: row for row in found["contenders"]}
    assert len(rows) == 10
    left = {row["robust_accuracy"] for row in rows.values() if "robust_accuracy" in row}
    ours = rows["empir_plugin"]["image_passes"]
    if case.own_labels:
        assert left == {100.0}
        assert ours == {"gradient": 480, "forward": 12}
    else:
        assert max(left) <= 100 * 11 / 12, "one label is wrong"
        assert ours["gradient"] < 480
    for peer in ("torchattacks", "foolbox", "cleverhans"):
        assert rows[f"{peer}, as written"]["image_passes"]["gradient"] == 480
        assert rows[f"{peer}, prepared"]["image_passes"]["gradient"] == 480
    assert "robust_accuracy" not in rows["40 bare passes, prepared"]
    assert "target" in script.table(found)


@pytest.mark.usefixtures("peers")
def test_every_library_s_pgd_keeps_the_budget_and_fools(
    contenders: ModuleType, timing: ModuleType, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    threat = Threat.parse("Linf:0.3")
    for each in contenders.pgd_contenders(model, threat, 0):
        adv = each.make(timing.Counter(each.network, timing.Tally()).eval(), *batch).detach()
        bare = each.name.startswith("40 bare")
        assert torch.equal(adv, batch[0]) is bare
        assert float((adv - batch[0]).abs().max()) <= threat.eps + 1e-6
        assert bool(correct(each.network, adv, batch[1]).all()) is False
        assert int(correct(each.network, adv, batch[1]).sum()) <= (11 if bare else 4), each.name


@pytest.mark.usefixtures("peers")
def test_autoattack_gives_pyautoattack_s_verdicts(
    script: ModuleType, model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    case = replace(script.CASES["autoattack"], threat=Threat.parse("Linf:0.1"))
    found = script.measure(case, model, *batch, 1, 0)
    ours, rounded, plain, ready = found["contenders"]
    assert rounded["role"] == "ours with bf16 gradients"
    assert ours["robust_accuracy"] == ready["robust_accuracy"] == plain["robust_accuracy"]
    assert ready["verdicts_unlike_ours"] == plain["verdicts_unlike_ours"] == 0
    assert ours["image_passes"]["gradient"] <= ready["image_passes"]["gradient"]


@pytest.mark.usefixtures("peers")
def test_the_script_writes_what_it_prints(
    script: ModuleType, model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = replace(script.CASES["pgd"], contenders=lambda model, threat, seed: _fakes(script, model, []))
    monkeypatch.setattr(script, "CASES", {"pgd": fake})
    threads = torch.get_num_threads()
    arguments = ["--n-images", "2", "--repeats", "2", "--threads", str(threads), "--out", str(tmp_path / "b.json")]
    result = CliRunner().invoke(script.main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "b.json").read_text())
    assert report["settings"] == {"model": "empir-cifar", "threads": threads, "repeats": 2, "clock": "wall", "seed": 0}
    assert {"torch", "torchattacks", "foolbox", "cleverhans", "pyautoattack"} <= report["versions"].keys()
    assert report["machine"]["cores"] > 0
    rows = report["cases"]["pgd"]["contenders"]
    assert [row["name"] for row in rows] == ["ours", "slow", "fast", "ready"]
    assert all(f"{row['median']:.2f} (" in result.output for row in rows)
    assert "times as fast as the fastest peer on the network as written" in result.output


def test_missing_libraries_and_folders_are_errors_before_anything_runs(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(script, "PEERS", ("torch", "not_there"))
    result = CliRunner().invoke(script.main, [])
    assert "not_there must be installed" in result.output
    assert "two commands at the top of benchmarks/peers.txt" in result.output
    monkeypatch.setattr(script, "PEERS", ())
    result = CliRunner().invoke(script.main, ["--out", str(tmp_path / "none" / "b.json")])
    assert result.exit_code == 1
    assert "for --out: make it first" in result.output
