"""The skew watch over a real log, store, aggregator and joiner, with answers of the interface."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from starlette.types import ASGIApp

from features.aggregator import Aggregator, AggregatorConfig, Push
from features.behaviour import Behaviour, BehaviourConfig
from features.catalog import Catalog
from features.definitions import USER_HISTORY, View
from features.skew import Outcome, Skew
from features.store import FeastStore
from serving.answers import Answer
from serving.http.api import ApiConfig, Service, create_app
from serving.metrics import ServingMetrics
from serving.recommender import Recommender
from serving.replica import Replica
from serving.sample_watch import SampleWatch
from serving.skew_watch import SkewWatch
from streaming.errors import LogError
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import EVENTS, SAMPLES, Append, Positions, Record, TopicPartition
from streaming.metrics import Metrics

Connect = Callable[[ASGIApp], httpx.Client]
BEHAVIOUR = BehaviourConfig(length=6, searched_words=4)
FEATURES = Skew(USER_HISTORY, (6, 4)).names
SAME, BEHIND, DIFFERENT = Outcome


class Store(Protocol):
    """Where the aggregator pushes to and answers are made from."""

    def push(self, pushes: Sequence[Push]) -> object: ...

    @property
    def is_local(self) -> bool: ...

    def read(self, view: View, keys: Sequence[int]) -> list[dict[str, Any]]: ...


class DictStore:
    """A store that can be made to tell something else than what was pushed."""

    is_local = True

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        self.twist: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row

    def push(self, pushes: Sequence[Push]) -> None:
        for push in pushes:
            for row in push.rows.to_pylist():
                self._rows[push.view.name, row[push.view.key]] = row

    def read(self, view: View, keys: Sequence[int]) -> list[dict[str, Any]]:
        rows = [{**view.defaults, **self._rows.get((view.name, key), {})} for key in keys]
        return [self.twist(row) if view is USER_HISTORY else row for row in rows]


class Stage:
    """Everything between a user and the watch, each moved by hand."""

    def __init__(self, log: FileLog, store: Store, catalog: Catalog, connect: Connect) -> None:
        self.log = log
        self.metrics = ServingMetrics(Metrics())
        self.skew = SkewWatch(Skew(USER_HISTORY, (6, 4)), self.metrics)
        self.watch = SampleWatch(log, [self.skew])
        rules = EventRules()
        self.client = connect(
            create_app(
                Service(log, rules, Recommender(Replica(), catalog, store), catalog,
                        self.metrics, dict, lambda: None, self._shown),
                ApiConfig(),
            )
        )  # fmt: skip
        self._store = store
        self._aggregator = Aggregator(AggregatorConfig(), rules, BEHAVIOUR)
        joiner = JoinerConfig(history=6, searched_words=4)
        self._joiner = Joiner(joiner, rules, Behaviour(BEHAVIOUR))
        self._taken = {"push": 0, "join": 0}

    def _shown(self, answer: Answer) -> bool:
        self.skew.note(answer)
        return False

    def act(self, *items: str, user: str = "ada") -> None:
        """A user rates, likes in a scenario, and searches."""
        self._post(
            [
                *({"kind": "rate", "item_id": item, "value": 3.5} for item in items[:1]),
                *({"kind": "like", "item_id": item, "scenario": "home"} for item in items[1:]),
                {"kind": "search", "query": " ".join(items)},
            ],
            user,
        )

    def push(self) -> None:
        """What was done reaches the store."""
        self._store.push(self._aggregator.on_batch(self._new("push")))

    def ask(self, user: str = "ada") -> str:
        """An answer, whose request is told."""
        answer = self.client.get("/v1/recommend", params={"user_id": user, "k": 3}).json()
        return str(answer["request_id"])

    def show(self, request: str, user: str = "ada") -> None:
        """The items of an answer are shown, and one is clicked."""
        shown = [{"kind": "impression", "item_id": f"i{place}", "position": place,
                  "request_id": request} for place in range(3)]  # fmt: skip
        self._post([*shown, {**shown[1], "kind": "click"}], user)

    def join(self) -> None:
        """What was done becomes samples."""
        self.log.append(self._joiner.on_batch(self._new("join")))

    def seen(self, timeout_s: float = 0.0) -> dict[str, set[str]]:
        """The features with each outcome, after a turn of the watch."""
        self.watch.turn(timeout_s)
        figures = self.skew.figures()["features"]
        for name, counts in figures.items():
            for outcome, count in counts.items():
                assert self._counted(name, outcome) == (count or None)
        return {str(o): {n for n in FEATURES if figures[n][str(o)]} for o in Outcome}

    def waiting(self) -> int:
        return int(self.skew.figures()["waiting"])

    def behind(self) -> tuple[float, float]:
        """How many answers were behind, and how many of them only by what came later."""
        view = {"view": "user_history"}
        value = self.metrics.registry.get_sample_value
        return (
            value("headrace_feature_behind_seconds_count", view) or 0.0,
            value("headrace_feature_behind_seconds_bucket", {**view, "le": "0.0"}) or 0.0,
        )

    def _counted(self, feature: str, outcome: str) -> float | None:
        labels = {"view": "user_history", "feature": feature, "outcome": outcome}
        return self.metrics.registry.get_sample_value("headrace_feature_skew_total", labels)

    def _new(self, taker: str) -> list[Record]:
        records = self.log.read({TopicPartition(EVENTS, 0): self._taken[taker]}, 1_000, 0)
        self._taken[taker] = records[-1].offset + 1
        return records

    def _post(self, events: Sequence[dict[str, Any]], user: str) -> None:
        told = [{"user_id": user, **event} for event in events]
        response = self.client.post("/v1/events", json=told)
        assert response.status_code == 202, response.text


@pytest.fixture
def store() -> DictStore:
    return DictStore()


@pytest.fixture
def stage(log: FileLog, store: DictStore, catalog: Catalog, connect: Connect) -> Iterator[Stage]:
    made = Stage(log, store, catalog, connect)
    with made.client:
        yield made


def all_of(outcome: str) -> dict[str, set[str]]:
    return {**{str(o): set() for o in Outcome}, outcome: set(FEATURES)}


def test_what_the_real_store_answers_is_what_training_gets(
    log: FileLog, catalog: Catalog, connect: Connect, tmp_path: Path
) -> None:
    store = FeastStore(tmp_path / "features")
    store.apply()
    stage = Stage(log, store, catalog, connect)
    with stage.client:
        stage.act("a", "b", "c")
        stage.push()
        stage.show(stage.ask())
        stage.join()
        assert stage.seen() == all_of(SAME)
        assert stage.waiting() == 0
        assert stage.behind() == (0, 0)


def test_a_full_history_is_the_same_too(stage: Stage) -> None:
    for round_ in range(3):
        stage.act(*(f"{round_}{letter}" for letter in "abc"))
    stage.push()
    stage.show(stage.ask())
    stage.join()
    assert stage.seen() == all_of(SAME)


def test_who_did_nothing_yet_is_the_same(stage: Stage) -> None:
    stage.show(stage.ask())
    stage.join()
    assert stage.seen() == all_of(SAME)


@pytest.mark.parametrize("before", [0, 1, 3], ids=["knew nothing", "knew some", "was full"])
def test_what_happens_between_the_answer_and_its_impressions_is_no_skew(
    stage: Stage, before: int
) -> None:
    for round_ in range(before):
        stage.act(*(f"{round_}{letter}" for letter in "abc"))
        stage.push()
    request = stage.ask()
    time.sleep(0.001)  # times of events and of the answer are those of one clock
    stage.act("late")
    stage.show(request)
    stage.join()
    assert stage.seen() == all_of(BEHIND)
    assert stage.behind() == (1, 1)


def test_a_store_that_lags_is_behind_and_says_by_how_much(stage: Stage) -> None:
    stage.act("a", "b")
    stage.push()
    stage.act("c")  # is not pushed
    time.sleep(0.01)
    stage.show(stage.ask())
    stage.join()
    assert stage.seen() == all_of(BEHIND)
    assert stage.behind() == (1, 0)
    sum_s = stage.metrics.registry.get_sample_value(
        "headrace_feature_behind_seconds_sum", {"view": "user_history"}
    )
    assert sum_s is not None
    assert 0.01 <= sum_s < 60


def half_the_reward(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "rewards": [reward / 2 for reward in row["rewards"]]}


def without_the_second_item(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "items": row["items"][:1] + row["items"][2:]}


def other_words_at_other_times(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, **{n: [one + 1 for one in row[n]] for n in ("searched", "searched_at_us")}}


@pytest.mark.parametrize(
    ("twist", "wrong"),
    [
        (half_the_reward, {"rewards"}),
        (without_the_second_item, {"items"}),
        (other_words_at_other_times, {"searched", "searched_at_us"}),
    ],
)
@pytest.mark.parametrize("behind", [False, True], ids=["new", "behind"])
def test_planted_skew_is_found_in_just_its_features(
    stage: Stage,
    store: DictStore,
    caplog: pytest.LogCaptureFixture,
    twist: Any,
    wrong: set[str],
    *,
    behind: bool,
) -> None:
    store.twist = twist
    for _ in range(2):
        stage.act("a", "b", "c")
        stage.push()
        request = stage.ask()
        if behind:
            stage.act("d")
        stage.show(request)
        stage.join()
        seen = stage.seen()
    assert seen[DIFFERENT] == wrong
    assert seen[BEHIND if behind else SAME] == {*FEATURES} - wrong
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == len(wrong)  # the first of each only


def test_samples_of_other_users_and_of_other_requests_are_not_compared(stage: Stage) -> None:
    stage.act("a")
    stage.push()
    stage.show(stage.ask(), user="eve")
    stage.show("made-up")
    stage.join()
    assert not any(stage.seen().values())
    assert stage.waiting() == 1
    stage.push()
    stage.show(stage.ask())
    stage.join()
    assert stage.seen() == all_of(SAME)


def test_a_damaged_record_is_told_once_and_passed_over(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    request = stage.ask()
    stage.log.append([Append(SAMPLES, b"no samples")])
    stage.show(request)
    stage.join()
    assert stage.seen() == all_of(SAME)
    assert stage.seen() == all_of(SAME)
    assert caplog.text.count(f"{SAMPLES}/0 at 0 holds no samples") == 1


class Forgetful(FileLog):
    """A log that has let go of samples before they were read, as Kafka does after a time."""

    def read(self, positions: Positions, limit: int, timeout_s: float) -> list[Record]:
        if any(place.topic == SAMPLES and at == 0 for place, at in positions.items()):
            raise LogError("position 0 in samples/0 has fallen out of the topic's retention")
        return super().read(positions, limit, timeout_s)


def test_samples_that_are_gone_are_told_and_passed_over(
    store: DictStore,
    catalog: Catalog,
    connect: Connect,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with closing(Forgetful(tmp_path / "forgetful.db")) as log:
        stage = Stage(log, store, catalog, connect)
        with stage.client:
            stage.show(stage.ask())
            stage.join()
            assert not any(stage.seen().values())
            assert "fallen out" in caplog.text
            stage.push()
            stage.show(stage.ask())
            stage.join()
            assert stage.seen() == all_of(SAME)


def test_runs_until_told_to_stop_and_reads_nothing_while_no_answer_waits(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.act("a")
    stage.show("nobody's")
    stage.log.append([Append(SAMPLES, b"no samples")])  # would be told of, were it read
    stopping = threading.Event()
    thread = threading.Thread(target=stage.watch.run, args=(stopping,))
    thread.start()
    try:
        until = time.monotonic() + 30
        while stage.watch._positions != stage.log.ends([SAMPLES]) and time.monotonic() < until:
            time.sleep(0.01)
        stage.push()
        stage.show(stage.ask())
        stage.join()
        while stage.waiting() and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        stopping.set()
        thread.join(timeout=30)
    assert not thread.is_alive()
    assert not caplog.records
    assert stage.seen() == all_of(SAME)
