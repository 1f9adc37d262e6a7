"""Items that say much the same of themselves: neighbours and a first vector for a new item.

An item is a sparse vector in blocks, one block for each of its fields: in a block every feature
that the item has weighs its idf, ln(1 + n / items that have it), and the block has length 1. The
similarity of two items is the cosine of their vectors, so each field that both have says as much
as any other, however many words it has, and a field that only one of them has says no.

idf: Karen Spärck Jones. 1972. A Statistical Interpretation of Term Specificity and Its Application
in Retrieval. Journal of Documentation 28(1). The first vector: side information in place of an
item's own row, as Wang et al. 2018, Billion-scale Commodity Embedding for E-commerce Recommendation
in Alibaba, section 3.3 (arXiv:1803.02349).
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.batch import Jagged
from features.content_features import ContentConfig, Features
from features.runs import Runs
from streaming.growing import GrowingArray
from streaming.id_map import IdMap
from streaming.kernels import EMPTY, compiled, internal

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]
_TAIL = 1_024  # items that may have changed since the lists were made, or an eighth of all


class ContentIndex:
    """The features of every item, and for each feature the items that have it.

    Reads may come from other threads. What they find depends on the items alone, not on the order
    in which they came. Memory is bounded by the features of its items: some 40 bytes for each.
    """

    def __init__(self, config: ContentConfig) -> None:
        self._config = config
        self._lock = Lock()
        self._items = IdMap()
        self._features = IdMap()
        self._held = GrowingArray(np.int64)  # by feature: how many items have it
        self._blocks = GrowingArray(np.int64)  # by feature
        self._runs = Runs(1)  # by item: its features, by rising id
        self._changed = GrowingArray(np.bool_)  # by item: whether the lists say nothing of it
        self._tail = np.empty(0, np.int64)  # rows that changed since the lists were made
        self._lists = Jagged(np.empty(0, np.int64), np.zeros(1, np.int64))  # by feature: its items
        self._idf: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, items: Ids, features: Features) -> None:
        """The items (n,), which are distinct, have these features now."""
        with self._lock:
            rows = self._items.add(items)
            owner, ids, blocks = self._distinct(features)
            numbers = self._features.add(ids)
            self._held.reserve(self._features.rows)
            self._blocks.reserve(self._features.rows)[numbers] = blocks
            self._replace(rows, np.searchsorted(owner, np.arange(len(items) + 1)), numbers)

    def remove(self, items: Ids) -> None:
        """These items are gone; those that are not there do not matter."""
        with self._lock:
            rows = self._items.find(items)
            rows = np.unique(rows[rows != EMPTY])
            nothing = np.empty(0, np.int64)
            self._replace(rows, np.zeros(len(rows) + 1, np.int64), nothing)
            self._items.remove(items)

    def neighbours(self, items: Ids, count: int, among: Ids | None = None) -> tuple[Ids, Vectors]:
        """The `count` items most like each of these, best first, and how like they are (0 to 1).

        Both are (n, count), with -1 and 0 where there are no more. Of equals the smaller id comes
        first; an item is not its own neighbour; only items `among` those given are found.
        """
        with self._lock:
            rows = self._items.find(items)
            known = rows != EMPTY
            offsets, cells = self._runs.take(rows[known])
            lengths = np.zeros(len(items), np.int64)
            lengths[known] = np.diff(offsets)
            return self._nearest(Jagged.of(cells[:, 0], lengths), items, count, among)

    def like(self, features: Features, count: int, among: Ids | None = None) -> tuple[Ids, Vectors]:
        """As `neighbours`, of things that are not in here but have these features."""
        owner, ids, _ = self._distinct(features)
        with self._lock:
            numbers = self._features.find(ids)
            known = numbers != EMPTY
            lengths = np.bincount(owner[known], minlength=features.items)
            asked = Jagged.of(numbers[known], lengths)
            return self._nearest(asked, np.full(features.items, EMPTY), count, among)

    def first_vectors(
        self, items: Ids, known: Ids, vectors: Vectors, count: int = 20
    ) -> tuple[Vectors, Vectors]:
        """A vector for each new item: the mean of those of its `count` nearest neighbours among
        the `known` (m,), whose `vectors` are (m, d), weighted by similarity.

        Returns the vectors (n, d) and the mean similarity of the neighbours (n,), which is what
        `evidence` asks for; both are 0 for an item that is like no other.
        """
        order = np.argsort(known, kind="stable")
        found, similarity = self.neighbours(items, count, known)
        here = found != EMPTY
        rows = np.full(found.shape, EMPTY)
        rows[here] = order[np.searchsorted(known[order], found[here])]
        return mean_vectors(rows, similarity, vectors)

    # -- how it is kept --------------------------------------------------------------------

    def _distinct(self, features: Features) -> tuple[Ids, Ids, Ids]:
        """The distinct features of each item by rising id: owners, ids, blocks.

        Of an item that has too many, the smallest ids: as good as drawn by chance.
        """
        order = np.lexsort((features.ids, features.owner))
        owner, ids, blocks = (c[order] for c in (features.owner, features.ids, features.blocks))
        first = np.append(True, (np.diff(owner) != 0) | (np.diff(ids) != 0))[: len(ids)]
        owner, ids, blocks = owner[first], ids[first], blocks[first]
        starts = np.searchsorted(owner, owner)
        kept = np.arange(len(owner)) - starts < self._config.features
        return owner[kept], ids[kept], blocks[kept]

    def _replace(self, rows: Ids, offsets: Ids, numbers: Ids) -> None:
        _, before = self._runs.take(rows)
        np.subtract.at(self._held.rows, before[:, 0], 1)
        np.add.at(self._held.rows, numbers, 1)
        self._runs.put(rows, offsets, numbers[:, None])
        changed = self._changed.reserve(self._items.rows)
        self._tail = np.append(self._tail, rows[~changed[rows]])
        changed[rows] = True
        self._idf = None
        many_dead = len(self._features) > 2 * self._runs.size + _TAIL
        if many_dead or len(self._tail) > max(_TAIL, len(self._items) // 8):
            self._make_lists()

    def _make_lists(self) -> None:
        """Makes the lists of all features anew, and forgets those no item has if they are most."""
        dead = np.flatnonzero(self._features.ids != EMPTY)
        dead = dead[self._held.rows[dead] == 0]
        if len(dead) > len(self._features) // 2:
            self._features.remove(self._features.ids[dead])
        offsets, cells = self._runs.take(np.arange(self._items.rows))
        owner = np.repeat(np.arange(self._items.rows), np.diff(offsets))
        lengths = self._held.rows[: self._features.rows]
        lists = Jagged.of(np.empty(len(cells), np.int64), lengths)
        _fill_lists(cells[:, 0].copy(), owner, lists.offsets[:-1].copy(), lists.values)
        self._lists = lists
        self._changed.rows[: self._items.rows] = False
        self._tail = self._tail[:0]

    def _nearest(
        self, asked: Jagged, itself: Ids, count: int, among: Ids | None
    ) -> tuple[Ids, Vectors]:
        """For each list of feature numbers, by rising feature id, the items most like it."""
        n = len(asked.offsets) - 1
        found, similarity = np.full((n, count), EMPTY), np.zeros((n, count), np.float32)
        if not len(asked.values) or not count:
            return found, similarity
        if self._idf is None:
            held = self._held.rows[: self._features.rows]
            self._idf = np.log1p(len(self._items) / np.maximum(held, 1))
        allowed = np.ones(self._items.rows, np.bool_)
        if among is not None:
            rows = self._items.find(among)
            allowed[:] = False
            allowed[rows[rows != EMPTY]] = True
        features = (self._idf, self._held.rows, self._blocks.rows)
        items = (self._runs.starts.rows, self._runs.lengths.rows, self._runs.cells.rows)
        lists = (self._lists.offsets, self._lists.values)
        candidates = (self._items.ids, allowed, self._changed.rows, self._tail)
        blocks = int(self._blocks.rows[: self._features.rows].max()) + 1
        _search(
            (asked.offsets, asked.values, itself, self._config.postings, blocks),
            features, items, lists, candidates, found, similarity,
        )  # fmt: skip
        return found, similarity


def mean_vectors(rows: Ids, similarity: Vectors, vectors: Vectors) -> tuple[Vectors, Vectors]:
    """The mean of the `vectors` (m, d) at `rows` (n, k), weighted by similarity (n, k).

    A row of -1 does not count. Returns the means (n, d) and the mean similarity of those that do
    (n,); both are 0 where there is none.

    >>> similarity = np.array([[0.75, 0.25, 0.0]], np.float32)
    >>> mean_vectors(np.array([[0, 1, -1]]), similarity, np.eye(2, dtype=np.float32))
    (array([[0.75, 0.25]], dtype=float32), array([0.5], dtype=float32))
    """
    here = rows != EMPTY
    weights = np.where(here, similarity, np.float32(0))
    total = weights.sum(axis=1)
    sums = np.zeros((len(rows), vectors.shape[1]), np.float32)
    # One by one along the neighbours: n x k x d numbers would be much at once.
    for place in range(rows.shape[1] if len(vectors) else 0):
        sums += weights[:, place, None] * vectors[rows[:, place]]
    sums /= np.where(total > 0, total, 1)[:, None]
    return sums, total / np.maximum(here.sum(axis=1), 1).astype(np.float32)


def evidence(
    actions: NDArray[np.int64], similarity: NDArray[np.float32], trust: float = 10.0
) -> NDArray[np.float32]:
    """How far an item's own row is to be believed, from 0 (not at all) to 1, (n,).

    n / (n + trust * s) after n actions on an item whose neighbours have a mean similarity s:
    where they are as good as the item itself (s = 1) they count as `trust` actions, and where
    there are none the row stands alone. It is Bühlmann's credibility (1967, Experience Rating and
    Credibility, ASTIN Bulletin 4(3)) with a prior that is worth `trust * s` observations.

    >>> evidence(np.array([0, 10, 10, 90, 0]), np.array([1, 1, 0.5, 1, 0], np.float32)).round(2)
    array([0.  , 0.5 , 0.67, 0.9 , 1.  ], dtype=float32)
    """
    prior = trust * similarity.astype(np.float64)
    total = actions + prior
    return np.where(total > 0, actions / np.where(total > 0, total, 1), 1).astype(np.float32)


def handed_over(first: Vectors, learnt: Vectors, evidence: Vectors) -> Vectors:
    """Vectors (n, d) on their way from the first one to the learnt one, by `evidence` (n,).

    >>> first, learnt = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    >>> handed_over(first, learnt, np.array([0.25], np.float32))
    array([[0.25, 0.25]], dtype=float32)
    """
    share = evidence[:, None]
    return first * (1 - share) + learnt * share


# -- compiled --------------------------------------------------------------------------------


@compiled
def _fill_lists(features: Ids, owners: Ids, ends: Ids, items: Ids) -> None:
    for i in range(features.size):
        items[ends[features[i]]] = owners[i]
        ends[features[i]] += 1


@compiled
def _search(  # noqa: PLR0913 - what is asked, what is known, what is found
    asked: Any, features: Any, items: Any, lists: Any, candidates: Any, found: Any, similarity: Any
) -> None:
    """Fills `found` (n, count) and `similarity` for each list of features that is asked for."""
    asked_offsets, asked_features, itself, postings, blocks = asked
    idf, held, block = features
    list_offsets, list_items = lists
    ids, allowed, changed, tail = candidates
    weight = np.zeros(idf.size)  # of each feature in the vector that is asked for
    chosen = np.zeros(idf.size, np.bool_)  # whether its list is followed
    seen = np.full(ids.size, -1)
    dots, norms = np.zeros(blocks), np.zeros(blocks)
    for q in range(asked_offsets.size - 1):
        mine = asked_features[asked_offsets[q] : asked_offsets[q + 1]]
        if mine.size == 0:
            continue
        present = np.sqrt(_weigh(mine, idf, block, norms, weight))
        _choose(mine, held, postings, chosen)
        size = 0
        for feature in mine:
            if not chosen[feature] or feature >= list_offsets.size - 1:
                continue
            for at in range(list_offsets[feature], list_offsets[feature + 1]):
                row = list_items[at]
                if seen[row] != q and not changed[row]:
                    seen[row] = q
                    if allowed[row] and ids[row] != itself[q]:
                        like = _similarity(row, items, features, weight, chosen, dots, norms)
                        size = _keep(ids[row], like / present, found[q], similarity[q], size)
        for row in tail:
            if ids[row] != EMPTY and allowed[row] and ids[row] != itself[q]:
                like = _similarity(row, items, features, weight, chosen, dots, norms)
                if like > 0.0:
                    size = _keep(ids[row], like / present, found[q], similarity[q], size)
        for feature in mine:
            weight[feature] = 0.0
            chosen[feature] = False


@internal
def _weigh(mine: Ids, idf: Any, block: Ids, norms: Any, weight: Any) -> int:
    """The weights of these features; how many blocks there are."""
    norms[:] = 0.0
    for feature in mine:
        norms[block[feature]] += idf[feature] * idf[feature]
    for feature in mine:
        weight[feature] = idf[feature] / np.sqrt(norms[block[feature]])
    return int(np.count_nonzero(norms))


@internal
def _choose(mine: Ids, held: Ids, postings: int, chosen: Any) -> None:
    """Marks the rarest features, as far as their lists together stay within `postings`."""
    total = 0
    counts = np.empty(mine.size, np.int64)
    for i in range(mine.size):
        counts[i] = held[mine[i]]
    for at in np.argsort(counts, kind="mergesort"):
        total += counts[at]
        if total > postings and total > counts[at]:
            break
        chosen[mine[at]] = True


@internal
def _similarity(  # noqa: PLR0913 - an item, what is known, what is asked, and scratch
    row: int, items: Any, features: Any, weight: Any, chosen: Any, dots: Any, norms: Any
) -> float:
    """The sum of the cosines of an item's blocks with those asked for, over the root of the number
    of its blocks; 0 if it has none of the chosen features.
    """
    starts, lengths, cells = items
    idf, _, block = features
    mine = cells[starts[row] : starts[row] + lengths[row], 0]
    reached = False
    for feature in mine:
        reached |= chosen[feature]
    if not reached:
        return 0.0
    dots[:] = 0.0
    norms[:] = 0.0
    for feature in mine:
        norms[block[feature]] += idf[feature] * idf[feature]
        dots[block[feature]] += idf[feature] * weight[feature]
    total, present = 0.0, 0
    for b in range(norms.size):
        if norms[b] > 0.0:
            present += 1
            total += dots[b] / np.sqrt(norms[b])
    return float(total / np.sqrt(present))


@internal
def _keep(item: int, exact: float, found: Ids, similarity: Any, size: int) -> int:
    """Puts an item in its place among the best, if it is one; how many there are now."""
    like = np.float32(exact)  # as it is kept, so that equals are equal
    if size == found.size:
        last = similarity[size - 1]
        if like < last or (like == last and item > found[size - 1]):
            return size
        size -= 1
    at = size
    while at > 0 and (
        similarity[at - 1] < like or (similarity[at - 1] == like and found[at - 1] > item)
    ):
        similarity[at], found[at] = similarity[at - 1], found[at - 1]
        at -= 1
    similarity[at], found[at] = like, item
    return size + 1
