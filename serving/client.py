"""A client of the HTTP interface, of the standard library alone.

    with Client("http://127.0.0.1:8000") as headrace:
        headrace.events([{"kind": "like", "user_id": "ada", "item_id": "318"}])
        for item in headrace.recommend("ada", k=5, scenario="home")["items"]:
            print(item["item_id"], item["score"])

It may be used by several threads: each has a connection of its own, which is kept. What the service
is too busy for (429, 503) or what a broken connection swallowed is sent again, later and later, not
before the service says. That changes nothing twice: events get their ids here before they are sent,
and of several with the same id one counts.

Raises `ServiceError` when a request cannot be answered, with the status if there is one.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NotRequired, TypedDict, cast
from urllib.parse import quote, urlencode, urlsplit

from streaming.errors import ConfigError, HeadraceError

_IDLE_S = 3.0  # the server lets go of an idle connection soon after
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0


class Item(TypedDict):
    """An item of an answer; `statistics` and `why` only if explained."""

    item_id: str
    title: str | None
    attributes: dict[str, Any]
    score: float
    source: str
    statistics: NotRequired[dict[str, Any]]
    why: NotRequired[dict[str, Any] | None]


class Recommendations(TypedDict):
    """As `serving.http.schemas.RecommendAnswer`; `unknown` only of `rank`."""

    request_id: str
    user_id: str | None
    scenario: str | None
    items: list[Item]
    version: str | None
    watermark: str | None
    known_actions: int
    features_at: str | None
    arms: dict[str, str]
    degraded: list[str]
    took_ms: NotRequired[dict[str, float]]
    unknown: NotRequired[list[str]]


class User(TypedDict):
    """As `serving.http.schemas.UserAnswer`."""

    user_id: str
    attributes: dict[str, Any]
    interests: list[str]
    actions: list[dict[str, Any]]
    searched: int
    features_at: str | None
    arms: dict[str, str]
    degraded: list[str]


class Taken(TypedDict):
    """What became of events: `rejected` names each by its `index` in what was sent."""

    accepted: list[dict[str, str]]
    rejected: list[dict[str, Any]]


class ServiceError(HeadraceError):
    """The service could not be reached (`status` is None), or answered with an error."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        self.status = status
        super().__init__(sentence)


class Client:
    """A service at an address; every request is tried `attempts` times.

    Raises:
        ConfigError: `url` is no address.
    """

    def __init__(
        self, url: str, *, api_key: str = "", timeout_s: float = 10.0, attempts: int = 5
    ) -> None:
        parts = urlsplit(url)
        try:
            known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        except ValueError:
            known = False
        if not known:
            raise ConfigError(f"{url!r} is no address: write it like http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self._parts = parts
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._threads = threading.local()

    def recommend(
        self,
        user_id: str,
        k: int = 10,
        *,
        filters: Mapping[str, str | Sequence[str]] | None = None,
        exclude: Sequence[str] = (),
        **context: Any,
    ) -> Recommendations:
        """At most `k` items for a user now; `context` may have `scenario`, `query`, `seen`,
        `explain` and `shown`: false if the user will not see them.
        """
        question = {"user_id": user_id, "k": k, "filters": dict(filters or {}),
                    "exclude": list(exclude), **context}  # fmt: skip
        return self._items(*self._ask("POST", "/v1/recommend", question))

    def rank(self, user_id: str, item_ids: Sequence[str], **context: Any) -> Recommendations:
        """These items, best first; `context` as of `recommend`, but for `seen`."""
        question = {"user_id": user_id, "item_ids": list(item_ids), **context}
        return self._items(*self._ask("POST", "/v1/rank", question))

    def similar(self, item_id: str, k: int = 10) -> Recommendations:
        """The items nearest to an item."""
        path = f"/v1/items/{quote(item_id, safe='')}/similar?{urlencode({'k': k})}"
        return self._items(*self._ask("GET", path))

    def user(self, user_id: str) -> User | None:
        """What is known of a user; None if nothing is."""
        path = f"/v1/users/{quote(user_id, safe='')}"
        status, answer = self._ask("GET", path, fine=(404,))
        return None if status == 404 else cast("User", answer)

    def events(self, events: Sequence[Mapping[str, Any]]) -> Taken:
        """Sends events; those that were accepted are durable on return.

        One without an `event_id` gets one, so that it counts once however often it is sent.
        """
        named = [{"event_id": uuid.uuid4().hex, **event} for event in events]
        # 422 is an answer too: none of them was accepted.
        status, answer = self._ask("POST", "/v1/events", named, fine=(422,))
        if not {"accepted", "rejected"} <= answer.keys():
            raise self._strange("what became of events", status, answer)
        return cast("Taken", answer)

    def ready(self) -> str | None:
        """Why the service cannot answer yet; None if it can."""
        status, answer = self._ask("GET", "/readyz", fine=(503,))
        return None if status == 200 else f"{status} {answer.get('reason', answer)}"

    def close(self) -> None:
        """Lets go of the connection of this thread."""
        kept: http.client.HTTPConnection | None = getattr(self._threads, "connection", None)
        if kept is not None:
            kept.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- how it is asked -------------------------------------------------------------------

    def _items(self, status: int, answer: dict[str, Any]) -> Recommendations:
        if not isinstance(answer.get("items"), list) or "request_id" not in answer:
            raise self._strange("recommendations", status, answer)
        return cast("Recommendations", answer)

    def _strange(self, expected: str, status: int, answer: object) -> ServiceError:
        said = repr(answer)[:200]
        return ServiceError(
            f"{self.url} answered something else than {expected}: {said}: is it Headrace?", status
        )

    def _ask(
        self, method: str, path: str, body: object = None, fine: Sequence[int] = ()
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer that is not an error, or whose status is `fine`."""
        encoded = None if body is None else json.dumps(body).encode()
        for attempt in range(1, self._attempts + 1):
            wait_s = min(_FIRST_WAIT_S * 2**attempt * random.random(), _LONGEST_WAIT_S)  # noqa: S311
            try:
                status, retry_after, answered = self._request(method, path, encoded)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                failure = ServiceError(f"{self.url} does not answer ({error}): is it running?")
            else:
                answer = _parsed(answered)
                if answer is not None and (status < 300 or status in fine):
                    return status, answer
                said = answered[:300].decode(errors="replace")
                said = said if answer is None else str(answer.get("error", said))
                failure = ServiceError(f"{self.url}{path} answered {status}: {said}", status)
                if status not in (429, 503):
                    raise failure
                wait_s += min(_seconds(retry_after), _LONGEST_WAIT_S)
            if attempt < self._attempts:
                time.sleep(wait_s)
        raise failure

    def _request(self, method: str, path: str, body: bytes | None) -> tuple[int, str | None, bytes]:
        headers = {**self._headers, **({"Content-Type": "application/json"} if body else {})}
        connection = self._connection()
        connection.request(method, self._parts.path.rstrip("/") + path, body, headers)
        response = connection.getresponse()
        answered = response.status, response.headers["Retry-After"], response.read()
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


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
