"""Cache keys: everything the outcome of a shard depends on.

A cached outcome is used again only if none of this changed: the network's text, weights, settings and source files; the
images and labels of the shard, and the name of their data set; the attack's settings and source files, its labels and
its threat; which images it is given, and how many at once; the seed; number and size of the shard; the kind of device;
what answers queries (float32, or int8 and the kernel); the releases of torch, torchvision and pyautoattack; and the
statements (not comments, docstrings or layout) of this package's attacks, models, AutoAttack adapter and judge.

The number of threads and the processor are left out, so that an evaluation can be finished with other ones, though they
may round differently; records name the threads. So is what a network does outside of its modules' source files. And so
are the images of other shards: results on the first 1,000 images are used again on all of them.
"""

from __future__ import annotations

from torch import Tensor, nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet, fingerprint
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.cache.code_hash import foreign_code_sha256, sources_sha256
from empir_plugin.evaluation.cache.store import Key
from empir_plugin.evaluation.evaluator import Evaluator
from empir_plugin.evaluation.identity import describe, model_fingerprint, settings_fingerprint, versions
from empir_plugin.evaluation.outcome import Shard
from empir_plugin.evaluation.record import bits

_DECIDING = ("judge", "int8_queries", "evaluator", "prepare")
_CODE = ("attacks", "models", "data", "_compat", *(f"evaluation/{name}.py" for name in _DECIDING))


def subject_key(model: nn.Module, data: ImageSet) -> str:
    """Text that names a model and a data set, however many of its images are used.

    Raises:
        InputError: If the network's code has no source file, or one of its settings cannot be described.
    """
    try:
        settings = settings_fingerprint(model)
    except InputError as error:
        raise InputError(
            f"results of this network cannot be stored, another network could have the same key ({error}), "
            "or evaluate without a store"
        ) from error
    parts = model_fingerprint(model), settings, foreign_code_sha256(model)
    return "|".join((*parts, data.name, data.split, str(data.num_classes)))


def common_key(subject: str, evaluator: Evaluator) -> Key:
    """The part of the key that all shards of an evaluation share.

    Args:
        subject: Text that names model and data: see :func:`subject_key`.
        evaluator: Model, data and settings.
    """
    releases, settings = versions(), evaluator.settings
    return {
        "subject": subject,
        "seed": settings.seed,
        "shard_size": settings.shard_size,
        "batch_size": settings.batch_size,
        "device": settings.device.type,
        "queries": evaluator.queries.backend,
        "torch": releases["torch"],
        "torchvision": releases["torchvision"],
        "pyautoattack": releases.get("pyautoattack", ""),
        "code": sources_sha256(*_CODE),
    }


def clean_key(common: Key, shard: Shard, data: ImageSet) -> Key:
    """The key of the decisions on a shard's clean images."""
    return {**common, "attack": "", "shard": shard.number, "images": _content(shard, data)}


def attack_key(common: Key, spec: AttackSpec, threat: Threat) -> Key:
    """The part of the key that all shards under one attack share.

    Args:
        common: What all shards share.
        spec: The attack.
        threat: Of the evaluation; replaced by the attack's own threat if it has one.

    Raises:
        InputError: If the attack holds something that cannot be described, or has no source file.
    """
    budget = spec.threat or threat
    return {
        **common,
        "attack": describe(spec.attack),
        "attack_code": foreign_code_sha256(spec.attack),
        "labels": spec.labels.name,
        "threat": f"{budget.norm}:{budget.eps!r}",
        "together": spec.batch_size or 0,
    }


def shard_key(attack: Key, shard: Shard, data: ImageSet, attacked: Tensor) -> Key:
    """The key of one shard under an attack that is given the images where ``attacked`` ``(n,)`` is true."""
    return {**attack, "shard": shard.number, "images": _content(shard, data), "attacked": bits(attacked)}


def _content(shard: Shard, data: ImageSet) -> str:
    return fingerprint(data.images[shard.start : shard.stop], data.labels[shard.start : shard.stop])
