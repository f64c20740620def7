"""How robust is a model, at what cost, and can the numbers be believed?"""

from empir_plugin.data.image_set import ImageSet as ImageSet
from empir_plugin.data.image_set import check_images as check_images
from empir_plugin.data.image_set import load_images as load_images
from empir_plugin.evaluation.attack_spec import AttackSpec as AttackSpec
from empir_plugin.evaluation.comparison import RecordComparison as RecordComparison
from empir_plugin.evaluation.comparison import compare as compare
from empir_plugin.evaluation.curve import Curve as Curve
from empir_plugin.evaluation.curve import evaluate_curve as evaluate_curve
from empir_plugin.evaluation.distributed import Team as Team
from empir_plugin.evaluation.distributed import torchrun_team as torchrun_team
from empir_plugin.evaluation.evaluator import Settings as Settings
from empir_plugin.evaluation.progress import Progress as Progress
from empir_plugin.evaluation.protocols import Protocol as Protocol
from empir_plugin.evaluation.protocols import parse_protocol as parse_protocol
from empir_plugin.evaluation.record import AttackRecord as AttackRecord
from empir_plugin.evaluation.record import Record as Record
from empir_plugin.evaluation.run import evaluate as evaluate
