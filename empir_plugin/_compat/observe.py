"""Context managers for runs of AutoAttack: isolate its global state, and collect its warnings and log."""

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
    """Isolate the global state that AutoAttack changes: https://github.com/fra31/auto-attack.

    Its check for dynamic defences removes the trace function (which stops coverage and debuggers) and counts calls in a
    table that is never reset (after one dynamic model every later one is flagged). Here the trace function is
    restored, and the table is reset before and after.

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
    """Collect the warnings AutoAttack logs: https://github.com/fra31/auto-attack/blob/master/flags_doc.md.

    They are collected under any logging configuration, since an evaluation is unreliable whether or not its warnings
    are shown; other handlers get them as well.

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
    """Send what AutoAttack logs to ``handler``, from its level on, under any logging configuration."""
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

    A model with channels_last weights returns channels_last gradients even for contiguous images. Attacks that call
    ``view`` on them, as AutoAttack does, then fail ("view size is not compatible").

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
    view = x.view_as(x)
    if view.requires_grad:
        view.register_hook(lambda gradient: gradient.contiguous())
    return view


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _reset_call_counts() -> None:
    """Reset the tables of all imported AutoAttacks: pyautoattack's, and that of an installed original."""
    for name in ("pyautoattack.checks", "autoattack.checks"):
        if name in sys.modules:
            counts = sys.modules[name].funcs
            counts.update(dict.fromkeys(counts, 0))
