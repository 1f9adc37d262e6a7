"""What stands before the routes: who asks, how often, how much, how slowly; and what is told of it.

Plain ASGI: each layer is a callable around the next, and a request that is fine passes with next to
nothing added. A refusal's body is `{"error": sentence}`, as everywhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_network

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.answer_json import encoded
from serving.http.api_config import ApiConfig, ApiKey
from serving.http.refusals import BodyTooSlow, retry_after
from serving.metrics import ServingMetrics
from serving.request import REQUEST_ID

logger = logging.getLogger(__name__)
Headers = list[tuple[bytes, bytes]]

REQUEST_ID_HEADER = b"x-request-id"
REPLICA = b"x-headrace-replica"
_SLOWEST_BODY = 1_000.0  # bytes a second
_SHORT_BODY = 65_536  # what is left of one like this comes by itself
_LINGER_S = 2.0
_MOST_BUCKETS = 10_000
_MOST_HEADERS = 100


class Observed:
    """Names every answer by an id and its replica, counts it, and tells of what broke without
    showing it to the client.
    """

    def __init__(self, app: ASGIApp, metrics: ServingMetrics, replica: str) -> None:
        self._app = app
        self._metrics = metrics
        self._replica: Headers = [(REPLICA, replica.encode())] if replica else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0
        request = uuid.uuid4().hex
        REQUEST_ID.set(request)  # a server gives each request a context of its own

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *self._replica]
                if not any(name == REQUEST_ID_HEADER for name, _ in headers):
                    headers.append((REQUEST_ID_HEADER, request.encode()))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            logger.exception("request %s: %s %s", request, scope["method"], scope["path"])
            if not status:
                sentence = (
                    f"something broke inside: look for request {request} in the service's log"
                )
                await refuse(named, 500, sentence)
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).observe(time.perf_counter() - begun)


class Guard:
    """Turns away who may not ask, asks too often, sends too much or too slowly."""

    def __init__(self, app: ASGIApp, config: ApiConfig, clock: Callable[[], float]) -> None:
        self._app = app
        self._config = config
        self._keys = Keys(config.api_keys)
        self._rates = Rates(config.rate_per_s, config.burst, clock)
        self._open = frozenset(config.open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: Headers = scope["headers"]
        length = _body_length(headers)
        if length != 0:
            body = _Body(receive, self._config.body_timeout_s, length)
            receive, send = body.receive, body.outlived_by(send)
        if not await self._refused(scope, headers, send):
            await self._app(scope, receive, send)

    async def _refused(self, scope: Scope, headers: Headers, send: Send) -> bool:
        config = self._config
        url = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
        if url > config.max_url_bytes:
            sentence = f"the URL has {url} bytes: {config.max_url_bytes} at most, or use POST"
            return await refuse(send, 414, sentence)
        if (
            len(headers) > _MOST_HEADERS
            or sum(len(name) + len(value) for name, value in headers) > config.max_header_bytes
        ):
            sentence = (
                f"the headers are too large: {_MOST_HEADERS} of them and"
                f" {config.max_header_bytes} bytes at most"
            )
            return await refuse(send, 431, sentence)
        if scope["path"] in self._open:
            return False
        return await self._refused_client(scope, headers, send)

    async def _refused_client(self, scope: Scope, headers: Headers, send: Send) -> bool:
        name = self._keys.name(headers)
        asker = _address(scope) if name is None else f"key {name}"
        wait_s = self._rates.take(asker)
        if wait_s > 0:
            sentence = (
                f"{asker} asks more than {self._config.rate_per_s:g} times a second:"
                " send it again after Retry-After seconds"
            )
            return await refuse(send, 429, sentence, [(b"retry-after", retry_after(wait_s).encode())])  # noqa: E501  # fmt: skip
        if not self._keys:
            return False
        if name is None:
            sentence = (
                "a key is needed, and none that is known came with the request: send"
                " Authorization: Bearer KEY, or X-Api-Key: KEY"
            )
            return await refuse(send, 401, sentence, [(b"www-authenticate", b"Bearer")])
        scoped = "events" if scope["path"] == "/v1/events" else "read"
        if self._keys.scope(name) not in (scoped, "all"):
            sentence = (
                f"the key {name} is only for {self._keys.scope(name)}: use one whose scope is"
                f" {scoped}, or all"
            )
            return await refuse(send, 403, sentence)
        return False


class Keys:
    """The keys of a recipe, of which only hashes are known."""

    def __init__(self, keys: Mapping[str, ApiKey]) -> None:
        self._keys = [(name, bytes.fromhex(key.sha256)) for name, key in keys.items()]
        self._scopes = {name: key.scope for name, key in keys.items()}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def scope(self, name: str) -> str:
        """What a key may do."""
        return self._scopes[name]

    def name(self, headers: Headers) -> str | None:
        """The name of the key that came along; None if there was none, or several.

        Compares with every key, each in constant time, so how long it takes tells nothing.
        """
        if not self._keys:
            return None
        sent = {key for key in _sent_keys(headers) if key}
        if len(sent) != 1:
            return None
        digest = hashlib.sha256(sent.pop()).digest()
        known = [name for name, key in self._keys if hmac.compare_digest(key, digest)]
        return known[0] if known else None


class Rates:
    """A bucket of tokens for each asker: `per_s` flow in, up to `burst`; a request takes one.

    Of so many askers that memory would grow, those that asked longest ago are forgotten: each
    begins with a full bucket again.
    """

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when

    def take(self, asker: str) -> float:
        """0 if the asker may go on, else after how many seconds."""
        if not self._per_s:
            return 0.0
        now = self._clock()
        tokens, at = self._buckets.get(asker, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - at) * self._per_s)
        allowed = tokens >= 1
        self._buckets[asker] = (tokens - allowed, now)
        self._buckets.move_to_end(asker)
        if len(self._buckets) > _MOST_BUCKETS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._per_s

    def __len__(self) -> int:
        return len(self._buckets)


class _Body:
    """A request's body on its way in; `length` is what its headers say, None if they do not."""

    def __init__(self, receive: Receive, timeout_s: float, length: int | None) -> None:
        self._receive = receive
        self._left_s = timeout_s
        self._short = length is not None and length <= _SHORT_BODY
        self._ended = False

    async def receive(self) -> Message:
        """The next of it.

        Raises:
            BodyTooSlow: it was waited for too long. Time counts only while waiting, and every byte
                that comes gives some more.
        """
        if self._ended:
            return await self._receive()
        begun = time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, self._left_s)):
                message = await self._receive()
        except TimeoutError:
            self._left_s = 0.0
            raise BodyTooSlow("the body did not come in time: send it again, faster") from None
        self._left_s += len(message.get("body", b"")) / _SLOWEST_BODY - (time.monotonic() - begun)
        self._ended = not message.get("more_body", False)
        return message

    def outlived_by(self, send: Send) -> Send:
        """Sends an answer to a long body that was not read to its end.

        The answer is on its way at once. What still comes is thrown away for a moment, for most
        clients look for an answer only when they have sent all; then the connection is closed.
        """
        lingering = False

        async def sending(message: Message) -> None:
            nonlocal lingering
            if message["type"] == "http.response.start":
                lingering = not (self._ended or self._short)
                if lingering:
                    headers = [*message.get("headers", ()), (b"connection", b"close")]
                    message = {**message, "headers": headers}
            elif lingering and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await self._drain()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        return sending

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_S):
                while not self._ended:
                    await self.receive()
        except (TimeoutError, BodyTooSlow):
            pass


async def refuse(send: Send, status: int, sentence: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> bool:  # noqa: E501  # fmt: skip
    """Answers with an error; True, for it is done."""
    body = encoded({"error": sentence})
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
    return True


def _body_length(headers: Headers) -> int | None:
    """What the headers say of a body: its bytes, 0 for none, None for unknown."""
    length: int | None = 0
    for name, value in headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(value) if value.isdigit() else None
    return length


def _sent_keys(headers: Headers) -> Iterable[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            kind, _, key = value.partition(b" ")
            yield key.strip() if kind.lower() == b"bearer" else b"?"


def _address(scope: Scope) -> str:
    """Where a request comes from; of IPv6 the network, for one client has all of it."""
    address: str = (scope.get("client") or ("an unknown address", 0))[0]
    if ":" not in address:
        return address
    try:
        return str(ip_network((address.partition("%")[0], 64), strict=False))
    except ValueError:
        return address
