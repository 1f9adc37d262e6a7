"""Which request is being answered: known to all that is done for it, and so to what is logged."""

from __future__ import annotations

from contextvars import ContextVar

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
