"""Rows of a file to a service elsewhere, over HTTP, one body of lines at a time."""

from __future__ import annotations

import gzip
import http.client
import json
import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import msgspec

from streaming.errors import ConfigError, EventRejected, LogError
from streaming.sources.ingestion import Checked
from streaming.sources.mapping import Refused
from streaming.sources.tabular import Chunk, Table

_TRIES = 5
_TIMEOUT_S = 60.0
_LONGEST_WAIT_S = 10.0


class HttpSink:
    """Posts checked rows to `/v1/events`; what is posted again is dropped there by its id."""

    keeps_refused = False

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigError(f"--url {url!r}: write it like http://127.0.0.1:8000")
        self._url = url.rstrip("/") + "/v1/events"

    def resume(self, table: Table) -> int:  # noqa: ARG002 - nobody remembers how far it came
        return 0

    def take(self, chunk: Chunk, checked: Checked) -> list[Refused]:  # noqa: ARG002
        if checked.events.num_rows == 0:
            return []
        rows = [_json(row) for row in checked.events.to_pylist()]
        answer = self._post(b"\n".join(rows))
        refused = []
        for one in answer["rejected"]:
            error = EventRejected(one["field"], None, one["reason"])
            error.value = one["value"]
            row = one["line"] - 1
            refused.append(Refused(checked.lines[row], rows[row], error))
        return refused

    def _post(self, lines: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
        body = gzip.compress(lines, compresslevel=1)
        request = Request(self._url, body, headers, method="POST")  # noqa: S310 - checked above
        for tries_left in reversed(range(_TRIES)):
            try:
                with urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
                    return _parsed(response.read())
            except HTTPError as error:
                with error:  # it holds the connection
                    answer = _parsed(error.read())
                if error.code == 422 and "rejected" in answer:
                    return answer
                why = answer.get("error", error.reason)
                if error.code not in (429, 503) or not tries_left:
                    raise LogError(f"{self._url} answered {error.code}: {why}") from None
                time.sleep(_pause_s(error.headers.get("Retry-After")))
            except (URLError, http.client.HTTPException, OSError) as error:
                raise LogError(
                    f"{self._url} cannot be reached ({getattr(error, 'reason', error)}): look"
                    " whether `headrace run` is up there, and run the same command again"
                ) from None
        raise AssertionError


def _pause_s(retry_after: str | None) -> float:
    given = float(retry_after) if retry_after and retry_after.isdecimal() else 1.0
    return min(given, _LONGEST_WAIT_S)


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _json(row: dict[str, Any]) -> bytes:
    present = {name: value for name, value in row.items() if value is not None}
    if "attributes" in present:
        present["attributes"] = msgspec.Raw(present["attributes"].encode())
    return msgspec.json.encode(present)
