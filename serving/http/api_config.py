"""What a recipe may say of the HTTP interface: its section `[serving]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from streaming.errors import ConfigError

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class ApiKey:
    """A key that clients send; only its SHA-256 stands in the recipe, as 64 hex digits.

    A key is to be long and random (`openssl rand -hex 24`), so its hash needs no salt. The scope
    `events` may post events and nothing else, `read` anything else.
    """

    sha256: Sha256
    scope: Literal["read", "events", "all"] = "all"


@dataclass(frozen=True)
class GateConfig:
    """`concurrent` requests are worked on at once and `waiting` more wait, for `wait_s` at most;
    any other is told at once to come again. Once somebody was, and somebody has been waiting for a
    quarter of a second on end, only a quarter as many may wait, so that in a storm answers stay
    quick. Work that waits for nobody is done in the thread of the event loop, one after another.
    """

    concurrent: PositiveInt = 2
    waiting: NonNegativeInt = 16
    wait_s: PositiveFloat = 0.25


@dataclass(frozen=True)
class ApiConfig:
    """Where to listen, what a request may bring, and who may ask how often.

    A `host` other than a loopback address opens the service to the network. Bodies are measured
    unpacked. NDJSON has a limit of its own, for it is taken in batches of `max_events`.

    Without `api_keys` anybody may ask; with them, only `open_paths` need none. `rate_per_s` is of
    one key, or of one address where there are no keys, after `burst` requests at once; 0 is no
    limit. `cors_origins` are the sites whose pages may ask from a browser; "*" is all.

    Raises:
        ConfigError: two keys are the same.
    """

    host: str = "127.0.0.1"
    max_body_bytes: PositiveInt = 1_048_576
    max_events: PositiveInt = 1_000
    max_ndjson_bytes: PositiveInt = 67_108_864
    max_url_bytes: PositiveInt = 16_384
    max_header_bytes: PositiveInt = 32_768
    head_timeout_s: PositiveFloat = 10.0  # until a request's headers are there
    body_timeout_s: PositiveFloat = 10.0  # of waiting for a body, beside what its bytes need
    write_timeout_s: PositiveFloat = 30.0  # of a client that does not read its answer
    api_keys: Mapping[str, ApiKey] = field(default_factory=dict)
    open_paths: tuple[str, ...] = (
        *("/healthz", "/readyz", "/metrics", "/v1/targets"),
        "/openapi.json",
    )
    cors_origins: tuple[str, ...] = ()
    rate_per_s: NonNegativeFloat = 0.0
    burst: PositiveInt = 100
    # Gates of their own: neither events nor answers can starve the others.
    answers: GateConfig = GateConfig()
    events: GateConfig = GateConfig(wait_s=1.0)

    def __post_init__(self) -> None:
        if len({key.sha256 for key in self.api_keys.values()}) < len(self.api_keys):
            raise ConfigError(
                "serving.api_keys: two of them are the same key: give each client one of its own"
            )
