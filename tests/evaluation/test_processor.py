"""The processor by name, and the instructions that kernels run: by hand, from flags and limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from empir_plugin.evaluation import processor as module
from empir_plugin.evaluation.processor import Processor, processor

SAPPHIRE = "sse4_1 avx avx2 avx512f avx512bw avx_vnni avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8"
CASCADE = "sse4_1 avx avx2 avx512f avx512bw avx512_vnni"
ALDER = "sse4_1 avx avx2 avx_vnni"


def found(monkeypatch: pytest.MonkeyPatch, flags: str, limit: str = "") -> tuple[str, str, str]:
    monkeypatch.setattr(module, "_cpu_info", lambda: {"model name": "A Processor", "flags": flags})
    monkeypatch.setattr(module, "_found_by_torch", set)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    here = processor()
    assert here.name == "A Processor"
    return here.float32, here.int8, here.bf16


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        (SAPPHIRE, "", ("AVX-512", "AMX", "AMX")),
        (SAPPHIRE, "ALL", ("AVX-512", "AMX", "AMX")),
        (SAPPHIRE, "DEFAULT", ("AVX-512", "AMX", "AMX")),
        (SAPPHIRE, "AVX10_1_512", ("AVX-512", "AVX-512 VNNI", "AVX-512 BF16")),
        (SAPPHIRE, "AVX512_CORE_BF16", ("AVX-512", "AVX-512 VNNI", "AVX-512 BF16")),
        (SAPPHIRE, "avx512_core_vnni", ("AVX-512", "AVX-512 VNNI", "AVX-512")),
        (SAPPHIRE, "AVX512_CORE", ("AVX-512", "AVX-512", "AVX-512")),
        (SAPPHIRE, "AVX2_VNNI", ("AVX2", "AVX-VNNI", "none")),
        (SAPPHIRE, "AVX2", ("AVX2", "AVX2", "none")),
        (SAPPHIRE, "SSE41", ("SSE4.1", "SSE4.1", "none")),
        (CASCADE, "", ("AVX-512", "AVX-512 VNNI", "AVX-512")),
        (ALDER, "", ("AVX2", "AVX-VNNI", "none")),
        ("sse4_1 avx avx2", "", ("AVX2", "AVX2", "none")),
    ],
)
def test_instructions_are_the_best_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, flags: str, limit: str, expected: tuple[str, str, str]
) -> None:
    # With limits, these are what oneDNN's verbose mode names on a processor with all of them.
    assert found(monkeypatch, flags, limit) == expected


def test_the_older_name_of_the_limit_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, SAPPHIRE)[1] == "AMX"
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert processor().int8 == "AVX2"


def test_another_kind_of_processor_has_the_instructions_that_pytorch_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SVE256")
    assert found(monkeypatch, "asimd sve") == ("SVE256", "SVE256", "none")


def test_pytorchs_own_checks_count_where_the_system_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cpu_info", dict)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "")
    for name in module._CHECKS.values():
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name != "_is_amx_tile_supported", raising=False)
    assert processor().int8 == "AVX-512 VNNI"
    assert processor().name
    for name in set(module._CHECKS.values()):
        monkeypatch.delattr(torch.cpu, name)
    assert processor().int8 == torch.backends.cpu.get_cpu_capability(), "a release without these checks"


def test_a_gpu_has_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    here = processor(torch.device("cuda"))
    assert here == Processor("A GPU", "sm_90", "sm_90", "sm_90", "sm_90")
    assert str(here) == "A GPU (sm_90)"


def test_the_text_names_all_that_differ() -> None:
    text = str(Processor("A Processor", "AVX512", "AVX-512", "AMX", "none"))
    assert text == "A Processor (float32: AVX-512, int8: AMX, bf16: none; PyTorch itself: AVX512)"


def test_the_real_one_runs_something() -> None:
    here: Any = vars(processor())
    assert all(isinstance(value, str) and value for value in here.values())
