"""Graphs as plain data: names, constants, and codes of 2 and 4 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin.export.graph import QONNX_DOMAIN, Graph


def test_codes_of_few_bits_share_bytes_and_the_first_is_lowest() -> None:
    graph = Graph()
    two, four = graph.codes(np.array([[1, 2], [3, 0], [2, 2]])), graph.codes(np.array([1, 15, 7]))
    assert (graph.constants[two].bits, graph.constants[four].bits) == (2, 4)
    assert graph.constants[two].bytes_stored == bytes([0b00_11_10_01, 0b00_00_10_10])
    assert graph.constants[four].bytes_stored == bytes([0xF1, 0x07])


@pytest.mark.parametrize(("largest", "dtype"), [(255, np.uint8), (510, np.uint16)])
def test_wider_codes_take_whole_numbers(largest: int, dtype: type) -> None:
    graph = Graph()
    constant = graph.constants[graph.codes(np.array([0, largest]))]
    assert (constant.bits, constant.values.dtype) == (None, dtype)
    assert np.frombuffer(constant.bytes_stored, dtype).tolist() == [0, largest]


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40))
def test_every_code_can_be_read_back(codes: list[int]) -> None:
    graph = Graph()
    constant = graph.constants[graph.codes(np.array(codes))]
    assert constant.bits is not None
    stored = np.frombuffer(constant.bytes_stored, np.uint8)
    places = [(byte >> shift) & (2**constant.bits - 1) for byte in stored for shift in range(0, 8, constant.bits)]
    assert places[: len(codes)] == codes
    assert len(stored) == -(-len(codes) * constant.bits // 8)


def test_names_hold_the_module_and_never_repeat() -> None:
    graph = Graph()
    with graph.scope("members.0"), graph.scope("conv1"):
        assert graph.where == "members.0.conv1"
        names = [graph.add("Relu", "images"), graph.add("Relu", "images")]
    assert names == ["members.0.conv1.Relu", "members.0.conv1.Relu_1"]
    assert graph.where == ""


def test_single_numbers_are_stored_once_for_each_type() -> None:
    graph = Graph()
    assert graph.constant(1.0) == graph.constant(1.0)
    assert len({graph.constant(1.0), graph.constant(1, np.int64), graph.constant([1.0])}) == 3
    node = graph.quant("BipolarQuant", "x", graph.constant(1.0))
    assert (node, graph.nodes[-1].domain) == ("BipolarQuant", QONNX_DOMAIN)
