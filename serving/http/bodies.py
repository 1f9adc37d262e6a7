"""What requests bring: bodies unpacked, measured, parsed, never more than the limit; queries."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar, get_origin

import pydantic
from pydantic_core import ErrorDetails
from starlette.datastructures import QueryParams
from starlette.requests import Request

from serving.http.refusals import BadBody, BodyTooLarge, Invalid, Refusal, misfit

M = TypeVar("M", bound=pydantic.BaseModel)
_PIECE_BYTES = 65_536


class UnknownPacking(Refusal):
    """A Content-Encoding that is not unpacked here."""

    status = 415


async def chunks(request: Request, most: int) -> AsyncIterator[bytes]:
    """The bytes of a body as they come, packed as they are.

    Raises:
        BodyTooLarge: its Content-Length is over `most`: nothing of it was read.
        starlette.requests.ClientDisconnect: it ended early.
    """
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most:
        raise _too_large(most)
    async for chunk in request.stream():
        yield chunk


async def read_body(request: Request, most: int) -> bytes:
    """A whole body of at most `most` bytes.

    Raises:
        Refusal: it is too large, or not packed as it says.
        starlette.requests.ClientDisconnect: it ended early.
    """
    body = bytearray()
    unpacker = Unpacker(is_packed(request), most)
    async for chunk in chunks(request, most):
        for piece in unpacker.feed(chunk):
            body += piece
    for piece in unpacker.finish():
        body += piece
    return bytes(body)


def is_packed(request: Request) -> bool:
    """Whether the body is gzip.

    Raises:
        UnknownPacking: it is something else again.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("gzip", "identity", ""):
        raise UnknownPacking(f"Content-Encoding {encoding!r}: send gzip, or nothing packed")
    return encoding == "gzip"


def parsed(model: type[M], body: bytes) -> M:
    """A body of JSON as its model.

    Raises:
        BadBody: it is not JSON.
        Invalid: a field is missing, unknown or does not fit.
    """
    try:
        return model.model_validate_json(body)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        raise BadBody(f"the body is not JSON ({first['msg']}): see /openapi.json for what to send")
    raise _misfit("body", first)


def parsed_query(model: type[M], query: QueryParams) -> M:
    """A query as its model: of what is there several times all for a list, else the last.

    Raises:
        Invalid: a parameter is missing or does not fit.
    """
    values: dict[str, object] = dict(query)
    for name, field in model.model_fields.items():
        if name in values and get_origin(field.annotation) is list:
            values[name] = query.getlist(name)
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    raise _misfit("query", first)


def _misfit(where: str, error: ErrorDetails) -> Invalid:
    value = None if error["type"] == "missing" else error["input"]
    return Invalid(misfit([where, *error["loc"]], value, error["msg"]))


class Unpacker:
    """The bytes of a body, unpacked in small pieces: memory is bounded whatever it claims.

    Raises:
        BodyTooLarge: more than `most` bytes came out of it, or went in.
        BadBody: it is not gzip.
    """

    def __init__(self, packed: bool, most: int) -> None:
        self._gzip = zlib.decompressobj(wbits=31) if packed else None
        self._most = most
        self._left_in = self._left_out = most
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._gzip is None:
            for start in range(0, len(data), _PIECE_BYTES):
                piece = data[start : start + _PIECE_BYTES]
                self._left_out = self._within(self._left_out, len(piece))
                yield piece
            return
        self._left_in = self._within(self._left_in, len(data))
        while data:
            self._begun = True
            try:
                piece = self._gzip.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise BadBody(f"the body is not gzip ({error}): see Content-Encoding") from None
            self._left_out = self._within(self._left_out, len(piece))
            yield piece
            data = self._gzip.unconsumed_tail
            if self._gzip.eof:
                data = self._gzip.unused_data  # gzip files may follow each other
                self._gzip = zlib.decompressobj(wbits=31)
                self._begun = False

    def finish(self) -> Iterator[bytes]:
        """What was held back; nothing may be fed after it."""
        if self._gzip is None:
            return
        piece = self._gzip.flush()
        self._left_out = self._within(self._left_out, len(piece))
        yield piece
        if self._begun and not self._gzip.eof:
            raise BadBody("the gzip body is cut off: send it again, whole")

    def _within(self, left: int, size: int) -> int:
        if size > left:
            raise _too_large(self._most)
        return left - size


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over {most} bytes: send less at once")
