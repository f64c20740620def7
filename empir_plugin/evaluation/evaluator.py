"""The evaluator: attacks the images of a shard with one attack and judges what the attack returned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackSuite, square_flags
from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.threat import Threat, check_threat
from empir_plugin.attacks.transfer import reports_zero_gradients
from empir_plugin.data.image_set import ImageSet, check_images
from empir_plugin.errors import EmpirError, EvaluationError, InputError, cause
from empir_plugin.evaluation.attack_spec import AttackSpec, Labels
from empir_plugin.evaluation.judge import batch_dependent, check_attack_result, decisions
from empir_plugin.evaluation.outcome import NOT_ATTACKED, BrokenImages, Outcome, Shard
from empir_plugin.evaluation.prepare import changes, exact_float32, prepare_for_images, state_of
from empir_plugin.evaluation.progress import AttackedImages, Tick
from empir_plugin.models.integer.convert import BF16, FLOAT32, Backend, run_on_integers
from empir_plugin.models.integer.fold import random_state_kept

_SHARD, _SHARD_ON_GPU = 250, 500
_COMPARED = 64
"""Images at most on which the model on int8 kernels must have the same logits."""


@dataclass(frozen=True)
class Settings:
    """How an evaluation runs.

    Args:
        seed: Seed of every random number in the attacks.
        batch_size: Images per forward pass of an attack.
        shard_size: Images per shard. A shard is stored as a whole, belongs to one process, and is given to AutoAttack
            at once, whose random numbers belong to a batch and whose last images cost as many passes as all. By default
            250 on a CPU and 500 on another device, which larger batches use better; or the next multiple of the batch
            size of an attack that has its own.
        device: Where to compute.
        cascade: Attack only images that are robust under the attacks before. The worst case is the same wherever
            nothing of an attack depends on the images beside it; each attack's own accuracy is then that of all attacks
            up to it.
        int8: Run quantized layers on int8 kernels wherever no gradient is needed, if these are exact on this machine.
            The logits are the same, bit for bit.
        gradients: ``"bf16"`` rounds the operands of the backward passes of quantized layers on int8 kernels to
            bfloat16: faster where the processor has instructions for it, with slightly other adversarial images.

    Raises:
        InputError: If a size is not a whole number above 0.
    """

    seed: int = 0
    batch_size: int = 250
    shard_size: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cascade: bool = False
    int8: bool = True
    gradients: str = FLOAT32

    def __post_init__(self) -> None:
        sizes = {"batch_size": self.batch_size, **({} if self.shard_size is None else {"shard_size": self.shard_size})}
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise InputError(f"{name} must be a whole number, 1 or more, got {size!r}")
        if self.gradients not in (FLOAT32, BF16):
            raise InputError(f"gradients must be {FLOAT32!r} or {BF16!r}, got {self.gradients!r}")

    @property
    def images_per_shard(self) -> int:
        """The shard size, or the default one of the device."""
        return self.shard_size or (_SHARD if self.device.type == "cpu" else _SHARD_ON_GPU)


@dataclass(frozen=True, eq=False)
class Evaluator:
    """A model with the images it is attacked on.

    Args:
        model: A private copy, prepared for evaluation.
        data: Images and true labels.
        threat: The budget of attacks that have none of their own.
        settings: Seed, batch size and device.
        backend: What runs forward passes that need no gradient.
        memory_format: Of the images.
    """

    model: nn.Module
    data: ImageSet
    threat: Threat
    settings: Settings = field(default_factory=Settings)
    backend: Backend = field(default_factory=lambda: Backend(FLOAT32))
    memory_format: torch.memory_format = torch.channels_last

    @classmethod
    def of(cls, model: nn.Module, data: ImageSet, threat: Threat, settings: Settings) -> Evaluator:
        """An evaluator with a prepared copy of a model, tried on the first images.

        Raises:
            InputError: If the model is not a module, ``data`` no image set or ``threat`` no threat, or gradients are
                disabled by inference mode.
            EvaluationError: See :func:`~empir_plugin.evaluation.prepare.prepare_for_images`.
        """
        if not isinstance(data, ImageSet):
            cure = "make one of uint8 images and labels, or call load_images"
            raise InputError(f"data must be an ImageSet, got a {type(data).__name__}: {cure}")
        check_threat(threat)
        if torch.is_inference_mode_enabled():
            raise InputError("an evaluation needs gradients, got torch.inference_mode(): call it outside of that block")
        images, _ = data.batch(0, 2)
        network, memory_format = prepare_for_images(model, settings.device, images)
        network, backend = _on_integers(network, data, settings, memory_format)
        return cls(network, data, threat, settings, backend, memory_format)

    def clean(self, shard: Shard) -> Outcome:
        """Decide on the clean images of a shard.

        Raises:
            EvaluationError: If the model does not return logits with a column for each class.
        """
        start = time.perf_counter()
        with error_context("the clean images", shard), self._seeded(shard):
            x, y = self._images(shard)
            check_images(x, y, self.data.num_classes)
            decided = self._decisions(x, clean=True)
            unstable = self.batch_dependent(shard, decided)
        return self._outcome(decided, start, unstable=tuple(unstable.tolist()))

    def attack(
        self, spec: AttackSpec, shard: Shard, attacked: Tensor, own: Tensor, tick: Tick
    ) -> tuple[Outcome, BrokenImages]:
        """Attack images of a shard and judge what the attack returns.

        Args:
            spec: The attack.
            shard: The images.
            attacked: Which of them ``(n,)`` to attack.
            own: The model's decisions ``(n,)`` on the clean images.
            tick: Called as images are finished, and within AutoAttack.

        Raises:
            EvaluationError: If the attack fails, breaks a rule, or changes the model.
        """
        start = time.perf_counter()
        with error_context(spec.name, shard), self._seeded(shard), self._model_unchanged():
            x, y = self._images(shard)
            rows = attacked.to(self.settings.device).nonzero().squeeze(1)
            labels = own.to(self.settings.device) if spec.labels is Labels.OWN else y
            adversarial, details = x[rows], {}
            tick(len(x) - len(rows), len(x) - len(rows), "")
            if isinstance(spec.attack, AutoAttackSuite) and len(rows):
                adversarial, details = self._autoattack(spec, spec.attack, x, labels, rows, tick)
            elif len(rows):  # split() would give an attack one empty batch
                zero = torch.zeros_like(rows, dtype=torch.bool)
                for places in torch.arange(len(rows), device=rows.device).split(self._batch_size(spec)):
                    adversarial[places], zero[places] = self._attack_batch(spec, shard, x, labels, rows[places])
                    tick(len(places), len(places), "")
                if reports_zero_gradients(spec.attack):
                    details = {"zero_gradients": int(zero.sum())}
            decided = torch.full_like(y, NOT_ATTACKED)
            decided[rows] = self._decisions(adversarial)
            broken = decided[rows] != y[rows]
        return self._outcome(decided, start, **details), BrokenImages(rows[broken].cpu(), adversarial[broken].cpu())

    def _batch_size(self, spec: AttackSpec) -> int:
        return spec.batch_size or self.settings.batch_size

    def _attack_batch(
        self, spec: AttackSpec, shard: Shard, x: Tensor, labels: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Checked adversarial images for some rows of a shard, and where the gradient was exactly zero ``(n,)``."""
        threat, seed, indices = spec.threat or self.threat, self.settings.seed, rows + shard.start
        # x[rows] is a copy: whatever the attack does to it, the judge compares with the original images.
        given = self.model, x[rows], labels[rows], threat
        if reports_zero_gradients(spec.attack):
            result = spec.attack.run(*given, seed=seed, indices=indices)
            return check_attack_result(x[rows], result.images, threat), result.zero_gradient
        images = spec.attack(*given, seed=seed, indices=indices)
        return check_attack_result(x[rows], images, threat), torch.zeros_like(rows, dtype=torch.bool)

    def _autoattack(
        self, spec: AttackSpec, suite: AutoAttackSuite, x: Tensor, labels: Tensor, rows: Tensor, tick: Tick
    ) -> tuple[Tensor, dict[str, Any]]:
        """The adversarial images, and the flags and parts of the outcome."""
        threat, attacked = spec.threat or self.threat, AttackedImages(tick, len(rows))
        seed = self.settings.seed
        result = suite.run(self.model, x[rows], labels[rows], threat, seed=seed, on_progress=attacked.report)
        attacked.finish()
        of_all_images = square_flags(result.accuracy)  # A share of all images, which a shard alone cannot know.
        details = {
            "flags": tuple(flag for flag in result.flags if flag not in of_all_images),
            "parts": tuple((part, _bits(robust, rows, len(x))) for part, robust in result.robust.items()),
        }
        return check_attack_result(x[rows], result.images, threat), details

    def _outcome(self, decided: Tensor, start: float, **details: Any) -> Outcome:
        seconds = round(time.perf_counter() - start, 3)
        return Outcome(tuple(decided.tolist()), seconds, torch.get_num_threads(), **details)

    def _images(self, shard: Shard) -> tuple[Tensor, Tensor]:
        x, y = self.data.batch(shard.start, shard.stop)
        return x.to(self.settings.device, memory_format=self.memory_format), y.to(self.settings.device)

    def batch_dependent(self, shard: Shard, decided: Tensor) -> Tensor:
        """Rows ``(n,)`` of the images for which the output depends on the other images of the batch.

        Args:
            shard: The images.
            decided: The decisions ``(N,)`` on them in order.
        """
        x, decided = self._images(shard)[0], decided.to(self.settings.device)
        size, classes = self.settings.batch_size, self.data.num_classes
        return batch_dependent(self.model, x, decided, num_classes=classes, batch_size=size)

    def _decisions(self, x: Tensor, *, clean: bool = False) -> Tensor:
        if not len(x):
            return torch.empty(0, dtype=torch.int64, device=x.device)
        size, classes = self.settings.batch_size, self.data.num_classes
        return decisions(self.model, x, num_classes=classes, batch_size=size, refuse_probabilities=clean)

    @contextmanager
    def _seeded(self, shard: Shard) -> Iterator[None]:
        """Torch's random numbers set by seed and shard, for models and foreign attacks that use them."""
        device, seed = self.settings.device, self.settings.seed
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            key = Draw(seed, torch.tensor([shard.number])).uniform(torch.empty(1, 1, dtype=torch.float64))
            torch.manual_seed(int(key.item() * 2**24))
            yield

    @contextmanager
    def _model_unchanged(self) -> Iterator[None]:
        state, modes = state_of(self.model), _modes(self.model)
        yield
        changed = changes(state, state_of(self.model)) + ["its mode"] * (modes != _modes(self.model))
        if changed:
            raise EvaluationError(
                f"the attack, or the model's own forward pass during it, changed the model "
                f"({', '.join(changed[:3])}): its result is discarded; neither may change weights, buffers or mode"
            )


def _modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def _on_integers(
    model: nn.Module, data: ImageSet, settings: Settings, memory_format: torch.memory_format
) -> tuple[nn.Module, Backend]:
    """A model on integer kernels; int8 ones where its logits on the first images are the same."""
    if memory_format is not torch.channels_last:
        return model, Backend(FLOAT32, "the model does not run in channels-last memory, which the kernels use")
    images = data.batch(0, min(len(data), _COMPARED))[0].to(settings.device, memory_format=memory_format)
    with exact_float32(), random_state_kept(model):
        try:
            decisions(model, images, num_classes=data.num_classes, batch_size=settings.batch_size)
        except Exception:  # The evaluation of the clean images reports what is wrong with the model.
            return model, Backend(FLOAT32, "the model gives no logits")
        return run_on_integers(model, images, gradients=settings.gradients, int8=settings.int8)


def _bits(verdicts: Tensor, rows: Tensor, n: int) -> str:
    robust = set(rows[verdicts].tolist())
    return "".join("1" if row in robust else "0" for row in range(n))


@contextmanager
def error_context(what: str, shard: Shard) -> Iterator[None]:
    """Say of any error which attack and which images it came from.

    Args:
        what: Name of the attack, or another phrase for what was computed.
        shard: The images.

    Raises:
        EvaluationError: Instead of any exception inside.

    Example:
        >>> with error_context("PGD", Shard(0, 0, 8)):
        ...     raise KeyError("logits")
        Traceback (most recent call last):
        empir_plugin.errors.EvaluationError: PGD failed on shard 0 (images 0 to 7) with KeyError: 'logits'
    """
    try:
        yield
    except EmpirError as error:
        raise EvaluationError(f"{what}, {shard}: {error}") from error
    except Exception as error:
        raise EvaluationError(f"{what} failed on {shard} with {cause(error)}") from error
