"""From the URL of a log to the log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from streaming.errors import ConfigError
from streaming.file_log import FileLog
from streaming.log import TOPICS, Log
from streaming.memory_log import MemoryLog


def open_log(url: str, *, partitions: Mapping[str, int] | None = None) -> Log:
    """The log that a URL names.

    `file:///path/log.db` is the embedded one, and is made if absent. `kafka://host:port` is one in
    Kafka, whose topics must be there. `memory://NAME?partitions=N` is one in this process, for
    tests.

    `partitions` says how many a topic gets, by its name, where the topic is made here; one that is
    there keeps what it has, and one that is not named gets 1 (or the N of `memory://`).

    Raises:
        ConfigError: the scheme is not one that Headrace knows, or an option cannot be.
        LogError: the file is there but is not a log, or no broker answers.
    """
    partitions = dict(partitions or {})
    for topic, count in partitions.items():
        if topic not in TOPICS or count < 1:
            raise ConfigError(
                f"partitions of {topic!r} = {count}: give at least 1, to any of {', '.join(TOPICS)}"
            )
    parts = urlsplit(url)
    if parts.scheme == "kafka":
        from streaming.kafka_log import KafkaLog  # noqa: PLC0415 - who has no Kafka need not wait

        return KafkaLog(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    of_each = options.pop("partitions", "1")
    if (
        parts.scheme == "memory"
        and parts.netloc
        and of_each.isdecimal()
        and int(of_each) > 0
        and not (parts.path or options or parts.fragment)
    ):
        for topic, count in partitions.items():
            MemoryLog(parts.netloc, partitions=count, topics=[topic])
        return MemoryLog(parts.netloc, partitions=int(of_each))
    if (
        parts.scheme == "file"
        and parts.path
        and not (parts.netloc or parts.query or parts.fragment)
    ):
        return FileLog(Path(unquote(parts.path)), partitions=partitions)
    raise ConfigError(
        f"log = {url!r}: the known form is file:///absolute/path/log.db, or"
        " kafka://host:port[,host:port...], or memory://NAME[?partitions=N]"
    )
