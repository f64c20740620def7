"""Import hooks that let an unmodified RobustBench run, and what they patch in its modules.

One hook supplies ``autoattack`` from pyautoattack. The other wraps the import of some of RobustBench's modules: it
stubs ``pkg_resources``, supplies the missing leaderboard template, repairs the evaluation under corruptions, adds MNIST
and silences harmless warnings.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from empir_plugin._compat.corruptions import repair_corruptions
from empir_plugin.errors import CompatibilityError

if TYPE_CHECKING:
    from torch import Tensor

Around = Callable[[ModuleType], AbstractContextManager[None]]
SearchPath = Sequence[str] | None
CleanLoader = Callable[[int | None, str, Callable[..., Any]], "tuple[Tensor, Tensor]"]

ADAPTER = "empir_plugin._compat.adapter"
TEMPLATE = "robustbench.leaderboard.template"

# Only the messages, since their categories differ between releases.
_HARMLESS = (
    r"`torch\.jit\.interface` is deprecated",
    r"Importing from timm\.",
    r"pkg_resources is deprecated",
)


def install() -> None:
    """Make an unmodified RobustBench importable and usable: https://github.com/RobustBench/robustbench.

    Cheap and idempotent: it only installs two import hooks.

    Raises:
        CompatibilityError: RobustBench was imported before, in a state that cannot be repaired.

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
    on_robustbench_import(repair_corruptions)


def on_robustbench_import(callback: Callable[[], object]) -> None:
    """Call ``callback`` without arguments once RobustBench is imported; immediately if it already is.

    An exception in it fails the import of RobustBench. Callbacks run in the order of their registration, each time
    RobustBench is imported anew.

    Example:
        >>> on_robustbench_import(lambda: None)
    """
    first, _ = FINDERS
    first.callbacks.append(callback)
    if _imported("robustbench"):
        callback()


def enable_mnist(loader: CleanLoader) -> None:
    """Add ``dataset="mnist"`` to RobustBench's own functions: https://github.com/RobustBench/robustbench.

    RobustBench's enum of data sets gains a member that can be looked up, copied and pickled like the others (a process
    that unpickles it must have called this function, too), but is not iterated over: RobustBench has no MNIST
    leaderboard. Takes effect immediately, or as soon as RobustBench is imported. A second call replaces the loader.

    Args:
        loader: Takes the number of images (None for all), the data directory and RobustBench's preprocessing; returns
            images ``(N, 1, 28, 28)`` in [0, 1] and labels ``(N,)``.

    Example:
        >>> def loader(n_examples, data_dir, preprocessing):
        ...     return load_mnist_test(data_dir, n_examples)
        >>> enable_mnist(loader)  # doctest: +SKIP
        >>> robustbench.benchmark(model, dataset="mnist", eps=0.3)  # doctest: +SKIP
    """
    on_robustbench_import(partial(_add_mnist, loader))


def _add_mnist(loader: CleanLoader) -> None:
    from robustbench import data, utils
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    mnist = _member(BenchmarkDataset, "mnist")
    utils.DATASET_CLASSES[mnist] = 10
    data._clean_dataset_loaders[mnist] = loader
    models: Any = model_dicts.setdefault(mnist, OrderedDict())
    for threat in ThreatModel:
        models.setdefault(threat, OrderedDict())


def _member(enum: Any, value: str) -> Any:
    """The enum's member of this value, created if there is none."""
    try:
        return enum(value)
    except ValueError:
        member: Any = object.__new__(enum)
    member._name_ = member._value_ = value
    missing = enum._missing_
    enum._missing_ = classmethod(lambda _, sought: member if sought == value else missing(sought))
    # Some releases of Python copy and pickle members by name, and the enum's own __setattr__ may reject names.
    type.__setattr__(enum, value, member)
    return member


class AutoAttackLoader(Loader):
    """Loads ``autoattack`` with our adapter; its submodules *are* those of pyautoattack, so no class exists twice."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the creation to Python."""

    def exec_module(self, module: ModuleType) -> None:
        """Copy the contents from the adapter, or alias pyautoattack's submodule."""
        source = import_module(_source_of(module.__name__))
        if module.__name__ == "autoattack":
            vars(module)["AutoAttack"] = source.AutoAttack
        else:
            sys.modules[module.__name__] = source


class AutoAttackFinder(MetaPathFinder):
    """Supplies ``autoattack`` from pyautoattack; last in ``sys.meta_path``, so an installed one takes precedence."""

    def find_spec(self, fullname: str, path: SearchPath, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find ``autoattack``, and submodules of the one supplied here."""
        is_installed = bool(path)  # the path of ours is empty
        if fullname.partition(".")[0] != "autoattack" or is_installed:
            return None
        if importlib.util.find_spec(_source_of(fullname)) is None:
            return None
        return ModuleSpec(fullname, AutoAttackLoader(), is_package=fullname == "autoattack")


class WrappingLoader(Loader):
    """Executes a module inside a context manager, then hands the module back to its own loader."""

    def __init__(self, loader: Loader, around: Around) -> None:
        self._loader = loader
        self._around = around

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module as its own loader does, inside the context manager."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with self._around(module):
            self._loader.exec_module(module)

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else (sources, resources, data) to the module's own loader."""
        return getattr(self._loader, name)


class RobustBenchFinder(MetaPathFinder):
    """Wraps the loaders of the few RobustBench modules that need it; first in ``sys.meta_path``."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], object]] = []
        # pkg_resources is stubbed during one module only, so that other libraries which probe for it do not find it.
        self._around: dict[str, Around] = {
            "robustbench": self._around_package,
            "robustbench.loaders": stub_pkg_resources,
            TEMPLATE: supply_template_after,
        }

    def find_spec(self, fullname: str, path: SearchPath, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module that needs it with the next finder, and wrap its loader."""
        around = self._around.get(fullname)
        spec = self._find_elsewhere(fullname, path, target) if around else None
        if around is None or spec is None or spec.loader is None:
            return None
        spec.loader = WrappingLoader(spec.loader, around)
        return spec

    def _find_elsewhere(self, name: str, path: SearchPath, target: ModuleType | None) -> ModuleSpec | None:
        finders = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        specs = (finder.find_spec(name, path, target) for finder in finders)
        return next((spec for spec in specs if spec is not None), None)

    @contextmanager
    def _around_package(self, _: ModuleType) -> Iterator[None]:
        with silence_harmless_warnings():
            yield
        rebind_submodules("robustbench")
        require_usable()
        for callback in self.callbacks:
            callback()


@contextmanager
def silence_harmless_warnings() -> Iterator[None]:
    """Silence the known warnings of importing timm and RobustBench."""
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        yield


@contextmanager
def stub_pkg_resources(_: ModuleType) -> Iterator[None]:
    """Let ``import pkg_resources`` succeed, with a stub that has the one function RobustBench calls.

    The stub is used even if pkg_resources is installed, which would warn of its deprecation; if it has been imported
    already, it is used instead.
    """
    modules: dict[str, Any] = sys.modules
    if modules.get("pkg_resources") is not None:
        yield
        return
    blocked = {"pkg_resources": None} if "pkg_resources" in modules else {}
    modules["pkg_resources"] = _pkg_resources_stub()
    try:
        yield
    finally:
        del modules["pkg_resources"]
        modules.update(blocked)


def _pkg_resources_stub() -> ModuleType:
    stub = ModuleType("pkg_resources", "Stub of setuptools' module while RobustBench's loaders are imported.")
    vars(stub)["resource_filename"] = _resource_filename
    return stub


def _resource_filename(module: str, resource: str) -> str:
    """Path of a file in the folder of a module."""
    return str(Path(import_module(module).__file__ or "").parent / resource)


@contextmanager
def supply_template_after(module: ModuleType) -> Iterator[None]:
    """Supply the template to a module once it has been executed."""
    yield
    supply_template(module)


def supply_template(module: ModuleType) -> None:
    """Let RobustBench's leaderboard fall back to our template where its own is not packaged."""
    from jinja2 import BaseLoader, ChoiceLoader, PackageLoader

    package_loader = module.PackageLoader

    def with_fallback(*args: Any, **kwargs: Any) -> BaseLoader:
        return ChoiceLoader([package_loader(*args, **kwargs), PackageLoader("empir_plugin._compat")])

    vars(module)["PackageLoader"] = with_fallback


def rebind_submodules(package: str) -> None:
    """Bind submodules that are left over from a failed import of ``package`` to their parents.

    Python keeps them in ``sys.modules``, but does not bind them when the package is imported again: ``package.module``
    would raise AttributeError.
    """
    for name, module in list(sys.modules.items()):
        parent, _, child = name.rpartition(".")
        if parent.partition(".")[0] == package and parent in sys.modules:
            vars(sys.modules[parent]).setdefault(child, module)


def require_usable() -> None:
    """Check that the imported RobustBench is complete and can call the ``autoattack`` it was imported with.

    Raises:
        CompatibilityError: It is not; importing this package first prevents that.
    """
    if "robustbench.eval" not in sys.modules:
        raise CompatibilityError(
            "robustbench must be imported whole, got one without robustbench.eval: "
            "import empir_plugin before robustbench, in a fresh interpreter; if that does not help, another package "
            "was installed over it, as torchattacks 3.5 is: pip install --force-reinstall --no-deps robustbench"
        )
    autoattack = sys.modules.get("autoattack")
    if autoattack is not None and not _accepts_benchmark_call(autoattack.AutoAttack):
        raise CompatibilityError(
            "robustbench must be imported with AutoAttack's original interface, "
            f"got that of {autoattack.AutoAttack.__module__}: "
            "import empir_plugin before robustbench, and put no substitute for autoattack into sys.modules"
        )


def _accepts_benchmark_call(autoattack: type) -> bool:
    try:
        signature(autoattack).bind(None, norm="Linf", eps=0.1, version="standard", device="cpu", log_path=None)
    except TypeError:
        return False
    return True


def _source_of(name: str) -> str:
    """Name of the module with the contents of ``autoattack`` or one of its submodules."""
    # Upstream's package imports its class from its submodule of the same name, and users import it from either.
    return ADAPTER if name in ("autoattack", "autoattack.autoattack") else f"py{name}"


def _imported(name: str) -> bool:
    """Whether a module has been imported completely."""
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


FINDERS = (RobustBenchFinder(), AutoAttackFinder())
