"""The architecture as the import statements show it: a graph of the rooms, its drawing and its table.

``python tools/docs_tables.py`` writes drawing and table. The graph is read from the sources; no module is imported.
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
    """A part of the code that answers one question.

    Args:
        name: Its folder, without the path. :data:`GROUND` stands for several.
        question: What it answers, for the table.
        summary: The same in a few words, for the drawing.
        column: Its place in the drawing, from 0 (left) to 4 (right).
        root: The folder its folder is in.
    """

    name: str
    question: str
    summary: str
    column: int
    root: str = "empir_plugin"

    @property
    def folder(self) -> Path:
        """Its folder."""
        return ROOT / self.root / self.name

    @property
    def subfolders(self) -> list[str]:
        """Its subpackages, by name."""
        return sorted(path.parent.name for path in self.folder.glob("*/__init__.py"))


GROUND = "ground"
GROUND_PARTS = ("_files", "data", "errors", "_entry_points")
"""What the room :data:`GROUND` consists of: folders and modules that know nothing about models."""

ROOMS = (
    Room(
        GROUND, "How are files and images read? Atomic writes, strict JSON, locks; image sets; errors", "files, data", 2
    ),
    Room("_compat", "What does an unmodified RobustBench need to run?", "RobustBench runs", 2),
    Room("models", "How does a network become low precision, and several networks one?", "a model is built", 2),
    Room("attacks", "What does an adversary do?", "attacked", 4),
    Room("zoo", "Which models have a name?", "named", 0),
    Room("export", "How does a model reach hardware?", "exported", 0),
    Room("evaluation", "How robust is a model, at what cost, and can the numbers be trusted?", "judged", 4),
    Room("training", "How are members trained?", "trained", 0),
    Room("leaderboard", "How is a result published?", "published", 2),
    Room("suite", "How is robustness tested in pytest?", "tested", 4),
    Room("reproduce", "Which of the papers' results hold?", "compared with papers", 0),
    Room("empir_cli", "The command `empir`", "the command empir", 1, "entrypoints"),
    Room("pytest_empir", "The pytest plugin", "the pytest plugin", 4, "entrypoints"),
)
"""In order: a room may import only from the rooms before it."""

ONLY: Mapping[str, tuple[str, ...]] = {
    "click": ("empir_cli",),
    "rich": ("empir_cli",),
    "pytest": ("pytest_empir",),
    "robustbench": (GROUND, "_compat", "zoo"),
    "timm": ("models", "zoo"),
}
"""Third-party packages that only these rooms may import."""


def unlisted() -> list[str]:
    """Packages and modules that belong to no room: add a line to :data:`ROOMS` or :data:`GROUND_PARTS`."""
    known = {(room.root, room.name) for room in ROOMS} | {("empir_plugin", part) for part in GROUND_PARTS}
    paths = [path for root in ("empir_plugin", "entrypoints") for path in (ROOT / root).iterdir()]
    names = [
        (path.parent.name, path.stem) for path in paths if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
    return sorted("/".join(name) for name in names if name not in known and not name[1].startswith("__"))


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """The rooms and third-party packages that each room imports from."""
    return {room.name: frozenset(_room_imports(room)) for room in ROOMS}


def _room_imports(room: Room) -> Iterator[str]:
    for path in _sources(room):
        for module in imported_modules(path.read_text(encoding="utf-8")):
            name = room_of(module)
            if name not in ("", room.name):
                yield name


def _sources(room: Room) -> list[Path]:
    if room.name != GROUND:
        return sorted(room.folder.rglob("*.py"))
    parts = [ROOT / room.root / part for part in GROUND_PARTS]
    return [path for part in parts for path in (*sorted(part.rglob("*.py")), part.with_suffix(".py")) if path.is_file()]


def imported_modules(source: str) -> Iterator[str]:
    r"""Full names of everything a module's source imports.

    Example:
        >>> list(imported_modules("import a.b\ndef f():\n    from empir_plugin.zoo import card"))
        ['a.b', 'empir_plugin.zoo.card']
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """The room of a module, or its third-party package; empty for the standard library and for ``empir_plugin`` itself.

    Example:
        >>> room_of("empir_plugin.zoo.card"), room_of("empir_plugin.errors"), room_of("torch.nn"), room_of("json")
        ('zoo', 'ground', 'torch', '')
    """
    package, _, rest = module.partition(".")
    if package != "empir_plugin":
        return "" if package in sys.stdlib_module_names else package
    part = rest.partition(".")[0]
    return GROUND if part in GROUND_PARTS else part if any(room.name == part for room in ROOMS) else ""


def violations(found: Mapping[str, frozenset[str]]) -> list[str]:
    """Imports that the order of rooms or :data:`ONLY` forbids, as sentences.

    Example:
        >>> violations({"models": frozenset({"attacks", "torch"}), "zoo": frozenset({"models", "click"})})
        ['models imports from attacks, which comes after it', 'zoo imports click, which is for empir_cli']
    """
    order = [room.name for room in ROOMS]
    upward = [
        f"{room} imports from {other}, which comes after it"
        for room, names in found.items()
        for other in sorted(names)
        if other in order and order.index(other) > order.index(room)
    ]
    reserved = [
        f"{room} imports {package}, which is for {' and '.join(ONLY[package])}"
        for room, names in found.items()
        for package in sorted(names)
        if room not in ONLY.get(package, (room,))
    ]
    return upward + reserved


def room_graph(found: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """The rooms that each room imports from, in order."""
    order = [room.name for room in ROOMS]
    return {room: [name for name in order if name in names] for room, names in found.items()}


def transitive_reduction(graph: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The graph without imports that follow from others, as it is drawn.

    Example:
        >>> transitive_reduction({"a": [], "b": ["a"], "c": ["a", "b"]})
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
    """The rooms in Markdown: what each answers, its subfolders, and what it imports from."""
    graph = room_graph(imports())
    rows = []
    for room in ROOMS:
        inside = GROUND_PARTS if room.name == GROUND else room.subfolders
        uses = graph[room.name]
        rows.append((f"`{room.name}`", room.question, _code_list(inside), _code_list(uses)))
    return markdown_table(("room", "question", "inside", "imports from"), rows, "l")


def _code_list(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


WIDTH, BOX, HEIGHT, ROW = 720, 176, 74, 118


def drawing() -> str:
    """The rooms as SVG in the text color of the page. Each arrow is an import and points up."""
    graph = transitive_reduction(room_graph(imports()))
    levels: dict[str, int] = {}
    for room, names in graph.items():
        levels[room] = 1 + max((levels[name] for name in names), default=-1)
    places = {room.name: _place(room, levels[room.name]) for room in ROOMS}
    height = max(y for _, y in places.values()) + HEIGHT + 12
    arrows = [_arrow(places[room], places[name]) for room, names in graph.items() for name in names]
    boxes = [_box(room, *places[room.name]) for room in ROOMS]
    description = "; ".join(f"{room} imports from {', '.join(names)}" for room, names in graph.items() if names)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
    lines = [
        f'{head} aria-labelledby="rooms-title rooms-text" font-family="system-ui, sans-serif" fill="currentColor">',
        '<title id="rooms-title">The rooms of the code, each below the rooms it imports from</title>',
        f'<desc id="rooms-text">{escape(description)}.</desc>',
        '<defs><marker id="rooms-head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L10 5 L0 10 z"/></marker></defs>',
        *arrows,
        *boxes,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _place(room: Room, level: int) -> tuple[float, float]:
    """Middle and upper edge of a room's box."""
    return BOX / 2 + 8 + room.column / 4 * (WIDTH - BOX - 16), 12 + level * ROW


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = start, (end[0], end[1] + HEIGHT + 3)
    bend = min(40.0, (y - to_y) / 2)
    path = f"M{x:g} {y:g} C{x:g} {y - bend:g} {to_x:g} {to_y + bend:g} {to_x:g} {to_y:g}"
    return f'<path d="{path}" fill="none" stroke="currentColor" stroke-opacity="0.6" marker-end="url(#rooms-head)"/>'


def _box(room: Room, x: float, y: float) -> str:
    inside = "_files, data, errors" if room.name == GROUND else ", ".join(room.subfolders)
    texts = [(room.name, 24, "16", "600"), (room.summary, 43, "13", "400"), (inside, 62, "11", "400")]
    lines = [
        f'<rect x="{x - BOX / 2:g}" y="{y:g}" width="{BOX}" height="{HEIGHT}" rx="8" fill-opacity="0.07" '
        'stroke="currentColor"/>'
    ]
    lines += [
        f'<text x="{x:g}" y="{y + down:g}" text-anchor="middle" font-weight="{weight}" font-size="{size}">{text}</text>'
        for text, down, size, weight in texts
        if text
    ]
    return "\n".join(lines)
