"""EMPIR's mixed-precision ensembles and DoReFa-quantized networks inside an unmodified RobustBench.

Importing this package makes RobustBench importable, and registers the models with timm, where RobustBench's own
``load_model`` finds them. Import it before ``robustbench``.
"""

from empir_plugin import _compat
from empir_plugin.attacks.registry import load_attack as load_attack
from empir_plugin.attacks.threat import Threat as Threat
from empir_plugin.data.image_set import ImageSet as ImageSet
from empir_plugin.data.image_set import load_images as load_images
from empir_plugin.errors import CompatibilityError as CompatibilityError
from empir_plugin.errors import DataError as DataError
from empir_plugin.errors import EmpirError as EmpirError
from empir_plugin.errors import EvaluationError as EvaluationError
from empir_plugin.errors import InputError as InputError
from empir_plugin.errors import WeightsError as WeightsError
from empir_plugin.evaluation.record import Record as Record
from empir_plugin.evaluation.run import evaluate as evaluate
from empir_plugin.models.architectures.convnets import AlexNet as AlexNet
from empir_plugin.models.architectures.convnets import CIFARConv as CIFARConv
from empir_plugin.models.architectures.convnets import MNISTConv as MNISTConv
from empir_plugin.models.convert.quantize_ import quantize_ as quantize_
from empir_plugin.models.convert.report import ConversionReport as ConversionReport
from empir_plugin.models.discretize import discretized as discretized
from empir_plugin.models.ensemble import Ensemble as Ensemble
from empir_plugin.models.ensemble import MaxVote as MaxVote
from empir_plugin.models.ensemble import MeanProbability as MeanProbability
from empir_plugin.models.integer.convert import to_integer as to_integer
from empir_plugin.models.layers import QuantConv2d as QuantConv2d
from empir_plugin.models.layers import QuantLinear as QuantLinear
from empir_plugin.models.mu_law import mu_law_ as mu_law_
from empir_plugin.models.posttraining import quantize_weights_ as quantize_weights_
from empir_plugin.models.precision import Precision as Precision
from empir_plugin.zoo import registry
from empir_plugin.zoo.builders import ModelBuilder as ModelBuilder
from empir_plugin.zoo.quantized.register import empir as empir
from empir_plugin.zoo.quantized.register import register_quantized as register_quantized
from empir_plugin.zoo.registry import load_model as load_model

_compat.install()
registry.register()
_compat.on_robustbench_import(registry.mirror_into_robustbench)
