"""Warnings of third parties about third parties, raised while they are imported: nothing a user could act on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# The category of each differs between releases.
_HARMLESS = (
    r"`torch\.jit\.interface` is deprecated",
    r"Importing from timm\.",
    r"pkg_resources is deprecated",
)


@contextmanager
def harmless_warnings_silenced() -> Iterator[None]:
    """Silence, inside, what timm and RobustBench are known to warn of when they are imported."""
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        yield
