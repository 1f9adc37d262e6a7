"""Lists of items whose vectors are near each other: what a search need not read it leaves out.

Every item lies in the list with the centroid nearest to it, as bytes, and moves to another list
when its vector does. Which one is nearest is told by the bytes of both, which is what is searched.
After a write lists have no holes: those who come fill the places of those who left, then the last
items of the list do, and chunks of an emptied list are used again.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving import list_kernels as kernels
from serving.dot_products import LANES, TOGETHER
from serving.index_arrays import (
    CHUNK,
    Centroids,
    Chunks,
    Coded,
    Floats32,
    Items,
    Lists,
    make_coded,
)
from streaming.growing import GrowingArray

_log = logging.getLogger(__name__)

_ROUNDS = 8  # of k-means: more hardly improve what a search finds
_FEWEST = 0.05  # of the mean: a centroid with fewer items than that is put elsewhere


class Arriving:
    """Vectors (n, d) on their way into copies of one index: what the first finds out serves all.

    They may not be changed before the last copy has them. One copy at a time takes them.

    Raises:
        ValueError: a number is not finite.
    """

    def __init__(self, vectors: Floats32) -> None:
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        if not np.isfinite(self.vectors.sum(dtype=np.float64)):
            raise ValueError(
                "vectors for the index hold a number that is not finite: hold back the version"
            )
        self._coded: Coded | None = None
        self._centroids: Centroids | None = None

    def coded(self, centroids: Centroids) -> Coded:
        """Their bytes, and the numbers of the nearest of the centroids.

        The bytes of both say which is nearest. To the vector itself another one may be nearer; the
        squares of these distances then differ by no more than what a step of the vector's bytes is
        worth, times sqrt(d), times the distance between the two centroids.
        """
        if self._coded is None:
            self._coded = encode(self.vectors)
        if self._centroids is not centroids:
            kernels.find_nearest(self._coded, centroids)
            self._centroids = centroids
        return self._coded


class InvertedLists:
    """The lists that items lie in, and, while new centroids replace old ones, the older lists.

    Without centroids all items lie in one list, which every search reads.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.trained = False
        self._centroids = encode_centroids(np.zeros((1, width), np.float32))
        self.lists = _make_lists(self._centroids)
        self._start = 0  # lists before this one are on their way out
        self._quads = -(-width // 4)
        self._codes = GrowingArray(np.uint32, (LANES * self._quads,))
        self._scales = GrowingArray(np.float32)
        self._places = GrowingArray(np.int32)
        self._before = GrowingArray(np.int32)
        self._of = GrowingArray(np.int32)
        self._free = GrowingArray(np.int32)
        self._counts = np.zeros(2, np.int64)
        self._some = make_coded(TOGETHER, width)

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
        return int(self._counts[0]) * (CHUNK * (4 * self._quads + 8) + 12)

    def lay(self, places: NDArray[np.int64], arriving: Arriving, items: Items) -> None:
        """Lays vectors at places (n,), of `items` that have room for them."""
        self._make_room(int(self.lists.sizes.sum()) + len(places))
        coded = arriving.coded(self._centroids)
        holes = np.empty(len(self.lists.sizes), np.int32)
        kernels.lay(
            places,
            arriving.vectors,
            coded,
            self._start,
            items,
            self.lists,
            self.chunks,
            holes,
        )
        self._mark_untrained()

    def take_out(self, places: NDArray[np.int64], items: Items) -> None:
        """Takes out the items at those places that are in a list."""
        kernels.take_out(places, items, self.lists, self.chunks)
        self._mark_untrained()

    def install(self, centroids: Centroids) -> None:
        """From now on items are laid near these centroids; `move` brings those of before."""
        self._centroids, new = centroids, _make_lists(centroids)
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
            limit, self._centroids, self._start, items, self.lists, self.chunks, self._some
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
        self._codes.reserve(most * CHUNK // LANES)
        for by_slot in (self._scales, self._places):
            by_slot.reserve(most * CHUNK)
        for by_chunk in (self._before, self._of, self._free):
            by_chunk.reserve(most)

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
        self.centroids: Centroids | None = None
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
                    self.centroids = encode_centroids(running.result())
                    self.generation += 1
                else:
                    self.failed += 1
                    _log.error("no new lists for the index, the old ones stay", exc_info=error)
            return self.generation


def find_centroids(sample: Floats32, count: int) -> Floats32:
    """At most `count` centroids of the vectors of a sample (n, d), by k-means: (m, d)."""
    rng = np.random.default_rng(0)
    count = min(count, len(sample))
    coded, centroids = (
        encode(sample),
        encode_centroids(sample[rng.choice(len(sample), count, replace=False)]),
    )
    sums, sizes = np.empty((count, sample.shape[1])), np.empty(count, np.int64)
    for step in range(_ROUNDS):
        kernels.find_nearest(coded, centroids)
        kernels.average(sample, coded.numbers, sums, sizes, centroids.centroids)
        small = np.flatnonzero(sizes < _FEWEST * len(sample) / count)
        if len(small) and step < _ROUNDS - 1:
            centroids.centroids[small] = sample[rng.choice(len(sample), len(small))]
        centroids = encode_centroids(centroids.centroids[:count])
    return centroids.centroids[:count][sizes > 0]


def encode(vectors: Floats32) -> Coded:
    """Vectors (n, d) as bytes."""
    coded = make_coded(*vectors.shape)
    kernels.encode(vectors, coded)
    return coded


def encode_centroids(vectors: Floats32) -> Centroids:
    """Centroids (n, d) as bytes, and as what these bytes say."""
    count, width = vectors.shape
    size = LANES * -(-count // LANES)
    centroids = Centroids(
        np.zeros((size, width), np.float32),
        np.zeros((size // LANES, LANES * -(-width // 4)), np.uint32),
        np.zeros(size, np.float32),
        np.full(size, np.inf, np.float32),
    )
    kernels.lay_centroids(encode(vectors), centroids, count)
    return centroids


def _make_lists(centroids: Centroids) -> Lists:
    """Empty lists."""
    size = len(centroids.scales)
    return Lists(
        *centroids,
        np.full(size, -1, np.int32),
        np.zeros(size, np.int64),
        np.zeros(size, np.float64),
        np.full(size, -np.inf, np.float32),
    )


def _train(sample: Floats32, lists: int, future: Future[Floats32]) -> None:
    try:
        future.set_result(find_centroids(sample, lists))
    except BaseException as error:  # noqa: BLE001 - whoever takes the result is told
        future.set_exception(error)
