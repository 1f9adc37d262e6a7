"""Fusion: one finite score of several tasks, what is set live, and weights that are tuned."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.experiments import Arm, Experiment
from serving.follower import Follower
from serving.fusion import SHARE, Floats, FusionConfig, How, fused
from serving.fusion_tuning import Requests, tune
from serving.judged import judge, newest_samples, split
from serving.live_fusion import EVERYWHERE, FusionSettings, LiveFusion, bell, place_of
from serving.recommender import RecommendConfig
from serving.replica import Replica
from serving.version_watch import VersionWatch
from streaming.arrow_record import encode_batch
from streaming.artefact_store import LocalArtefacts, StoreAway
from streaming.errors import ArtefactError, ConfigError
from streaming.log import SAMPLES, Append
from streaming.memory_log import MemoryLog
from streaming.samples import sample_schema
from trainers.announcements import Announcements
from trainers.compaction import compact_chain
from trainers.version_store import VersionStore
from trainers.versions import Version

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
WAYS: tuple[How, ...] = ("sum", "product", "power")
CLICKS = FusionConfig("product", {"click": 1.0})


# Scores


@pytest.mark.parametrize("how", WAYS)
@given(
    values=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5),
    weights=st.tuples(*2 * [st.floats(-1e9, 1e9)]),
    power=st.floats(-50, 50),
)
@settings(max_examples=60)
def test_a_score_is_finite_whatever_is_expected(
    how: How, values: list[tuple[float, float]], weights: tuple[float, float], power: float
) -> None:
    click, buy = np.array(values).T
    powers = {"buy": power} if how == "power" else {}
    config = FusionConfig(how, dict(zip(("click", "buy"), weights, strict=True)), powers)
    scores = fused({"click": click, "buy": buy, SHARE: np.ones(len(click))}, config)
    assert np.isfinite(scores).all()


def test_what_is_not_expected_at_all_stands_before_the_rest_where_less_is_better() -> None:
    leaves = np.array([0.5, 0.0, 0.1])
    scores = fused({"leave": leaves}, FusionConfig("product", {"leave": -1.0}))
    assert np.argsort(-scores).tolist() == [1, 2, 0]


def test_a_task_that_is_not_known_counts_for_nothing() -> None:
    tasks = {SHARE: np.array([0.5, 0.25])}
    both = FusionConfig("product", {SHARE: 2.0, "click": 1.0})
    assert fused(tasks, both).tolist() == [0.25, 0.0625]
    assert fused(tasks, CLICKS).tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"weights": {}}, "give a task a weight"),
        ({"weights": {"buy": float("nan")}}, r"fusion\.weights\.buy = nan"),
        ({"how": "power", "powers": {"buy": 2.0}}, r"fusion\.powers\.buy: it has no weight"),
        ({"how": "sum", "powers": {SHARE: 2.0}}, 'set how = "power"'),
    ],
)
def test_a_fusion_that_makes_no_sense_is_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        FusionConfig(**given)  # type: ignore[arg-type]


# What is set live


@dataclass
class Stage:
    """A log, the settings beside the versions, and a clock that stands."""

    root: Path
    log: MemoryLog = field(default_factory=MemoryLog)
    now: float = 0.0

    @property
    def settings(self) -> FusionSettings:
        return FusionSettings(LocalArtefacts(self.root))

    def live(self, config: RecommendConfig | None = None) -> LiveFusion:
        return LiveFusion(self.log, self.settings, config or RecommendConfig(), lambda: self.now)

    def set(self, place: str, fusion: FusionConfig | None) -> None:
        self.settings.change(place, fusion)
        self.log.append([bell()])


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_what_is_set_counts_at_the_next_turn_until_it_is_reset(stage: Stage) -> None:
    live = stage.live()
    assert live.current(None, {}) is None
    stage.set(EVERYWHERE, CLICKS)
    live.turn(0.0)
    assert live.current(None, {}) == live.current("home", {}) == CLICKS
    stage.set(EVERYWHERE, None)
    live.turn(0.0)
    assert live.current("home", {}) is None


def test_a_thread_takes_what_is_set(stage: Stage) -> None:
    live, stopping = stage.live(), threading.Event()
    thread = threading.Thread(target=live.run, args=(stopping,))
    thread.start()
    try:
        stage.set(EVERYWHERE, CLICKS)
        for _ in range(100):
            if live.current(None, {}) == CLICKS:
                break
            stopping.wait(0.05)
    finally:
        stopping.set()
        thread.join()
    assert live.current(None, {}) == CLICKS


def test_a_replica_that_starts_later_finds_it_without_any_record(stage: Stage) -> None:
    power = FusionConfig("power", {"click": 1.0, "buy": 4.0}, {"buy": 0.5})
    stage.settings.change(place_of("home"), power)
    live = stage.live()
    assert live.current("home", {}) == power
    assert live.current("search", {}) is None
    assert live.in_force["scenario home"].since_us > 0


def test_a_bell_that_was_lost_is_made_up_for(stage: Stage) -> None:
    live = stage.live()
    stage.settings.change(EVERYWHERE, CLICKS)
    live.turn(0.0)
    assert live.current(None, {}) is None
    stage.now += 10.0
    live.turn(0.0)
    assert live.current(None, {}) == CLICKS


def test_the_nearest_counts_and_what_is_set_before_the_recipe_there(stage: Stage) -> None:
    of_arm = {"fusion": {"how": "sum"}}
    config = RecommendConfig(
        scenarios={"search": {"fusion": {"how": "sum"}}},
        experiments={"weights": Experiment({"as_ever": Arm(), "bold": Arm(changes=of_arm)})},
    )
    live = stage.live(config)
    stage.set(EVERYWHERE, CLICKS)
    live.turn(0.0)
    assert live.current("home", {"weights": "as_ever"}) == CLICKS
    assert live.current("home", {"weights": "bold"}) is None  # the recipe's own is nearer
    assert live.current("search", {}) is None
    buys = FusionConfig("product", {"buy": 1.0})
    stage.set(place_of(arm=("weights", "bold")), buys)
    live.turn(0.0)
    assert live.current("search", {"weights": "bold"}) == buys
    assert live.current("search", {"weights": "as_ever"}) is None


def test_what_was_set_stays_while_the_store_does_not_answer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage.set(EVERYWHERE, CLICKS)
    live = stage.live()

    def away(_store: LocalArtefacts, name: str) -> bytes:
        raise StoreAway("it is away")

    with monkeypatch.context() as patched:
        patched.setattr(LocalArtefacts, "get", away)
        for _ in range(2):
            stage.log.append([bell()])
            live.turn(0.0)
        assert live.current(None, {}) == CLICKS
        assert [one.levelno for one in caplog.records] == [logging.ERROR]
    stage.settings.change(EVERYWHERE, None)
    stage.now += 1.0
    live.turn(0.0)
    assert live.current(None, {}) is None


@pytest.mark.parametrize("said", ["{", "[]", '{"everywhere": {"fusion": {"how": "guess"}}}'])
def test_a_file_that_says_nothing_is_told_and_can_be_written_anew(stage: Stage, said: str) -> None:
    stage.settings.clear()
    stage.root.joinpath("fusion.json").write_text(said)
    with pytest.raises(ArtefactError, match="reset --all"):
        stage.settings.read()
    stage.settings.clear()
    assert stage.settings.read() == {}


def test_followers_of_models_pass_over_what_is_said_of_fusion(
    stage: Stage, constant_version: Callable[..., Version]
) -> None:
    store, log = VersionStore(stage.root), stage.log
    replicas = {model: Replica() for model in (None, "two_tower")}
    followers = [Follower(log, store, one, 10, model=model) for model, one in replicas.items()]
    watch = VersionWatch(log, lambda: None, 10)
    stage.set(EVERYWHERE, CLICKS)
    versions = [constant_version(0, snapshot=True), constant_version(1)]
    for version in versions:
        log.append(store.execute([version]))
        log.append([bell()])
    for follower in followers:
        follower.turn(0.0)
        assert follower.newest is not None
        assert follower.newest.number == 1
    for replica in replicas.values():
        assert replica.info is not None
        assert replica.info.number == 1
    assert watch.behind_s() >= 0.0
    assert [info.number for _, info in Announcements(log, 10).read()] == [0, 1]
    chain = [store.read(info) for info in store.chain(versions[1].info.name)]
    assert compact_chain(chain).info.number == 1
    assert store.models() == ["two_tower"]


# Objective and tuning


def planted(how: How, seed: int = 0) -> tuple[dict[str, Floats], Floats, np.ndarray[Any, Any]]:
    """Requests of ten items whose value depends on both tasks, and predictions that know it."""
    rng = np.random.default_rng(seed)
    click, buy = rng.uniform(0.02, 1.0, (2, 3_000))
    expected = click + 3.0 * buy if how != "product" else click * buy**2
    values = expected * rng.uniform(0.9, 1.1, len(click))
    noise = rng.uniform(size=len(click))
    return {"click": click, "buy": buy, "noise": noise}, values, np.repeat(np.arange(300), 10)


@pytest.mark.parametrize("how", WAYS)
def test_tuning_finds_the_weights_that_were_planted(how: How) -> None:
    tasks, values, groups = planted(how)
    requests = Requests(values, groups, np.ones(len(values)))
    heard: list[int] = []
    tuned = tune(tasks, requests, how, trials=60, told=lambda done, _best: heard.append(done))
    alone = {name: requests.gains(made).share for name, made in tasks.items()}
    assert tuned.objective > max(alone.values())
    assert tuned.objective == pytest.approx(requests.gains(fused(tasks, tuned.fusion)).share)
    weights = tuned.fusion.weights
    assert weights["buy"] > weights["click"] > weights.get("noise", 0.0)
    assert heard == list(range(1, 61))
    assert tune(tasks, requests, how, trials=60).fusion == tuned.fusion


def test_tuning_is_never_worse_than_a_task_alone_by_what_it_was_tuned() -> None:
    tasks, values, groups = planted("sum")
    requests = Requests(values, groups, np.ones(len(values)))
    best = max(requests.gains(made).share for made in tasks.values())
    assert tune(tasks, requests, trials=4).objective >= best


def test_the_objective_is_the_gain_over_the_best_gain() -> None:
    values, groups = np.array([0.0, 1.0, 5.0, 0.0]), np.array([7, 7, 7, 9])
    requests = Requests(values, groups, np.ones(4))
    worst = 1.0 / np.log2(3.0) + 5.0 / np.log2(4.0)
    best = 5.0 + 1.0 / np.log2(3.0)
    gains = requests.gains(np.array([3.0, 2.0, 1.0, 0.0]))
    assert gains.share == pytest.approx(worst / best)
    assert requests.gains(values).share == 1.0


def test_what_came_to_nothing_counts_for_those_that_were_left_out() -> None:
    values, groups = np.array([0.0, 1.0]), np.zeros(2, np.int64)
    requests = Requests(values, groups, np.array([5.0, 1.0]))
    gains = requests.gains(np.array([1.0, 0.0]))
    assert gains.share == pytest.approx(1.0 / np.log2(7.0))


def test_a_tie_is_counted_half_whichever_stands_first() -> None:
    groups, weights = np.zeros(2, np.int64), np.ones(2)
    shares = [
        Requests(np.array(values), groups, weights).gains(np.zeros(2)).share
        for values in ([1.0, 0.0], [0.0, 1.0])
    ]
    assert shares == pytest.approx([1.0 / np.log2(2.5)] * 2)


def test_the_interval_holds_the_objective_and_a_lead_over_itself_is_none() -> None:
    tasks, values, groups = planted("sum")
    gains = Requests(values, groups, np.ones(len(values))).gains(tasks["click"])
    low, high = gains.interval()
    assert low < gains.share < high
    assert gains.interval(gains) == (0.0, 0.0)


# Requests out of samples


def samples(rows: list[dict[str, object]]) -> pa.RecordBatch:
    plain = {"user_id": 1, "at": 0, "kind": "impression", "negative_rate": 0.5, "logged_us": 0}
    return pa.RecordBatch.from_pylist(
        [plain | {"scenario": "home"} | row for row in rows], sample_schema(["click", "buy"])
    )


def shown(request: int, item: int, **more: object) -> dict[str, object]:
    return {"request_id": request, "item_id": item, **more}


CLICK, NOTHING = {"label_click": 1.0}, {"label_click": 0.0, "label_buy": 0.0}
BUY, NO_BUY = {"label_buy": 1.0}, {"label_buy": 0.0}


def test_what_came_of_an_item_is_put_together_from_its_rows() -> None:
    found = judge(
        samples(
            [
                shown(2, 1, at=9, **NOTHING),
                shown(2, 2, at=9, position=3, served_score=0.5, **CLICK),
                shown(1, 1, at=5, **NOTHING),
                shown(1, 2, at=5, **CLICK),
                shown(2, 2, at=9, **NO_BUY),
                shown(1, 2, at=5, **BUY),
            ]
        ),
        {"click": 1.0, "buy": 5.0},
    )
    assert found.groups.tolist() == [1, 1, 2, 2]  # the earlier first
    assert found.values.tolist() == [0.0, 6.0, 0.0, 1.0]
    assert found.weights.tolist() == [2.0, 1.0, 2.0, 1.0]
    assert found.served[3] == 0.5
    assert found.places[3] == 3.0
    assert np.isnan(found.served[:3]).all()
    earlier, later = split(found, 0.5)
    assert earlier.tolist() == [True, True, False, False]
    assert later.tolist() == [False, False, True, True]


def test_a_request_of_which_something_is_open_is_left_out_if_it_is_asked_for() -> None:
    rows = samples([shown(1, 1, **NOTHING), shown(1, 2, **CLICK)])
    assert len(judge(rows, {"click": 1.0})) == 2
    assert len(judge(rows, {"buy": 1.0})) == 0


def test_of_one_scenario_only_its_requests_are_judged() -> None:
    rows = samples([shown(1, 1, **NOTHING), shown(1, 2, **NOTHING)])
    assert len(judge(rows, {"buy": 1.0}, "home")) == 2
    with pytest.raises(ConfigError, match="none of the samples is of an impression"):
        judge(rows, {"buy": 1.0}, "search")


def test_a_label_that_samples_do_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match="no label 'wish'; they have click, buy"):
        judge(samples([shown(1, 1, **CLICK)]), {"wish": 1.0})


def test_the_newest_samples_are_read_from_all_partitions() -> None:
    log = MemoryLog(partitions=2)
    with pytest.raises(ConfigError, match="no samples yet"):
        newest_samples(log, 10)
    for number in range(200):
        value = encode_batch(samples([shown(number, 1, **CLICK)]))
        log.append([Append(SAMPLES, value, partition=number % 2)])
    log.append([Append(SAMPLES, b"damaged", partition=0)])
    newest = set(newest_samples(log, 10)["request_id"].to_pylist())
    assert {198, 199} <= newest
    assert 10 <= len(newest) < 200
    assert len(newest_samples(log, 1_000)) == 200
