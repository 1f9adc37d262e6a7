"""The items nearest to a user: their vectors, updated in place, searched by inner product.

Few items are searched exactly; many lie in inverted lists, of which a search reads those that
could hold an answer. Scores are exact either way. Lists that no longer fit their items are
replaced: centroids are sought in a thread of their own, and every write moves a part of the items
to the new lists, so that neither a search nor a write ever waits for all of it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from math import sqrt
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from features.batch import Ids
from serving import search_kernels as kernels
from serving.index_arrays import (
    CHUNK,
    Filters,
    Floats32,
    Items,
    Plan,
    Room,
    empty_queries,
    make_room,
)
from serving.inverted_lists import Arriving, InvertedLists, ListTraining
from serving.recall_watch import ENOUGH, RecallWatch, Sampled
from streaming.growing import GrowingArray
from streaming.id_map import IdMap

_LIKELY_ERROR = 0.6  # two standard deviations of what rounding to bytes does to a score
_TRAINED_ON = 32  # vectors for each centroid
_WATCHED_EACH = 0.01  # one search is repeated whenever so large a share of the vectors is new
BEST, _OTHERS = 500, 1000  # items that tell the sum over all, where these are too many
_AT_ONCE = 1 << 16  # vectors that are copied together
_KEPT_ROOM = 1 << 16  # candidates: memory of a search that had more is not kept
_NONE = np.empty(0, np.int64)
_ALL = np.empty(0, np.uint64)


@dataclass(frozen=True)
class IndexConfig:
    """How items are found, and when the lists are made anew."""

    exact_below: int = 10_000  # items: to compare with all of them takes 30 us more (measured)
    recall: float = 0.98  # share of the true answer that searches are to find
    margin: float = 0.5  # how far a search looks before the first were checked: on the safe side
    lists: float = 3.0  # times the root of the number of items
    moved: int = 2  # items that go to new lists with each vector written
    moved_least: int = 2048  # with each write
    growth: float = 2.0  # new lists are sought for so many times the items they are right for,
    distance: float = 1.1  # or when items are so many times as far from their centroids,
    imbalance: float = 1.5  # or lists are so many times as uneven as when they were made,
    recall_missed: float = 0.03  # or the recall of sampled searches is so much too low
    sample_every: int = 20  # of so many searches one may be repeated exactly
    few: int = 4096  # a subset that is no larger is searched item by item


@dataclass(frozen=True, eq=False)
class Subset:
    """Items that a search may find: made once, kept for many requests, which makes them fast."""

    ids: Ids = field(repr=False)  # sorted, each once

    @classmethod
    def of(cls, ids: Ids) -> Subset:
        """Those items, in any order, perhaps repeated."""
        ids = np.unique(ids)
        ids.flags.writeable = False
        return cls(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def holds(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each of the ids (n,) is one of them."""
        if not len(self.ids):
            return np.zeros(len(ids), np.bool_)
        at = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        inside: NDArray[np.bool_] = self.ids[at] == ids
        return inside


@dataclass(frozen=True)
class _Shape:
    """What lists were like when all items had come to them."""

    distance: float
    imbalance: float


class ItemIndex:
    """Items and their vectors. Many threads may search, or one may write; never both at once.

    Copies of the same items share a `training`: what one of them starts serves all, and a new one
    begins with the lists that there are.
    """

    def __init__(
        self, width: int, config: IndexConfig | None = None, training: ListTraining | None = None
    ) -> None:
        self.width = width
        self.config = config or IndexConfig()
        self._training = training or ListTraining()
        self._generation = 0  # of the centroids that are installed
        self._places = IdMap()
        self._vectors = GrowingArray(np.float32, (width,))
        self._slots = GrowingArray(np.int32)
        self._lists = InvertedLists(width)
        self._others = np.empty((0, width), np.float32)  # vectors of a sample of all items
        self._made: _Shape | None = None
        self._written = 0  # vectors, since the lists were made
        self._unwatched = 0  # vectors, since a search was repeated
        self._watch = RecallWatch(self.config.sample_every, self.config.recall, self.config.margin)
        self._bits: WeakKeyDictionary[Subset, NDArray[np.uint64]] = WeakKeyDictionary()
        self._bits_lock = threading.Lock()
        self._rooms = threading.local()
        # A score from bytes is off by half a step in each number of the item, and by what is
        # lost of the query's 15 bits; the last term is the rounding of the sums.
        self._largest_error = sqrt(width) / 2 + width / 256 + 0.002 * sqrt(width)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def ids(self) -> Ids:
        """All items, (n,), in any order."""
        ids = self._places.ids
        return ids[ids >= 0]

    @property
    def exact(self) -> bool:
        """Whether a search compares with every item."""
        return len(self) < self.config.exact_below or not self._lists.trained

    # Writing

    def upsert(self, ids: Ids, vectors: Floats32 | Arriving) -> None:
        """Lays vectors (n, d) under ids (n,); of an id that is there twice, the last one.

        To copies of one index the vectors are best given as the same `Arriving`.

        Raises:
            ValueError: vectors of another shape, or one with a number that is not finite; then
                nothing has changed.
        """
        arriving = vectors if isinstance(vectors, Arriving) else Arriving(vectors)
        shape = arriving.vectors.shape
        if shape != (len(ids), self.width):
            raise ValueError(
                f"{len(ids)} ids with vectors of shape {shape}: an index of width {self.width}"
                f" takes ({len(ids)}, {self.width})"
            )
        if not len(ids):
            return
        self._repeat_a_search()
        new = ids[self._places.find(ids) < 0] if self._bits else _NONE
        places = self._places.add(ids)
        self._vectors.reserve(self._places.rows)
        self._slots.reserve(self._places.rows)
        self._install_newest()
        self._lists.lay(places, arriving, self._items())
        if len(new):
            self._let_into_subsets(new)
        self._written += len(ids)
        self._unwatched += len(ids)
        self._keep_lists(max(self.config.moved * len(ids), self.config.moved_least))

    def remove(self, ids: Ids) -> None:
        """Takes items out; those that are not there are passed over."""
        if not len(ids):
            return
        self._repeat_a_search()
        self._lists.take_out(self._places.remove(ids), self._items())
        self._draw_others()

    def settle(self) -> None:
        """A write that waits until all items lie in lists that fit: before anybody reads."""
        for _ in range(3):  # a training that is under way may be for far fewer items
            self._install_newest()
            self._keep_lists(len(self))
            if self._outgrown and not self._lists.moving:
                self._start_training()
            if not self._training.running:
                break
            self._training.take(wait=True)
        while self._lists.trained and self._watch.searches < min(ENOUGH, len(self)):
            self._learn_from(self._any_item())

    def twin(self) -> ItemIndex:
        """Another index of the same items, at rest; this one is only read meanwhile."""
        other = ItemIndex(self.width, self.config, self._training)
        ids = self.ids
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            other.upsert(some, self.vectors(some)[0])
        other.settle()
        if self._made is not None and other._generation == self._generation:
            other._made = self._made  # both drift from where the lists were made
        return other

    @property
    def _outgrown(self) -> bool:
        """Whether so many items should have more lists; without any centroids there is one."""
        fitting = (self._lists.count / self.config.lists) ** 2
        return len(self) >= max(self.config.exact_below, 1) and (
            len(self) > self.config.growth * fitting
        )

    def _install_newest(self) -> None:
        """Has new items go to the lists that a training has found, if it has."""
        if len(self) < self.config.exact_below or self._lists.moving:
            return
        newest, centroids = self._training.take(), self._training.centroids
        if newest > self._generation and centroids is not None:
            self._lists.install(centroids)
            self._generation, self._made = newest, None

    def _keep_lists(self, moved: int) -> None:
        """Starts a training if there is need, moves some items to the newest lists."""
        may_train = len(self) >= self.config.exact_below and not self._training.running
        if may_train and self._has_drifted():
            self._start_training()
        if self._lists.trained and self._made is None:
            self._lists.move(moved, self._items())
            if not self._lists.moving:
                self._made, self._written = self._shape(), 0
                self._watch.forget()
        self._draw_others()

    def _draw_others(self) -> None:
        """What `log_total` needs, drawn with every write: it is asked far more often."""
        if self.exact:
            return
        places = np.random.default_rng(0).integers(self._places.rows, size=_OTHERS)
        self._others = self._vectors.rows[places[self._places.ids[places] >= 0]]

    def _has_drifted(self) -> bool:
        if self._written < len(self) / 4:
            return False
        if self._made is None:
            return self._outgrown and not self._lists.moving
        now, config = self._shape(), self.config
        missed = self._watch.recalls >= ENOUGH and (
            self._watch.recall < config.recall - config.recall_missed
        )
        return (
            missed
            or self._outgrown
            or now.distance > config.distance * self._made.distance
            or now.imbalance > config.imbalance * self._made.imbalance
        )

    def _start_training(self) -> None:
        lists = int(self.config.lists * sqrt(len(self)))
        places = np.flatnonzero(self._slots.rows[: self._places.rows])
        rng = np.random.default_rng(self._generation)
        sample = rng.choice(
            places, min(len(places), _TRAINED_ON * lists), replace=False, shuffle=False
        )
        self._training.start(self._vectors.rows[np.sort(sample)], lists)
        self._written = 0  # should it fail, the next one is not started at once

    def _shape(self) -> _Shape:
        lists = self._lists.lists
        items = len(self)
        squares = float((lists.sizes.astype(np.float64) ** 2).sum())
        distance = sqrt(float(lists.squares.sum()) / max(items, 1))
        return _Shape(distance, self._lists.count * squares / max(items, 1) ** 2)

    # Reading

    def vectors(self, ids: Ids) -> tuple[Floats32, NDArray[np.bool_]]:
        """The vector of each item (n, d), zeros where it has none, and whether it has one (n,)."""
        places = self._places.find(ids)
        known = places >= 0
        found = np.zeros((len(ids), self.width), np.float32)
        found[known] = self._vectors.rows[places[known]]
        return found, known

    def search(
        self, queries: Floats32, count: int, hidden: Ids, allowed: Subset | None = None
    ) -> tuple[Ids, Floats32]:
        """The best items for queries (K, d): ids (n,), scores (n,), best first, equals by id.

        An item's score is the largest of its inner products with the queries. Fewer than `count`
        come back only if there are no more that are not hidden, and in `allowed` if that is given.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        places = self._places.find(hidden) if len(hidden) else _NONE
        places = np.sort(places[places >= 0])
        if allowed is not None and len(allowed) <= self.config.few:
            return self._search_few(queries, count, allowed, places)
        bits = _ALL if allowed is None else self._bits_of(allowed)
        found = self._search(queries, count, Filters(bits, places), exact=self.exact)
        if allowed is None and not self.exact:
            self._watch.note(queries, count, hidden, found[0])
        return found

    def log_total(
        self, queries: Floats32, temperature: float, best: Floats32 | None = None
    ) -> float:
        """The logarithm of the sum of exp(score / temperature) over all items, -inf of none.

        Exact if searches are; else of the `best` scores, which are searched for if they are not
        given, and of a sample of the others, after Mussmann and Ermon, "Learning and Inference via
        Maximum Inner Product Search", ICML 2016.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if self.exact:
            there = self._slots.rows[: self._places.rows] > 0
            scores = (self._vectors.rows[: self._places.rows] @ queries.T)[there]
            best = scores.max(axis=1, initial=-np.inf)
            return float(kernels.log_total(best, best[:0], len(best), temperature))
        if best is None:
            _, best = self._search(queries, BEST, Filters(_ALL, _NONE), exact=False)
        if not len(best):
            return -np.inf
        sampled = (self._others @ queries.T).max(axis=1)
        return float(kernels.log_total(best, sampled, len(self), temperature))

    def figures(self) -> dict[str, float]:
        """What is worth watching, by name; distance and imbalance over what they were at first."""
        shape, made = self._shape(), self._made
        trained = self._lists.trained and made is not None
        return {
            "items": float(len(self)),
            "lists": float(self._lists.count),
            "trainings": float(self._generation),
            "trainings_failed": float(self._training.failed),
            "moving": float(self._lists.moving),
            "distance": shape.distance,
            "distance_drift": shape.distance / made.distance if trained and made else 1.0,
            "imbalance_drift": shape.imbalance / made.imbalance if trained and made else 1.0,
            "recall": 1.0 if self.exact else self._watch.recall,
            "recall_searches": float(self._watch.recalls),
            "margin": self._watch.margin,
            "bytes": float(
                self._lists.nbytes + self._places.nbytes + self._places.rows * (4 * self.width + 4)
            ),
        }

    def _search(
        self, queries: Floats32, count: int, filters: Filters, *, exact: bool
    ) -> tuple[Ids, Floats32]:
        count = min(count, len(self))
        if count <= 0 or not len(queries):
            return _NONE, np.empty(0, np.float32)
        plan = Plan(
            count,
            np.inf if exact else self._watch.margin,
            self._largest_error if exact else _LIKELY_ERROR,
        )
        asked, items, chunks = empty_queries(queries), self._items(), self._lists.chunks
        candidates = 4 * count + 1024
        while True:
            room = self._room(candidates)
            found = kernels.find_best(asked, items, self._lists.lists, chunks, filters, plan, room)
            if found != kernels.NO_ROOM:
                return room.ids[:found].copy(), room.scores[:found].copy()
            candidates *= 4

    def _search_few(
        self, queries: Floats32, count: int, allowed: Subset, hidden: NDArray[np.int64]
    ) -> tuple[Ids, Floats32]:
        places = self._places.find(allowed.ids)
        places = places[places >= 0]
        if len(hidden):
            places = places[~np.isin(places, hidden)]
        if count <= 0 or not len(places):
            return _NONE, np.empty(0, np.float32)
        room = self._room(len(places))
        found = kernels.best_of(places, empty_queries(queries), self._items(), count, room)
        return room.ids[:found].copy(), room.scores[:found].copy()

    def _items(self) -> Items:
        return Items(self._places.ids, self._vectors.rows, self._slots.rows)

    def _room(self, candidates: int) -> Room:
        """This thread's own memory for a search."""
        lists = len(self._lists.lists.sizes)
        room: Room | None = getattr(self._rooms, "room", None)
        if room is None or len(room.ids) < candidates or len(room.order) != lists:
            room = make_room(candidates, lists)
            if candidates <= _KEPT_ROOM:
                self._rooms.room = room
        return room

    # Subsets

    def _bits_of(self, subset: Subset) -> NDArray[np.uint64]:
        """A bit for every place: whether the item there is one of the subset."""
        with self._bits_lock:
            bits = self._bits.get(subset)
            if bits is None:
                bits = np.zeros(self._places.rows // 64 + 1, np.uint64)
                places = self._places.find(subset.ids)
                kernels.set_bits(places, np.ones(len(places), np.bool_), bits)
                self._bits[subset] = bits
            return bits

    def _let_into_subsets(self, ids: Ids) -> None:
        """Sets the bits of the places that new items were given."""
        places = self._places.find(ids)
        for subset, bits in list(self._bits.items()):
            if self._places.rows > 64 * len(bits):
                longer = np.zeros(2 * len(bits) + self._places.rows // 64, np.uint64)
                longer[: len(bits)] = bits
                bits = self._bits[subset] = longer  # noqa: PLW2901 - the same bits
            kernels.set_bits(places, subset.holds(ids), bits)

    # Watching

    def _repeat_a_search(self) -> None:
        """Searches exactly once more, before a write changes what would be found."""
        sampled = self._watch.take()
        if self.exact or self._lists.moving or self._unwatched < _WATCHED_EACH * len(self):
            return
        self._unwatched = 0
        if sampled is not None:
            self._watch.compare(sampled.found, self._learn_from(sampled))
        elif self._watch.searches < ENOUGH:  # items stand in for users until there are some
            self._learn_from(self._any_item())

    def _any_item(self) -> Sampled:
        """A search with the vector of some item for a user's."""
        places = np.flatnonzero(self._slots.rows[: self._places.rows])
        place = places[(self._watch.searches * 7919) % len(places)]
        return Sampled(self._vectors.rows[place : place + 1].copy(), 100, _NONE, _NONE)

    def _learn_from(self, sampled: Sampled) -> Ids:
        """The exact answer to a search; learns how far it lay from the centroids."""
        hidden = self._places.find(sampled.hidden)
        filters = Filters(_ALL, np.sort(hidden[hidden >= 0]))
        ids, scores = self._search(sampled.queries, sampled.count, filters, exact=True)
        if len(ids):
            slots = self._slots.rows[self._places.find(ids)] - 1
            lists = self._lists.lists
            of = self._lists.chunks.lists[slots // CHUNK]
            centres = (lists.centroids[of] @ sampled.queries.T).max(axis=1)
            spreads = lists.spreads[of] * np.linalg.norm(sampled.queries, axis=1).max()
            # A list of items that all lie on its centroid promises just what it holds.
            apart = np.maximum(spreads, 1e-6)
            self._watch.learn(((scores[-1] - centres) / apart).astype(np.float64))
        return ids
