"""onnxruntime's int8 convolutions on the same integers; skipped, with a reason, where it is not installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from empir_plugin.models.integer.layers import IntegerLayer


@dataclass(frozen=True, eq=False)
class Peer:
    """The same computation in another library.

    Args:
        run: One pass, to codes ``(N, C, H, W)``; None where it cannot run.
        reason: Why it cannot run.
    """

    run: Callable[[], Tensor] | None = None
    reason: str = ""


def onnxruntime_stack(layers: Sequence[IntegerLayer], codes: Tensor, threads: int) -> Peer:
    """Convolutions one after the other as ``QLinearConv``, each from codes of one byte to such codes.

    Args:
        layers: Layers with unsigned 8-bit inputs, whose clip is the saturation of a byte.
        codes: Input of the first one, uint8 ``(N, C, H, W)``.
        threads: Number of CPU threads.
    """
    lacking = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if lacking:
        return Peer(reason=f"{' and '.join(lacking)} not installed: pip install onnx onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    model = _model(layers, codes.shape).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = codes.contiguous().numpy()
    return Peer(lambda: torch.from_numpy(session.run(None, {"x": x})[0]))


def _model(layers: Sequence[IntegerLayer], shape: torch.Size) -> Any:
    from onnx import TensorProto, helper

    names = ["x", *(f"y{index}" for index in range(len(layers)))]
    nodes, constants = [], []
    for index, (layer, before, after) in enumerate(zip(layers, names, names[1:], strict=False)):
        own = _constants(index, layer)
        tensors = [tensor.name for tensor in own]
        constants += own
        padding = [*layer.op.geometry.padding] * 2 if layer.op.geometry else []
        inputs = [before, tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], tensors[0], tensors[1]]
        nodes.append(helper.make_node("QLinearConv", inputs, [after], pads=padding))
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, list(shape)) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _constants(index: int, layer: IntegerLayer) -> list[Any]:
    """Step and zero point of the codes; integers, steps and zero points of the weights."""
    from onnx import numpy_helper

    # A code stands for an integer here, and codes of one byte for numbers of [0, 1] behind each layer.
    op, step = layer.op, torch.tensor(1 / layer.grid.top)
    values = {
        "step": step,
        "zero": torch.tensor(op.zero, dtype=torch.uint8),
        "weight": op.weight,
        "weight_step": op.scale * layer.grid.top,
        "weight_zero": torch.zeros(len(op.scale), dtype=torch.int8),
    }
    return [numpy_helper.from_array(value.numpy(), f"{name}{index}") for name, value in values.items()]
