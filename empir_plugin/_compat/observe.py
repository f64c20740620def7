"""Running AutoAttack without harm to the process, and without losing what it has to say."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOGGER = "auto-attack"


@contextmanager
def isolate_autoattack_state() -> Iterator[None]:
    """Run AutoAttack inside without what it leaves behind: https://github.com/fra31/auto-attack.

    Its check for dynamic defences ends the trace function (coverage and debuggers fall silent) and counts calls in a
    table that is never reset (after one dynamic model every later one is flagged). Here the trace function is put
    back, and the table is empty before and after.

    Example:
        >>> import sys
        >>> before = sys.gettrace()
        >>> with isolate_autoattack_state():
        ...     sys.settrace(None)
        >>> sys.gettrace() is before
        True
    """
    trace = sys.gettrace()
    _reset_call_counts()
    try:
        yield
    finally:
        sys.settrace(trace)
        _reset_call_counts()


@contextmanager
def collect_autoattack_flags() -> Iterator[list[str]]:
    """Collect the warnings AutoAttack logs inside: https://github.com/fra31/auto-attack/blob/master/flags_doc.md.

    They arrive whatever the logging configuration says, for an evaluation is unreliable whether or not anybody
    listened; their usual handlers get them as well.

    Yields:
        The texts, in order; the list fills as they are logged.

    Example:
        >>> import logging
        >>> with collect_autoattack_flags() as flags:
        ...     logging.getLogger("auto-attack").warning("it seems to be a dynamic defense!")
        >>> flags
        ['it seems to be a dynamic defense!']
    """
    collector = _Collector()
    with send_logs_to(collector):
        yield collector.texts


@contextmanager
def send_logs_to(handler: logging.Handler) -> Iterator[None]:
    """Have ``handler`` hear what AutoAttack logs, from its level on, whatever the logging configuration says."""
    logger = logging.getLogger(LOGGER)
    level, disabled, muted = logger.level, logger.disabled, logger.manager.disable
    logger.setLevel(min(handler.level, logger.getEffectiveLevel()))
    logger.disabled = False
    logging.disable(min(muted, handler.level - 1))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logging.disable(muted)
        logger.disabled = disabled
        logger.setLevel(level)


def contiguous_gradient(x: "Tensor") -> "Tensor":
    """Identity whose gradient comes back contiguous.

    A model with channels_last weights returns channels_last gradients even for contiguous images; an attack that calls
    ``view`` on them, as AutoAttack does on what has its images' layout, fails ("view size is not compatible").

    Args:
        x: Any tensor, such as images ``(N, C, H, W)``.

    Returns:
        A view of ``x``. Forward is the identity; backward is the identity, in contiguous memory.

    Example:
        >>> import torch
        >>> x = torch.rand(2, 3, 4, 4, requires_grad=True)
        >>> weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
        >>> torch.autograd.grad((contiguous_gradient(x) * weight).sum(), x)[0].is_contiguous()
        True
    """
    passed = x.view_as(x)
    if passed.requires_grad:
        passed.register_hook(lambda gradient: gradient.contiguous())
    return passed


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _reset_call_counts() -> None:
    """Empty the tables of the AutoAttacks that are imported: pyautoattack's, and an installed original's."""
    for name in ("pyautoattack.checks", "autoattack.checks"):
        if name in sys.modules:
            counts = sys.modules[name].funcs
            counts.update(dict.fromkeys(counts, 0))
