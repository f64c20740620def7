"""Packed bytes are what the files of the weights really take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.overhead.count import packed_bytes
from empir_plugin.models.architectures import CIFARConv
from empir_plugin.models.precision import Precision
from empir_plugin.zoo.builders import build_model
from empir_plugin.zoo.card import cards


@pytest.mark.parametrize(("precision", "payload"), [("fp", 466_816), ("w4a2", 189_616), ("w2a2", 169_816)])
def test_every_weight_takes_its_bits(precision: str, payload: int) -> None:
    quantized, rest = 79_200, 37_504
    bits = Precision.parse(precision).weight_bits
    scales = 0 if bits == 32 else 3 * 4
    assert payload == quantized * bits // 8 + rest * 4
    header = packed_bytes(CIFARConv(Precision.parse(precision))) - payload - scales
    assert 0 < header < 1200


def test_the_shipped_file_has_that_size() -> None:
    from importlib.resources import files

    shipped = files("empir_plugin.zoo").joinpath("weights") / cards()["cifarconv-w2a2"].networks[0].weights
    assert packed_bytes(build_model(cards()["cifarconv-w2a2"])) == len(shipped.read_bytes())


def test_buffers_are_stored_too() -> None:
    statistics = 2 * 4 * 100 + 8
    assert packed_bytes(nn.BatchNorm1d(100)) > 2 * 4 * 100 + statistics


def test_shared_tensors_are_refused() -> None:
    one = nn.Linear(2, 2)
    other = nn.Linear(2, 2)
    other.weight = one.weight
    with pytest.raises(EvaluationError, match="cannot be packed"):
        packed_bytes(nn.Sequential(one, other))
    with torch.device("meta"), pytest.raises(EvaluationError, match="cannot be packed"):
        packed_bytes(nn.Linear(2, 2))
