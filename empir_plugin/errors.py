"""The exceptions this package raises.

::

    EmpirError                  base of every exception this package raises on purpose
    +-- InputError              an argument, a text or a tensor is not what it must be (also a ValueError)
    +-- DataError               a data set is missing, damaged or not the official one
    +-- WeightsError            a weight file is missing, damaged or made for another model
    +-- EvaluationError         an evaluation cannot be trusted or cannot go on
    +-- CompatibilityError      RobustBench, timm or AutoAttack are not as this package needs them

:func:`cause` quotes an error of other code in the message of one of these.
"""

import re


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


_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|\\x1b\[[0-?]*[ -/]*[@-~]")
"""Escape codes of terminals: control sequences such as colours, links and titles, and the short ones; then a control
sequence as ``repr`` writes it."""


def cause(error: BaseException) -> str:
    r"""The type of an error and the first line of its message, without the codes that colour it in a terminal.

    Example:
        >>> cause(RuntimeError("\x1b[31msizes differ\x1b[0m\nat line 3")), cause(NotImplementedError())
        ('RuntimeError: sizes differ', 'NotImplementedError')
    """
    lines = [line.strip() for line in _ESCAPE.sub("", str(error)).splitlines() if line.strip()]
    # A line that ends in a colon announces the next one.
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
