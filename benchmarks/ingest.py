"""How fast do events come into the log and out of it again, as checked columns?

Kafka is a real broker on this machine, with one partition in memory and no compression. Its JSON
records hold one event of some 180 bytes, its Arrow records 4,096 of them, in 47 bytes each. `ours`
is `Log.read` (4,096 JSON records or 32 Arrow ones a turn) and `decode_events`; beside it, in the
same run and over the same records, stand kafka-python alone (`raw`, as it comes and with polls as
large as ours), kafka-python with a plain loop of `json.loads`, and confluent-kafka alone. The clock
starts after the first poll, which does not count; what the benchmark itself holds is frozen, so
that no collection of garbage looks through it.
The embedded log is on the disk of the temporary folder, and an append counts when it is durable;
encoding the Arrow records is part of the time, encoding JSON is not.

A figure is the median over rounds in which the contenders take turns; a ratio is the median of
the rounds' own ratios. At last one stream ten times as long runs through a consumer's intake, which
drops repeats: `growth` is the cost of an event in its last tenth over that in its first, and
`docs/ingest.svg` shows all ten.
"""

from __future__ import annotations

import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from benchmarks._broker import Broker, broker
from streaming.decode import decode_events
from streaming.events import EventRules, encode_events
from streaming.file_log import FileLog
from streaming.intake import Intake
from streaming.log import EVENTS, Append, Log, Record, TopicPartition
from streaming.open_log import open_log

ROUNDS = 7
SINGLES = 60_000  # JSON records of a round
BATCHES = 512  # Arrow records of a round
BATCH = 4_096  # events in each
POLLED = 4_096  # records that are asked for at once
TURN = 32  # Arrow records that are asked for at once
TENTH = 60_000  # events of a tenth of the long stream
APPENDED = 1_000  # JSON events of one append
PLOT = Path(__file__).parents[1] / "docs" / "ingest.svg"

RULES = EventRules()
PLACE = TopicPartition(EVENTS, 0)
UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "kafka_json_ours_over_raw": (0.90, UNBOUNDED),
    "kafka_arrow_events_per_s": (3e6, UNBOUNDED),
    "embedded_json_events_per_s": (150e3, UNBOUNDED),
    "embedded_arrow_events_per_s": (1e6, UNBOUNDED),
    "kafka_json_growth": (0, 1.25),
    "embedded_json_growth": (0, 1.25),
}

Consume = Callable[[], Iterator[int]]  # yields how many records each poll brought


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Measure every figure, telling `report` what comes out as it comes."""
    figures: dict[str, float] = {}
    tenths: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures[name] = value
        report(f"{name} = {value:,.4g}")

    chance = random.Random(0)  # noqa: S311
    events = [json_event(n, chance) for n in range(10 * TENTH)]
    rows = decode_events(as_records(events[:BATCH]), RULES).events
    arrow = [arrow_record(rows, n) for n in range(BATCHES)]
    gc.collect()
    gc.freeze()
    with broker() as kafka:
        produce(kafka, "json-", events[:SINGLES])
        produce(kafka, "arrow-", arrow)
        speeds = compare(
            {
                "ours": ours(kafka, "json-"),
                "raw": raw(kafka, "json-"),
                "raw_large_polls": raw(kafka, "json-", POLLED),
                "json_loads": raw(kafka, "json-", treat=json.loads),
                "confluent": confluent(kafka, "json-"),
            },
            SINGLES,
        )
        note_speeds(note, "kafka_json", speeds, 1)
        speeds = compare(
            {
                "ours": ours(kafka, "arrow-", TURN),
                "raw": raw(kafka, "arrow-"),
                "confluent": confluent(kafka, "arrow-"),
            },
            BATCHES,
        )
        note_speeds(note, "kafka_arrow", speeds, BATCH)
        produce(kafka, "long-", events)
        with closing(open_log(f"{kafka.url}?topic_prefix=long-")) as log:
            tenths["Kafka, JSON"] = consume_tenths(log)
    decoded = [decoding(as_records(events[:SINGLES])) for _ in range(ROUNDS)]
    note("json_decoded_events_per_s", SINGLES / median(decoded))
    decoded = [decoding(as_records(arrow), TURN) for _ in range(ROUNDS)]
    note("arrow_decoded_events_per_s", BATCHES * BATCH / median(decoded))
    embedded(note, events, rows)
    tenths["embedded log, JSON"] = embedded_tenths(events)
    for name, key in (("Kafka, JSON", "kafka"), ("embedded log, JSON", "embedded")):
        costs = tenths[name]
        note(f"{key}_json_us_per_event_at_last", costs[-1])
        note(f"{key}_json_growth", costs[-1] / costs[0])
    PLOT.write_text(plot(tenths))
    report(f"drew {PLOT.name}")
    return figures


def note_speeds(
    note: Callable[[str, float], None],
    prefix: str,
    speeds: dict[str, list[float]],
    events: int,
) -> None:
    """The contenders' events per second, and what ours is of each of the others."""
    for name, found in speeds.items():
        what = "events_per_s" if name == "ours" else f"{name}_events_per_s"
        note(f"{prefix}_{what}", events * median(found))
    for name, found in speeds.items():
        if name != "ours":
            ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], found, strict=True)]
            note(f"{prefix}_ours_over_{name}", median(ratios))


def compare(contenders: dict[str, Consume], records: int) -> dict[str, list[float]]:
    """Records per second of each contender in each round, the first of which is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(1 + ROUNDS):
        for name, consume in contenders.items():
            polls = consume()
            first = got = next(polls)
            start_s = time.perf_counter()
            while got < records:
                got += next(polls)
            speeds[name].append((records - first) / (time.perf_counter() - start_s))
            polls.close()  # type: ignore[attr-defined]
    return {name: found[1:] for name, found in speeds.items()}


# -- the contenders ------------------------------------------------------------------------


def ours(kafka: Broker, prefix: str, polled: int = POLLED) -> Consume:
    def consume() -> Iterator[int]:
        with closing(open_log(f"{kafka.url}?topic_prefix={prefix}")) as log:
            position = 0
            while True:
                records = log.read({PLACE: position}, polled, 1.0)
                decoded = decode_events(records, RULES)
                if decoded.rejected:
                    raise RuntimeError(str(decoded.rejected[0].error))
                position = records[-1].offset + 1 if records else position
                yield len(records)

    return consume


def raw(
    kafka: Broker,
    prefix: str,
    polled: int | None = None,
    treat: Callable[[bytes], Any] | None = None,
) -> Consume:
    def consume() -> Iterator[int]:
        from kafka import KafkaConsumer
        from kafka import TopicPartition as Place

        place = Place(f"{prefix}{EVENTS}", 0)
        with closing(KafkaConsumer(bootstrap_servers=[kafka.address])) as consumer:
            consumer.assign([place])
            consumer.seek_to_beginning(place)
            while True:
                found = consumer.poll(1_000, max_records=polled).get(place, [])
                if treat is not None:
                    for record in found:
                        treat(record.value)
                yield len(found)

    return consume


def confluent(kafka: Broker, prefix: str) -> Consume:
    def consume() -> Iterator[int]:
        from confluent_kafka import Consumer
        from confluent_kafka import TopicPartition as Place

        options = {"bootstrap.servers": kafka.address, "group.id": "g", "check.crcs": True}
        with closing(Consumer(options)) as consumer:
            consumer.assign([Place(f"{prefix}{EVENTS}", 0, 0)])
            while True:
                found = consumer.consume(POLLED, 0.01)  # it would wait for all of them
                for message in found:
                    message.value()
                yield len(found)

    return consume


def decoding(records: Sequence[Record], polled: int = POLLED) -> float:
    """Seconds that decoding takes alone, so many records at once as a poll brings."""
    start_s = time.perf_counter()
    for n in range(0, len(records), polled):
        decode_events(records[n : n + polled], RULES)
    return time.perf_counter() - start_s


# -- the embedded log ----------------------------------------------------------------------


def embedded(note: Callable[[str, float], None], events: list[bytes], rows: pa.RecordBatch) -> None:
    """What it takes in, durable, in each form."""
    calls = [
        [Append(EVENTS, value) for value in events[n : n + APPENDED]]
        for n in range(0, SINGLES, APPENDED)
    ]
    batches = [rows] * (BATCHES // 16)
    json_s, arrow_s, read_s = [], [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder, closing(FileLog(Path(folder, "log"))) as log:
            json_s.append(timed(lambda log=log: [log.append(call) for call in calls]))  # type: ignore[misc]
            read_s.append(timed(lambda log=log: list(read_on(log, SINGLES))))  # type: ignore[misc]
            arrow_s.append(
                timed(lambda log=log: [log.append([encode_events(b)]) for b in batches])  # type: ignore[misc]
            )
    note("embedded_json_events_per_s", SINGLES / median(json_s))
    note("embedded_json_read_events_per_s", SINGLES / median(read_s))
    note("embedded_arrow_events_per_s", len(batches) * BATCH / median(arrow_s))


def embedded_tenths(events: list[bytes]) -> list[float]:
    with tempfile.TemporaryDirectory() as folder, closing(FileLog(Path(folder, "log"))) as log:
        for n in range(0, len(events), APPENDED):
            log.append([Append(EVENTS, value) for value in events[n : n + APPENDED]])
        return consume_tenths(log)


def consume_tenths(log: Log) -> list[float]:
    """Microseconds an event in each tenth of the long stream, through a consumer's intake."""
    polls = read_on(log, 10 * TENTH)
    costs: list[float] = []
    got = 0
    start_s = time.perf_counter()
    for count in polls:
        got += count
        if got >= (len(costs) + 1) * TENTH:
            now_s = time.perf_counter()
            costs.append((now_s - start_s) / TENTH * 1e6)
            start_s = now_s
    return costs


def read_on(log: Log, events: int) -> Iterator[int]:
    intake = Intake(RULES)
    position = 0
    while position < events:
        records = log.read({PLACE: position}, 2_000, 1.0)
        yield intake.take(records).events.num_rows
        position = records[-1].offset + 1


def timed(act: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    act()
    return time.perf_counter() - start_s


# -- what is measured on -------------------------------------------------------------------


def json_event(n: int, chance: random.Random) -> bytes:
    """An event of the usual size; twenty belong to a request, and ids are as our SDK makes them."""
    at = datetime.fromtimestamp(1_700_000_000 + n / 1000, UTC)
    event = {
        "event_id": f"7f3a9c1e55d0b2aa-{n}",
        "kind": chance.choice(["impression"] * 6 + ["click", "buy"]),
        "at": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "user_id": f"user-{chance.randrange(100_000)}",
        "item_id": f"item-{chance.randrange(50_000)}",
        "request_id": f"request-{n // 20}",
        "position": n % 20,
        "scenario": "home",
    }
    return json.dumps(event, separators=(",", ":")).encode()


def arrow_record(rows: pa.RecordBatch, n: int) -> bytes:
    """The rows under other ids."""
    ids = [f"{n}-{event_id}" for event_id in rows["event_id"].to_pylist()]
    return encode_events(rows.set_column(0, rows.schema.field(0), pa.array(ids))).value


def as_records(values: Sequence[bytes]) -> list[Record]:
    now_us = time.time_ns() // 1000
    return [Record(EVENTS, 0, n, None, value, now_us) for n, value in enumerate(values)]


def produce(kafka: Broker, prefix: str, values: Sequence[bytes]) -> None:
    """Makes the topic with one partition, and fills it."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    topic = f"{prefix}{EVENTS}"
    servers = {"bootstrap.servers": kafka.address}
    admin = AdminClient(servers)
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result()
    producer = Producer({**servers, "queue.buffering.max.messages": 10**6, "linger.ms": 20})
    for n, value in enumerate(values):
        if n == len(values) - 1:  # alone: this broker counts a batch at the end as one record
            producer.flush()
        producer.produce(topic, value, partition=0)
        if n % 1_000 == 0:
            producer.poll(0)
    if producer.flush(60):
        raise RuntimeError("the broker did not take the records of the benchmark")


# -- the plot ------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 320, 60, 44, 20, 48
COLOURS = ("#1f6f8b", "#c8553d")


def plot(tenths: dict[str, list[float]]) -> str:
    """The cost of an event over the stream, one line for each log, as SVG."""
    top_us = 1.25 * max(max(costs) for costs in tenths.values())
    total = 10 * TENTH

    def x(tenth: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * tenth / 10

    def y(cost_us: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * cost_us / top_us

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12" fill="#444">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">Reading an event costs the same at the end of'
        " the stream as at its beginning</text>",
    ]
    for cost_us in (0.0, top_us / 4, top_us / 2, 3 * top_us / 4, top_us):
        parts += [
            f'<path d="M{LEFT} {y(cost_us):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{y(cost_us) + 4:.1f}" text-anchor="end">{cost_us:.1f}</text>',
        ]
    for tenth in range(0, 11, 2):
        label = f"{total * tenth // 10_000:,}k"
        parts.append(
            f'<text x="{x(tenth):.1f}" y="{HEIGHT - 26}" text-anchor="middle">{label}</text>'
        )
    for colour, (name, costs) in zip(COLOURS, tenths.items(), strict=True):
        points = " ".join(f"{x(n + 0.5):.1f},{y(cost):.1f}" for n, cost in enumerate(costs))
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>',
            f'<text x="{x(9.5):.1f}" y="{y(costs[-1]) - 9:.1f}" fill="{colour}"'
            f' text-anchor="end">{name}</text>',
        ]
    parts += [
        f'<text x="{x(5):.1f}" y="{HEIGHT - 8}" text-anchor="middle">events read so far</text>',
        f'<text x="14" y="{y(top_us / 2):.1f}" text-anchor="middle"'
        f' transform="rotate(-90 14 {y(top_us / 2):.1f})">µs an event</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    run(print)
