"""What is left, at what cost, and can it be believed?"""

from empir_plugin.evaluation.data import ImageSet as ImageSet
from empir_plugin.evaluation.data import check_images as check_images
from empir_plugin.evaluation.data import load_images as load_images
from empir_plugin.evaluation.record import AttackRecord as AttackRecord
from empir_plugin.evaluation.record import Record as Record
from empir_plugin.evaluation.run import Settings as Settings
from empir_plugin.evaluation.run import default_attacks as default_attacks
from empir_plugin.evaluation.run import evaluate as evaluate
