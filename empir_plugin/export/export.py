"""Export a model to a file, and compare the file with the model before it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from empir_plugin._files.atomic import check_output_file, write_atomically
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.export.check import ExportedModel, library
from empir_plugin.export.graph import QONNX_DOMAIN, Constant, Graph
from empir_plugin.export.network import BATCH, INPUT, write_model
from empir_plugin.export.quantized import Format
from empir_plugin.models.integer.selftest import Agreement, agree
from empir_plugin.models.layers import frozen_copy

OUTPUT = "logits"
_OPSET, _OPSET_OF_TWO_BITS = 21, 25
_IR, _IR_OF_TWO_BITS = 10, 13
_QONNX_OPSET = 1


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Args:
        path: The file.
        format: Its kind.
        bytes: Its size.
        opset: Version of ONNX's operators that a runtime must know.
        agreement: Of the file with the model, on the images given.
    """

    path: Path
    format: Format
    bytes: int
    opset: int
    agreement: Agreement


def export_model(
    model: nn.Module, path: str | PathLike[str], images: Tensor, *, format: Format | str = Format.ONNX
) -> ExportReport:
    """Export a network or an ensemble, and compare the decisions of the file with the model's.

    Quantized layers are ``operation(A, W) * scale + bias`` on integers. Weights are stored as integers: in plain ONNX
    in 2, 4 or 8 bits, in QONNX in 8. Equal models give equal files. Nothing is written if the file computes something
    else than the model: rounding may change 0.5 % of the decisions, and the report counts them.

    Args:
        model: From images in [0, 1] to logits ``(N, K)``. It is not changed.
        path: The file.
        images: ``(N, C, H, W)`` in [0, 1], on which model and file are compared; 1,000 are a good number.
        format: ``"onnx"``, for onnxruntime, or ``"qonnx"``, for FINN and hls4ml.

    Raises:
        InputError: If there are no images, or a part of the model cannot be exported; it is named.
        EvaluationError: If the file computes something else than the model.
        CompatibilityError: If the extra ``export`` is not installed.

    Example:
        >>> from empir_plugin import load_images, load_model
        >>> images, _ = load_images("cifar10", n_examples=1000).batch(0, 1000)
        >>> export_model(load_model("empir-cifar"), "empir.onnx", images).bytes  # doctest: +SKIP
        830000
    """
    form, target = Format.parse(format), Path(path)
    if images.dim() != 4 or not len(images):
        raise InputError(f"images must be (N, C, H, W) with at least one of them, got {tuple(images.shape)}")
    check_output_file("the exported model", target)
    library("onnx")  # before any work
    copied = frozen_copy(model).cpu()
    graph, shape = Graph(), tuple(images.shape[1:])
    output, output_shape = write_model(graph, copied, shape, form)
    if output_shape[:1] != (BATCH,) or len(output_shape) != 2:
        raise InputError(f"the model cannot be exported: its outputs must be (N, K), got {output_shape[1:]} per image")
    content, opset = _content(graph, output, shape, output_shape[1], form)
    agreement = agree(copied, ExportedModel(content, form), images.cpu().float(), batch_size=_BATCH)
    _require_agreement(agreement)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, content)
    return ExportReport(target, form, len(content), opset, agreement)


_BATCH = 125
LARGEST_SHARE, _LARGEST_MEDIAN = 0.005, 1e-3
"""What rounding explains: the share of decisions and the median difference of logits at which a file is refused."""


def _require_agreement(agreement: Agreement) -> None:
    """Refuse a file that computes something else.

    Layers in full precision round in an order of the runtime's own. In a deep network of 2-bit activations this moves
    an activation in a thousand images so far that a close decision changes, as other hardware or threads do.
    """
    share = agreement.differing_decisions / agreement.images
    if share <= LARGEST_SHARE and agreement.median_logit_difference <= _LARGEST_MEDIAN:
        return
    raise EvaluationError(
        f"the exported file decides otherwise than the model on {agreement.differing_decisions:,} of "
        f"{agreement.images:,} images (median difference of logits {agreement.median_logit_difference:.3g}): it was "
        "not written, please report the model"
    )


def _content(graph: Graph, output: str, shape: tuple[int, ...], classes: int, form: Format) -> tuple[bytes, int]:
    """The bytes of the file, the same for the same graph, and the version of its operators."""
    onnx = library("onnx")
    helper, proto = onnx.helper, onnx.TensorProto
    graph.nodes.append(_output_node(graph, output))
    nodes = [
        helper.make_node(
            node.op, list(node.inputs), [node.output], name=node.output, domain=node.domain, **node.attributes
        )
        for node in graph.nodes
    ]
    initializers = [_tensor(onnx, name, constant) for name, constant in graph.constants.items()]
    # FINN and hls4ml compile for a batch of known size.
    batch = "N" if form is Format.ONNX else 1
    inputs = [helper.make_tensor_value_info(INPUT, proto.FLOAT, [batch, *shape])]
    outputs = [helper.make_tensor_value_info(OUTPUT, proto.FLOAT, [batch, classes])]
    two_bits = any(constant.bits == 2 for constant in graph.constants.values())
    opset, container = (_OPSET_OF_TWO_BITS, _IR_OF_TWO_BITS) if two_bits else (_OPSET, _IR)
    versions = [helper.make_opsetid("", opset)]
    if form is Format.QONNX:
        versions.append(helper.make_opsetid(QONNX_DOMAIN, _QONNX_OPSET))
    made = helper.make_model(
        helper.make_graph(nodes, "empir", inputs, outputs, initializers),
        opset_imports=versions,
        ir_version=container,
        producer_name="empir-plugin",
    )
    if form is Format.ONNX:
        onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString(deterministic=True), opset


def _output_node(graph: Graph, output: str) -> Any:
    scratch = Graph()
    scratch.add("Identity", output)
    (node,) = scratch.nodes
    return type(node)(node.op, node.inputs, OUTPUT, node.attributes)


def _tensor(onnx: Any, name: str, constant: Constant) -> Any:
    kinds = {2: onnx.TensorProto.UINT2, 4: onnx.TensorProto.UINT4} if constant.bits else {}
    kind = kinds[constant.bits] if constant.bits else onnx.helper.np_dtype_to_tensor_dtype(constant.values.dtype)
    return onnx.helper.make_tensor(name, kind, list(constant.values.shape), constant.bytes_stored, raw=True)
