"""Every kind of layer, bfloat16 math for float32 convolutions, and other ways to run one, for the tests of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch

from empir_plugin.models.layers import QuantizedLayer


@pytest.fixture(params=["conv", "linear"])
def make(request: pytest.FixtureRequest, toys: ModuleType) -> Callable[..., QuantizedLayer]:
    """Makes a layer of each kind: see ``toys.py``."""
    return getattr(toys, request.param)


@contextmanager
def _bf16() -> Iterator[None]:
    switches: list[Any] = [torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul]
    found = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "bf16"
        yield
    finally:
        for switch, value in zip(switches, found, strict=True):
            switch.fp32_precision = value


@pytest.fixture
def bf16_math() -> Callable[[], AbstractContextManager[None]]:
    """A block in which float32 convolutions multiply in bfloat16; skipped where torch or the processor cannot."""
    if not hasattr(getattr(torch.backends.mkldnn, "conv", None), "fp32_precision"):
        pytest.skip(f"torch {torch.__version__} has no switch for bfloat16 math")
    x, weight = torch.full((2, 16, 8, 8), 1 + 2**-12), torch.ones(16, 16, 3, 3)
    exact = torch.nn.functional.conv2d(x, weight)
    with _bf16():
        rounded = torch.nn.functional.conv2d(x, weight)
    if torch.equal(exact, rounded):
        pytest.skip("this processor has no AMX or AVX512_BF16: float32 is not multiplied in bfloat16")
    return _bf16


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
