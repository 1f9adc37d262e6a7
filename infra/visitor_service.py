"""The running service as a visitor's browser meets it: asked once, for a visitor does not wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.client import Client, ServiceError

__all__ = ["ServiceError", "VisitorService"]


class VisitorService:
    """For several threads: each closes its connection when it is done."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._client = Client(url, timeout_s=timeout_s, attempts=1)
        self.url = self._client.url
        self.ready = self._client.ready
        self.close = self._client.close

    def recommend(self, user_id: str, count: int, scenario: str | None = None) -> dict[str, Any]:
        """The items for a user."""
        return {**self._client.recommend(user_id, count, scenario=scenario)}

    def post(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What was accepted and what was not."""
        return {**self._client.events(events)}
