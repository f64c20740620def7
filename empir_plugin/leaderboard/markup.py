"""Text in entries: RobustBench's page writes it into HTML as it is."""

from __future__ import annotations

import html
import re

# Tags a footnote may have; a link goes to the web and nowhere else.
_NAMES = "b|i|em|strong|sub|sup|code"
_TAG = re.compile(rf'<(?:({_NAMES})|/({_NAMES})|br ?/?|(a) href="https?://[^\s"<>]+"|/(a))>')
_REMAINS = re.compile(r"<[^<>]*>?|>")


def escaped(text: str) -> str:
    """Plain text as HTML.

    Example:
        >>> escaped("a <b> & c")
        'a &lt;b&gt; &amp; c'
    """
    return html.escape(text, quote=False)


def plain(text: str) -> str:
    """The plain text of an entry's field: the reverse of :func:`escaped`.

    Example:
        >>> plain("R&amp;D")
        'R&D'
    """
    return html.unescape(text)


def footnote_problem(footnote: str) -> str:
    """What in a footnote's markup is not allowed, or nothing if all of it is.

    Allowed are ``b``, ``i``, ``em``, ``strong``, ``sub``, ``sup``, ``code`` and ``a`` (with an ``href`` to the web, and
    no other attribute), each closed in its turn, and ``br``.

    Example:
        >>> footnote_problem('see <a href="https://arxiv.org/abs/2002.08347">Section 12</a>')
        ''
        >>> footnote_problem("a <script>alert(1)</script>")
        '<script>'
    """
    remains = _REMAINS.search(_TAG.sub("", footnote))
    return remains[0] if remains else _unclosed(footnote)


def _unclosed(footnote: str) -> str:
    opened: list[str] = []
    for name, closed, link, link_closed in _TAG.findall(footnote):
        if name or link:
            opened.append(name or link)
        elif (closed or link_closed) and (not opened or opened.pop() != (closed or link_closed)):
            return f"</{closed or link_closed}>"
    return f"<{opened[-1]}>" if opened else ""
