"""Run attacks on a model and record what each of them leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

import torch
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.gradient import fgsm, pgd
from empir_plugin.attacks.surrogates import mean_probability
from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.data import ImageSet, check_images
from empir_plugin.evaluation.judge import correct, withstood
from empir_plugin.evaluation.record import AttackRecord, Record, bits, code_sha256, percent, versions
from empir_plugin.evaluation.subject import exact_float32, model_fingerprint, prepared, require_weights
from empir_plugin.models.ensemble import Ensemble

OnProgress = Callable[[str, int, int], None]
"""Told the attack's name, images done and images in all."""


def default_attacks(model: nn.Module) -> dict[str, Attack]:
    """What ``empir evaluate`` runs: FGSM, PGD with 40 steps, and standard AutoAttack, all on true labels.

    They differentiate the model's own output; for an ensemble that is the paper's definition, the mean probability of
    the members that voted for the winner. PGD then also runs on the mean probability of all members: under the vote,
    outvoted members give no gradient, and an attack that never hears of them overestimates the ensemble.

    Example:
        >>> list(default_attacks(nn.Flatten()))
        ['FGSM', 'PGD-40', 'AutoAttack']
    """
    attacks: dict[str, Attack] = {"FGSM": fgsm(), "PGD-40": pgd(40)}
    if isinstance(model, Ensemble):
        attacks["PGD-40 mean_probability"] = pgd(40, surrogate=mean_probability)
    return {**attacks, "AutoAttack": AutoAttackSuite()}


@dataclass(frozen=True)
class Settings:
    """How an evaluation runs.

    Args:
        seed: Of everything random in the attacks.
        batch_size: Images per forward pass of an attack.
        shard_size: Images that AutoAttack, whose random numbers belong to a batch, is given at once.
        device: Where to compute.
    """

    seed: int = 0
    batch_size: int = 250
    shard_size: int = 1000
    device: torch.device = torch.device("cpu")


def evaluate(
    model: nn.Module,
    data: ImageSet,
    threat: Threat,
    attacks: Mapping[str, Attack] | None = None,
    *,
    name: str = "",
    settings: Settings | None = None,
    on_progress: OnProgress | None = None,
) -> Record:
    """Attack a model and record, image by image, what it withstands.

    Every attack starts from the images the model classifies correctly, so the columns are independent of one another;
    the worst case counts an image only if it withstood all of them. The model is copied, and left as it is.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        data: Images and true labels.
        threat: The budget.
        attacks: By name; those of :func:`default_attacks` if left out.
        name: What the record calls the model; its class by default.
        settings: How to run.
        on_progress: Told after every batch.

    Raises:
        InputError: If images or labels are not what they must be.
        EvaluationError: If the model has no weights, returns what are no logits, or an attack breaks its budget.

    Example:
        >>> from empir_plugin import load_images, load_model
        >>> record = evaluate(load_model("cifarconv-w2a2"), load_images("cifar10").first(4), Threat.parse("Linf:8/255"),
        ...     {"FGSM": fgsm()})
        >>> [attack.name for attack in record.attacks]
        ['FGSM']
    """
    settings = settings or Settings()
    require_weights(model, name or type(model).__name__)
    with exact_float32():
        subject = prepared(model, settings.device)
        x, y = data.as_float(), data.labels
        check_images(x, y, num_classes=data.num_classes)
        evaluation = _Evaluation(subject, x.to(settings.device), y.to(settings.device), threat, settings, on_progress)
        clean = evaluation.clean()
        chosen = default_attacks(model) if attacks is None else attacks
        results = {title: evaluation.attacked(title, attack, clean) for title, attack in chosen.items()}
    worst = torch.stack([clean, *(robust for robust, _ in results.values())]).all(0)
    return Record(
        model=_describe_model(model, name),
        data=_describe_data(data),
        threat=str(threat),
        clean=bits(clean),
        clean_accuracy=percent(clean),
        attacks=tuple(record for _, record in results.values()),
        worst_case=bits(worst),
        worst_case_accuracy=percent(worst),
        run=_describe_run(settings),
    )


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """A prepared model and the images it is attacked on."""

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    settings: Settings
    on_progress: OnProgress | None

    def clean(self) -> Tensor:
        """Which images ``(N,)`` are classified correctly."""
        self._tell("clean", 0)
        found = correct(self.model, _channels_last(self.x), self.y, batch_size=self.settings.batch_size)
        self._tell("clean", len(self.y))
        return found

    def attacked(self, title: str, attack: Attack, clean: Tensor) -> tuple[Tensor, AttackRecord]:
        """Which images ``(N,)`` withstand an attack, and its record."""
        begun = time.perf_counter()
        robust = clean.clone()
        flags: list[str] = []
        self._tell(title, 0)
        size = self.settings.shard_size if isinstance(attack, AutoAttackSuite) else self.settings.batch_size
        for rows in torch.arange(len(clean), device=clean.device).split(size):
            own = rows[clean[rows]]
            if len(own):
                robust[own] = self._withstood(attack, own, flags)
            self._tell(title, int(rows[-1]) + 1)
        seconds = round(time.perf_counter() - begun, 2)
        flagged = tuple(dict.fromkeys(flags))
        return robust, AttackRecord(title, repr(attack), bits(robust), percent(robust), seconds, flagged)

    def _withstood(self, attack: Attack, rows: Tensor, flags: list[str]) -> Tensor:
        x, y, seed = _channels_last(self.x[rows]), self.y[rows], self.settings.seed
        if isinstance(attack, AutoAttackSuite):
            result = attack.run(self.model, x, y, self.threat, seed=seed)
            adversarial = result.images
            flags += result.flags
        else:
            adversarial = attack(self.model, x, y, self.threat, seed=seed, indices=rows)
        return withstood(self.model, x, y, adversarial, self.threat, batch_size=self.settings.batch_size)

    def _tell(self, title: str, done: int) -> None:
        if self.on_progress is not None:
            self.on_progress(title, done, len(self.y))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _describe_model(model: nn.Module, name: str) -> dict[str, object]:
    loaded = bool(getattr(model, "weights_loaded", True))
    return {"name": name or type(model).__name__, "sha256": model_fingerprint(model), "weights_loaded": loaded}


def _describe_data(data: ImageSet) -> dict[str, object]:
    return {
        "name": data.name,
        "split": data.split,
        "source": data.source,
        "n": len(data),
        "sha256": data.fingerprint,
        "full_official": data.is_full_official,
    }


def _describe_run(settings: Settings) -> dict[str, object]:
    return {
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "shard_size": settings.shard_size,
        "device": str(settings.device),
        "threads": torch.get_num_threads(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "code_sha256": code_sha256(),
    }
