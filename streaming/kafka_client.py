"""kafka-python behind one door: the options of a log's URL, clients made of them, and errors.

No other module imports kafka-python; what comes out of here is `LogError` or `ConfigError`.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from streaming.errors import ConfigError, Fenced, LogError
from streaming.kafka_batches import find_records
from streaming.kafka_options import parse_url
from streaming.log import Record

with warnings.catch_warnings():
    # It reads its schemas in a way that Python 3.11 calls old.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, TopicPartition
    from kafka import errors as kafka_errors
    from kafka.admin import ConfigResource, KafkaAdminClient
    from kafka.consumer.fetcher import Fetcher, IsolationLevel
    from kafka.partitioner import murmur2
    from kafka.structs import OffsetAndMetadata

__all__ = ["KafkaError", "KafkaTimeoutError", "OffsetAndMetadata", "Place", "murmur2"]

if TYPE_CHECKING:
    # A partition under the name that the broker knows it by; kafka-python insists on its class.
    from streaming.log import TopicPartition as Place
else:
    Place = TopicPartition

T = TypeVar("T")
_TRANSACTIONAL_FORMAT = 2  # of record batches, since Kafka 0.11
_MICROSECONDS = 1_000  # of a millisecond, which Kafka counts in
KafkaError = kafka_errors.KafkaError
KafkaTimeoutError = kafka_errors.KafkaTimeoutError

# What the broker's operator sees is for a log file, never for the terminal.
logging.getLogger("kafka").addHandler(logging.NullHandler())
logging.getLogger("kafka").setLevel(logging.WARNING)
logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)  # it warns of every busy moment

_CLIENTS = (KafkaConsumer, KafkaProducer, KafkaAdminClient)
OPTIONS: Mapping[str, Any] = {
    name: value for client in _CLIENTS for name, value in sorted(client.DEFAULT_CONFIG.items())
}


class Offset(Enum):
    """Ends of a partition: the first record, what is committed, and all that is there."""

    FIRST = "first"
    STABLE = "stable"
    LAST = "last"


class Cluster:
    """Makes the clients of one Kafka cluster, and asks what needs no client of its own."""

    def __init__(self, url: str) -> None:
        self.url = parse_url(url, OPTIONS)
        self.patience_s = self.url.options.get("request_timeout_ms", 30_000) / 1000
        self._closed = False
        self._admin = self._make(
            _StableAdmin, request_timeout_ms=int(min(5.0, self.patience_s) * 1000)
        )

    def consumer(self, **ours: Any) -> KafkaConsumer:
        """A consumer that sees committed records only, and never commits on its own.

        What it polls are `Record`s.
        """
        fixed = {
            "isolation_level": "read_committed",
            "auto_offset_reset": "none",
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
        }
        consumer = self._make(KafkaConsumer, **{**fixed, **ours})
        consumer._fetcher.PartitionRecords = partial(_Unpacked, prefix=self.url.topic_prefix)
        return consumer

    def producer(self, transactional_id: str | None = None) -> KafkaProducer:
        """An idempotent producer; with an id a transactional one, and others of that id end."""
        patience_ms = int(self.patience_s * 1000)
        limits = {"max_block_ms": patience_ms, "delivery_timeout_ms": patience_ms}
        return self._make(
            KafkaProducer,
            **{name: ms for name, ms in limits.items() if name not in self.url.options},
            transactional_id=transactional_id,
            allow_auto_create_topics=False,
        )

    def ask(self, question: Callable[[KafkaAdminClient], T], patience_s: float | None = None) -> T:
        """The answer of the broker; waits for one that is away, though not for ever."""
        deadline = time.monotonic() + (self.patience_s if patience_s is None else patience_s)
        while True:
            if self._closed:
                raise LogError(f"the log {self.url} is closed")
            try:
                return question(self._admin)
            except KafkaError as error:
                gone = isinstance(error, kafka_errors.UnknownTopicOrPartitionError)
                if gone or not error.retriable or time.monotonic() > deadline:
                    raise self.explained(error) from error
                time.sleep(0.05)

    def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """How many partitions each of the topics has that is there."""
        found = self.ask(lambda admin: admin.describe_topics(list(topics)))
        return {t["name"]: len(t["partitions"]) for t in found if t["error_code"] == 0}

    def offsets(
        self, places: Iterable[Place], when: Offset, patience_s: float | None = None
    ) -> dict[Place, int]:
        """Offsets at one end of the places."""
        wanted = dict.fromkeys(places, -2 if when is Offset.FIRST else -1)
        if not wanted:
            return {}
        level = IsolationLevel(1 if when is Offset.STABLE else 0)
        found = self.ask(lambda admin: admin.list_partition_offsets(wanted, level), patience_s)
        return {place: at.offset for place, at in found.items()}

    def committed(self, group: str, places: Iterable[Place]) -> dict[Place, int]:
        """Where the group stands, for the places where it ever was."""
        found = self.ask(lambda admin: admin.list_group_offsets({group: list(places)}))
        return {place: at.offset for place, at in found[group].items() if at.offset >= 0}

    def settings(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        """The settings of topics, as far as the broker reports them."""
        asked = [ConfigResource("TOPIC", topic) for topic in topics]
        if not asked:
            return {}
        found = self.ask(lambda admin: admin.describe_configs(asked, config_filter="all"))
        return {
            topic: {name: entry["value"] for name, entry in entries.items()}
            for topic, entries in found.get("topic", {}).items()
        }

    def create(
        self, topic: str, partitions: int, replication: int, settings: Mapping[str, str]
    ) -> None:
        """Makes a topic, and returns when it can be used."""
        wanted = {
            "num_partitions": partitions,
            "replication_factor": replication,
            "configs": dict(settings),
        }
        self.ask(lambda admin: admin.create_topics({topic: wanted}, wait_for_metadata=True))

    def change(self, topic: str, settings: Mapping[str, str]) -> None:
        """Changes settings of a topic and leaves its others alone."""
        resource = ConfigResource("TOPIC", topic, dict(settings))
        found = self.ask(lambda admin: admin.alter_configs([resource], raise_on_unknown=False))
        if (outcome := found["topic"][topic]) != "OK":
            raise LogError(f"topic {topic} at {self.url} keeps its settings: {outcome}")

    def explained(self, error: Exception) -> LogError:
        """An error of kafka-python as one sentence."""
        return explain(error, str(self.url))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """kafka-python's errors as the log's own."""
        try:
            yield
        except KafkaError as error:
            raise self.explained(error) from error

    def close(self) -> None:
        """Lets go of the connection."""
        if not self._closed:
            self._closed = True
            self._admin.close()

    def _make(self, client: Callable[..., T], **ours: Any) -> T:
        known = client.DEFAULT_CONFIG  # type: ignore[attr-defined]
        given = {name: v for name, v in self.url.options.items() if name in known}
        ours = {name: value for name, value in ours.items() if name in known}
        servers = list(self.url.servers)
        connections: list[Any] = []

        def connect(**options: Any) -> Any:
            connections.append(known["kafka_client"](**options))
            return connections[-1]

        try:
            return client(bootstrap_servers=servers, kafka_client=connect, **{**given, **ours})
        except BaseException as error:
            for one in connections:  # what fails to be made does not clear up after itself
                one.close()
            raise self._unmade(error) from error

    def _unmade(self, error: BaseException) -> BaseException:
        if isinstance(error, kafka_errors.KafkaConfigurationError):
            return ConfigError(f"the options of the log at {self.url} do not fit: {error}")
        if isinstance(error, KafkaError | ValueError | RuntimeError | OSError):
            return explain(error, str(self.url))
        return error


class _Unpacked(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What a fetch brought, as records of the log: kafka-python's own cost more than all the rest.

    The loop over a batch's records is compiled. Tombstones have an empty value. Markers and undone
    transactions are passed over.
    """

    def __init__(self, *args: Any, prefix: str, **named: Any) -> None:
        self._prefix = prefix
        super().__init__(*args, **named)

    def _unpack_records(self, place: Place, records: Any, *_: Any) -> Iterator[Record]:
        topic, partition = place.topic.removeprefix(self._prefix), place.partition
        new = tuple.__new__  # a third of the time that Record(...) takes
        last = None
        while (batch := records.next_batch()) is not None:
            last = batch
            if not batch.validate_crc():
                raise kafka_errors.CorruptRecordError(f"{place} at offset {batch.base_offset}")
            if batch.magic != _TRANSACTIONAL_FORMAT:
                raise kafka_errors.UnsupportedVersionError(
                    f"{place} holds records of message format {batch.magic}"
                )
            self.leader_epoch = batch.leader_epoch
            if self._passed_over(batch):
                self.next_fetch_offset = batch.next_offset
                continue
            batch._maybe_uncompress()
            data, base = bytes(batch._buffer), batch.base_offset
            on_append = batch.timestamp_type == batch.LOG_APPEND_TIME
            first_ms, last_ms = batch.first_timestamp, batch.max_timestamp
            try:
                found = find_records(data, batch._pos, batch._num_records)
            except ValueError as error:
                raise kafka_errors.CorruptRecordError(f"{place} at {base}: {error}") from None
            for delta, delta_ms, key, key_end, value, value_end in found:
                offset = base + delta
                self.next_fetch_offset = offset + 1
                at_us = (last_ms if on_append else first_ms + delta_ms) * _MICROSECONDS
                yield new(
                    Record,
                    (
                        topic, partition, offset,
                        data[key:key_end] if key >= 0 else None,
                        data[value:value_end] if value >= 0 else b"",
                        at_us,
                    ),
                )  # fmt: skip
        if last is not None:
            self.next_fetch_offset = last.next_offset
        self.drain()

    def _passed_over(self, batch: Any) -> bool:
        if not batch.has_producer_id():
            return bool(batch.is_control_batch)
        self._consume_aborted_transactions_up_to(batch.last_offset)
        if self._contains_abort_marker(batch):
            self.aborted_producer_ids.discard(batch.producer_id)
            return True
        return bool(batch.is_control_batch or self._is_batch_aborted(batch))


class Unreachable(LogError):
    """No broker answers, for now."""


class Owned(ConsumerRebalanceListener):  # type: ignore[misc]
    """What a member of a group has been given; pauses it, for the member reads nothing itself."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer
        self.places: frozenset[Place] = frozenset()

    def on_partitions_revoked(self, revoked: Iterable[Place]) -> None:  # noqa: ARG002
        self.places = frozenset()

    def on_partitions_assigned(self, assigned: Iterable[Place]) -> None:
        self.places = frozenset(assigned)
        self._consumer.pause(*self.places)


class _StableAdmin(KafkaAdminClient):  # type: ignore[misc]
    """Its positions of a group wait for a commit that is under way, as a consumer's do."""

    def _list_group_offsets_requests(self, group_specs: Any) -> Iterator[Any]:
        for group, request in super()._list_group_offsets_requests(group_specs):
            request.require_stable = True
            yield group, request


def explain(error: BaseException, where: str) -> LogError:
    """An error of kafka-python, as what it means to the user of the log at `where`."""
    if isinstance(error, KafkaError) and error.retriable and not isinstance(error, _NOT_THERE):
        return Unreachable(
            f"no broker answers at {where} ({error}): check that it runs, that the address is the"
            " one it advertises, and that security_protocol in the log's URL is the broker's"
        )
    for kinds, made, sentence in _SENTENCES:
        if isinstance(error, kinds):
            return made(sentence.format(where=where, error=error))
    return LogError(f"the log at {where} cannot be used: {error}")


_NOT_THERE = kafka_errors.UnknownTopicOrPartitionError
_SENTENCES: tuple[tuple[tuple[type[BaseException], ...], type[LogError], str], ...] = (
    (
        (kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError),
        Fenced,
        "another process has taken over this one's work at {where}: stop one of the two",
    ),
    (
        (kafka_errors.CommitFailedError,),
        Fenced,
        "the group at {where} has given this process's partitions to another: its work is undone"
        " and done again there",
    ),
    (
        (kafka_errors.SaslAuthenticationFailedError,),
        LogError,
        "the broker at {where} refuses the name or the password: look at sasl_plain_username,"
        " sasl_plain_password and sasl_mechanism in the log's URL",
    ),
    (
        (kafka_errors.AuthorizationError,),
        LogError,
        "the broker at {where} does not allow it ({error}): docs/kafka.md says which rights"
        " Headrace needs",
    ),
    (
        (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError),
        LogError,
        "a record is larger than {where} takes ({error}): raise max.message.bytes of the topic and"
        " max_request_size in the log's URL, or make smaller records",
    ),
    (
        (_NOT_THERE,),
        LogError,
        "a topic or partition is not (or no longer) at {where}: `headrace topics` shows what is"
        " missing",
    ),
)
