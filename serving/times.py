"""Times as they are shown outside."""

from __future__ import annotations

from datetime import datetime, timedelta

_EPOCH = datetime(1970, 1, 1)  # UTC, unnamed: its name would be written, too


def time_text(at_us: int | None) -> str | None:
    """A time in microseconds as 2026-11-21T10:00:00.000000Z: of fixed width, so it sorts."""
    if at_us is None:
        return None
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds") + "Z"
