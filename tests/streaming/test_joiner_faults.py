"""Whatever dies, fights, fills up or arrives in pieces: the samples are those of a quiet run.

Each test runs the joiner over real files or a real broker, does it some harm, lets it go on, and
holds every row of `samples` against those of a run that nothing disturbed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks._broker import Broker
from features.behaviour import Behaviour, BehaviourConfig
from streaming.arrow_record import encode_batch
from streaming.errors import Fenced, LogFull
from streaming.event_order import encode_tick
from streaming.events import Event, EventRules, encode_event, event_batch, parse_event
from streaming.joiner import Joiner, JoinerConfig
from streaming.kafka_client import Unreachable
from streaming.log import DEAD_LETTERS, EVENTS, SAMPLES, Append, Log, TopicPartition
from streaming.loop import Loop, LoopConfig
from streaming.open_log import open_log
from streaming.samples import decode_samples
from streaming.topics import Topics, TopicsConfig

RULES = EventRules()
START_US = 1_700_000_000_000_000
SECOND_US = 1_000_000
DAYS_US = 5 * 86_400 * SECOND_US
PLACE = TopicPartition(EVENTS, 0)
REQUESTS = 60
# Small turns and a cut after each, so that every number of the commit order comes often.
EAGER = LoopConfig(limit=8, idle_s=0.01, cut_every_s=0.0)
Rows = list[dict[str, Any]]


# -- what is sent --------------------------------------------------------------------------


def an_event(kind: str, number: int, at_s: float, **fields: Any) -> Event:
    raw = {"kind": kind, "event_id": f"{kind}-{number}", **fields}
    return parse_event(raw, RULES, START_US + round(at_s * SECOND_US))


def story(seed: int = 7) -> list[Event]:
    """Requests of four impressions, and what came of them: at once, late, or never; in order."""
    chance = random.Random(seed)
    told: list[tuple[float, Event]] = []

    def tell(kind: str, at_s: float, **fields: Any) -> None:
        told.append((at_s, an_event(kind, len(told), at_s, **fields)))

    for item in range(12):
        tell("item", 0.0, item_id=f"i{item}", attributes={"genres": [f"g{item % 3}"]})
    for request in range(REQUESTS):
        at_s, user = 1.0 + 20.0 * request, f"u{chance.randrange(9)}"
        for position, item in enumerate(chance.sample(range(12), 4)):
            shown = {"user_id": user, "item_id": f"i{item}", "request_id": f"r{request}"}
            tell("impression", at_s, position=position, scenario="home", **shown)
            if chance.random() < 0.4:
                clicked_s = at_s + chance.choice([0.5, 30.0, 400.0, 2_000.0])
                tell("click", clicked_s, **shown)
                if chance.random() < 0.5:
                    tell("buy", clicked_s + chance.choice([5.0, 90_000.0]), value=9.9, **shown)
        if chance.random() < 0.3:
            tell("like", at_s + 3.0, user_id=user, item_id=f"i{chance.randrange(12)}")
    told.sort(key=lambda pair: pair[0])
    return [event for _, event in told]


def as_records(events: Sequence[Event], size: int = 6) -> list[Append]:
    """Every other handful as one Arrow record, the others as JSON; then a tick that ends it all."""
    records: list[Append] = []
    for n in range(0, len(events), size):
        handful = events[n : n + size]
        if n // size % 2:
            records.append(Append(EVENTS, encode_batch(event_batch(handful)), partition=0))
        else:
            records += [encode_event(event)._replace(partition=0) for event in handful]
    return [*records, encode_tick("test", START_US + DAYS_US, 0)]


# -- who joins -----------------------------------------------------------------------------


def joiner_loop(
    log: Log,
    cuts: Path,
    reached: Callable[[int], None] = lambda _: None,
    lateness_s: float = 0.0,
    config: LoopConfig = EAGER,
) -> Loop[Joiner]:
    behaviour = BehaviourConfig(length=5)
    joining = JoinerConfig(step_size=16, history=5, lateness_s=lateness_s)
    return Loop(
        log,
        "joiner",
        [EVENTS],
        lambda state: Joiner(joining, RULES, Behaviour(behaviour, state), state),
        cuts,
        only=[PLACE],
        config=config,
        reached=reached,
    )


def join_to_the_end(log: Log, cuts: Path, **options: Any) -> Loop[Joiner]:
    loop = joiner_loop(log, cuts, **options)
    while loop.positions[PLACE] < log.ends([EVENTS])[PLACE]:
        loop.turn()
    loop.cut()
    return loop


def rows_of(log: Log) -> Rows:
    """Every row of `samples` in the order of the log, but for when its event was logged."""
    rows: Rows = []
    for place, end in log.ends([SAMPLES]).items():
        at = 0
        while at < end:
            for record in log.read({place: at}, 500, 1.0):
                rows += decode_samples(record).drop_columns("logged_us").to_pylist()
                at = record.offset + 1
    return rows


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """What a run gives that nothing disturbs."""
    home = tmp_path_factory.mktemp("quiet")
    log = open_log((home / "log.db").as_uri())
    log.append(as_records(story()))
    joiner = join_to_the_end(log, home / "cuts").step
    rows = rows_of(log)
    log.close()
    # The story has something of everything that can go wrong by being counted twice.
    assert joiner.counts["opened"] == 4 * REQUESTS
    assert joiner.counts["late"] > 3
    assert {row["kind"] for row in rows} == {"item", "impression", "click", "buy", "like"}
    return rows


@pytest.fixture(params=["file", "kafka"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty log: an embedded one, or one on a real broker."""
    if request.param == "file":
        return (tmp_path / "log.db").as_uri()
    broker: Broker = request.getfixturevalue("broker")
    make_topics(broker.url)
    return broker.url


def make_topics(url: str) -> None:
    topics = Topics(url, TopicsConfig(partitions=1))
    topics.apply(topics.plan())
    topics.close()


@contextmanager
def opened(url: str) -> Iterator[Log]:
    log = open_log(url)
    try:
        yield log
    finally:
        log.close()


# -- kill -9 -------------------------------------------------------------------------------


def join_and_die(url: str, cuts: Path, number: int, times: int) -> None:
    """The body of a process: it kills itself when it has come to `number` so many times."""
    left = times

    def die(reached: int) -> None:
        nonlocal left
        left -= reached == number
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with opened(url) as log:
        join_to_the_end(log, cuts, reached=die)


def test_killed_at_every_step_of_the_commit_order(
    url: str, quiet: Rows, tmp_path: Path, processes: ForkServerContext
) -> None:
    """One process after another goes on where the last one died; each dies at the next number."""
    with opened(url) as log:
        log.append(as_records(story()))
    for number, times in ((0, 1), (1, 3), (2, 2), (3, 3), (4, 1), (5, 2), (6, 1), (4, 2), (3, 1)):
        body = (url, tmp_path / "cuts", number, times)
        process = processes.Process(target=join_and_die, args=body)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"it came to its end before {number}"
    with opened(url) as log:
        join_to_the_end(log, tmp_path / "cuts")
        assert rows_of(log) == quiet


# -- a broker that stops, two that fight ---------------------------------------------------


def test_a_broker_that_stops_answering_and_comes_back(
    broker: Broker, quiet: Rows, tmp_path: Path
) -> None:
    make_topics(broker.url)
    with opened(broker.url) as log:
        log.append(as_records(story()))
        loop = joiner_loop(log, tmp_path / "cuts")
        for _ in range(3):
            loop.turn()
        broker.pause()
        timer = threading.Timer(1.0, broker.resume)
        timer.start()
        try:
            while loop.positions[PLACE] < log.ends([EVENTS])[PLACE]:
                loop.turn()
        finally:
            timer.join()
        assert rows_of(log) == quiet


def fight(url: str, cuts: Path) -> None:
    """The body of a process that never gives up: fenced, it goes on from what is committed.

    This broker, unlike Apache Kafka, may hang up on a superseded commit instead of refusing it;
    the process then fails for want of an answer, and is started again.
    """
    if url.startswith("kafka:"):
        url += "?request_timeout_ms=3000"
    while True:
        with suppress(Fenced, Unreachable), opened(url) as log:
            join_to_the_end(log, cuts)
            return


def test_two_joiners_that_fight_over_a_partition(
    url: str, quiet: Rows, tmp_path: Path, processes: ForkServerContext
) -> None:
    with opened(url) as log:
        log.append(as_records(story()))
        # As on two machines: each has cuts of its own, and replays what the other committed.
        fighters = [
            processes.Process(target=fight, args=(url, tmp_path / f"cuts-{n}")) for n in range(2)
        ]
        for fighter in fighters:
            fighter.start()
        for fighter in fighters:
            fighter.join()
            assert fighter.exitcode == 0
        found = rows_of(log)
    if url.startswith("kafka:"):
        found = without_undone(found, quiet)
    assert found == quiet


def without_undone(found: Rows, quiet: Rows) -> Rows:
    """What is left without the rows of transactions that were undone.

    This broker, unlike Apache Kafka, shows them to readers. What a transaction wrote was to come
    next, and is written again behind it: so a row that does not come next was here before.
    """
    left: Rows = []
    for row in found:
        if len(left) < len(quiet) and row == quiet[len(left)]:
            left.append(row)
        elif row not in left:
            return [*left, row]  # neither next nor once more
        else:
            # Once more from here: what was taken since was undone.
            del left[left.index(row) + 1 :]
    return left


# -- a disk that is full -------------------------------------------------------------------


def test_a_disk_that_is_full(make_disk: Callable[[str], Path], quiet: Rows, tmp_path: Path) -> None:
    disk = make_disk("8m")
    with opened((disk / "log.db").as_uri()) as log:
        log.append(as_records(story()))
        ballast = disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1_024))
        with pytest.raises(LogFull):
            join_to_the_end(log, tmp_path / "cuts")
        ballast.unlink()
        join_to_the_end(log, tmp_path / "cuts")
        assert rows_of(log) == quiet


# -- what producers do ---------------------------------------------------------------------


def test_records_cut_in_half(url: str, quiet: Rows, tmp_path: Path) -> None:
    records = as_records(story())
    halves = [r._replace(value=r.value[: len(r.value) // 2]) for r in records[::5]]
    with opened(url) as log:
        for n, record in enumerate(records):
            log.append([record, halves[n // 5]] if n % 5 == 0 else [record])
        join_to_the_end(log, tmp_path / "cuts")
        assert rows_of(log) == quiet
        letters = sum(len(log.read({p: 0}, 9_999, 1)) for p in log.ends([DEAD_LETTERS]))
        assert letters == len(halves)


def test_records_sent_twice(url: str, quiet: Rows, tmp_path: Path) -> None:
    records = as_records(story())
    with opened(url) as log:
        log.append([twice for record in records for twice in (record, record)])
        log.append(records[:10])
        join_to_the_end(log, tmp_path / "cuts")
        assert rows_of(log) == quiet


def test_events_that_arrive_out_of_order(url: str, tmp_path: Path) -> None:
    """Within the lateness, any order of arrival gives row for row the same samples."""
    in_order, chance = story(), random.Random(3)
    jolted = [(event.at.timestamp() + chance.uniform(0, 25), n, event)  # type: ignore[union-attr]
              for n, event in enumerate(in_order)]  # fmt: skip
    shuffled = [event for *_, event in sorted(jolted, key=lambda one: one[:2])]
    assert shuffled != in_order
    found = []
    for n, events in enumerate((in_order, shuffled)):
        with opened(url if n else (tmp_path / "in-order.db").as_uri()) as log:
            log.append(as_records(events))
            joiner = join_to_the_end(log, tmp_path / f"cuts-{n}", lateness_s=30.0).step
            assert joiner.counts["late_events"] == 0
            found.append(rows_of(log))
    assert found[0] == found[1]


def test_a_sender_whose_clock_runs_ahead(url: str, tmp_path: Path) -> None:
    """It cannot close the windows of others: no event is later than it was logged."""
    now_us = time.time_ns() // 1_000
    shown = {"user_id": "u", "item_id": "i", "request_id": "r"}
    impression = parse_event({"kind": "impression", "event_id": "a", **shown}, RULES, now_us)
    ahead_us = now_us + 299 * SECOND_US
    skewed = parse_event(
        {"kind": "like", "event_id": "b", "user_id": "v", "item_id": "j",
         "at": pa.scalar(ahead_us, pa.timestamp("us", "UTC")).as_py().isoformat()},
        RULES, now_us,
    )  # fmt: skip
    with opened(url) as log:
        log.append([encode_event(e)._replace(partition=0) for e in (impression, skewed)])
        loop = join_to_the_end(log, tmp_path / "cuts")
        assert loop.step.snapshot().meta["newest_us"] <= time.time_ns() // 1_000
        assert loop.step.counts["open"] == 1


def test_nothing_is_left_running(broker: Broker) -> None:
    """The broker of a test ends with it, by its own process id."""
    broker.kill()
    found = subprocess.run(["pgrep", "-f", str(broker.port)], capture_output=True, check=False)
    assert not found.stdout
