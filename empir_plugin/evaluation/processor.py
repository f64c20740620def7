"""The processor that a measurement ran on, and the instructions that PyTorch and oneDNN choose on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Processor:
    """A processor, and the instructions that run.

    Args:
        name: Its name, as its maker writes it where the system tells.
        pytorch: Instructions of PyTorch's own kernels, such as ``"AVX2"`` or ``"AVX512"``; ``"sm_90"`` on a GPU.
        float32: Those of oneDNN's convolutions in float32.
        int8: Those of oneDNN's int8 kernels, such as ``"AVX-512 VNNI"`` or ``"AMX"``.
        bf16: Those of oneDNN's bfloat16 kernels; ``"none"`` if the processor has none for it.
    """

    name: str
    pytorch: str
    float32: str
    int8: str
    bf16: str

    @property
    def instructions(self) -> str:
        """The instructions as one text."""
        if {self.pytorch, self.float32, self.int8, self.bf16} == {self.pytorch}:
            return self.pytorch
        return f"float32: {self.float32}, int8: {self.int8}, bf16: {self.bf16}; PyTorch itself: {self.pytorch}"

    def __str__(self) -> str:
        return f"{self.name} ({self.instructions})"


def processor(device: torch.device | None = None) -> Processor:
    """The processor behind a device, the CPU by default.

    Instructions are those that kernels choose: what the processor has, up to the limits set by ``ATEN_CPU_CAPABILITY``
    for PyTorch and ``ONEDNN_MAX_CPU_ISA`` for oneDNN.

    Example:
        >>> processor().pytorch == torch.backends.cpu.get_cpu_capability()
        True
    """
    if device is not None and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return Processor(torch.cuda.get_device_name(device), *[f"sm_{major}{minor}"] * 4)
    about, own = _cpu_info(), torch.backends.cpu.get_cpu_capability()
    name = about.get("model name") or platform.processor() or platform.machine()
    flags = set(about.get("flags", "").split()) | _found_by_torch()
    limit = _limit(os.environ)
    float32, int8 = (_best(kinds, flags, limit) or own for kinds in (_FLOAT32, _INT8))
    return Processor(name, own, float32, int8, _best(_BF16, flags, limit) or "none")


_ISAS = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_BF16",
    "AVX512_CORE_FP16", "AVX10_1_512", "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16",
)  # fmt: skip
"""oneDNN's names of instruction sets, in order: a limit excludes those behind it."""

_FLOAT32 = (("AVX-512", "avx512bw", "AVX512_CORE"), ("AVX2", "avx2", "AVX2"), ("SSE4.1", "sse4_1", "SSE41"))
_INT8 = (
    ("AMX", "amx_int8", "AVX512_CORE_AMX"),
    ("AVX-512 VNNI", "avx512_vnni", "AVX512_CORE_VNNI"),
    ("AVX-512", "avx512bw", "AVX512_CORE"),
    ("AVX-VNNI", "avx_vnni", "AVX2_VNNI"),
    ("AVX2", "avx2", "AVX2"),
    ("SSE4.1", "sse4_1", "SSE41"),
)
_BF16 = (
    ("AMX", "amx_bf16", "AVX512_CORE_AMX"),
    ("AVX-512 BF16", "avx512_bf16", "AVX512_CORE_BF16"),
    ("AVX-512", "avx512bw", "AVX512_CORE"),
)
"""What oneDNN runs, the fastest first: name, the flag of the processor, and oneDNN's name of the set it belongs to."""


def _best(kinds: tuple[tuple[str, str, str], ...], flags: set[str], limit: int) -> str:
    """The first kind that the processor has and the limit allows; empty if there is none."""
    return next((name for name, flag, isa in kinds if flag in flags and _ISAS.index(isa) <= limit), "")


def _limit(environment: Mapping[str, str]) -> int:
    """Position of the last instruction set that oneDNN may use; one it does not know is no limit, as in oneDNN."""
    wanted = environment.get("ONEDNN_MAX_CPU_ISA") or environment.get("DNNL_MAX_CPU_ISA") or ""
    return _ISAS.index(wanted.upper()) if wanted.upper() in _ISAS else len(_ISAS) - 1


def _cpu_info() -> dict[str, str]:
    """What Linux tells of its first processor: its name and flags; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}


_CHECKS = {
    "avx2": "_is_avx2_supported",
    "avx512bw": "_is_avx512_supported",
    "avx512_vnni": "_is_vnni_supported",
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx_int8": "_is_amx_tile_supported",
    "amx_bf16": "_is_amx_tile_supported",
}


def _found_by_torch() -> set[str]:
    """The flags that PyTorch finds by itself, on every system; older releases look for fewer."""
    checks: dict[str, Any] = {flag: getattr(torch.cpu, name, None) for flag, name in _CHECKS.items()}
    return {flag for flag, check in checks.items() if check is not None and check()}
