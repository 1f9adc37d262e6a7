"""What only a log in Kafka has to keep: a broker that fails, options, epochs, prefixes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from benchmarks._broker import Broker
from benchmarks._service import free_port
from streaming.errors import ConfigError, Fenced, LogError
from streaming.kafka_client import OPTIONS, Cluster, Place
from streaming.kafka_log import KafkaLog
from streaming.kafka_options import parse_url
from streaming.kafka_writer import Writer
from streaming.log import EVENTS, SAMPLES, TOPICS, Append, TopicPartition
from streaming.open_log import open_log

EVENTS_0 = TopicPartition(EVENTS, 0)
SAMPLES_0 = TopicPartition(SAMPLES, 0)


def make_topics(url: str, partitions: int = 1, prefix: str = "") -> None:
    with closing(Cluster(url)) as cluster:
        for topic in TOPICS:
            cluster.create(prefix + topic, partitions, 1, {})


@pytest.fixture
def log(broker: Broker) -> Iterator[KafkaLog]:
    make_topics(broker.url)
    with closing(KafkaLog(broker.url)) as opened:
        yield opened


# The URL


def test_options_go_to_the_clients_with_the_types_that_these_expect() -> None:
    url = "kafka://a,b:9093/?linger_ms=5&ssl_check_hostname=false&sasl_mechanism=SCRAM-SHA-512"
    parsed = parse_url(f"{url}&compression_type=none&api_version=3.7&topic_prefix=x.", OPTIONS)
    assert parsed.servers == ("a:9092", "b:9093")
    assert parsed.topic_prefix == "x."
    expected = {
        "linger_ms": 5,
        "ssl_check_hostname": False,
        "sasl_mechanism": "SCRAM-SHA-512",
        "compression_type": None,
        "api_version": (3, 7),
    }
    assert {name: parsed.options[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("kafka://a?sesion_timeout_ms=1", "did you mean session_timeout_ms"),
        ("kafka://a?acks=0", "Headrace sets it itself"),
        ("kafka://a?linger_ms=soon", "linger_ms = 'soon'"),
        ("kafka://a?compression_type=rar", "none, lz4, zstd"),
        ("kafka://a?ssl_check_hostname=yes", "true, false"),
        ("kafka://", "kafka://host:port"),
        ("kafka://a/topic", "kafka://host:port"),
        ("kafka://a?topic_prefix=a/b", "topic_prefix"),
        ("kafka://a?ssl_context=x", "unknown"),
    ],
)
def test_a_url_that_cannot_be_is_refused_with_what_is_wrong(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_log(url)


def test_no_error_tells_a_password() -> None:
    port = free_port()
    secret = "s3cret"  # noqa: S105 - there is nothing behind it
    for url in (
        f"kafka://ada:{secret}@127.0.0.1:{port}",
        f"kafka://127.0.0.1:{port}?bootstrap_timeout_ms=200&security_protocol=SASL_PLAINTEXT"
        f"&sasl_mechanism=PLAIN&sasl_plain_username=ada&sasl_plain_password={secret}",
    ):
        with pytest.raises((ConfigError, LogError)) as caught:
            open_log(url)
        assert secret not in str(caught.value)


# The broker


def test_a_broker_that_is_not_there_is_told_in_one_sentence_within_seconds() -> None:
    port = free_port()
    begun = time.monotonic()
    with pytest.raises(LogError, match=rf"no broker answers at kafka://127.0.0.1:{port} .*check"):
        open_log(f"kafka://127.0.0.1:{port}?bootstrap_timeout_ms=1000")
    assert time.monotonic() - begun < 5


def test_a_broker_that_pauses_loses_nothing_and_repeats_nothing(
    broker: Broker, log: KafkaLog
) -> None:
    def produce() -> None:
        for n in range(60):
            log.append([Append(EVENTS, b"%d" % n)])
            with log.transaction("g") as transaction:
                transaction.append([Append(SAMPLES, b"%d" % n)])
                transaction.advance({EVENTS_0: n}, {EVENTS_0: n + 1})

    producing = threading.Thread(target=produce)
    producing.start()
    time.sleep(0.2)
    broker.pause()
    time.sleep(1)
    broker.resume()
    producing.join(60)
    assert not producing.is_alive()
    numbers = [b"%d" % n for n in range(60)]
    assert [r.value for r in log.read({SAMPLES_0: 0}, 999, 0)] == numbers
    assert [r.value for r in log.read({EVENTS_0: 0}, 999, 0)] == numbers
    assert log.positions("g", [EVENTS]) == {EVENTS_0: 60}


def test_a_broker_that_comes_back_empty_is_told_in_one_sentence(
    broker: Broker, log: KafkaLog
) -> None:
    log.append([Append(EVENTS, b"a")])
    assert len(log.read({EVENTS_0: 0}, 9, 5.0)) == 1
    broker.restart()
    with pytest.raises(LogError, match="`headrace topics` shows what is|is past its end, 0: the"):
        log.read({EVENTS_0: 1}, 9, 20.0)


def test_a_topic_that_was_made_anew_is_told_in_one_sentence(broker: Broker, log: KafkaLog) -> None:
    log.append([Append(EVENTS, b"a")] * 5)
    assert len(log.read({EVENTS_0: 0}, 9, 5.0)) == 5
    broker.restart()
    make_topics(broker.url)
    with pytest.raises(LogError, match=r"position 5 in events/0 .* is past its end, 0"):
        log.read({EVENTS_0: 5}, 9, 20.0)


def test_a_broker_that_is_gone_is_told_after_the_patience_that_was_asked_for(
    broker: Broker,
) -> None:
    make_topics(broker.url)
    with closing(KafkaLog(f"{broker.url}?request_timeout_ms=1500")) as log:
        log.append([Append(EVENTS, b"a")])
        with log.transaction("g") as transaction:
            transaction.advance({EVENTS_0: 0}, {EVENTS_0: 1})
        broker.kill()
        begun = time.monotonic()
        with pytest.raises(LogError, match="no broker answers"):
            log.append([Append(EVENTS, b"b")])
        with pytest.raises(LogError, match="no broker answers"):
            log.positions("g", [EVENTS])
        with pytest.raises(LogError, match="no broker answers"), log.transaction("g") as again:
            again.append([Append(SAMPLES, b"c")])
            again.advance({EVENTS_0: 1}, {EVENTS_0: 2})
        assert time.monotonic() - begun < 30


# Offsets, epochs, names


def test_who_has_read_every_record_has_no_lag_whatever_the_markers(log: KafkaLog) -> None:
    for n in range(3):
        with log.transaction("w") as transaction:
            transaction.append([Append(EVENTS, b"%d" % n)])
        (record,) = log.read({EVENTS_0: log.ends([EVENTS])[EVENTS_0] - 1}, 9, 0)
        assert record.value == b"%d" % n
        assert log.ends([EVENTS]) == {EVENTS_0: record.offset + 1}


def test_a_superseded_writer_is_fenced_before_it_sends_a_record(
    broker: Broker, log: KafkaLog
) -> None:
    with closing(Cluster(broker.url)) as cluster:
        zombie = Writer(cluster, "one id")
        newer = Writer(cluster, "one id")
        with pytest.raises(Fenced, match="another process"):
            zombie.commit([(Place(SAMPLES, 0), None, b"twice")], {Place(EVENTS, 0): 9}, "g")
        newer.commit([(Place(SAMPLES, 0), None, b"once")], {Place(EVENTS, 0): 1}, "g")
        newer.close()
    assert [r.value for r in log.read({SAMPLES_0: 0}, 9, 0)] == [b"once"]
    assert log.positions("g", [EVENTS]) == {EVENTS_0: 1}


def test_two_that_work_for_a_partition_count_every_record_once(
    broker: Broker, log: KafkaLog
) -> None:
    log.append([Append(EVENTS, b"%d" % n) for n in range(20)])
    fenced = 0
    with closing(KafkaLog(broker.url)) as other:
        for turn in range(20):
            position = log.positions("g", [EVENTS])
            (record,) = log.read(position, 1, 0)
            end = {EVENTS_0: record.offset + 1}
            both = [log, other] if turn % 2 else [other, log]
            for one in both:
                try:
                    with one.transaction("g") as transaction:
                        transaction.append([Append(SAMPLES, record.value)])
                        transaction.advance(position, end)
                except Fenced:
                    fenced += 1
    assert [int(r.value) for r in log.read({SAMPLES_0: 0}, 999, 0)] == list(range(20))
    assert fenced == 20


# From the tests of Apache Kafka's own hash: signed, as Java has it.
JAVA = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}


@pytest.mark.parametrize("key", JAVA)
def test_a_key_lies_where_javas_producers_put_it(broker: Broker, key: bytes) -> None:
    make_topics(broker.url, partitions=7)
    with closing(KafkaLog(broker.url)) as log:
        assert log.partition_of(EVENTS, key) == (JAVA[key] & 0x7FFFFFFF) % 7
        assert log.partition_of(EVENTS, b"") == 0


def test_systems_with_different_prefixes_share_a_broker_and_nothing_else(broker: Broker) -> None:
    for prefix in ("a.", "b."):
        make_topics(broker.url, prefix=prefix)
    logs = [KafkaLog(f"{broker.url}?topic_prefix={prefix}") for prefix in ("a.", "b.")]
    logs[0].append([Append(EVENTS, b"a's")])
    with logs[0].transaction("g") as transaction:
        transaction.advance({EVENTS_0: 0}, {EVENTS_0: 1})
    assert [log.ends([EVENTS])[EVENTS_0] for log in logs] == [1, 0]
    assert [log.positions("g", [EVENTS])[EVENTS_0] for log in logs] == [1, 0]
    for log in logs:
        log.close()


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "zstd"])
def test_every_compression_gives_back_what_went_in(broker: Broker, compression: str) -> None:
    make_topics(broker.url)
    with closing(KafkaLog(f"{broker.url}?compression_type={compression}")) as log:
        value = b"so much of the same " * 5_000
        log.append([Append(EVENTS, value)])
        assert log.read({EVENTS_0: 0}, 9, 0)[0].value == value


def test_a_record_that_is_too_large_is_told_with_what_to_raise(broker: Broker) -> None:
    make_topics(broker.url)
    with (
        closing(KafkaLog(f"{broker.url}?max_request_size=1000")) as log,
        pytest.raises(LogError, match="max_request_size"),
    ):
        log.append([Append(EVENTS, b"x" * 2_000)])


def test_a_closed_log_says_so(log: KafkaLog) -> None:
    log.close()
    with pytest.raises(LogError, match="is closed"):
        log.append([Append(EVENTS, b"late")])
