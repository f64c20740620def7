"""Adapter: AutoAttack's original interface, which RobustBench calls, on top of the PyPI package pyautoattack.

The original: https://github.com/fra31/auto-attack.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import Any

import pyautoattack
import torch
from torch import Tensor

from empir_plugin._compat.observe import (
    collect_autoattack_flags,
    contiguous_gradient,
    isolate_autoattack_state,
    send_logs_to,
)
from empir_plugin.errors import InputError

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
