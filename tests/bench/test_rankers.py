"""What models are compared with ranks as its definition says."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from benchmarks._libraries import als, bpr, sasrec
from benchmarks._rankers import Fitted, ItemKNN, Popular, Refitted, Scores, Taken, newest
from benchmarks._streams import Step, Stream, stream
from features.batch import Ids, Jagged

DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def movies() -> Stream:
    return stream("ml-latest-small", 11_000, 64)


def taken_in(steps: list[Step]) -> list[int]:
    return [item for step in steps for item in step.samples.item_ids.tolist()]


def test_newest_are_the_last_of_each_list() -> None:
    lists = Jagged.of(np.arange(6), np.array([4, 0, 2]))
    found = newest(lists, 3)
    assert found.values.tolist() == [1, 2, 3, 4, 5]
    assert found.lengths.tolist() == [3, 0, 2]


def test_popular_counts_what_is_taken_and_half_of_it_later(movies: Stream) -> None:
    ranker, steps = Popular(half_life=64.0), list(movies.steps[:2])
    for step in steps:
        ranker.declare(step)
        ranker.learn(step)
    expected: dict[int, float] = {}
    for age, step in enumerate(reversed(steps)):
        for item in taken_in([step]):
            expected[item] = expected.get(item, 0.0) + 0.5**age
    items = np.array(list(expected), np.int64)
    scores = ranker.scores(steps[0].samples.users)
    assert scores.shape == (64, len(ranker))
    assert scores[5, ranker.find(items)].tolist() == pytest.approx(list(expected.values()))
    assert scores.sum() == pytest.approx(64 * sum(expected.values()))


def test_item_knn_is_the_cosine_of_what_is_taken_together(movies: Stream) -> None:
    steps, history = list(movies.steps[:12]), 5
    ranker = ItemKNN(history=history, remembered=10_000)
    together: dict[tuple[int, int], int] = {}
    for step in steps:
        ranker.declare(step)
        ranker.learn(step)
        recent = newest(step.samples.users.history, history)
        others = step.samples.item_ids[recent.owners()].tolist()
        for i, j in zip(recent.values.tolist(), others, strict=True):
            if i != j:
                together[i, j] = together.get((i, j), 0) + 1
                together[j, i] = together.get((j, i), 0) + 1
    taken = taken_in(steps)
    users = movies.steps[12].samples.users.take(np.arange(8))
    recent, scores = newest(users.history, history), ranker.scores(users)
    assert scores.any()
    for row in range(8):
        items = recent.values[recent.offsets[row] : recent.offsets[row + 1]].tolist()
        for j in set(taken):
            expected = sum(
                together.get((i, j), 0) / np.sqrt(max(1, taken.count(i)) * taken.count(j))
                for i in items
            )
            at = ranker.find(np.array([j]))[0]
            assert scores[row, at] == pytest.approx(expected, rel=1e-5)


class Fits:
    """Keeps what it was fitted on."""

    def __init__(self) -> None:
        self.on: list[Taken] = []

    def __call__(self, taken: Taken) -> Fitted:
        self.on.append(taken)
        return Counts(taken)


class Counts:
    def __init__(self, taken: Taken) -> None:
        self.counts = np.bincount(taken.places, minlength=taken.items).astype(np.float32)

    def scores(self, users: Ids, history: Jagged) -> Scores:
        return np.tile(self.counts, (len(users), 1))


def test_a_peer_is_fitted_anew_when_a_day_has_passed_on_all_before(movies: Stream) -> None:
    fits = Fits()
    ranker = Refitted(fits, DAY_US)
    learnt, begun = 0, -1
    for step in movies.steps:
        ranker.declare(step)
        day = int(step.samples.at_us[0]) // DAY_US
        count = len(fits.on)
        ranker.learn(step)
        if begun not in (-1, day):
            assert len(fits.on) == count + 1
            assert len(fits.on[-1].places) == learnt
            assert len(fits.on[-1].history.lengths) == learnt
        else:
            assert len(fits.on) == count
        begun, learnt = day, learnt + len(step.samples.item_ids)
    assert len(fits.on) > 3


def test_items_since_the_last_fit_come_last(movies: Stream) -> None:
    fits = Fits()
    ranker = Refitted(fits, DAY_US)
    users = movies.steps[0].samples.users
    for step in movies.steps:
        ranker.declare(step)
        ranker.learn(step)
    scores = ranker.scores(users)
    fitted = fits.on[-1].items
    assert scores.shape == (len(users.ids), len(ranker))
    assert np.isfinite(scores[:, :fitted]).all()
    assert np.isneginf(scores[:, fitted:]).all()


def test_a_peer_waits_for_enough_samples(movies: Stream) -> None:
    fits = Fits()
    ranker = Refitted(fits, DAY_US, least=500)
    for step in movies.steps:
        ranker.learn(step)
    sizes = [0, *(len(taken.places) for taken in fits.on)]
    assert np.all(np.diff(sizes) >= 500)


def two_worlds(random: np.random.Generator) -> Taken:
    """Users who take items of one half only, of 40 items: 80 of them, 10 each."""
    half = np.repeat(random.integers(2, size=80), 10)
    places = half * 20 + random.integers(20, size=800)
    histories = [places[user * 10 : user * 10 + n] for user in range(80) for n in range(10)]
    history = Jagged.of(np.concatenate(histories), np.array([len(one) for one in histories]))
    return Taken(np.repeat(np.arange(80), 10), places, np.ones(800, np.float32), history, 40)


@pytest.mark.parametrize(
    ("fit", "library"),
    [(als, "implicit"), (bpr, "implicit"), (partial(sasrec, epochs=8, batch=32), "recbole")],
)
@pytest.mark.filterwarnings("ignore")  # those of libraries that are only compared with
def test_a_library_tells_who_takes_what(fit: object, library: str) -> None:
    pytest.importorskip(library, reason="make peers")
    assert callable(fit)
    taken = two_worlds(np.random.default_rng(0))
    fitted = fit(taken)
    new = Jagged.of(np.array([1, 5, 9, 3, 21, 25, 39, 30]), np.array([4, 4]))
    scores = fitted.scores(np.array([1_000, 1_001]), new)
    assert scores.shape == (2, 40)
    assert np.mean(np.argsort(-scores[0])[:15] < 20) > 0.8
    assert np.mean(np.argsort(-scores[1])[:15] >= 20) > 0.8
