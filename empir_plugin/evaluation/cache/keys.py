"""What decides the outcome of a shard, as the key it is stored under.

A stored outcome is used again only if nothing changed of: the network's text, weights, settings and source files; the
images and labels of the shard, and what their set is called; the attack's settings and source files, its labels and its
threat; which images it is given, and how many at once; the seed; number and size of the shard; the kind of device; what
answers queries (float32, or int8 and the kernel); the releases of torch, torchvision and pyautoattack; and the
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
from empir_plugin.evaluation.attack_spec import Planned
from empir_plugin.evaluation.cache.code_hash import foreign_code_sha256, sources_sha256
from empir_plugin.evaluation.cache.store import Key
from empir_plugin.evaluation.identity import describe, model_fingerprint, settings_fingerprint, versions
from empir_plugin.evaluation.record import bits
from empir_plugin.evaluation.shards import Bench, Shard

_DECIDING = ("judge", "queries", "shards", "prepare")
_CODE = ("attacks", "models", "data", "_compat", *(f"evaluation/{name}.py" for name in _DECIDING))


def subject_of(model: nn.Module, data: ImageSet) -> str:
    """Text that names a model and a data set, however many of its images are used.

    Raises:
        InputError: If the network's code has no source file, or one of its settings no name.
    """
    try:
        settings = settings_fingerprint(model)
    except InputError as error:
        raise InputError(f"the network cannot be told from others in a store ({error}), or evaluate without") from error
    parts = model_fingerprint(model), settings, foreign_code_sha256(model)
    return "|".join((*parts, data.name, data.split, str(data.num_classes)))


def common_key(subject: str, bench: Bench, shard_size: int) -> Key:
    """What all shards of an evaluation share.

    Args:
        subject: Text that names model and data.
        bench: Where it runs.
        shard_size: Images per shard.
    """
    releases = versions()
    return {
        "subject": subject,
        "seed": bench.seed,
        "shard_size": shard_size,
        "batch_size": bench.batch_size,
        "device": bench.device.type,
        "queries": bench.queries.backend,
        "torch": releases["torch"],
        "torchvision": releases["torchvision"],
        "pyautoattack": releases.get("pyautoattack", ""),
        "code": sources_sha256(*_CODE),
    }


def clean_key(common: Key, shard: Shard, data: ImageSet) -> Key:
    """The key of the decisions on a shard's clean images."""
    return {**common, "attack": "", "shard": shard.number, "images": _content(shard, data)}


def attack_key(common: Key, planned: Planned, threat: Threat) -> Key:
    """What the shards under one attack share.

    Args:
        common: What all shards share.
        planned: The attack.
        threat: The run's; the attack's own goes before it.

    Raises:
        InputError: If the attack holds something that cannot be described, or has no source file.
    """
    budget = planned.threat or threat
    return {
        **common,
        "attack": describe(planned.attack),
        "attack_code": foreign_code_sha256(planned.attack),
        "labels": planned.labels.name,
        "threat": f"{budget.norm}:{budget.eps!r}",
        "together": planned.batch_size or 0,
    }


def shard_key(attack: Key, shard: Shard, data: ImageSet, wanted: Tensor) -> Key:
    """The key of one shard under an attack, of which the images where ``wanted`` ``(n,)`` is true are attacked."""
    return {**attack, "shard": shard.number, "images": _content(shard, data), "attacked": bits(wanted)}


def _content(shard: Shard, data: ImageSet) -> str:
    return fingerprint(data.images[shard.start : shard.stop], data.labels[shard.start : shard.stop])
