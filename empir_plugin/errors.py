"""The exceptions this package raises.

::

    EmpirError                  base of every exception this package raises on purpose
    +-- InputError              an argument, a text or a tensor is not what it must be (also a ValueError)
    +-- DataError               a data set is missing, damaged or not the official one
    +-- WeightsError            a weight file is missing, damaged or made for another model
    +-- EvaluationError         an evaluation cannot be trusted or cannot go on
    +-- CompatibilityError      RobustBench, timm or AutoAttack are not as this package needs them
"""


class EmpirError(Exception):
    """Base of every exception this package raises on purpose; its message says what to do."""


class InputError(EmpirError, ValueError):
    """An argument, a text or a tensor is not what it must be."""


class DataError(EmpirError):
    """A data set is missing, damaged or not the official one."""


class WeightsError(EmpirError):
    """A weight file is missing, damaged or made for another model."""


class EvaluationError(EmpirError):
    """An evaluation cannot be trusted or cannot go on."""


class CompatibilityError(EmpirError):
    """RobustBench, timm or AutoAttack are not as this package needs them."""
