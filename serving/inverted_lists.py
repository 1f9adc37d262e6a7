"""Lists of items whose vectors are near each other: what a search need not read it leaves out.

Every item lies in the list with the centroid nearest to it, as bytes, and moves to another list
when its vector does. Lists have no holes: the last item of a list fills the place of one that
leaves, and chunks of an emptied list are used again.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import list_kernels as kernels
from serving.dot_products import LANES
from serving.index_arrays import (
    CHUNK,
    Chunks,
    Floats32,
    Items,
    Lists,
    empty_queries,
    make_room,
)
from streaming.growing import GrowingArray

_log = logging.getLogger(__name__)

_ROUNDS = 8  # of k-means: more hardly improve what a search finds
_FEWEST = 0.05  # of the mean: a centroid with fewer items than that is put elsewhere


class InvertedLists:
    """The lists that items lie in, and, while new centroids replace old ones, the older lists.

    Without centroids all items lie in one list, which every search reads.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.trained = False
        self.lists = _make_lists(np.zeros((1, width), np.float32))
        self._start = 0  # lists before this one are on their way out
        self._bytes = 4 * -(-width // 4)
        self._codes = GrowingArray(np.uint8, (CHUNK * self._bytes,))
        self._scales = GrowingArray(np.float32, (CHUNK,))
        self._places = GrowingArray(np.int32, (CHUNK,))
        self._before = GrowingArray(np.int32)
        self._of = GrowingArray(np.int32)
        self._free = GrowingArray(np.int32)
        self._counts = np.zeros(2, np.int64)
        self._query = empty_queries(np.empty((1, width), np.float32))
        self._room = make_room(0, 1)

    @property
    def chunks(self) -> Chunks:
        """Where the bytes of the items lie now; views, to be used before the next write."""
        return Chunks(
            self._codes.rows,
            self._scales.rows,
            self._places.rows,
            self._before.rows,
            self._of.rows,
            self._free.rows,
            self._counts,
        )

    @property
    def count(self) -> int:
        """How many lists there are."""
        return int(np.isfinite(self.lists.half_squares).sum())

    @property
    def moving(self) -> int:
        """Items that are still in the older lists."""
        return int(self.lists.sizes[: self._start].sum())

    @property
    def nbytes(self) -> int:
        """Memory that chunks of items take."""
        return int(self._counts[0]) * (CHUNK * (self._bytes + 8) + 12)

    def lay(self, places: NDArray[np.int64], vectors: Floats32, items: Items) -> None:
        """Lays vectors (n, d) at places (n,), of `items` that have room for them."""
        self._make_room(int(self.lists.sizes.sum()) + len(places))
        kernels.lay(
            places, vectors, items, self.lists, self._start, self.chunks, self._query, self._room
        )
        self._mark_untrained()

    def take_out(self, places: NDArray[np.int64], items: Items) -> None:
        """Takes out the items at those places that are in a list."""
        kernels.take_out(places, items, self.lists, self.chunks)
        self._mark_untrained()

    def install(self, centroids: Floats32) -> None:
        """From now on items are laid near these centroids (n, d); `move` brings those of before."""
        new = _make_lists(centroids)
        self._start = len(self.lists.sizes)
        pairs: Any = zip(self.lists, new, strict=True)
        self.lists = Lists._make(np.concatenate(pair) for pair in pairs)
        self.trained = True

    def move(self, limit: int, items: Items) -> int:
        """Moves so many items out of the older lists; returns how many there were."""
        if not self._start:
            return 0
        self._make_room(int(self.lists.sizes.sum()))
        moved: int = kernels.move(
            limit, items, self.lists, self._start, self.chunks, self._query, self._room
        )
        self._mark_untrained()
        if not self.moving:
            self._forget_older()
        return moved

    def _mark_untrained(self) -> None:
        """Has every search read the list of items that no centroid was ever trained for."""
        if np.isinf(self.lists.half_squares[1]) and self.lists.sizes[0]:
            self.lists.spreads[0] = np.inf

    def _make_room(self, items: int) -> None:
        """Room for the chunks of so many items; the last one of every list may be half empty."""
        most = items // CHUNK + len(self.lists.sizes) + 1
        for array in (self._codes, self._scales, self._places, self._before, self._of, self._free):
            array.reserve(most)

    def _forget_older(self) -> None:
        cut = self._start
        self.lists = Lists(
            *(
                part[cut // LANES if name == "codes" else cut :].copy()
                for name, part in self.lists._asdict().items()
            )
        )
        self._of.rows[: int(self._counts[0])] -= cut
        self._start = 0


class ListTraining:
    """Finds centroids beside everything else, in a thread of its own, one training at a time.

    The two copies of one model share it: one of them starts it, both install what it has found.
    """

    def __init__(self) -> None:
        self.generation = 0  # of `centroids`
        self.failed = 0  # trainings: the lists stay as they are
        self.centroids: Floats32 | None = None
        self._running: Future[Floats32] | None = None
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether a training is under way, or has ended and nobody has looked yet."""
        return self._running is not None

    def start(self, sample: Floats32, lists: int) -> None:
        """Starts to look for the centroids of a sample (n, d), unless it is looking already."""
        with self._lock:
            if self._running is not None:
                return
            future: Future[Floats32] = Future()
            self._running = future
        threading.Thread(
            target=_train, args=(sample, lists, future), name="index-training", daemon=True
        ).start()

    def take(self, *, wait: bool = False) -> int:
        """The generation of the newest centroids."""
        with self._lock:
            running = self._running
            if running is not None and (wait or running.done()):
                self._running = None
                error = running.exception()
                if error is None:
                    self.centroids = running.result()
                    self.generation += 1
                else:
                    self.failed += 1
                    _log.error("no new lists for the index, the old ones stay", exc_info=error)
            return self.generation


def find_centroids(sample: Floats32, count: int) -> Floats32:
    """At most `count` centroids of the vectors of a sample (n, d), by k-means: (m, d)."""
    rng = np.random.default_rng(0)
    count = min(count, len(sample))
    start = sample[rng.choice(len(sample), count, replace=False)]
    lists = _make_lists(start)
    query, room = empty_queries(np.empty((1, sample.shape[1]), np.float32)), make_room(0, 1)
    sums = np.empty((len(lists.sizes), sample.shape[1]))
    for step in range(_ROUNDS):
        kernels.cluster(sample, lists, sums, query, room)
        small = np.flatnonzero(lists.sizes[:count] < _FEWEST * len(sample) / count)
        if len(small) and step < _ROUNDS - 1:
            lists.centroids[small] = sample[rng.choice(len(sample), len(small))]
        kernels.encode_centroids(lists, 0, count)
    return lists.centroids[:count][lists.sizes[:count] > 0]


def _make_lists(centroids: Floats32) -> Lists:
    """Empty lists of these centroids, and of none, so that their number is a multiple of LANES."""
    count, width = centroids.shape
    size = LANES * -(-count // LANES)
    lists = Lists(
        np.zeros((size, width), np.float32),
        np.zeros((size // LANES, LANES * 4 * -(-width // 4)), np.uint8),
        np.zeros(size, np.float32),
        np.full(size, np.inf, np.float32),
        np.full(size, -1, np.int32),
        np.zeros(size, np.int64),
        np.zeros(size, np.float64),
        np.full(size, -np.inf, np.float32),
    )
    lists.centroids[:count] = centroids
    kernels.encode_centroids(lists, 0, count)
    return lists


def _train(sample: Floats32, lists: int, future: Future[Floats32]) -> None:
    try:
        future.set_result(find_centroids(sample, lists))
    except BaseException as error:  # noqa: BLE001 - whoever takes the result is told
        future.set_exception(error)
