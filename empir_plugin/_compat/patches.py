"""What RobustBench's modules are given, and what is required of them once they are there."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from empir_plugin.errors import CompatibilityError


@contextmanager
def pkg_resources_stubbed(_: ModuleType) -> Iterator[None]:
    """Have ``import pkg_resources`` succeed inside, with the one function RobustBench calls.

    The stub is preferred even to an installed one, which warns that it is deprecated; one that somebody has imported
    already is used as it is.
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
    stub = ModuleType("pkg_resources", "Stands in for setuptools' module while RobustBench's loaders are imported.")
    vars(stub)["resource_filename"] = _resource_filename
    return stub


def _resource_filename(module: str, resource: str) -> str:
    """Path of a file that lies beside a module."""
    return str(Path(import_module(module).__file__ or "").parent / resource)


@contextmanager
def template_supplied(module: ModuleType) -> Iterator[None]:
    """Supply the template to a module that is executed inside."""
    yield
    supply_template(module)


def supply_template(module: ModuleType) -> None:
    """Let RobustBench's leaderboard fall back to our template where its own was not packaged."""
    from jinja2 import BaseLoader, ChoiceLoader, PackageLoader

    package_loader = module.PackageLoader

    def with_fallback(*args: Any, **kwargs: Any) -> BaseLoader:
        return ChoiceLoader([package_loader(*args, **kwargs), PackageLoader("empir_plugin._compat")])

    vars(module)["PackageLoader"] = with_fallback


def rebind_leftovers(package: str) -> None:
    """Bind to their parents the modules that survived an import of ``package`` which failed.

    Python keeps them, but does not bind them to the package when that is imported again: ``package.module`` would be
    an AttributeError.
    """
    for name, module in list(sys.modules.items()):
        parent, _, child = name.rpartition(".")
        if parent.partition(".")[0] == package and parent in sys.modules:
            vars(sys.modules[parent]).setdefault(child, module)


def require_usable() -> None:
    """Check that the imported RobustBench is whole and can call the ``autoattack`` it was imported with.

    Raises:
        CompatibilityError: It is not, and importing this package first would have prevented it.
    """
    if "robustbench.eval" not in sys.modules:
        raise CompatibilityError(
            "robustbench must be imported whole, got one without robustbench.eval: "
            "import empir_plugin before robustbench, in a fresh interpreter; if that does not help, another package "
            "was installed over it, as torchattacks 3.5 is: pip install --force-reinstall --no-deps robustbench"
        )
    autoattack = sys.modules.get("autoattack")
    if autoattack is not None and not _takes_the_call_of_benchmark(autoattack.AutoAttack):
        raise CompatibilityError(
            "robustbench must be imported with AutoAttack's original interface, "
            f"got that of {autoattack.AutoAttack.__module__}: "
            "import empir_plugin before robustbench, and put no substitute for autoattack into sys.modules"
        )


def _takes_the_call_of_benchmark(autoattack: type) -> bool:
    try:
        signature(autoattack).bind(None, norm="Linf", eps=0.1, version="standard", device="cpu", log_path=None)
    except TypeError:
        return False
    return True
