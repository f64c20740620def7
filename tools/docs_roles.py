"""Reads docstrings as this project writes them, for mkdocstrings: cross-references, examples and named tuples."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|data|meth|mod|attr|exc):`(?P<short>~?)(?P<target>[\w.]+)`")


class Roles(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of whatever was found in a module."""
        if obj.docstring is None:
            return
        obj.docstring.value = plain(obj.docstring.value)
        if isinstance(obj, griffe.Class) and "NamedTuple" in map(str, obj.bases):
            # Nobody but Python itself writes the constructor of one, so there are no parameters to describe.
            obj.docstring.value = obj.docstring.value.replace("\nArgs:\n", "\nAttributes:\n")


def plain(docstring: str) -> str:
    """A docstring without roles, its example in a section that is read as one.

    What the reference pages leave out is named without a link.

    Example:
        >>> print(plain("See :class:`~empir_plugin.models.ensemble.Ensemble`."))
        See <autoref identifier="empir_plugin.models.ensemble.Ensemble" optional><code>Ensemble</code></autoref>.
        >>> print(plain("See :class:`Record`."))
        See `Record`.
    """
    return _ROLE.sub(_written, docstring).replace("\nExample:\n", "\nExamples:\n")


def _written(match: re.Match[str]) -> str:
    target = match["target"]
    shown = target.rpartition(".")[2] if match["short"] else target
    if not target.startswith("empir_plugin."):
        return f"`{shown}`"
    return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'
