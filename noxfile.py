"""Test sessions over interpreters and releases of the libraries: ``pip install nox``, then ``nox --list``.

Every session installs the package with its dependencies from PyPI: several gigabytes for each, mostly torch. Arguments
behind ``--`` go to pytest in place of the session's own.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["contracts"]

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
"""Those that pyproject.toml allows and torch has wheels for; 3.14 has not been tried."""

CONTRACTS = (
    "tests/_compat",
    "tests/attacks/test_surrogates.py",
    "tests/entrypoints",
    "tests/evaluation/test_run.py",
    "tests/models/test_ensemble.py",
    "tests/models/test_weight_files.py",
    "tests/suite",
    "tests/test_package.py",
    "tests/zoo",
)
"""Tests of what depends on the interpreter and on the releases of torch, timm, RobustBench, click and pytest."""

OLDEST = ("torch==2.5.*", "torchvision==0.20.*", "timm==1.0.9")
"""The oldest releases that pyproject.toml allows."""


def _test(session: nox.Session, *paths: str, pins: tuple[str, ...] = ()) -> None:
    session.install("-e", ".[test]", *pins)
    _pytest(session, *paths)


def _pytest(session: nox.Session, *paths: str) -> None:
    session.run("pytest", "-q", *(session.posargs or paths))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests."""
    _test(session)


@nox.session(python=PYTHONS)
def contracts(session: nox.Session) -> None:
    """The contracts with other libraries, in a few minutes; ``.ci/run`` runs them on a second interpreter."""
    _test(session, *CONTRACTS)


@nox.session(python=PYTHONS[2])
def export(session: nox.Session) -> None:
    """Exported files in onnxruntime and in qonnx, the included ensembles on 1,000 images among them."""
    session.install("-e", ".[test,export]")
    _pytest(session, "tests/export", "-m", "not gpu")


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """All tests on the oldest interpreter, with the oldest torch and timm allowed."""
    _test(session, pins=OLDEST)


@nox.session(python=PYTHONS[-2:])
def newest(session: nox.Session) -> None:
    """All tests on the newest interpreters, with the newest release of every dependency."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", ".[test]")
    _pytest(session)


@nox.session(python=PYTHONS[2])
@nox.parametrize("release", ["1.0.9", "1.0.31"])
def timm(session: nox.Session, release: str) -> None:
    """The contracts, and the conversion of timm's networks, with one release of timm."""
    session.install("-e", ".[test]")
    session.install("--no-deps", f"timm=={release}")  # RobustBench 1.1.1 asks for timm 1.0.9, and runs with later ones.
    _pytest(session, *CONTRACTS, "tests/models/convert")
