"""The two import hooks: one supplies ``autoattack``, one attends to RobustBench's modules while they are executed."""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from empir_plugin._compat.patches import (
    pkg_resources_stubbed,
    rebind_leftovers,
    require_usable,
    supply_template,
    template_supplied,
)
from empir_plugin._compat.quiet import harmless_warnings_silenced

Around = Callable[[ModuleType], AbstractContextManager[None]]
SearchPath = Sequence[str] | None

ADAPTER = "empir_plugin._compat.adapter"
TEMPLATE = "robustbench.leaderboard.template"


class AutoAttackLoader(Loader):
    """Fills ``autoattack`` with our adapter; its submodules *are* those of pyautoattack, so no class exists twice."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the creation to Python."""

    def exec_module(self, module: ModuleType) -> None:
        """Take the contents from the module that has them."""
        source = import_module(_source_of(module.__name__))
        if module.__name__ == "autoattack":
            vars(module)["AutoAttack"] = source.AutoAttack
        else:
            sys.modules[module.__name__] = source


class AutoAttackFinder(MetaPathFinder):
    """Supplies ``autoattack`` from pyautoattack; stands last in ``sys.meta_path``, so an installed one wins."""

    def find_spec(self, fullname: str, path: SearchPath, target: ModuleType | None = None) -> ModuleSpec | None:
        """Answer for ``autoattack`` and for the submodules of the one that came from here."""
        of_a_real_package = bool(path)  # ours has an empty one
        if fullname.partition(".")[0] != "autoattack" or of_a_real_package:
            return None
        if importlib.util.find_spec(_source_of(fullname)) is None:
            return None
        return ModuleSpec(fullname, AutoAttackLoader(), is_package=fullname == "autoattack")


class AttendedLoader(Loader):
    """Executes a module inside a context manager, then hands the module back to its own loader."""

    def __init__(self, loader: Loader, around: Around) -> None:
        self._loader = loader
        self._around = around

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module as its own loader does, attended to."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with self._around(module):
            self._loader.exec_module(module)

    def __getattr__(self, name: str) -> Any:
        """Everything but execution (sources, resources, data) is the module's own loader's business."""
        return getattr(self._loader, name)


class RobustBenchFinder(MetaPathFinder):
    """Finds RobustBench where everybody finds it and attends to the few modules that need it; stands first."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], object]] = []
        # The stub stands in for pkg_resources during one module only, lest other libraries' probes for it be fooled.
        self._attended: dict[str, Around] = {
            "robustbench": self._around_package,
            "robustbench.loaders": pkg_resources_stubbed,
            TEMPLATE: template_supplied,
        }

    def find_spec(self, fullname: str, path: SearchPath, target: ModuleType | None = None) -> ModuleSpec | None:
        """Answer for the attended modules with the next finder's answer, its loader wrapped."""
        around = self._attended.get(fullname)
        spec = self._find_elsewhere(fullname, path, target) if around else None
        if around is None or spec is None or spec.loader is None:
            return None
        spec.loader = AttendedLoader(spec.loader, around)
        return spec

    def _find_elsewhere(self, name: str, path: SearchPath, target: ModuleType | None) -> ModuleSpec | None:
        finders = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        specs = (finder.find_spec(name, path, target) for finder in finders)
        return next((spec for spec in specs if spec is not None), None)

    @contextmanager
    def _around_package(self, _: ModuleType) -> Iterator[None]:
        with harmless_warnings_silenced():
            yield
        rebind_leftovers("robustbench")
        require_usable()
        for callback in self.callbacks:
            callback()


FINDERS = (RobustBenchFinder(), AutoAttackFinder())


def install() -> None:
    """Make an unmodified RobustBench importable and usable: https://github.com/RobustBench/robustbench.

    Cheap and idempotent: it only places two import hooks.

    Raises:
        CompatibilityError: RobustBench was imported before, in a way that cannot be mended now.

    Example:
        >>> import sys
        >>> install()
        >>> install()
        >>> sum(isinstance(finder, RobustBenchFinder) for finder in sys.meta_path)
        1
    """
    first, last = FINDERS
    if first in sys.meta_path:
        return
    if _imported("robustbench"):
        require_usable()
    if _imported(TEMPLATE):
        supply_template(sys.modules[TEMPLATE])
    sys.meta_path.insert(0, first)
    sys.meta_path.append(last)


def on_robustbench_import(callback: Callable[[], object]) -> None:
    """Call ``callback`` without arguments once RobustBench is imported; at once if it already is.

    An exception in it fails the import of RobustBench. Callbacks run in the order of their registration, again
    whenever RobustBench is imported afresh.

    Example:
        >>> on_robustbench_import(lambda: None)
    """
    first, _ = FINDERS
    first.callbacks.append(callback)
    if _imported("robustbench"):
        callback()


def _source_of(name: str) -> str:
    """Name of the module that has what ``autoattack`` or a submodule of it should have."""
    # Upstream's package takes its class from its submodule of the same name, and users import it from either.
    return ADAPTER if name in ("autoattack", "autoattack.autoattack") else f"py{name}"


def _imported(name: str) -> bool:
    """Whether the module is there, and not in the middle of being executed."""
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)
