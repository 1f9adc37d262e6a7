"""Indexes of vectors, ours and other libraries' own, behind one small interface."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import cycle
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from features.batch import Ids
from serving.index import IndexConfig, ItemIndex
from serving.inverted_lists import ListTraining

Floats32 = NDArray[np.float32]

_NONE = np.empty(0, np.int64)


class Searcher(Protocol):
    """An index of items 0, 1, 2, ... with vectors (n, d), to be searched by inner product."""

    @property
    def efforts(self) -> tuple[float, ...]:
        """From the fastest search to the most careful."""

    @property
    def batch(self) -> int:
        """Vectors of one write: a version's, or as many as a graph takes in a second or less."""

    def set_effort(self, effort: float) -> None:
        """How hard a search tries."""

    def search(self, query: Floats32, count: int) -> Ids:
        """The best items for one query (1, d)."""

    def write(self, ids: Ids, vectors: Floats32) -> None:
        """Lays vectors over those of items, while another thread may search."""


class TakingTurns:
    """Two copies of what cannot be read and written at once: as a replica has them."""

    def __init__(self, copies: tuple[Any, Any]) -> None:
        self.copies = copies
        self._front = 0
        self._readers = [0, 0]
        self._changed = threading.Condition()

    @contextmanager
    def reading(self) -> Iterator[Any]:
        """The copy in front."""
        with self._changed:
            front = self._front
            self._readers[front] += 1
        try:
            yield self.copies[front]
        finally:
            with self._changed:
                self._readers[front] -= 1
                self._changed.notify_all()

    def write(self, change: Callable[[Any], None]) -> None:
        """Changes both copies, one after the other."""
        for _ in range(2):
            back = 1 - self._front
            with self._changed:
                self._changed.wait_for(lambda: self._readers[1 - self._front] == 0)
            change(self.copies[back])
            with self._changed:
                self._front = back


class Ours:
    """As it is configured by default: it finds the effort that its recall takes."""

    efforts = (0.0,)
    batch = 10_000

    def __init__(self, vectors: Floats32, tuning: Floats32) -> None:
        training, ids = ListTraining(), np.arange(len(vectors))
        copies = (
            ItemIndex(vectors.shape[1], None, training),
            ItemIndex(vectors.shape[1], None, training),
        )
        for copy in copies:
            copy.upsert(ids, vectors)
            copy.settle()
        # Searches and writes, as there are in a replica, of vectors that are there already.
        each, queries = len(vectors) // 100 + 1, cycle(tuning)
        for start in range(0, 64 * each, each):
            part = ids[np.arange(start, start + each) % len(ids)]
            for copy in copies:
                for _ in range(IndexConfig().sample_every):
                    copy.search(next(queries)[None], 100, _NONE)
                copy.upsert(part, vectors[part])
        self.turns = TakingTurns(copies)

    def set_effort(self, effort: float) -> None:
        """Another margin than the one that was found; 0 leaves that."""
        for copy in self.turns.copies if effort else ():
            copy._watch.margin = effort

    def search(self, query: Floats32, count: int) -> Ids:
        with self.turns.reading() as index:
            ids: Ids = index.search(query, count, _NONE)[0]
        return ids

    def write(self, ids: Ids, vectors: Floats32) -> None:
        self.turns.write(lambda index: index.upsert(ids, vectors))


class FaissLists:
    """IndexIVFFlat; two copies take turns, for it is not to be read and written at once."""

    efforts = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
    batch = 10_000

    def __init__(self, vectors: Floats32, _tuning: Floats32) -> None:
        faiss: Any = import_module("faiss")

        lists = int(4 * np.sqrt(len(vectors)))
        faiss.omp_set_num_threads(2)
        copies: list[Any] = []
        for _ in range(2):
            flat = faiss.IndexFlatIP(vectors.shape[1])
            index = faiss.IndexIVFFlat(flat, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
            if copies:  # the same centroids
                flat.add(copies[0].quantizer.reconstruct_n(0, lists))
                index.is_trained = True
            else:
                rng = np.random.default_rng(0)
                index.train(vectors[rng.choice(len(vectors), 40 * lists)])
            index.add(vectors)
            index.set_direct_map_type(faiss.DirectMap.Array)  # what updates in place need
            copies.append(index)
        faiss.omp_set_num_threads(1)
        self.turns = TakingTurns((copies[0], copies[1]))

    def set_effort(self, effort: float) -> None:
        for copy in self.turns.copies:
            copy.nprobe = int(effort)

    def search(self, query: Floats32, count: int) -> Ids:
        with self.turns.reading() as index:
            ids: Ids = index.search(query, count)[1][0]
        return ids

    def write(self, ids: Ids, vectors: Floats32) -> None:
        self.turns.write(lambda index: index.update_vectors(ids, vectors))


class FaissGraph:
    """IndexHNSWFlat, which has no updates."""

    efforts = (100, 150, 200, 250, 300, 400, 500, 700)
    batch = 1000

    def __init__(self, vectors: Floats32, _tuning: Floats32) -> None:
        faiss: Any = import_module("faiss")

        faiss.omp_set_num_threads(2)
        self._index = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        self._index.add(vectors)
        faiss.omp_set_num_threads(1)

    def set_effort(self, effort: float) -> None:
        self._index.hnsw.efSearch = int(effort)

    def search(self, query: Floats32, count: int) -> Ids:
        ids: Ids = self._index.search(query, count)[1][0]
        return ids

    def write(self, ids: Ids, vectors: Floats32) -> None:
        raise NotImplementedError("faiss's graph has no updates: build it again")


class Hnswlib:
    """hnswlib's graph, M 16."""

    efforts = (100, 125, 150, 175, 200, 250, 300, 400, 500)
    batch = 1000

    def __init__(self, vectors: Floats32, _tuning: Floats32) -> None:
        hnswlib: Any = import_module("hnswlib")

        self._index = hnswlib.Index("ip", vectors.shape[1])
        self._index.init_index(len(vectors), M=16, ef_construction=100)
        self._index.add_items(vectors, num_threads=2)
        self._index.set_num_threads(1)

    def set_effort(self, effort: float) -> None:
        self._index.set_ef(int(effort))

    def search(self, query: Floats32, count: int) -> Ids:
        return np.asarray(self._index.knn_query(query, count)[0][0], np.int64)

    def write(self, ids: Ids, vectors: Floats32) -> None:
        self._index.add_items(vectors, ids, num_threads=1)


class Usearch:
    """usearch's graph of bf16, connectivity 16."""

    efforts = (100, 125, 150, 175, 200, 250, 300, 400, 500)
    batch = 1000

    def __init__(self, vectors: Floats32, _tuning: Floats32) -> None:
        usearch: Any = import_module("usearch.index")

        self._index = usearch.Index(
            ndim=vectors.shape[1], metric="ip", dtype="bf16", connectivity=16
        )
        self._index.add(np.arange(len(vectors)), vectors, threads=2)

    def set_effort(self, effort: float) -> None:
        self._index.expansion_search = int(effort)

    def search(self, query: Floats32, count: int) -> Ids:
        return np.asarray(self._index.search(query[0], count, threads=1).keys, np.int64)

    def write(self, ids: Ids, vectors: Floats32) -> None:
        self._index.remove(ids, threads=1)
        self._index.add(ids, vectors, threads=1)


SEARCHERS: dict[str, Callable[[Floats32, Floats32], Searcher]] = {
    "ours": Ours,
    "faiss_lists": FaissLists,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "faiss_graph": FaissGraph,
}
