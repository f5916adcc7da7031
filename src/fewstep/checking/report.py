"""`Report`: what `fewstep.check` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["wrong", "doubtful"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that keeps a pipeline from the pictures its mode can make.

    `severity`: "wrong" spoils the picture or stops the call; "doubtful" costs quality or time, or
    could not be seen for certain.
    """

    what: str  # what it is now, what the mode needs, what happens otherwise
    mend: str  # one line to type, with diffusers, torch and transformers imported
    severity: Severity = "wrong"

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}\n    {self.mend}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything found in one pipeline, for one mode."""

    source: str  # a folder, or where the pipeline was loaded from
    mode: str
    call: str  # the line that calls a sound pipeline as the mode wants it
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Is nothing wrong? What is doubtful does not count."""
        return all(finding.severity != "wrong" for finding in self.findings)

    def __str__(self) -> str:
        wrong = sum(finding.severity == "wrong" for finding in self.findings)
        doubtful = len(self.findings) - wrong
        head = f"{self.source} for mode={self.mode!r}: {wrong} wrong, {doubtful} doubtful"
        return "\n".join([head, *map(str, self.findings), f"call: {self.call}"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {**asdict(self), "findings": [asdict(finding) for finding in self.findings], "ok": self.ok}
