"""Whatever a file or a text holds, its reader accepts it or refuses it in one line: no other exception, no hang."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from empir_plugin.attacks.losses import parse_loss
from empir_plugin.attacks.surrogates import parse_surrogate
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import load_images
from empir_plugin.errors import EmpirError
from empir_plugin.evaluation.audit.report import AuditReport, Finding
from empir_plugin.evaluation.outcome import Outcome
from empir_plugin.evaluation.overhead.report import parse_image_shape
from empir_plugin.evaluation.overhead.verify import parse_overhead
from empir_plugin.evaluation.prepare import parse_device
from empir_plugin.evaluation.protocols import parse_protocol
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.entry import Entry
from empir_plugin.leaderboard.evidence import OVERHEAD, Evidence
from empir_plugin.leaderboard.foreign import ForeignEntry
from empir_plugin.leaderboard.papers import read_facts
from empir_plugin.models.backward import parse_backward
from empir_plugin.models.quantize import Precision
from empir_plugin.reproduce.parts import ConfusionMatrix
from empir_plugin.reproduce.run import parse_targets

FINDING = {
    "name": "noise", "measured": "Noise broke 3 of 4 images.", "value": 0.75, "threshold": 0.5, "p_value": 0.31,
    "reason": "noise is random", "passed": True, "evidence": {"a": [1, {"b": 2}]},
}  # fmt: skip
AUDIT = AuditReport(
    {"name": "m", "sha256": "ab"}, {"name": "cifar10", "n": 4, "sha256": "cd"}, "Linf:8/255", "Linf:8/255", 3,
    (Finding(**FINDING),), ("a flag",), "passed", {"seed": 0},
)  # fmt: skip
EVIDENCE = {
    "model": "m", "records": [{"path": "aa.json", "sha256": "0" * 64}], "audit": {"path": "a.json", "sha256": "1" * 64},
}  # fmt: skip
ENTRY = {
    "link": "https://example.org", "name": "n", "authors": "a", "additional_data": False, "number_forward_passes": 1,
    "dataset": "cifar10", "venue": "v", "architecture": "x", "eps": "8/255", "clean_acc": "75.00", "reported": "",
    "autoattack_acc": "1.40", "unreliable": False, "footnote": "<b>f</b>", "overhead": {"a": [1.5, {"b": "c"}]},
}  # fmt: skip
MATRIX = ConfusionMatrix(
    {"name": "m", "sha256": ""}, {"n": 2, "sha256": "1" * 64}, "FGSM", "Linf:0.3", ((1, 0), (0, 1)), {}
)
OUTCOME = Outcome((3, -1), 0.5, 2, ("a flag",), (("clean", "10"),), "", (1,), 0).to_table()
PAPER = """title = "A"
link = "https://example.org"
authors = "B"
venue = "C"
[[claims]]
accuracy = "50.00"
attack = "PGD"
threat = "Linf:8/255"
[[models]]
model = "my-model"
stem = "Other2021A"
dataset = "cifar10"
architecture = "D"
"""


def read_outcome(path: Path) -> object:
    return Outcome.from_table(json.loads(path.read_text()))


JSON: dict[str, tuple[Callable[[Path], object], Any]] = {
    "audit report": (AuditReport.read, AUDIT.to_table()),
    "evidence": (Evidence.read, EVIDENCE),
    "evidence, with its files": (lambda path: Evidence.read(path).findings(path.parent), EVIDENCE),
    "entry": (Entry.read, ENTRY),
    "entry of others": (ForeignEntry.read, ENTRY),
    "confusion matrix": (ConfusionMatrix.read, MATRIX.to_table() if hasattr(MATRIX, "to_table") else None),
    "outcome of a shard": (read_outcome, OUTCOME),
}


def refused(read: Callable[[Any], object], given: Any) -> str:
    """Why a reader refuses it; empty if it accepts it. Any other exception than ours fails the test."""
    try:
        read(given)
    except EmpirError as error:
        return str(error) or "no reason"
    return ""


@pytest.mark.parametrize("kind", JSON)
def test_mutated_json(kind: str, tmp_path: Path, toys: ModuleType, tally: Any) -> None:
    read, table = JSON[kind]
    if table is None:
        MATRIX.write(tmp_path / "m.json")
        table = json.loads((tmp_path / "m.json").read_text())
    table = json.loads(json.dumps(table))
    path = tmp_path / "file.json"
    cases = [case for case in toys.sample(table, 150) if kind != "outcome of a shard" or case[1] != 10**400]
    reasons = []
    for _, _, damaged in cases:
        path.write_text(toys.text(damaged))
        reasons.append(refused(read, path))
    assert any(reasons), "some damage must be found"
    tally(f"{kind}: mutated value", len(cases), sum("\n" not in reason for reason in reasons))


@pytest.mark.parametrize("kind", [*JSON, "paper"])
def test_damaged_bytes(kind: str, tmp_path: Path, toys: ModuleType, tally: Any) -> None:
    if kind == "outcome of a shard":
        pytest.skip("the bytes are those of the cache, which has a checksum")
    read, table = JSON.get(kind, (lambda path: read_facts(path, "my-model"), None))
    path = tmp_path / "file.json"
    if kind == "paper":
        path.write_text(PAPER)
        assert refused(read, path) == ""
    elif table is None:
        MATRIX.write(path)
    else:
        path.write_text(json.dumps(table))
    before, reasons = path.read_bytes(), []
    for content in toys.damaged_bytes(before, 100):
        path.write_bytes(content)
        reasons.append(refused(read, path))
    assert any(reasons), "some damage must be found"
    tally(f"{kind}: damaged bytes", len(reasons), sum("\n" not in reason for reason in reasons))


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000, "a = " + "[" * 10_000, '{"a": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("kind", [kind for kind in [*JSON, "paper", "run record", "overhead"] if "outcome" not in kind])
def test_deep_and_long_content(kind: str, deep: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(deep)
    assert "\n" not in refused(FILES[kind], tmp_path / "file.json")
    assert refused(FILES[kind], tmp_path / "file.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FILES: dict[str, Callable[[Path], object]] = {
    "run record": Record.read,
    **{kind: read for kind, (read, _) in JSON.items()},
    "overhead": lambda path: parse_overhead(OVERHEAD.load(path)),
    "paper": lambda path: read_facts(path, "m"),
}


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_any_json(kind: str, tmp_path: Path, value: Any) -> None:
    (tmp_path / "file.json").write_text(json.dumps(value))
    assert refused(FILES[kind], tmp_path / "file.json"), "no made-up value is such a file"


TEXTS: dict[str, Callable[[str], object]] = {
    "threat": Threat.parse, "precision": Precision.parse, "image shape": parse_image_shape, "protocol": parse_protocol,
    "device": parse_device, "surrogate": parse_surrogate, "loss": parse_loss, "backward rule": parse_backward,
    "targets": parse_targets,
}  # fmt: skip
SEEDS = st.sampled_from([
    "Linf:8/255", "L2:0.5", "w2a4", "fp", "3x32x32", "adaptive", "paper", "cpu", "cuda:0", "member 1", "identity",
    "mean_probability", "table2", "temperature 100", "inf", "nan", "1e999", "9" * 5000, "\ud800", "\0", "../x",
    "\u0663x1x1",
])  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=12) | SEEDS | st.tuples(SEEDS, st.text(max_size=3), SEEDS).map("".join))
def test_any_text(kind: str, text: str) -> None:
    refused(TEXTS[kind], text)


def idx(kind: int, *shape: int, content: bytes) -> bytes:
    return bytes([0, 0, 8, kind]) + b"".join(size.to_bytes(4, "big") for size in shape) + content


def test_damaged_image_files(tmp_path: Path, toys: ModuleType, tally: Any) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = idx(3, 4, 28, 28, content=bytes(range(196)) * 16)
    labels = idx(1, 4, content=bytes([1, 2, 3, 4]))
    files = {"t10k-images-idx3-ubyte": images, "t10k-labels-idx1-ubyte": labels}

    def write(**changed: bytes) -> None:
        for name, content in files.items():
            (raw / name).write_bytes(changed.get(name.split("-")[1], content))

    write()
    assert len(load_images("mnist", data_dir=tmp_path)) == 4
    reasons = []
    for part, content in (("images", images[:200] + images[200:]), ("labels", labels)):
        for damaged in toys.damaged_bytes(content, 60):
            write(**{part: damaged})
            reasons.append(refused(lambda folder: load_images("mnist", data_dir=folder), tmp_path))
    assert any(reasons)
    tally("image set: damaged bytes", len(reasons), sum("\n" not in reason for reason in reasons))
