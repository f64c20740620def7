"""Audit reports: what every check measured, its threshold and the reason for it, and the verdict that follows.

A report is a JSON object with the fields of :class:`AuditReport`, in UTF-8. A report whose verdicts do not follow from
its numbers is refused. Numbers are finite, and no key occurs twice. ``schema`` is raised when the form changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import EvaluationError

SIGNIFICANCE = 0.01
"""A measurement beyond its threshold counts only if its p-value is below this."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        name: The sign of masking it looks for.
        measured: What was measured, as a sentence.
        value: The number that was compared: a share, or a count of warnings.
        threshold: What it may be at most.
        p_value: Probability of a value this high, on that many images, for a model at the threshold.
        reason: Why that threshold.
        passed: Whether the value is at most the threshold, or above it by chance.
        evidence: The numbers behind it, such as how many images each attack broke.

    Raises:
        EvaluationError: If a field is not of its form, or ``passed`` does not follow from the numbers.

    Example:
        >>> Finding("noise", "Noise broke 3 of 4 images.", 0.75, 0.5, 0.31, "noise is random", True).passed
        True
    """

    name: str
    measured: str
    value: float
    threshold: float
    p_value: float
    reason: str
    passed: bool
    evidence: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_texts("a check", {"name": self.name, "measured": self.measured, "reason": self.reason})
        numbers = self.value, self.threshold, self.p_value
        if any(type(number) not in (int, float) or not math.isfinite(number) for number in numbers):
            raise EvaluationError(f"{self.name}: value, threshold and p-value must be numbers, got {numbers}")
        if not (0 <= self.p_value <= 1 and isinstance(self.evidence, dict)):
            raise EvaluationError(f"{self.name}: the p-value lies in 0..1 and evidence is a table, got {self.p_value}")
        if self.passed is not passes(self.value, self.threshold, self.p_value):
            raise EvaluationError(f"{self.name}: passed is {self.passed}, which does not follow from its numbers")


def passes(value: float, threshold: float, p_value: float) -> bool:
    """Whether a check passes: at most its threshold, or not significantly above it.

    Example:
        >>> passes(0.1, 0.02, 0.5), passes(0.1, 0.02, 0.001)
        (True, False)
    """
    return not (value > threshold and p_value < SIGNIFICANCE)


def check_texts(what: str, texts: Mapping[str, object]) -> None:
    """Refuse what is no text, or an empty one.

    Raises:
        EvaluationError: If one of the named ``texts`` is not.
    """
    for name, text in texts.items():
        if not (isinstance(text, str) and text):
            raise EvaluationError(f"{name} of {what} must be a text, got {text!r}")


SCHEMA = 2
PASSED = "passed"
MASKED = "masked"


def _from_schema_1(table: Mapping[str, Any]) -> dict[str, Any]:
    """Schema 1 called the p-value ``chance``."""
    checks = [{"p_value" if key == "chance" else key: item for key, item in row.items()} for row in table["checks"]]
    return {**table, "checks": checks, "schema": SCHEMA}


_KIND = JsonKind("an audit report", EvaluationError, SCHEMA, upgrades={1: _from_schema_1})


@dataclass(frozen=True)
class AuditReport:
    """The result of a masking audit.

    Args:
        model: ``name``, ``sha256`` and ``identity``, the version of that hash; 1 where left out.
        data: ``name``, ``split``, ``source``, number of images ``n`` and ``sha256``.
        threat: The budget of the evaluation in question, as text such as ``"Linf:8/255"``.
        compared_at: The budget under which attacks were compared: smaller than the threat if that lets all of them win.
        images: How many of the images the model classifies correctly; all measurements are on these.
        checks: One finding per check.
        flags: AutoAttack's warnings, all of them.
        verdict: ``"passed"`` or ``"masked"``: whether every check passed.
        run: Seed, batch size, device, CPU threads, time of day, versions and code; two reports are compared without it.
        schema: Version of this format.

    Raises:
        EvaluationError: If a field is not of its form, or the verdict does not follow from the checks.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    threat: str
    compared_at: str
    images: int
    checks: tuple[Finding, ...]
    flags: tuple[str, ...]
    verdict: str
    run: dict[str, Any] = field(default_factory=dict, compare=False)
    schema: int = field(default=SCHEMA, kw_only=True)

    def __post_init__(self) -> None:
        if not all(isinstance(table, dict) for table in (self.model, self.data, self.run)):
            raise EvaluationError("model, data and run of an audit are tables")
        check_texts("an audit", {"threat": self.threat, "compared_at": self.compared_at})
        check_texts("the model", {key: self.model.get(key) for key in ("name", "sha256")})
        check_texts("the data", {key: self.data.get(key) for key in ("name", "sha256")})
        if type(self.images) is not int or type(self.data.get("n")) is not int or not 0 < self.images <= self.data["n"]:
            raise EvaluationError(f"an audit is on 1 to {self.data.get('n')} images, got {self.images!r}")
        if not self.checks or len({finding.name for finding in self.checks}) < len(self.checks):
            raise EvaluationError("an audit has checks with different names")
        if self.verdict != verdict_on(self.checks):
            raise EvaluationError(f"the verdict {self.verdict!r} does not follow from the checks")

    @property
    def masked(self) -> bool:
        """Whether a check found a sign of masking."""
        return self.verdict == MASKED

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The checks that found a sign of masking."""
        return tuple(finding for finding in self.checks if not finding.passed)

    @property
    def summary(self) -> str:
        """The verdict in a sentence or two, for people."""
        compared = "" if self.compared_at == self.threat else f" (compared under {self.compared_at})"
        where = f"{len(self.checks)} checks on {self.images} images under {self.threat}{compared}"
        if not self.masked:
            return f"passed: no sign of gradient masking in {where}. That is no proof of its absence."
        names = ", ".join(finding.name for finding in self.failed)
        return (
            f"masked: {len(self.failed)} of {where} found gradient masking ({names}). Attacks on this model's own "
            "gradient overestimate its robustness: trust the worst case of the protocol adaptive instead."
        )

    def to_table(self) -> dict[str, Any]:
        """As a mapping that JSON can hold."""
        return asdict(self)

    def to_json(self) -> str:
        """The report as JSON text.

        Raises:
            EvaluationError: If a number is NaN or infinite, or something is no JSON.
        """
        return _KIND.text(self.to_table())

    def write(self, path: Path) -> None:
        """Write the report atomically.

        Raises:
            EvaluationError: If it cannot be written.
        """
        _KIND.write(path, self.to_table())

    @classmethod
    def read(cls, path: Path) -> AuditReport:
        """Read a report back.

        Raises:
            EvaluationError: If the file is missing, is not a report, has an unknown schema, or contradicts itself.
        """
        return _KIND.read(path, cls.from_table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> AuditReport:
        """Read back what :meth:`to_table` returned.

        Raises:
            EvaluationError: If a field has another form, or the verdict does not follow.
            TypeError: If fields are missing or unknown.
        """
        checks = tuple(Finding(**row) for row in table["checks"])
        return cls(**{**table, "checks": checks, "flags": tuple(map(str, table["flags"]))})


def verdict_on(checks: tuple[Finding, ...]) -> str:
    """``"passed"`` if every check passed, else ``"masked"``."""
    return PASSED if all(finding.passed for finding in checks) else MASKED
