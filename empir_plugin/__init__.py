"""EMPIR's mixed-precision ensembles and DoReFa-quantized networks inside an unmodified RobustBench.

Importing this package makes RobustBench importable, and registers the models with timm, where RobustBench's own
``load_model`` finds them. Import it before ``robustbench``.
"""

from importlib.metadata import PackageNotFoundError as _NotInstalled
from importlib.metadata import version as _version

from empir_plugin import _compat
from empir_plugin.attacks.registry import load_attack
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet, load_images
from empir_plugin.errors import CompatibilityError, DataError, EmpirError, EvaluationError, InputError, WeightsError
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate
from empir_plugin.models.architectures.networks import AlexNet, CIFARConv, MNISTConv
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.report import ConversionReport
from empir_plugin.models.discretize import discretized
from empir_plugin.models.ensemble import Ensemble, MaxVote, MeanProbability
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.mu_law import mu_law_
from empir_plugin.models.posttraining import quantize_weights_
from empir_plugin.models.quantize import Precision
from empir_plugin.zoo import registry
from empir_plugin.zoo.builders import ModelBuilder
from empir_plugin.zoo.quantized.architectures import empir
from empir_plugin.zoo.registry import load_model, register_quantized

__all__ = [
    "AlexNet",
    "CIFARConv",
    "CompatibilityError",
    "ConversionReport",
    "DataError",
    "EmpirError",
    "Ensemble",
    "EvaluationError",
    "ImageSet",
    "InputError",
    "MNISTConv",
    "MaxVote",
    "MeanProbability",
    "ModelBuilder",
    "Precision",
    "QuantConv2d",
    "QuantLinear",
    "Record",
    "Threat",
    "WeightsError",
    "discretized",
    "empir",
    "evaluate",
    "load_attack",
    "load_images",
    "load_model",
    "mu_law_",
    "quantize_",
    "quantize_weights_",
    "register_quantized",
    "to_integer",
]

try:
    __version__ = _version("empir-plugin")
except _NotInstalled:  # imported from a folder of sources that is not installed
    __version__ = "0+unknown"

_compat.install()
registry.register()
_compat.on_robustbench_import(registry.mirror_into_robustbench)
