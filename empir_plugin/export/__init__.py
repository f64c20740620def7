"""Files for other runtimes and for hardware: plain ONNX, and QONNX, which FINN and hls4ml read."""

from empir_plugin.export.check import EXPORT_EXTRA, ExportedModel
from empir_plugin.export.export import ExportReport, Format, export_model

__all__ = ["EXPORT_EXTRA", "ExportReport", "ExportedModel", "Format", "export_model"]
