"""The index against a search that compares with every item; what it may never get wrong."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.batch import Ids
from serving import dot_products
from serving.index import IndexConfig, ItemIndex, Subset
from serving.index_arrays import CHUNK, Floats32
from serving.inverted_lists import Arriving, ListTraining, encode_centroids, find_centroids

NONE = np.empty(0, np.int64)
WIDTH = 10  # no multiple of four
LISTED = IndexConfig(exact_below=64, few=8)


def ids_of(*numbers: int) -> Ids:
    return np.array(numbers, np.int64)


def whole_numbers(rng: np.random.Generator, count: int, width: int = WIDTH) -> Floats32:
    """Vectors whose products have no rounding, and are often equal."""
    return rng.integers(-9, 10, (count, width)).astype(np.float32)


def clusters(rng: np.random.Generator, count: int, width: int = 32) -> Floats32:
    """Unit vectors around 200 centres."""
    centres = np.random.default_rng(0).normal(size=(200, width))
    vectors = centres[rng.integers(200, size=count)] + 0.5 * rng.normal(size=(count, width))
    unit: Floats32 = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


@dataclass
class Plain:
    """Items in a dict."""

    items: dict[int, Floats32] = field(default_factory=dict)

    def upsert(self, ids: Ids, vectors: Floats32) -> None:
        self.items.update(zip(ids.tolist(), vectors, strict=True))

    def remove(self, ids: Ids) -> None:
        for item in ids.tolist():
            self.items.pop(item, None)

    def search(
        self, queries: Floats32, count: int, hidden: Ids, allowed: Subset | None = None
    ) -> tuple[Ids, Floats32]:
        ids = np.array(sorted(self.items), np.int64)
        ids = ids[~np.isin(ids, hidden)]
        if allowed is not None:
            ids = ids[np.isin(ids, allowed.ids)]
        if not len(ids):
            return NONE, np.empty(0, np.float32)
        scores = (np.stack([self.items[i] for i in ids.tolist()]) @ queries.T).max(axis=1)
        order = np.argsort(-scores, kind="stable")[:count]
        return ids[order], scores[order]


def lists_of(index: ItemIndex, ids: Ids) -> NDArray[np.int32]:
    """The number of the list where each item lies."""
    slots = index._slots.rows[index._places.find(ids)] - 1
    numbers: NDArray[np.int32] = index._lists.chunks.lists[slots // CHUNK]
    return numbers


def check_lists(index: ItemIndex) -> None:
    """Every item lies once, in a list without holes, as its bytes, where it is nearest."""
    lists, chunks = index._lists.lists, index._lists.chunks
    places, slots = index._places.find(index.ids), index._slots.rows
    lying: list[int] = []
    for number, size in enumerate(lists.sizes.tolist()):
        chunk, left = int(lists.tails[number]), size
        while left:
            assert chunks.lists[chunk] == number
            filled = (left - 1) % CHUNK + 1
            lying += range(chunk * CHUNK, chunk * CHUNK + filled)
            chunk, left = int(chunks.before[chunk]), left - filled
        assert chunk == -1
    used, free = chunks.counts.tolist()
    assert len({slot // CHUNK for slot in lying} | {*chunks.free[:free].tolist()}) == used
    np.testing.assert_array_equal(np.sort(chunks.places[lying]), np.sort(places))
    np.testing.assert_array_equal(slots[chunks.places[lying]], np.array(lying) + 1)
    assert np.count_nonzero(slots) == len(lying)

    vectors = index.vectors(index.ids)[0].astype(np.float64)
    at = slots[places] - 1
    blocks = chunks.codes.view(np.uint8).reshape(len(chunks.codes), -1, 16, 4)
    codes = blocks[at // 16, :, at % 16].reshape(len(at), -1)[:, : index.width].astype(np.int64)
    steps = chunks.scales[at].astype(np.float64)
    np.testing.assert_allclose(
        (codes - 128) * steps[:, None], vectors, atol=0.501 * steps.max(initial=0)
    )
    of = chunks.lists[at // CHUNK]
    centroids = lists.centroids.astype(np.float64)
    squares = ((vectors - centroids[of]) ** 2).sum(axis=1)
    np.testing.assert_allclose(
        lists.squares, np.bincount(of, squares, len(lists.sizes)), rtol=1e-4, atol=1e-2
    )
    if not index._lists.moving:
        of_all = ((vectors[:, None] - centroids) ** 2).sum(axis=2)
        of_all[:, np.isinf(lists.half_squares)] = np.inf
        nearest = of_all.argmin(axis=1)
        between = np.linalg.norm(centroids[of] - centroids[nearest], axis=1)
        most = of_all.min(axis=1) + steps * np.sqrt(index.width) * between
        assert (squares <= most * (1 + 1e-5) + 1e-5).all()


def recall(index: ItemIndex, queries: Floats32, allowed: Subset | None = None) -> float:
    """The mean share of the true 20 best items that are found."""
    found = []
    ids = index.ids
    vectors, _ = index.vectors(ids)
    if allowed is not None:
        inside = allowed.holds(ids)
        ids, vectors = ids[inside], vectors[inside]
    for query in queries:
        best = ids[np.argsort(-(vectors @ query))[:20]]
        found.append(np.isin(best, index.search(query[None], 20, NONE, allowed)[0]).mean())
    return float(np.mean(found))


@pytest.fixture(scope="module")
def large() -> ItemIndex:
    """An index of 20,000 items in lists; whoever writes to it leaves these as they were."""
    index = ItemIndex(32, IndexConfig(exact_below=1000))
    index.upsert(np.arange(20_000), clusters(np.random.default_rng(1), 20_000))
    index.settle()
    assert not index.exact
    return index


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, list[int]]]:
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(["upsert", "upsert", "remove", "search"]),
                st.lists(st.integers(0, 120), max_size=100),
            ),
            max_size=12,
        )
    )


@pytest.mark.parametrize("exact_below", [1000, 64])
@settings(max_examples=60, deadline=None)
@given(history=histories(), seed=st.integers(0, 1000), interests=st.integers(1, 3))
def test_any_history_is_searched_as_a_plain_dict_would_be(
    exact_below: int, history: list[tuple[str, list[int]]], seed: int, interests: int
) -> None:
    rng = np.random.default_rng(seed)
    config = IndexConfig(exact_below=exact_below, few=8, moved=1, moved_least=5)
    training = ListTraining()
    index, plain = ItemIndex(WIDTH, config, training), Plain()
    subset = Subset.of(rng.integers(0, 120, 50))
    for what, numbers in history:
        ids = np.array(numbers, np.int64)
        if what == "upsert":
            vectors = whole_numbers(rng, len(ids))
            index.upsert(ids, vectors)
            plain.upsert(ids, vectors)
            training.take(wait=True)  # the next write installs it, and moves some items
        elif what == "remove":
            index.remove(ids)
            plain.remove(ids)
        assert len(index) == len(plain.items)
        np.testing.assert_array_equal(np.sort(index.ids), sorted(plain.items))
        queries = whole_numbers(rng, interests)
        for allowed in (None, subset):
            # All that there are: lists may not lose one either.
            found = index.search(queries, 200, ids, allowed)
            expected = plain.search(queries, 200, ids, allowed)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
            few, scores = index.search(queries, 5, ids, allowed)
            expected = plain.search(queries, 5, ids, allowed)
            assert len(few) == len(expected[0])
            if index.exact:
                np.testing.assert_array_equal(few, expected[0])
                np.testing.assert_array_equal(scores, expected[1])
            else:
                assert not np.isin(few, ids).any()
                assert allowed is None or allowed.holds(few).all()
                true = [max(queries @ plain.items[item]) for item in few.tolist()]
                np.testing.assert_array_equal(scores, true)
    vectors, known = index.vectors(np.arange(121))
    np.testing.assert_array_equal(np.flatnonzero(known), sorted(plain.items))
    for item in np.flatnonzero(known).tolist():
        np.testing.assert_array_equal(vectors[item], plain.items[item])


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["upsert", "upsert", "move a little", "remove", "train"]),
            st.sampled_from([1, 3, 30, 300]),
        ),
        max_size=15,
    ),
    seed=st.integers(0, 1000),
    exact_below=st.sampled_from([100, 1 << 40]),
)
def test_after_any_history_each_item_lies_in_the_nearest_list_of_both_copies(
    steps: list[tuple[str, int]], seed: int, exact_below: int
) -> None:
    """The lists are longer than a chunk, and many items leave and come to each at once."""
    rng = np.random.default_rng(seed)
    training = ListTraining()
    config = IndexConfig(exact_below=exact_below, lists=0.3, moved=1, moved_least=50)
    copies = [ItemIndex(WIDTH, config, training) for _ in range(2)]
    for what, count in [("upsert", 300), ("train", 1), ("upsert", 300), *steps]:
        ids = rng.integers(0, 500, count)  # some of them more than once
        vectors = rng.normal(size=(count, WIDTH)).astype(np.float32)
        if what == "move a little":
            ids = rng.permutation(copies[0].ids)[:count]
            vectors = copies[0].vectors(ids)[0] + 0.05 * vectors[: len(ids)]
        arriving = Arriving(vectors)
        for copy in copies:
            if what == "remove":
                copy.remove(ids)
            elif what != "train":
                copy.upsert(ids, arriving)
            else:
                copy.settle()
            training.take(wait=True)  # the next write installs it, of whichever copy
            check_lists(copy)
        all_ids = copies[0].ids
        np.testing.assert_array_equal(copies[1].ids, all_ids)
        for query in copies[0].vectors(all_ids[:3])[0]:
            found, again = (copy.search(query[None], 500, NONE)[0] for copy in copies)
            np.testing.assert_array_equal(found, again)
            np.testing.assert_array_equal(np.sort(found), np.sort(all_ids))
        same = copies[0]._generation == copies[1]._generation
        if same and not any(copy._lists.moving for copy in copies):
            numbers, again_numbers = (lists_of(copy, all_ids) for copy in copies)
            np.testing.assert_array_equal(numbers, again_numbers)


def test_what_one_copy_found_out_the_next_does_not_seek_again() -> None:
    vectors = np.random.default_rng(17).normal(size=(50, WIDTH)).astype(np.float32)
    some, others = encode_centroids(vectors[:20]), encode_centroids(vectors[20:40])
    arriving = Arriving(vectors)
    coded = arriving.coded(some)
    np.testing.assert_array_equal(coded.numbers[:20], np.arange(20))
    coded.numbers[:] = -1
    assert (arriving.coded(some).numbers == -1).all()
    np.testing.assert_array_equal(arriving.coded(others).numbers[20:40], np.arange(20))
    np.testing.assert_array_equal(arriving.coded(some).numbers[:20], np.arange(20))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6]))
def test_exact_search_finds_the_same_as_products_in_double_precision(
    seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, 80))
    vectors = (scale * rng.standard_t(2, (500, width))).astype(np.float32)
    query = rng.standard_t(2, (2, width)).astype(np.float32)
    index = ItemIndex(width)
    index.upsert(np.arange(500), vectors)
    found, scores = index.search(query, 30, NONE)
    true = (vectors.astype(np.float64) @ query.T.astype(np.float64)).max(axis=1)
    # Scores that single precision cannot tell apart may change places.
    close = 1e-5 * np.abs(vectors).sum(axis=1).max() * np.abs(query).max()
    assert true[found].min() >= np.sort(true)[-30] - close
    np.testing.assert_allclose(scores, true[found], atol=close)


def test_nothing_is_found_in_an_empty_index_nor_when_nothing_is_wanted() -> None:
    index = ItemIndex(WIDTH)
    query = np.ones((1, WIDTH), np.float32)
    assert len(index.search(query, 10, ids_of(3))[0]) == 0
    assert index.log_total(query, 0.1) == -np.inf
    index.upsert(ids_of(3), query)
    assert len(index.search(query, 0, NONE)[0]) == 0
    assert len(index.search(query, 10, ids_of(3))[0]) == 0
    assert len(index.search(query, 10, NONE, Subset.of(NONE))[0]) == 0
    index.remove(ids_of(3, 3, 4))
    assert len(index) == 0
    assert len(index.search(query, 10, NONE)[0]) == 0


def test_equal_scores_come_in_the_order_of_ids_also_where_all_are_equal() -> None:
    index = ItemIndex(WIDTH)
    ids = np.random.default_rng(0).permutation(5000)
    index.upsert(ids, np.ones((5000, WIDTH), np.float32))
    for query in (np.ones((1, WIDTH), np.float32), np.zeros((1, WIDTH), np.float32)):
        np.testing.assert_array_equal(index.search(query, 50, NONE)[0], np.arange(50))


def test_what_is_no_vector_changes_nothing() -> None:
    index = ItemIndex(WIDTH)
    index.upsert(ids_of(1), np.ones((1, WIDTH), np.float32))
    with pytest.raises(ValueError, match=r"takes \(2, 10\)"):
        index.upsert(ids_of(1, 2), np.ones((2, WIDTH + 1), np.float32))
    for number in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="not finite"):
            index.upsert(ids_of(1, 2), np.full((2, WIDTH), number, np.float32))
    assert len(index) == 1
    np.testing.assert_array_equal(index.vectors(ids_of(1))[0], np.ones((1, WIDTH)))


def test_lists_find_what_they_are_asked_to(large: ItemIndex) -> None:
    queries = clusters(np.random.default_rng(2), 100)
    assert recall(large, queries) >= 0.95
    some = Subset.of(np.random.default_rng(3).choice(20_000, 6000, replace=False))
    assert recall(large, queries[:30], some) >= 0.95


def test_several_interests_are_answered_as_one(large: ItemIndex) -> None:
    queries = clusters(np.random.default_rng(4), 4)
    vectors, _ = large.vectors(np.arange(20_000))
    true = (vectors @ queries.T).max(axis=1)
    ids, scores = large.search(queries, 100, NONE)
    assert len(np.unique(ids)) == 100
    assert np.isin(np.argsort(-true)[:100], ids).mean() >= 0.9
    np.testing.assert_allclose(scores, true[ids], rtol=1e-5)
    assert (np.diff(scores) <= 0).all()


def test_ten_thousand_hidden_items_do_not_hide_others(large: ItemIndex) -> None:
    query = clusters(np.random.default_rng(5), 1)
    vectors, _ = large.vectors(np.arange(20_000))
    order = np.argsort(-(vectors @ query[0]))
    found, _ = large.search(query, 100, order[:10_000])
    assert len(found) == 100
    assert not np.isin(found, order[:10_000]).any()
    assert np.isin(order[10_000:10_100], found).mean() >= 0.95
    assert len(large.search(query, 20_000, order[:10_000])[0]) == 10_000


def test_a_subset_follows_items_that_come_go_and_take_the_place_of_others() -> None:
    rng = np.random.default_rng(6)
    index = ItemIndex(WIDTH, LISTED)
    index.upsert(np.arange(300), whole_numbers(rng, 300))
    index.settle()
    subset, query = Subset.of(np.arange(0, 2000, 2)), whole_numbers(rng, 1)
    assert len(index.search(query, 2000, NONE, subset)[0]) == 150
    index.remove(np.arange(0, 100))
    odd, even = np.arange(1001, 1101, 2), np.arange(1000, 1060, 2)
    index.upsert(odd, whole_numbers(rng, 50))  # in places where even ones were
    index.upsert(even, whole_numbers(rng, 30))
    found, _ = index.search(query, 2000, NONE, subset)
    np.testing.assert_array_equal(np.sort(found), [*range(100, 300, 2), *even])
    index.upsert(np.arange(1100, 2000), whole_numbers(rng, 900))  # more places than there were
    assert len(index.search(query, 2000, NONE, subset)[0]) == 130 + 450


def test_recall_stays_when_every_vector_has_moved_several_times(large: ItemIndex) -> None:
    rng = np.random.default_rng(7)
    ids = np.arange(20_000)
    before, _ = large.vectors(ids)
    vectors = before.copy()
    for _ in range(5):
        vectors += 0.1 * rng.normal(size=vectors.shape).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for part in np.array_split(rng.permutation(ids), 20):
            large.upsert(part, vectors[part])
            large.search(vectors[part[:1]], 20, NONE)
    np.testing.assert_array_equal(large.vectors(ids)[0], vectors)
    assert recall(large, vectors[::400]) >= 0.93
    large.upsert(ids, before)
    large.settle()


def test_lists_that_no_longer_fit_are_replaced_while_searches_go_on() -> None:
    rng = np.random.default_rng(8)
    config = IndexConfig(exact_below=500, moved=1, moved_least=200, sample_every=1)
    index = ItemIndex(32, config)
    index.upsert(np.arange(4000), clusters(rng, 4000))
    index.settle()
    # All items are somewhere else now, where there is not one centroid.
    elsewhere = rng.normal(size=(40, 32)).astype(np.float32) * 3
    vectors = elsewhere[rng.integers(40, size=4000)]
    vectors += 0.2 * rng.normal(size=vectors.shape).astype(np.float32)
    index.upsert(np.arange(4000), vectors)
    assert index.figures()["distance_drift"] > config.distance
    index.upsert(np.arange(1), vectors[:1])
    index._training.take(wait=True)
    moving: list[float] = []
    while not moving or moving[-1] > 0:
        index.upsert(np.arange(10), vectors[:10])
        moving.append(index.figures()["moving"])
        found, _ = index.search(vectors[5:6], 5000, NONE)
        assert len(found) == 4000  # in the older lists or in the new ones, each item once
    assert len(moving) > 10  # no write had to move them all
    assert index.figures()["trainings"] == 2
    assert index.figures()["distance_drift"] == pytest.approx(1.0)
    assert recall(index, vectors[::100]) >= 0.93


def test_both_copies_of_a_model_share_one_training() -> None:
    training = ListTraining()
    vectors = clusters(np.random.default_rng(9), 3000)
    copies = [ItemIndex(32, IndexConfig(exact_below=500), training) for _ in range(2)]
    for copy in copies:
        copy.upsert(np.arange(3000), vectors)
    for copy in copies:
        copy.settle()
    assert training.generation == 1
    assert [copy.figures()["trainings"] for copy in copies] == [1, 1]
    for query in clusters(np.random.default_rng(10), 20):
        answers = [copy.search(query[None], 50, NONE) for copy in copies]
        np.testing.assert_array_equal(answers[0][0], answers[1][0])


def test_a_twin_lies_in_the_same_lists_and_needs_no_training() -> None:
    index = ItemIndex(32, IndexConfig(exact_below=500))
    ids = np.arange(3000)
    index.upsert(ids, clusters(np.random.default_rng(9), 3000))
    index.settle()
    index.remove(np.arange(0, 500, 3))  # so that items lie elsewhere in the twin
    left = index.ids
    twin = index.twin()
    assert twin.figures()["trainings"] == index.figures()["trainings"] == 1
    assert twin.figures()["distance_drift"] == pytest.approx(index.figures()["distance_drift"])
    assert not index._training.running
    np.testing.assert_array_equal(lists_of(twin, left), lists_of(index, left))
    np.testing.assert_array_equal(twin.vectors(left)[0], index.vectors(left)[0])
    check_lists(twin)


def test_a_training_that_fails_is_told_and_the_items_stay_where_they_are() -> None:
    training = ListTraining()
    index = ItemIndex(WIDTH, LISTED, training)
    training.start(np.empty((0, WIDTH), np.float32), 5)
    assert training.take(wait=True) == 0
    assert training.failed == 1
    index.upsert(np.arange(100), whole_numbers(np.random.default_rng(0), 100))
    index.settle()
    assert index.figures()["trainings_failed"] == 1
    assert len(index.search(np.ones((1, WIDTH), np.float32), 100, NONE)[0]) == 100


def test_recall_is_measured_on_searches_that_were_made(large: ItemIndex) -> None:
    queries = clusters(np.random.default_rng(11), 400)
    ids = np.arange(400)
    vectors, _ = large.vectors(ids)
    for query in queries:
        large.search(query[None], 20, ids_of(5))
    seen = large.figures()["recall_searches"]
    large.remove(NONE)  # as before every write of a version
    large.upsert(ids, vectors)  # large enough a share of the items
    large.upsert(ids, vectors)  # nothing was searched in between: nothing is measured
    figures = large.figures()
    assert figures["recall_searches"] in {seen + 1, 64}
    assert 0.5 < figures["recall"] <= 1.0


@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_the_total_over_all_items_is_close(large: ItemIndex, temperature: float) -> None:
    vectors, _ = large.vectors(np.arange(20_000))
    small = ItemIndex(32)
    small.upsert(np.arange(20_000)[:5000], vectors[:5000])
    small.remove(np.arange(100))
    for query in clusters(np.random.default_rng(12), 20):
        powers = vectors.astype(np.float64) @ query / temperature
        estimate = large.log_total(query[None], temperature)
        assert estimate == pytest.approx(np.log(np.exp(powers).sum()), abs=0.1)
        exact = np.log(np.exp(powers[100:5000]).sum())
        assert small.log_total(query[None], temperature) == pytest.approx(exact, abs=1e-4)


def test_threads_that_search_at_once_get_their_own_answers(large: ItemIndex) -> None:
    queries = clusters(np.random.default_rng(13), 40)
    alone = [large.search(query[None], 30, NONE)[0] for query in queries]
    wrong: list[int] = []

    def search(start: int) -> None:
        for number in range(start, start + 400):
            which = number % len(queries)
            found = large.search(queries[which][None], 30, NONE)[0]
            if not np.array_equal(found, alone[which]):
                wrong.append(which)

    threads = [threading.Thread(target=search, args=(start,)) for start in range(0, 40, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_rooms_of_items_that_left_are_used_again() -> None:
    rng = np.random.default_rng(14)
    index = ItemIndex(WIDTH, LISTED)
    index.upsert(np.arange(2000), whole_numbers(rng, 2000))
    index.settle()
    size = []
    for generation in range(1, 6):
        index.remove(np.arange(2000) + 2000 * (generation - 1))
        index.upsert(np.arange(2000) + 2000 * generation, whole_numbers(rng, 2000))
        index.settle()
        size.append(index.figures()["bytes"])
    assert len(index) == 2000
    assert size[-1] <= 1.1 * size[0]


def test_centroids_are_no_more_than_there_are_vectors() -> None:
    few = np.eye(3, WIDTH, dtype=np.float32)
    centroids = find_centroids(few, 20)
    np.testing.assert_allclose(np.sort(centroids, axis=0), np.sort(few, axis=0), atol=1e-6)


def test_products_are_the_same_without_the_instruction_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def product(codes: NDArray[np.uint8], query: NDArray[np.int8]) -> Floats32:
        def body(
            codes: NDArray[np.uint8],
            query: NDArray[np.int8],
            start: NDArray[np.int32],
            scale: Floats32,
            out: Floats32,
        ) -> None:
            dot_products.best_lanes(
                codes.ctypes.data,
                query.ctypes.data,
                start.ctypes.data,
                scale.ctypes.data,
                1,
                codes.size // 64,
                out.ctypes.data,
            )

        out = np.empty(16, np.float32)
        numbers = query.reshape(-1, 2, 4).astype(np.int32)
        start = -128 * numbers.sum(axis=(0, 2), dtype=np.int32)
        numba.njit(body)(codes, query, start, np.ones(1, np.float32), out)
        return out

    def nearest(
        codes: NDArray[np.uint8], half: Floats32, vectors: NDArray[np.int8]
    ) -> NDArray[np.int32]:
        def body(
            codes: NDArray[np.uint8],
            half: Floats32,
            vectors: NDArray[np.int8],
            start: NDArray[np.int32],
            ones: Floats32,
            out: NDArray[np.int32],
        ) -> None:
            dot_products.nearest(
                codes.ctypes.data,
                ones.ctypes.data,
                half.ctypes.data,
                half.size // 16,
                vectors.ctypes.data,
                start.ctypes.data,
                ones.ctypes.data,
                vectors.shape[1] // 4,
                out.ctypes.data,
            )

        out = np.empty(len(vectors), np.int32)
        start = -128 * vectors.sum(axis=1, dtype=np.int32)
        numba.njit(body)(codes, half, vectors, start, np.ones(half.size, np.float32), out)
        return out

    rng = np.random.default_rng(15)
    codes = rng.integers(0, 256, 64 * 5).astype(np.uint8)
    query = rng.integers(-128, 128, 8 * 5).astype(np.int8)
    high, low = query.reshape(5, 2, 4).astype(np.int64).transpose(1, 0, 2).reshape(2, 20)
    vectors = codes.reshape(5, 16, 4).transpose(1, 0, 2).reshape(16, 20).astype(np.int64) - 128
    expected = vectors @ (128 * high + low)
    numbers = rng.integers(-128, 128, (48, 20))  # three blocks of centroids
    blocks = (numbers + 128).astype(np.uint8).reshape(3, 16, 5, 4).transpose(0, 2, 1, 3)
    half = (numbers**2).sum(axis=1).astype(np.float32) / 2
    half[40:] = np.inf
    asking = rng.integers(-127, 128, (dot_products.TOGETHER, 20)).astype(np.int8)
    there = (asking.astype(np.int64) @ numbers.T - half).argmax(axis=1)
    for fast in {False, dot_products.FAST}:
        monkeypatch.setattr(dot_products, "FAST", fast)
        np.testing.assert_allclose(product(codes, query), expected, atol=1)
        found = nearest(np.ascontiguousarray(blocks), half, asking)
        np.testing.assert_array_equal(found, there)
