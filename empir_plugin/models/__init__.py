"""Low-precision networks and ensembles: quantizers, layers, conversion, integer execution, and weight files."""

from empir_plugin.models.architectures.networks import AlexNet as AlexNet
from empir_plugin.models.architectures.networks import CIFARConv as CIFARConv
from empir_plugin.models.architectures.networks import MNISTConv as MNISTConv
from empir_plugin.models.ensemble import Ensemble as Ensemble
from empir_plugin.models.ensemble import MaxVote as MaxVote
from empir_plugin.models.ensemble import MeanLogits as MeanLogits
from empir_plugin.models.ensemble import MeanProbability as MeanProbability
from empir_plugin.models.integer.convert import to_integer as to_integer
from empir_plugin.models.integer.selftest import agree as agree
from empir_plugin.models.layers import QuantConv2d as QuantConv2d
from empir_plugin.models.layers import QuantLinear as QuantLinear
from empir_plugin.models.layers import bake_ as bake_
from empir_plugin.models.quantize import ActivationQuantizer as ActivationQuantizer
from empir_plugin.models.quantize import Precision as Precision
from empir_plugin.models.quantize import WeightQuantizer as WeightQuantizer
