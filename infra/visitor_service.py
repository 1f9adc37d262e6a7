"""The running service as a visitor's browser meets it: two requests over kept connections."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from streaming.errors import ConfigError, HeadraceError

_IDLE_S = 3.0  # the server lets go of an idle connection soon after


class ServiceError(HeadraceError):
    """The service could not be reached, or answered with an error."""


class VisitorService:
    """Every thread has a connection of its own, which it closes; one that fails is opened anew."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        try:
            known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        except ValueError:
            known = False
        if not known:
            raise ConfigError(f"--url {url!r} is no address: write it like http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self._parts = parts
        self._timeout_s = timeout_s
        self._threads = threading.local()

    def ready(self) -> str | None:
        """Why the service cannot answer yet, None if it can."""
        status, body = self._request("GET", "/readyz")
        return None if status == 200 else f"{status} {body[:200].decode(errors='replace')}"

    def recommend(self, user_id: str, count: int) -> dict[str, Any]:
        """The answer of GET /v1/recommend."""
        path = f"/v1/recommend?user_id={quote(user_id)}&k={count}"
        answer = self._object(*self._request("GET", path), path)
        if not isinstance(answer.get("items"), list) or "request_id" not in answer:
            raise ServiceError(f"{self.url}{path} answered something else than recommendations")
        return answer

    def post(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The answer of POST /v1/events: what was accepted and what was not."""
        status, body = self._request("POST", "/v1/events", json.dumps(list(events)).encode())
        # 422 is an answer too: none of them was accepted.
        return self._object(202 if status == 422 else status, body, "/v1/events")

    def _object(self, status: int, body: bytes, path: str) -> dict[str, Any]:
        try:
            parsed = json.loads(body)
        except ValueError:
            parsed = None
        if status >= 300 or not isinstance(parsed, dict):
            said = body[:200].decode(errors="replace")
            raise ServiceError(f"{self.url}{path} answered {status}: {said}")
        return parsed

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"} if body else {}
        connection = self._connection()
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            answered = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ServiceError(f"{self.url} does not answer ({error}): is it running?") from None
        self._threads.used = time.monotonic()
        return answered

    def _connection(self) -> http.client.HTTPConnection:
        kept: http.client.HTTPConnection | None = getattr(self._threads, "connection", None)
        if kept is None:
            secure = self._parts.scheme == "https"
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            host = self._parts.hostname or ""
            kept = kind(host, self._parts.port, timeout=self._timeout_s)
            self._threads.connection = kept
        elif time.monotonic() - getattr(self._threads, "used", 0.0) > _IDLE_S:
            kept.close()  # the next request opens it again
        return kept

    def close(self) -> None:
        """Lets go of the connection of this thread."""
        kept = getattr(self._threads, "connection", None)
        if kept is not None:
            kept.close()
