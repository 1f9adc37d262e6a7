"""Connections that are too slow are closed: those that uvicorn's parser would wait for for ever.

The application sees a request only when its headers are whole, so this part of the guard stands
before it, in uvicorn's protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from serving.http.api_config import ApiConfig

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\nContent-Length: 38\r\n\r\n"
    b'{"error": "the headers are too large"}'
)


def guarded(protocol: type[asyncio.Protocol], config: ApiConfig) -> type[asyncio.Protocol]:
    """uvicorn's `HttpToolsProtocol`, with limits; for `uvicorn.Config(http=...)`.

    A request's head is whole within `head_timeout_s` of its first byte, and no larger than URL and
    headers may be; a body that an answer did not wait for comes within `body_timeout_s`; a client
    that does not read its answer is waited for `write_timeout_s`.
    """
    return type("Guarded", (_Limits, protocol), {"limits": config})


class _Limits:
    """Mixed in before the protocol, whose callbacks it hears first."""

    limits: ApiConfig
    transport: asyncio.Transport
    cycle: Any
    _timers: dict[str, asyncio.TimerHandle]
    _head_bytes: int

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._timers = {}
        self._head_bytes = 0
        super().connection_made(transport)  # type: ignore[misc]
        self._start("head", self.limits.head_timeout_s, transport.close)

    def connection_lost(self, error: Exception | None) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        super().connection_lost(error)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        going_on = "head" in self._timers  # if not, data may also end the request before
        super().data_received(data)  # type: ignore[misc]
        if "head" not in self._timers:
            self._head_bytes = 0
            return
        self._head_bytes += len(data) if going_on else 0
        most = self.limits.max_url_bytes + self.limits.max_header_bytes
        if self._head_bytes > most and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._start("head", self.limits.head_timeout_s, self.transport.close)
        super().on_message_begin()  # type: ignore[misc]

    def on_headers_complete(self) -> None:
        self._stop("head")
        super().on_headers_complete()  # type: ignore[misc]

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]
        if self.cycle.more_body:
            self._start("rest", self.limits.body_timeout_s, self.transport.close)

    def on_message_complete(self) -> None:
        self._stop("rest")
        super().on_message_complete()  # type: ignore[misc]

    def pause_writing(self) -> None:
        self._start("write", self.limits.write_timeout_s, self.transport.abort)
        super().pause_writing()  # type: ignore[misc]

    def resume_writing(self) -> None:
        self._stop("write")
        super().resume_writing()  # type: ignore[misc]

    def _start(self, name: str, seconds: float, then: Callable[[], None]) -> None:
        """A timer goes on from when it was started first."""
        if name not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[name] = loop.call_later(seconds, then)

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
