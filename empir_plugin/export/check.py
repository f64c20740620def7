"""Exported files as models: onnxruntime runs plain ONNX and the ``qonnx`` executor QONNX, to compare them with ours."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.errors import CompatibilityError, cause
from empir_plugin.export.quantized import Format

EXPORT_EXTRA = "pip install 'empir-plugin[export]'"
_NEWEST_IR = 13
"""Version of the container that onnxruntime 1.31 reads; onnx 1.23 makes 14 by default."""


def library(name: str) -> Any:
    """A module of the extra ``export``.

    Raises:
        CompatibilityError: If it cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        what = f"models are exported with {package}, which cannot be imported ({cause(error)})"
        raise CompatibilityError(f"{what}: {EXPORT_EXTRA}") from error


class ExportedModel(nn.Module):
    """An exported file as a model: from images ``(N, C, H, W)`` to its outputs ``(N, K)``, without a gradient.

    Args:
        content: Of the file.
        form: Its format, which says what runs it: onnxruntime, or the executor of ``qonnx``.

    Raises:
        CompatibilityError: If that is not installed.
    """

    def __init__(self, content: bytes, form: Format) -> None:
        super().__init__()
        self.eval()
        self._form = form
        if form is Format.ONNX:
            runtime = library("onnxruntime")
            options = runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
        else:
            self._wrapper = library("qonnx.core.modelwrapper").ModelWrapper(library("onnx").load_from_string(content))
            self._input = self._wrapper.graph.input[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Run a batch."""
        images = x.detach().numpy()
        if self._form is Format.ONNX:
            return torch.from_numpy(self._session.run(None, {self._input: images})[0])
        return torch.from_numpy(self._run_qonnx(images))

    def _run_qonnx(self, images: Any) -> Any:
        wrapper, onnx = self._wrapper, library("onnx")
        graph = wrapper.graph
        if wrapper.get_tensor_shape(self._input) != list(images.shape) or not graph.value_info:
            for value in (*graph.input, *graph.output):
                value.type.tensor_type.shape.dim[0].dim_value = len(images)
            del graph.value_info[:]
            wrapper = self._wrapper = wrapper.transform(library("qonnx.transformation.infer_shapes").InferShapes())
        # The executor wraps each standard operation in a file of onnx's newest container.
        previous, onnx.IR_VERSION = onnx.IR_VERSION, min(onnx.IR_VERSION, _NEWEST_IR)
        try:
            result = library("qonnx.core.onnx_exec").execute_onnx(wrapper, {self._input: images})
        finally:
            onnx.IR_VERSION = previous
        return result[wrapper.graph.output[0].name]
