r"""Audit reports: what every check measured, what it allows and why, and the verdict that follows.

A report is a JSON object with the fields of :class:`AuditReport`, in UTF-8. A report whose verdicts do not follow from
its numbers is refused. Numbers are finite, and no key occurs twice. ``schema`` is raised when the form changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.masking_finding import Finding, check_texts
from empir_plugin.evaluation.strict_json import JsonKind

SCHEMA = 1
_KIND = JsonKind("an audit report", EvaluationError, SCHEMA)
PASSED = "passed"
MASKED = "masked"


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Args:
        model: ``name`` and ``sha256``.
        data: ``name``, ``split``, ``source``, number of images ``n`` and ``sha256``.
        threat: The budget of the evaluation in question, as text such as ``"Linf:8/255"``.
        compared_at: The budget under which attacks were compared: a smaller one, where the threat lets all of them win.
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
            raise EvaluationError("an audit has checks, each of another name")
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
        """As what JSON can hold."""
        return asdict(self)

    def to_json(self) -> str:
        """The report as JSON text.

        Raises:
            EvaluationError: If a number is NaN or infinite, or something is no JSON.
        """
        return _KIND.text(self.to_table())

    def write(self, path: Path) -> None:
        """Write the report; a kill leaves no half of one.

        Raises:
            EvaluationError: If it cannot be written.
        """
        _KIND.write(path, self.to_table())

    @classmethod
    def read(cls, path: Path) -> AuditReport:
        """Read a report back.

        Raises:
            EvaluationError: If the file is missing, no report, of another version of the format, or contradicts itself.
        """
        return _KIND.read(path, cls.from_table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> AuditReport:
        """Back from what JSON held.

        Raises:
            EvaluationError: If a field is not of its form, or the verdict does not follow.
            TypeError: If fields are missing or unknown.
        """
        checks = tuple(Finding(**row) for row in table["checks"])
        return cls(**{**table, "checks": checks, "flags": tuple(map(str, table["flags"]))})


def verdict_on(checks: tuple[Finding, ...]) -> str:
    """``"passed"`` if every check passed, else ``"masked"``."""
    return PASSED if all(finding.passed for finding in checks) else MASKED
