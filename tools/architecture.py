"""The rooms of the code and what they really import from each other: a graph, a picture and a table of it.

``python tools/docs_tables.py`` writes picture and table. No module is executed to find the graph: sources are read.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from markdown_tables import markdown_table

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Room:
    """A package with one question to answer.

    Args:
        folder: Below the root of the repository.
        happens: What happens to a model there, in a word or three.
        column: Where the picture puts it: 0 is the left edge, 4 the right one.
    """

    folder: str
    happens: str
    column: int

    @property
    def name(self) -> str:
        """Its last folder."""
        return self.folder.rpartition("/")[2]


ROOMS = (
    Room("empir_plugin/_compat", "RobustBench runs", 2),
    Room("empir_plugin/models", "a model is built", 2),
    Room("empir_plugin/attacks", "attacked", 4),
    Room("empir_plugin/zoo", "named", 0),
    Room("empir_plugin/evaluation", "judged", 4),
    Room("empir_plugin/training", "trained", 0),
    Room("empir_plugin/leaderboard", "published", 2),
    Room("empir_plugin/suite", "tested", 4),
    Room("empir_plugin/reproduce", "compared with papers", 0),
    Room("entrypoints/empir_cli", "the command empir", 1),
    Room("entrypoints/pytest_empir", "the pytest plugin", 4),
)
"""In order: a room may import from those before it, and from no other."""

ONLY: Mapping[str, tuple[str, ...]] = {
    "click": ("empir_cli",),
    "rich": ("empir_cli",),
    "pytest": ("pytest_empir",),
    "robustbench": ("_compat", "zoo", "evaluation"),
    "timm": ("models", "zoo"),
}
"""Packages of others that only these rooms may import."""


def rooms() -> tuple[Room, ...]:
    """The rooms there are, in order."""
    return tuple(room for room in ROOMS if (ROOT / room.folder).is_dir())


def unknown() -> list[str]:
    """Folders of code that are no room yet: they need a line in :data:`ROOMS`."""
    known = {room.folder for room in ROOMS}
    found = [path.parent for root in ("empir_plugin", "entrypoints") for path in (ROOT / root).glob("*/__init__.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found if path.relative_to(ROOT).as_posix() not in known)


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """Rooms, and packages of others, that each room imports from, wherever in its modules it does."""
    return {room.name: frozenset(_imported(room)) for room in rooms()}


def _imported(room: Room) -> Iterator[str]:
    for path in sorted((ROOT / room.folder).rglob("*.py")):
        for module in modules(path.read_text(encoding="utf-8")):
            name = _room_or_package(module)
            if name not in ("", room.name):
                yield name


def modules(source: str) -> Iterator[str]:
    r"""Full names of what a module's source imports.

    Example:
        >>> list(modules("import a.b\ndef f():\n    from empir_plugin.zoo import card"))
        ['a.b', 'empir_plugin.zoo.card']
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room_or_package(module: str) -> str:
    """The room a module is in, or the package of others; empty for the standard library and for what is in no room."""
    first, _, rest = module.partition(".")
    if first != "empir_plugin":
        return "" if first in sys.stdlib_module_names else first
    second = rest.partition(".")[0]
    return second if any(room.name == second for room in ROOMS) else ""


def violations(found: Mapping[str, frozenset[str]]) -> list[str]:
    """Imports that the order or :data:`ONLY` forbids, as sentences.

    Example:
        >>> violations({"models": frozenset({"attacks", "torch"}), "zoo": frozenset({"models", "click"})})
        ['models imports from attacks, which comes after it', 'zoo imports click, which is for empir_cli']
    """
    order = [room.name for room in ROOMS]
    late = [
        f"{room} imports from {other}, which comes after it"
        for room, names in found.items()
        for other in sorted(names)
        if other in order and order.index(other) > order.index(room)
    ]
    strange = [
        f"{room} imports {package}, which is for {' and '.join(ONLY[package])}"
        for room, names in found.items()
        for package in sorted(names)
        if room not in ONLY.get(package, (room,))
    ]
    return late + strange


def between(found: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """Of each room, the rooms it imports from, in order."""
    order = [room.name for room in ROOMS]
    return {room: [name for name in order if name in names] for room, names in found.items()}


def direct(graph: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The same without what another of a room's imports imports already: what the picture draws.

    Example:
        >>> direct({"a": [], "b": ["a"], "c": ["a", "b"]})
        {'a': [], 'b': ['a'], 'c': ['b']}
    """
    reached: dict[str, set[str]] = {}
    for room, names in graph.items():  # rooms come in order
        reached[room] = set(names).union(*(reached[name] for name in names))
    return {
        room: [name for name in names if not any(name in reached[other] for other in names)]
        for room, names in graph.items()
    }


def table() -> str:
    """The rooms in Markdown: what each is for, and what it imports."""
    graph = between(imports())
    lines = []
    for room in rooms():
        uses = ", ".join(f"`{name}`" for name in graph[room.name]) or "none of them"
        lines.append((f"`{room.name}`", _question(room), uses))
    return markdown_table(("room", "what it answers", "imports from"), lines, "l")


def _question(room: Room) -> str:
    text = ast.get_docstring(ast.parse((ROOT / room.folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].split(": ")[0].rstrip(".").replace("``", "`")


WIDTH, BOX, HIGH, ROW = 640, 168, 56, 104


def picture() -> str:
    """The rooms as SVG in the colours of its surroundings: each arrow is an import, and points up."""
    graph = direct(between(imports()))
    levels: dict[str, int] = {}
    for room, names in graph.items():
        levels[room] = 1 + max((levels[name] for name in names), default=-1)
    places = {room.name: _place(room, levels[room.name]) for room in rooms()}
    height = max(y for _, y in places.values()) + HIGH + 12
    arrows = [_arrow(places[room], places[name]) for room, names in graph.items() for name in names]
    boxes = [_box(room, *places[room.name]) for room in rooms()]
    told = "; ".join(f"{room} imports from {', '.join(names)}" for room, names in graph.items() if names)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
    lines = [
        f'{head} aria-labelledby="rooms-title rooms-text" font-family="system-ui, sans-serif" fill="currentColor">',
        '<title id="rooms-title">The rooms of the code, each below those it imports from</title>',
        f'<desc id="rooms-text">{escape(told)}.</desc>',
        '<defs><marker id="rooms-head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L10 5 L0 10 z"/></marker></defs>',
        *arrows,
        *boxes,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _place(room: Room, level: int) -> tuple[float, float]:
    """Middle and upper edge of its box."""
    return BOX / 2 + 8 + room.column / 4 * (WIDTH - BOX - 16), 12 + level * ROW


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = start, (end[0], end[1] + HIGH + 3)
    bend = min(40.0, (y - to_y) / 2)
    path = f"M{x:g} {y:g} C{x:g} {y - bend:g} {to_x:g} {to_y + bend:g} {to_x:g} {to_y:g}"
    return f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity="0.6" marker-end="url(#rooms-head)"/>'


def _box(room: Room, x: float, y: float) -> str:
    left = x - BOX / 2
    frame = (
        f'<rect x="{left:g}" y="{y:g}" width="{BOX}" height="{HIGH}" rx="8" fill-opacity="0.07" stroke="currentColor"/>'
    )
    name = f'<text x="{x:g}" y="{y + 24:g}" text-anchor="middle" font-weight="600" font-size="16">{room.name}</text>'
    what = f'<text x="{x:g}" y="{y + 43:g}" text-anchor="middle" font-size="13">{room.happens}</text>'
    return "\n".join([frame, name, what])
