"""The benchmark of GPUs, as far as a CPU can run it: cases by hand, kernels that round, complete records."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from empir_plugin.models.architectures.networks import conv2d
from empir_plugin.models.quantize import Precision

CPU = torch.device("cpu")
TINY = ("--device", "cpu", "--channels", "8", "--no-bound", "--batch-size", "2", "--width", "8", "--repeats", "1")


@pytest.fixture
def script(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("gpu")


@pytest.fixture
def sums(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("gpu_sums")


def small(sums: ModuleType, codes: str, **changes: Any) -> Any:
    return replace(sums.Case("w4a4", 15, 15, 3, 2, codes, images=2, side=4, filters=2), **changes)


def test_sums_by_hand(sums: ModuleType) -> None:
    top = small(sums, "top").sums()
    assert top.shape == (2, 2, 4, 4)
    assert (top[0, 0, 1, 1], top[0, 0, 0, 0]) == (15 * 15 * 18, 15 * 15 * 8)
    assert small(sums, "alternating").sums()[0, 0, 1, 1] == 0, "as many of either sign"
    random = small(sums, "random")
    codes, weight = random.integers()
    window = codes[1, :, 1:4, 0:3].long() * weight[1].long()
    assert random.sums()[1, 1, 2, 1] == window.sum()


def test_cases_reach_the_bound_and_do_not_pass_it(sums: ModuleType) -> None:
    found = list(sums.cases((16, 1024)))
    largest = [case.fan_in * case.weight_top * case.code_top for case in found]
    assert max(largest) <= 2**24
    assert {case.codes for case in found} == {"top", "alternating", "random"}
    for bits in ("w2a2", "w4a4", "w4a8"):
        mine = [case.fan_in * case.weight_top * case.code_top for case in found if case.bits == bits]
        assert max(mine) > 0.99 * 2**24
    assert not any(case.channels == 1024 and case.bits == "w4a8" and case.size == 5 for case in found), "too large"
    assert {case.channels for case in sums.cases((16,), bound=False)} == {16}


@pytest.mark.parametrize("codes", ["top", "alternating", "random"])
def test_every_choice_that_a_cpu_has_is_exact(sums: ModuleType, codes: str) -> None:
    case = small(sums, codes, channels=40)
    ran = [name for name, choice in sums.CHOICES.items() if not choice.unusable(CPU)]
    assert {"convolution", "unfolded"} <= set(ran)
    for name in ran:
        assert torch.equal(sums.CHOICES[name].run(case, CPU).double(), case.sums()), name


@pytest.mark.parametrize("size", [1, 3, 5])
def test_bfloat16_operands_with_float32_sums_are_exact(
    sums: ModuleType, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(sums, "_product_in_float32", lambda x, matrix: x.float() @ matrix.float())
    choice = sums.CHOICES["unfolded, bfloat16"]
    assert choice.unusable(CPU) == ""
    case = small(sums, "random", size=size, code_top=255)
    assert torch.equal(choice.run(case, CPU).double(), case.sums())


@dataclass(frozen=True)
class Rounds:
    """Convolutions that round sums to so many bits, as tensor cores might, and refuse many channels."""

    float32: Any
    bits: int = 11
    name: str = "rounds"

    def unusable(self, device: torch.device) -> str | None:
        return None

    def compile(self, op: Any) -> Callable[[Tensor], Tensor]:
        if op.weight.shape[1] > 100:
            raise RuntimeError("out of memory\nand more")

        def program(codes: Tensor) -> Tensor:
            exact = self.float32.compile(op)(codes)
            unit = 2.0 ** (torch.frexp(exact)[1] - self.bits)
            return (exact / unit).round() * unit

        return program


def test_a_kernel_that_rounds_is_found_with_the_fan_in_where_it_starts(sums: ModuleType) -> None:
    rounds = sums.Choice(Rounds(sums.Float32()), on_cpu=True)
    todo = [small(sums, "top", channels=channels, weight_top=1, code_top=1) for channels in (8, 60, 200)]
    todo.append(small(sums, "random", channels=80))
    chosen = {"rounds": rounds, "float32": sums.CHOICES["convolution"], "int8": replace(rounds, largest=1)}
    found = sums.compare(chosen, todo, CPU)
    assert found["summary"]["float32"] == {
        "cases": 4, "inexact_cases": 0, "smallest_inexact_fan_in": None, "largest_error": 0.0, "errors": 0
    }  # fmt: skip
    row = found["summary"]["rounds"]
    assert (row["cases"], row["inexact_cases"], row["smallest_inexact_fan_in"], row["errors"]) == (3, 1, 80 * 9, 1)
    assert row["largest_error"] > 0
    assert found["rows"][2]["results"]["rounds"] == {"error": "out of memory"}
    assert "int8" not in found["rows"][3]["results"], "its codes are too large for it"


def test_choices_of_gpus_and_cases_without_time_are_left_out(sums: ModuleType) -> None:
    times = iter((True, False))
    todo = [small(sums, "top"), small(sums, "random")]
    found = sums.compare(sums.CHOICES, todo, CPU, in_time=lambda: next(times))
    assert found["left_out"]["convolution, TF32"] == "a choice of GPUs only"
    assert (len(found["rows"]), found["cases_without_time"]) == (1, 1)


def test_switches_are_set_inside_and_restored(sums: ModuleType) -> None:
    def state() -> tuple[bool, ...]:
        cudnn: Any = torch.backends.cudnn
        return cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = state()
    for choice in sums.CHOICES.values():
        with choice.switches():
            assert state() == (choice.benchmark, choice.deterministic, choice.tf32, choice.tf32)
        assert state() == before


def test_a_step_moves_along_the_sign_and_stays_near(script: ModuleType) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    model[1].weight.data = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])  # type: ignore[index]
    x, y = torch.full((1, 3, 1, 1), 0.5), torch.tensor([0])
    moved = script.step(model, x, x, y).flatten()
    torch.testing.assert_close(moved, torch.tensor([0.5 - script.STEP, 0.5 + script.STEP, 0.5]))
    far = script.step(model, x - 1, x, y).flatten()
    assert (far - 0.5).abs().max() <= script.EPS + 1e-6


def tiny(text: str) -> nn.Module:
    torch.manual_seed(0)
    conv = conv2d(3, 4, 5, stride=4, precision=Precision.parse(text))
    return nn.Sequential(conv, nn.Flatten(), nn.Linear(4 * 49, 10)).eval()


def run(script: ModuleType, *arguments: str) -> Result:
    return CliRunner().invoke(script.main, [*TINY, "--no-compile", *arguments], catch_exceptions=False)


def test_the_script_writes_what_it_prints(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = list(importlib.import_module("gpu_sums").cases((8,), bound=False))[:4]
    monkeypatch.setattr(script, "cases", lambda channels, bound: few)
    monkeypatch.setattr(script, "cifarconv", tiny)
    monkeypatch.setattr(script, "resnet18", lambda text, width: tiny(text))
    target = tmp_path / "gpu.json"
    output = run(script, "--out", str(target)).output
    record = json.loads(target.read_text())
    assert list(record) == ["machine", "gpu", "versions", "settings", "exactness", "times", "finished"]
    assert record["gpu"] is None
    assert len(record["versions"]["code_sha256"]) == 64
    assert record["exactness"]["summary"]["convolution"]["inexact_cases"] == 0
    assert len(record["exactness"]["rows"]) == 4
    assert list(record["times"]) == ["CIFARconv", "ResNet-18"]
    for found in record["times"].values():
        assert list(found["rows"]) == ["passes", "steps"]
        assert found["rows"]["passes"]["fp"]["ratio"]["median"] == 1
        assert found["rows"]["steps"][script.STEP_BASELINE]["ratio"]["median"] == 1
        names = [name for part in found["rows"].values() for name in part] + list(found["left_out"])
        for name in names:
            assert name in output
        assert {"fp + w4a4 + w2a2, int8 kernels", "PGD step, int8 kernels, bf16 gradients"} <= set(names)
        assert "passes, TF32" in found["left_out"]


def test_a_device_or_folder_that_is_missing_is_refused_before_anything_runs(script: ModuleType, tmp_path: Path) -> None:
    result = run(script, "--out", str(tmp_path / "nowhere" / "gpu.json"))
    assert result.exit_code == 1
    assert "make it first" in result.output


def test_what_fails_on_a_device_is_left_out_with_its_error(script: ModuleType) -> None:
    left_out: dict[str, str] = {}

    def fails() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    assert script._works("fine", lambda: None, left_out)
    assert not script._works("graph", fails, left_out)
    assert "not permitted" in left_out["graph"]
    assert list(left_out) == ["graph"]
