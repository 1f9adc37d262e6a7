"""What /openapi.json says beyond what the routes say themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.http.api_config import ApiConfig
from serving.http.schemas import Error, RankQuestion, RecommendQuestion
from streaming.events import ANY_VALUE, LIMITED_TEXTS, EventRules

Shape = dict[str, Any]
_REFS = "#/components/schemas/{model}"
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_NAMES = {
    "X-Request-Id": {"description": "Names this answer.", "schema": {"type": "string"}},
    "X-Headrace-Replica": {"description": "The process.", "schema": {"type": "string"}},
}
_SENTENCES = {
    400: "The body or the request is not what it says it is, or was cut off.",
    401: "No key that is known came along.",
    403: "The key is not for this.",
    404: "Nothing is known of it.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    414: "The URL is too long.",
    415: "The body is packed in a way that is not unpacked here.",
    422: "A value does not fit.",
    429: "Too many requests: come again later. Nothing was begun.",
    431: "The headers are too large.",
    500: "Something broke inside.",
    503: "It cannot be done now: come again later.",
    507: "The log is full.",
}
_ANYWHERE = (400, 401, 403, 414, 431, 500)
_COMES_AGAIN = (429, 503, 507)


def errors(*statuses: int, also: type[BaseModel] | None = None) -> dict[int | str, Shape]:
    """The responses of a route that are errors: these, and those that may come anywhere.

    Where something was done before the error, `also` is what tells of it.
    """
    model = Error if also is None else Error | also
    return {
        status: {
            "description": _SENTENCES[status],
            "model": model,
            **({"headers": _RETRY_AFTER} if status in _COMES_AGAIN else {}),
        }
        for status in sorted({*_ANYWHERE, *statuses})
    }


def question_body(model: type[BaseModel]) -> Shape:
    """The body of a route that parses it itself."""
    schema = {"$ref": _REFS.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def question_query(model: type[BaseModel]) -> Shape:
    """The query of a route that parses it itself."""
    described = model.model_json_schema()
    needed = described.get("required", ())
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": name in needed,
                "description": shape.pop("description"),
                "schema": shape,
            }
            for name, shape in described["properties"].items()
        ]
    }


def events_body(rules: EventRules) -> Shape:
    """What may be posted: one event, a list of them, or lines."""
    event = {"oneOf": [_event(rules, kind, needed) for kind, needed in rules.kinds.items()]}
    json = {
        "schema": {"oneOf": [event, {"type": "array", "items": event}]},
        "example": {"kind": "rate", "user_id": "u1", "item_id": "318", "value": 5},
    }
    lines = {
        "schema": {"type": "string", "description": "One event a line."},
        "example": '{"kind": "like", "user_id": "u1", "item_id": "318"}\n',
    }
    content = {"application/json": json, "application/x-ndjson": lines}
    return {"requestBody": {"required": True, "content": content}}


def _event(rules: EventRules, kind: str, needed: tuple[str, ...]) -> Shape:
    low, high = rules.value_range.get(kind, ANY_VALUE)
    text = {"type": "string", "minLength": 1, "maxLength": rules.max_id_characters}
    fields: Shape = {
        "kind": {"const": kind},
        **dict.fromkeys(LIMITED_TEXTS, text),
        "at": {"type": "string", "format": "date-time"},
        "position": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
        "value": {"type": "number", "minimum": low, "maximum": high},
        "query": {"type": "string"},
        "attributes": {"type": "object"},
    }
    return {
        "type": "object",
        "title": kind,
        "properties": {
            name: shape if name in needed or name == "kind" else _or_null(shape)
            for name, shape in fields.items()
        },
        "required": ["kind", *needed],
        "additionalProperties": False,
    }


def _or_null(shape: Mapping[str, Any]) -> Shape:
    return {**shape, "type": [shape["type"], "null"]}


def described(generate: Callable[[], Shape], config: ApiConfig) -> Callable[[], Shape]:
    """The whole description, made once."""
    made: Shape = {}

    def describe() -> Shape:
        if not made:
            made.update(generate())
            _add_schemas(made)
            _add_headers(made)
            _add_keys(made, config)
        return made

    return describe


def _add_schemas(described: Shape) -> None:
    questions = [(model, "validation") for model in (RecommendQuestion, RankQuestion)]
    _, schemas = models_json_schema(questions, ref_template=_REFS)  # type: ignore[arg-type]
    described["components"]["schemas"].update(schemas["$defs"])


def _add_headers(described: Shape) -> None:
    for operation in _operations(described).values():
        for response in operation["responses"].values():
            response["headers"] = {**_NAMES, **response.get("headers", {})}


def _add_keys(described: Shape, config: ApiConfig) -> None:
    described["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }
    if not config.api_keys:
        return
    for (path, _), operation in _operations(described).items():
        if path not in config.open_paths:
            operation["security"] = [{"bearer": []}, {"key": []}]


def _operations(described: Shape) -> dict[tuple[str, str], Shape]:
    return {
        (path, method): operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }
