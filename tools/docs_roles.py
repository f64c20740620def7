"""Extension for mkdocstrings: rewrites cross-references, examples and named tuples of this project's docstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|data|meth|mod|attr|exc):`(?P<short>~?)(?P<target>[\w.]+)`")


class Roles(griffe.Extension):
    """Rewrite docstrings before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring is None:
            return
        obj.docstring.value = rewrite_docstring(obj.docstring.value)
        if isinstance(obj, griffe.Class) and "NamedTuple" in map(str, obj.bases):
            # Named tuples have fields, not constructor parameters.
            obj.docstring.value = obj.docstring.value.replace("\nArgs:\n", "\nAttributes:\n")


def rewrite_docstring(docstring: str) -> str:
    """Replace the roles of a docstring by links, and rename its example section to the name that is parsed.

    Names that are not in the reference are shown without a link.

    Example:
        >>> print(rewrite_docstring("See :class:`~empir_plugin.models.ensemble.Ensemble`."))
        See <autoref identifier="empir_plugin.models.ensemble.Ensemble" optional><code>Ensemble</code></autoref>.
        >>> print(rewrite_docstring("See :class:`Record`."))
        See `Record`.
    """
    return _ROLE.sub(_autoref, docstring).replace("\nExample:\n", "\nExamples:\n")


def _autoref(match: re.Match[str]) -> str:
    target = match["target"]
    shown = target.rpartition(".")[2] if match["short"] else target
    if not target.startswith("empir_plugin."):
        return f"`{shown}`"
    return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'
