"""Streams of steps: every action once, in order, and asked for before it is learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks._streams import (
    DATA,
    Learner,
    Step,
    Stream,
    join,
    progressive,
    samples_of,
    seeded,
    stream,
)
from features.batch import Ids, Users, read_declarations, read_samples
from streaming.samples import decode_samples
from streaming.sources.registry import open_source
from trainers.evaluation import NOT_FOUND
from trainers.negatives import NegativesConfig
from trainers.trainer import TrainerConfig

MOVIES = "ml-latest-small"
EVENTS = 12_000  # of which all but some thousand declare a movie


@pytest.fixture(scope="module")
def movies() -> Stream:
    return stream(MOVIES, EVENTS, 64)


@pytest.fixture
def small() -> TrainerConfig:
    return TrainerConfig(
        options={"width": 8, "hidden": 16, "table": {"optimiser": {"learning_rate": 0.5}}},
        negatives=NegativesConfig(uniform=64),
    )


class Remembers:
    """Knows the items that it has learnt, and finds those best that it learnt last."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.asked: list[int] = []

    def declare(self, step: Step) -> None:
        pass

    def find(self, items: Ids) -> Ids:
        places = {item: place for place, item in enumerate(self.items)}
        return np.array([places.get(item, -1) for item in items.tolist()], np.int64)

    def scores(self, users: Users) -> NDArray[np.float32]:
        self.asked += users.ids.tolist()
        return np.tile(np.arange(len(self.items), dtype=np.float32), (len(users.ids), 1))

    def learn(self, step: Step) -> None:
        for item in step.samples.item_ids.tolist():
            if item in self.items:
                self.items.remove(item)
            self.items.append(item)


def test_the_steps_have_every_action_once_in_the_order_of_time(movies: Stream) -> None:
    whole = read_samples(samples_of(open_source(MOVIES), DATA[MOVIES], EVENTS))
    assert {len(step.samples.item_ids) for step in movies.steps[:-1]} == {64}
    of_steps = np.concatenate([step.samples.item_ids for step in movies.steps])
    assert np.array_equal(of_steps, whole.item_ids)
    assert len(movies) == len(whole.item_ids) > 2_000
    assert np.all(np.diff(np.concatenate([step.samples.at_us for step in movies.steps])) >= 0)


def test_an_item_is_declared_no_later_than_it_is_taken(movies: Stream) -> None:
    declared: set[int] = set()
    for step in movies.steps:
        if step.declares is not None:
            declared |= set(read_declarations(decode_samples(step.declares)).ids.tolist())
        assert set(step.samples.item_ids.tolist()) <= declared


def test_steps_of_other_sizes_hold_the_same_samples(movies: Stream) -> None:
    events = 9_300  # of which some hundred are ratings
    single = join(open_source(MOVIES), DATA[MOVIES], events=events, step_size=1)
    assert len(single) > 100
    together = np.concatenate([step.samples.item_ids for step in movies.steps])
    assert [step.samples.item_ids.item() for step in single] == together[: len(single)].tolist()


def test_a_sample_is_asked_for_before_it_is_learnt(movies: Stream) -> None:
    given = replace(movies, data=replace(movies.data, liked_from=0.0, repeats=True)).first(20)
    ranker = Remembers()
    tested = progressive(given, ranker)
    before: list[int] = []
    at = 0
    for step in given.steps:
        for item in step.samples.item_ids.tolist():
            last = before[::-1].index(item) if item in before else -1
            expected = len(set(before[::-1][:last])) if last >= 0 else NOT_FOUND
            assert tested.rank[at] == expected
            assert tested.popularity[at] == before.count(item)
            at += 1
        before += step.samples.item_ids.tolist()
    assert tested.samples == at == len(tested.rank)


def test_only_what_pleased_is_asked_for_and_nothing_twice(movies: Stream) -> None:
    ranker = Remembers()
    tested = progressive(movies, ranker)
    liked = [step.samples.rewards >= 0.5 for step in movies.steps]
    assert len(tested.rank) == sum(int(one.sum()) for one in liked)
    repeated = replace(movies.data, repeats=False).asks(movies.steps[-1].samples)
    history = movies.steps[-1].samples.users.history
    for row in repeated.tolist():
        taken = history.values[history.offsets[row] : history.offsets[row + 1]]
        assert movies.steps[-1].samples.item_ids[row] not in taken


def test_a_part_of_the_samples_is_the_same_part_for_everyone(
    movies: Stream, small: TrainerConfig
) -> None:
    given = movies.first(20)
    one = progressive(given, Remembers(), share=0.3)
    other = progressive(given, Learner(small), share=0.3)
    assert np.array_equal(one.item, other.item)
    assert 0.2 < len(one.rank) / len(progressive(given, Remembers()).rank) < 0.4


def test_a_model_learns_the_stream_as_its_seed_says(movies: Stream, small: TrainerConfig) -> None:
    ranks = [progressive(movies.first(30), Learner(seeded(small, seed))).rank for seed in (1, 1, 2)]
    assert np.array_equal(ranks[0], ranks[1])
    assert not np.array_equal(ranks[0], ranks[2])


def test_the_trainer_counts_the_same_as_the_loop(movies: Stream, small: TrainerConfig) -> None:
    learner = Learner(small)
    tested = progressive(movies, learner)
    assert learner.trainer.samples == tested.samples == len(movies)
    assert "recall@50" not in learner.trainer.metrics  # it leaves the tests to us
    assert tested.recall(50) == np.mean(tested.rank < 50)
    late = tested.number > len(movies.steps) // 2
    assert tested.figures([10], late)["recall@10"] == np.mean(tested.rank[late] < 10)
    learner.refresh()
    corpus, model = learner.trainer.family.corpus, learner.trainer.model
    fresh = model.items(corpus.items(np.arange(50))).detach().numpy()
    assert np.allclose(corpus.vectors[:50].numpy(), fresh, atol=1e-6)
