"""AutoAttack's versions and its single parts, each an attack of its own: what entry points of this package name."""

from __future__ import annotations

from collections.abc import Callable

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.surrogates import Surrogate, plain


def _version(name: str) -> Callable[..., AutoAttackSuite]:
    def suite(*, surrogate: Surrogate = plain, batch_size: int = 250, queries: int = 5000) -> AutoAttackSuite:
        return AutoAttackSuite(name, surrogate=surrogate, batch_size=batch_size, queries=queries)

    return suite


def _part(name: str) -> Callable[..., AutoAttackSuite]:
    def part(*, surrogate: Surrogate = plain, batch_size: int = 250) -> AutoAttackSuite:
        return AutoAttackSuite(attacks=(name,), surrogate=surrogate, batch_size=batch_size)

    return part


def square(*, queries: int = 5000, surrogate: Surrogate = plain, batch_size: int = 250) -> AutoAttackSuite:
    """Square attack, https://arxiv.org/abs/1912.00049: random search that never asks for a gradient.

    Args:
        queries: Forward passes per image at most.
        surrogate: What supplies the logits it compares.
        batch_size: Images per batch.

    Example:
        >>> square(queries=100).parts
        ('square',)
    """
    return AutoAttackSuite(attacks=("square",), surrogate=surrogate, batch_size=batch_size, queries=queries)


autoattack = _version("standard")
autoattack_plus = _version("plus")
autoattack_rand = _version("rand")
apgd_ce = _part("apgd-ce")
apgd_dlr = _part("apgd-dlr")
apgd_t = _part("apgd-t")
fab = _part("fab")
fab_t = _part("fab-t")
