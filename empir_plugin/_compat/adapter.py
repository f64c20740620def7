"""Adapter: AutoAttack's original interface, which RobustBench calls, on top of the PyPI package pyautoattack.

The original: https://github.com/fra31/auto-attack. Here is also what running AutoAttack without side effects takes: its
module state is isolated, its warnings are collected as flags, and the gradients it is given are contiguous.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

import pyautoattack
import torch
from torch import Tensor

from empir_plugin.errors import InputError

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


def contiguous_gradient(x: Tensor) -> Tensor:
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


Model = Callable[[Tensor], Tensor]


class AutoAttack(pyautoattack.AutoAttack):
    """Ensemble of four attacks, https://arxiv.org/abs/2003.01690, with the signatures of the original release.

    Reports go to the logger ``auto-attack`` (and to ``log_path``) and are not printed; the warnings of the last run are
    in ``flags``. Images and models may be channels_last, and global state is restored after a run.

    Args:
        model: Images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        eps: Radius of the ball, in units of the images (8/255, not 8).
        seed: Seed of every attack; the current time if None.
        verbose: Whether to log progress.
        attacks_to_run: Names of attacks, with ``version="custom"`` only.
        version: ``"standard"``, ``"plus"``, ``"rand"`` or ``"custom"``.
        is_tf_model: Must be False.
        device: Device to attack on.
        log_path: File to which the log is appended.

    Raises:
        InputError: ``is_tf_model`` is true.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
        >>> adversary = AutoAttack(model, "Linf", 8 / 255, attacks_to_run=["apgd-ce"], version="custom", device="cpu")
        >>> x_adv = adversary.run_standard_evaluation(torch.rand(2, 3, 2, 2), torch.tensor([0, 1]), bs=2)
        >>> x_adv.shape
        torch.Size([2, 3, 2, 2])
    """

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: str | torch.device = "cuda",
        log_path: str | PathLike[str] | None = None,
    ) -> None:
        if is_tf_model:
            raise InputError("is_tf_model must be False, got True: pyautoattack attacks PyTorch models only")
        attacks: Any = list(attacks_to_run) if attacks_to_run or version == "custom" else None
        names: dict[str, Any] = {"norm": norm, "version": version}
        super().__init__(_with_contiguous_gradient(model), attacks=attacks, device=device, eps=eps, seed=seed, **names)
        self.model = model
        self.is_tf_model = is_tf_model
        self.verbose = verbose
        self.log_path = log_path
        self.flags: list[str] = []

    # The two signatures below are the original's, and differ from pyautoattack's on purpose.
    def run_standard_evaluation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False, state_path: object = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run one attack after the other, each on the images that are still robust.

        Args:
            x_orig: Images ``(N, C, H, W)`` in [0, 1].
            y_orig: True labels ``(N,)``, int64.
            bs: Images per batch.
            return_labels: Whether to return the model's decisions as well.
            state_path: Must be None.

        Returns:
            Images ``(N, C, H, W)``, robust ones unchanged; with ``return_labels`` also decisions ``(N,)``.

        Raises:
            InputError: ``state_path`` is given: AutoAttack fails to resume from it, which would only show after hours.
        """
        if state_path is not None:
            raise InputError(
                f"state_path must be None, got {str(state_path)!r}: AutoAttack cannot resume from the state it writes, "
                "so leave it out, or use an evaluation of empir_plugin, which resumes"
            )
        with self._observe():
            found = super().run_standard_evaluation(x_orig.contiguous(), y_orig, batch_size=bs)
        return found if return_labels else found[0]

    def run_standard_evaluation_individual(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:
        """Run each attack on all images; arguments as for ``run_standard_evaluation``.

        Returns:
            The result of ``run_standard_evaluation`` by name of the attack.
        """
        chosen = list(self.attacks_to_run or ())
        flags: list[str] = []
        found: dict[str, Any] = {}
        try:
            for attack in chosen:
                self.attacks_to_run = [attack]
                found[attack] = self.run_standard_evaluation(x_orig, y_orig, bs, return_labels)
                flags += self.flags
        finally:
            self.attacks_to_run = chosen
            self.flags = list(dict.fromkeys(flags))  # each attack repeats the checks of the model
        return found

    def set_version(self, version: str = "standard") -> None:
        """Choose the attacks and their settings by version, as in the original."""
        self._set_version(version)

    @contextmanager
    def _observe(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(isolate_autoattack_state())
            self.flags = stack.enter_context(collect_autoattack_flags())
            if self.log_path is not None:
                handler = logging.FileHandler(self.log_path, encoding="utf-8")
                handler.setLevel(logging.DEBUG)
                stack.callback(handler.close)
                stack.enter_context(send_logs_to(handler))
            yield


def _with_contiguous_gradient(model: Model) -> Any:
    """The model with contiguous gradients."""

    def forward(x: Tensor) -> Tensor:
        return model(contiguous_gradient(x))

    return forward
