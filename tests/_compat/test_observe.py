"""Contiguous gradients, and AutoAttack's warnings under any logging configuration."""

import logging
from collections.abc import Callable, Iterator

import pytest
import torch

from empir_plugin._compat import collect_autoattack_flags, contiguous_gradient


def test_gradients_are_contiguous_only_with_the_identity() -> None:
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 4, 4, requires_grad=True)
    (plain,) = torch.autograd.grad((x * weight).sum(), x)
    (contiguous,) = torch.autograd.grad((contiguous_gradient(x) * weight).sum(), x)
    assert not plain.is_contiguous()
    assert contiguous.is_contiguous()
    assert torch.equal(plain, contiguous)


def test_the_identity_passes_without_gradients() -> None:
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(contiguous_gradient(x), x)
    assert torch.equal(contiguous_gradient(x.detach()), x)


SILENCERS: dict[str, Callable[[logging.Logger], None]] = {
    "logger disabled": lambda logger: setattr(logger, "disabled", True),
    "level raised": lambda logger: logger.setLevel(logging.CRITICAL),
    "all logging disabled": lambda _: logging.disable(logging.CRITICAL),
}


@pytest.fixture(params=SILENCERS.values(), ids=list(SILENCERS))
def silent(request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    """AutoAttack's logger, silenced in one of several ways."""
    logger = logging.getLogger("auto-attack")
    level, disabled, muted = logger.level, logger.disabled, logger.manager.disable
    request.param(logger)
    yield logger
    logger.setLevel(level)
    logger.disabled = disabled
    logging.disable(muted)


def test_flags_are_collected_under_any_logging_configuration(silent: logging.Logger) -> None:
    with collect_autoattack_flags() as outer, collect_autoattack_flags() as inner:
        silent.warning("a %s", "flag")
        silent.info("progress")
    assert outer == inner == ["a flag"]
    assert not silent.isEnabledFor(logging.WARNING)
