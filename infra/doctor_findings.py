"""What a check of the doctor found: one line, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`reason` says what is; `mend` what to do about it, where there is something to do."""

    check: str
    outcome: Outcome
    reason: str
    mend: str = ""


def ok(check: str, reason: str) -> Finding:
    return Finding(check, "ok", reason)


def warn(check: str, reason: str, mend: str) -> Finding:
    """It works, and not as well as it could or not for long."""
    return Finding(check, "warn", reason, mend)


def fail(check: str, reason: str, mend: str = "") -> Finding:
    """It does not work; an error's own sentence says how to mend it."""
    return Finding(check, "fail", reason, mend)
