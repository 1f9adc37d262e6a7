"""What describes items: the newest word counts, and it travels with versions and cuts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from features.batch import Items, Jagged
from trainers.corpus import Corpus
from trainers.descriptions import Descriptions, described_items, description_columns


def items(described: dict[int, list[tuple[int, int]]]) -> Items:
    """Items by their tokens, each with its field."""
    pairs = [pair for each in described.values() for pair in each]
    lengths = np.array([len(each) for each in described.values()], np.int64)
    tokens = np.array([token for _, token in pairs], np.int64)
    ids = np.array(list(described), np.int64)
    return Items(ids, Jagged.of(tokens, lengths), np.array([f for f, _ in pairs], np.int32))


def read(found: Items) -> dict[int, list[tuple[int, int]]]:
    tokens = found.tokens
    pairs = list(zip(found.fields.tolist(), tokens.values.tolist(), strict=True))
    bounds = tokens.offsets.tolist()
    return {item: pairs[bounds[i] : bounds[i + 1]] for i, item in enumerate(found.ids.tolist())}


FIRST = {9: [(1, 10), (1, 11), (2, 20)], 4: [], 7: [(2, 21)]}


def test_items_are_told_by_id_and_strangers_are_not_told() -> None:
    known = Descriptions()
    assert known.add(items(FIRST)).tolist() == [0, 1, 2]
    assert read(known.describe(np.array([7, 5, 9, 7]))) == {7: FIRST[7], 9: FIRST[9]}
    assert read(known.describe(np.array([], np.int64))) == {}


def test_the_newest_description_counts() -> None:
    known = Descriptions()
    known.add(items(FIRST))
    assert known.add(items({4: [(3, 30)], 2: []})).tolist() == [1, 3]
    assert read(known.items(np.arange(4))) == {**FIRST, 4: [(3, 30)], 2: []}


def test_a_copy_goes_its_own_way() -> None:
    known = Descriptions()
    known.add(items(FIRST))
    other = known.copy()
    other.add(items({9: []}))
    assert read(known.describe(np.array([9]))) == {9: FIRST[9]}
    assert read(other.items(np.arange(3))) == {**FIRST, 9: []}
    assert other.ids.tolist() == known.ids.tolist()


def test_columns_of_a_table_bring_them_back() -> None:
    told = items(FIRST)
    table = pa.table({"id": told.ids, **description_columns(told)})
    halves = pa.concat_tables([table.slice(2), table.slice(0, 2)])  # as compaction leaves it
    assert read(described_items(halves)) == FIRST
    assert read(described_items(table.slice(0, 0))) == {}


def test_a_cut_of_the_corpus_keeps_them() -> None:
    corpus = Corpus(width=2)
    corpus.add(items(FIRST))
    again = Corpus(width=2)
    again.restore(corpus.table())
    assert read(again.items(np.arange(3))) == FIRST
    assert read(again.describe(np.array([9, 1]))) == {9: FIRST[9]}


def test_however_often_items_are_described_only_the_newest_is_kept() -> None:
    rng = np.random.default_rng(0)
    known = Descriptions()
    newest: dict[int, list[tuple[int, int]]] = {}
    for _ in range(200):
        ids = rng.integers(0, 300, 50).tolist()
        said = {
            i: [(int(rng.integers(9)), int(rng.integers(99)))] * int(rng.integers(6)) for i in ids
        }
        known.add(items(said))
        newest |= said
    assert read(known.items(np.arange(len(known)))) == newest
    assert read(known.copy().describe(np.array(sorted(newest)))) == dict(sorted(newest.items()))
    assert len(known._tokens.rows) < 1 << 14  # of some 25,000 that were said


def test_of_an_item_that_comes_twice_the_last_description_counts() -> None:
    known = Descriptions()
    twice = Items(np.array([5, 6, 5]), Jagged.of(np.array([1, 2, 3]), np.array([1, 1, 1])))
    assert known.add(twice).tolist() == [0, 1, 0]
    assert known.in_order(np.array([5])).tokens.values.tolist() == [3]
