"""The URL of a log in Kafka: addresses, and kafka-python's own options by their own names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from streaming.errors import ConfigError

# Ours, where they differ from kafka-python's own.
DEFAULTS: Mapping[str, Any] = {
    "client_id": "headrace",
    "bootstrap_timeout_ms": 5_000,
    "reconnect_backoff_max_ms": 1_000,
    "retry_backoff_ms": 20,
    "fetch_max_wait_ms": 100,
    "max_partition_fetch_bytes": 8 * 1024 * 1024,  # a fetch costs the same for many records
    "compression_type": "lz4",
    "batch_size": 256 * 1024,
    "max_request_size": 16 * 1024 * 1024,
    "transaction_timeout_ms": 30_000,
    "metrics_enabled": False,
}
# The guarantees of the log stand on these.
_OURS = frozenset(
    {
        "acks",
        "allow_auto_create_topics",
        "auto_commit_interval_ms",
        "auto_offset_reset",
        "bootstrap_servers",
        "check_crcs",
        "consumer_timeout_ms",
        "enable_auto_commit",
        "enable_idempotence",
        "group_id",
        "group_instance_id",
        "isolation_level",
        "key_deserializer",
        "key_serializer",
        "partitioner",
        "retries",
        "transactional_id",
        "value_deserializer",
        "value_serializer",
    }
)
_OBJECTS = frozenset({"ssl_context", "sasl_oauth_token_provider"})
_COMPRESSIONS = ("none", "lz4", "zstd", "gzip", "snappy")


@dataclass(frozen=True)
class KafkaUrl:
    """The parts of `kafka://host:port,...?options`; `str()` of it tells no secrets."""

    servers: tuple[str, ...]
    topic_prefix: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        return f"kafka://{','.join(self.servers)}"


def parse_url(url: str, known: Mapping[str, Any]) -> KafkaUrl:
    """Reads and checks the URL of a log in Kafka; `known` are kafka-python's options and defaults.

    Raises:
        ConfigError: names the part that cannot be; never its value where that is a secret.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ConfigError(
            "log = kafka://...@...: a name and a password go into the options"
            " sasl_plain_username and sasl_plain_password"
        )
    servers = tuple(s if ":" in s else f"{s}:9092" for s in parts.netloc.split(",") if s)
    if parts.scheme != "kafka" or not servers or parts.path not in ("", "/") or parts.fragment:
        raise ConfigError("log: the form is kafka://host:port[,host:port...][?option=value&...]")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = given.pop("topic_prefix", "")
    if prefix.strip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"):
        raise ConfigError(
            f"log option topic_prefix = {prefix!r}: letters, digits, '.', '_' and '-' only"
        )
    known = {
        name: DEFAULTS.get(name, value) for name, value in known.items() if _plain(name, value)
    }
    options = {**DEFAULTS, **{name: _value(name, text, known) for name, text in given.items()}}
    return KafkaUrl(servers, prefix, options)


def _plain(name: str, default: object) -> bool:
    """Whether an option can be written as text, and is the user's to choose."""
    simple = default is None or isinstance(default, bool | int | float | str)
    return simple and name not in _OURS and name not in _OBJECTS


def _value(name: str, text: str, known: Mapping[str, Any]) -> Any:
    """The text of an option as what kafka-python's own default for it is."""
    if name in _OURS:
        raise ConfigError(f"log option {name!r}: Headrace sets it itself, leave it out")
    if name not in known:
        close = difflib.get_close_matches(name, [*known, "topic_prefix"], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "docs/kafka.md lists them"
        raise ConfigError(f"log option {name!r} is unknown: {hint}")
    default = known[name]
    try:
        if name == "compression_type":
            return None if text == "none" else _one_of(text, _COMPRESSIONS)
        if name == "api_version":
            return tuple(int(part) for part in text.split("."))
        if isinstance(default, bool):
            return _one_of(text, ("true", "false")) == "true"
        if isinstance(default, int) or name.endswith("_bytes"):
            return int(text)
        if isinstance(default, float):
            return float(text)
    except ValueError as error:
        shown = "..." if "password" in name else repr(text)
        raise ConfigError(f"log option {name} = {shown}: {error}") from None
    return text


def _one_of(text: str, known: Iterable[str]) -> str:
    if text not in known:
        raise ValueError(f"must be one of {', '.join(known)}")
    return text
