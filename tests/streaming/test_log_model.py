"""Every log against the plainest log there is, through whatever hypothesis thinks of."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from kafka.admin import KafkaAdminClient

from benchmarks._broker import Broker
from streaming.errors import Fenced
from streaming.file_log import FileLog
from streaming.kafka_log import KafkaLog
from streaming.log import Append, Log, Record, TopicPartition
from streaming.memory_log import MemoryLog

TOPICS = ("left", "right")
PARTITIONS = 2
PLACES = tuple(TopicPartition(topic, n) for topic in TOPICS for n in range(PARTITIONS))
PATIENCE_S = 10.0

BATCH = st.lists(st.tuples(st.sampled_from(PLACES), st.binary(max_size=3)), max_size=5)
PLACE = st.sampled_from(PLACES)
CLIENT = st.integers(0, 1)
GROUP = st.sampled_from(["g", "h"])


class Model(RuleBasedStateMachine):
    """Two clients of one log, and beside it a list for each partition.

    How far a group has got is counted in records, for nobody knows the offsets beforehand.
    """

    def __init__(self, connect: Callable[[], Log]) -> None:
        super().__init__()
        self.connect = connect
        self.clients = [connect(), connect()]
        self.first = self.clients[0].positions("nobody", TOPICS)
        self.lists: dict[TopicPartition, list[bytes]] = {place: [] for place in PLACES}
        self.stands: dict[tuple[str, TopicPartition], int] = {}

    @rule(client=CLIENT, batch=BATCH)
    def append(self, client: int, batch: list[tuple[TopicPartition, bytes]]) -> None:
        self.clients[client].append(appends(batch))
        self._extend(batch)

    @rule(client=CLIENT, group=GROUP, batch=BATCH, place=PLACE, by=st.integers(0, 3))
    def commit(
        self, client: int, group: str, batch: list[tuple[TopicPartition, bytes]],
        place: TopicPartition, by: int,
    ) -> None:  # fmt: skip
        log = self.clients[client]
        start = log.positions(group, [place.topic])[place]
        found = self._records(log, place, start)[:by]
        with log.transaction(group) as transaction:
            transaction.advance({place: start}, {place: found[-1].offset + 1 if found else start})
            transaction.append(appends(batch))
        self.stands[group, place] = self.stands.get((group, place), 0) + len(found)
        self._extend(batch)

    @rule(client=CLIENT, group=GROUP, batch=BATCH, place=PLACE)
    def undo(
        self, client: int, group: str, batch: list[tuple[TopicPartition, bytes]],
        place: TopicPartition,
    ) -> None:  # fmt: skip
        log = self.clients[client]
        start = log.positions(group, [place.topic])[place]
        with pytest.raises(ZeroDivisionError), log.transaction(group) as transaction:
            transaction.append(appends(batch))
            transaction.advance({place: start}, {place: start + 1})
            raise ZeroDivisionError

    @rule(client=CLIENT, group=GROUP, batch=BATCH, place=PLACE, wrong=st.integers(1, 3))
    def come_too_late(
        self, client: int, group: str, batch: list[tuple[TopicPartition, bytes]],
        place: TopicPartition, wrong: int,
    ) -> None:  # fmt: skip
        log = self.clients[client]
        start = log.positions(group, [place.topic])[place] + wrong
        with pytest.raises(Fenced), log.transaction(group) as transaction:
            transaction.append(appends(batch))
            transaction.advance({place: start}, {place: start + 1})

    @rule(client=CLIENT)
    def open_again(self, client: int) -> None:
        self.clients[client].close()
        self.clients[client] = self.connect()

    @rule(client=CLIENT, place=PLACE, skip=st.integers(0, 5), limit=st.integers(1, 4))
    def read_on(self, client: int, place: TopicPartition, skip: int, limit: int) -> None:
        log = self.clients[client]
        found = self._records(log, place, self.first[place])
        if skip < len(found):
            position = found[skip - 1].offset + 1 if skip else self.first[place]
            some = log.read({place: position}, limit, PATIENCE_S)
            assert some == found[skip : skip + len(some)]
            assert 1 <= len(some) <= limit

    @invariant()
    def holds_what_the_lists_hold(self) -> None:
        for log in self.clients:
            ends = log.ends(TOPICS)
            for place, values in self.lists.items():
                found = self._records(log, place, self.first[place])
                assert [record.value for record in found] == values
                assert ends[place] == (found[-1].offset + 1 if found else self.first[place])
                for group in ("g", "h"):
                    stands = self.stands.get((group, place), 0)
                    position = log.positions(group, [place.topic])[place]
                    assert [r.offset >= position for r in found] == [
                        n >= stands for n in range(len(found))
                    ]

    def teardown(self) -> None:
        for log in self.clients:
            log.close()

    def _extend(self, batch: list[tuple[TopicPartition, bytes]]) -> None:
        for place, value in batch:
            self.lists[place].append(value)

    @staticmethod
    def _records(log: Log, place: TopicPartition, position: int) -> list[Record]:
        """All records of the partition from the position on."""
        found: list[Record] = []
        end = log.ends([place.topic])[place]
        while position < end:
            found += log.read({place: position}, 99, PATIENCE_S)
            position = found[-1].offset + 1
        return found


def appends(batch: list[tuple[TopicPartition, bytes]]) -> list[Append]:
    return [Append(place.topic, value, None, place.partition) for place, value in batch]


def run(connects: Callable[[], Callable[[], Log]], examples: int, steps: int) -> None:
    """So many examples, each with a new log, of so many steps."""

    class WithANewLog(Model):
        def __init__(self) -> None:
            super().__init__(connects())

    run_state_machine_as_test(
        WithANewLog,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True
        ),
    )


def test_the_embedded_log(tmp_path: Path) -> None:
    names = itertools.count()

    def new() -> Callable[[], Log]:
        path = tmp_path / f"{next(names)}.db"
        return lambda: FileLog(path, partitions=PARTITIONS, topics=TOPICS)

    run(new, examples=15, steps=20)


@pytest.mark.parametrize("gaps", [False, True])
def test_the_log_in_memory(tmp_path: Path, gaps: bool) -> None:
    names = itertools.count()

    def new() -> Callable[[], Log]:
        name = f"{tmp_path}/{next(names)}"
        return lambda: MemoryLog(name, partitions=PARTITIONS, topics=TOPICS, gaps=gaps)

    run(new, examples=40, steps=30)


def test_the_log_over_kafka(broker: Broker) -> None:
    names = itertools.count()
    admin = KafkaAdminClient(bootstrap_servers=broker.address)

    def new() -> Callable[[], Log]:
        prefix = f"example-{next(names)}."
        options = {"num_partitions": PARTITIONS, "replication_factor": 1}
        admin.create_topics({prefix + topic: options for topic in TOPICS})
        return lambda: KafkaLog(f"{broker.url}?topic_prefix={prefix}")

    run(new, examples=3, steps=10)
    admin.close()
