"""Retrieval: the 100 best of 100 k and of 1 M items, against faiss, hnswlib and usearch.

Vectors are made: unit length, 64 numbers, around 5,000 centres whose sizes follow a power law,
with fewer directions that matter than numbers; queries lie farther from the centres than items.
Every library searches for one query at a time on one thread, tuned on other queries to the
smallest effort that finds 97% of the true answer (ours finds its own, for the recall of its
default configuration). Rounds are interleaved: latencies are medians of rounds.

The same again while 40,000 vectors a second move, four batches. Two copies of an index that
cannot be read and written at once take turns, as in a replica, so that each vector is written
twice: ours and faiss's lists. The graphs are updated in place by their own means, as fast as they
get; their figures are those at the rate they reach. Then all vectors of 100 k items move 20 times
over, and users' with them, most of the way the same for all as when towers learn: the recall of
lists that are made anew when they no longer fit is drawn beside that of lists that are not.
faiss's graph is built for 100 k items only: hnswlib's is the same.

`make peers` installs the others; one that is not there is left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import numpy as np
from numpy.typing import NDArray

from benchmarks._plot import line_plot
from benchmarks._searchers import SEARCHERS, Searcher
from features.batch import Ids
from serving.index import IndexConfig, ItemIndex

Floats32 = NDArray[np.float32]

WIDTH, COUNT, CENTRES = 64, 100, 5000
SIZES = {"100k": 100_000, "1m": 1_000_000}
RECALL = 0.97
QUERIES, ROUNDS = 200, 5
UPDATES_PER_S, UPDATING_S = 40_000, 3.0
SWEEPS = 20
DOCS = Path(__file__).parents[1] / "docs"
PROMISES = {
    "ours_over_best_100k": (0.0, 1.0),
    "ours_over_best_1m": (0.0, 1.0),
    "ours_over_best_updating_100k": (0.0, 1.0),
    "ours_over_best_updating_1m": (0.0, 1.0),
    "recall_ours_100k": (RECALL, 1.0),
    "recall_ours_1m": (RECALL, 1.0),
    "recall_ours_updating_100k": (RECALL, 1.0),
    "recall_ours_updating_1m": (RECALL, 1.0),
    "recall_while_moving": (RECALL, 1.0),
}
_NONE = np.empty(0, np.int64)


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Figures by name; times in microseconds, rates a second."""
    figures = _crossover(report)
    for name, items in SIZES.items():
        figures |= _against_others(name, items, report)
    figures |= _moving_for_long(report)
    return figures


def make_vectors(items: int, queries: int, seed: int = 0) -> tuple[Floats32, Floats32]:
    """Items (n, d) and queries (m, d), of unit length, around the same centres."""
    rng = np.random.default_rng(seed)
    strength = (np.arange(1, WIDTH + 1) ** -0.35).astype(np.float32)
    centres = rng.normal(size=(CENTRES, WIDTH)).astype(np.float32) * strength
    sizes = np.arange(1, CENTRES + 1) ** -0.7

    def draw(count: int, apart: float) -> Floats32:
        of = rng.choice(CENTRES, count, p=sizes / sizes.sum())
        noise = rng.standard_normal((count, WIDTH), np.float32) * strength
        return _unit(centres[of] + np.float32(apart) * noise)

    return draw(items, 0.7), draw(queries, 0.9)


def _unit(vectors: Floats32) -> Floats32:
    unit: Floats32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _answers(vectors: Floats32, queries: Floats32) -> list[Ids]:
    """The true answer to each query."""
    return [
        np.argpartition(scores, -COUNT)[-COUNT:]
        for some in np.array_split(queries, 10)
        for scores in some @ vectors.T
    ]


def _recall(searcher: Searcher, queries: Floats32, answers: list[Ids]) -> float:
    found = [searcher.search(query[None], COUNT) for query in queries]
    return float(np.mean([np.isin(a, f).mean() for a, f in zip(answers, found, strict=True)]))


def _latencies(searcher: Searcher, queries: Floats32) -> NDArray[np.float64]:
    """Of one query after the other, in microseconds."""
    times = np.empty(len(queries))
    for number, query in enumerate(queries):
        begun = perf_counter()
        searcher.search(query[None], COUNT)
        times[number] = perf_counter() - begun
    return times * 1e6


def _crossover(report: Callable[[str], None]) -> dict[str, float]:
    """From how many items on lists are faster than comparing with all."""
    figures: dict[str, float] = {}
    crossover = 0.0
    for items in (2000, 5000, 10_000, 20_000, 40_000):
        vectors, queries = make_vectors(items, QUERIES)
        times: dict[bool, list[float]] = {True: [], False: []}
        indexes = {}
        for exact in times:
            indexes[exact] = ItemIndex(WIDTH, IndexConfig(exact_below=items + exact))
            indexes[exact].upsert(np.arange(items), vectors)
            indexes[exact].settle()
        for _ in range(ROUNDS):
            for exact, index in indexes.items():
                laps = []
                for query in queries:
                    begun = perf_counter()
                    index.search(query[None], COUNT, _NONE)
                    laps.append(perf_counter() - begun)
                times[exact].append(median(laps) * 1e6)
        exact_us, lists_us = median(times[True]), median(times[False])
        figures |= {f"exact_us_{items}": exact_us, f"lists_us_{items}": lists_us}
        report(f"{items:,} items: exact {exact_us:.0f} us, lists {lists_us:.0f} us")
        if exact_us <= lists_us:
            crossover = items
    return figures | {"exact_no_slower_up_to": crossover}


def _against_others(size: str, items: int, report: Callable[[str], None]) -> dict[str, float]:
    vectors, queries = make_vectors(items, 3 * QUERIES)
    tuning, queries = queries[: 2 * QUERIES], queries[2 * QUERIES :]
    answers, tuning_answers = _answers(vectors, queries), _answers(vectors, tuning[:QUERIES])
    searchers: dict[str, Searcher] = {}
    figures: dict[str, float] = {}
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, make in SEARCHERS.items():
        if name == "faiss_graph" and items > SIZES["100k"]:
            continue
        begun = perf_counter()
        try:
            searcher = make(vectors, tuning)
        except ModuleNotFoundError as error:
            report(f"{error.name} is not installed: `make peers`")
            continue
        searchers[name] = searcher
        figures[f"build_s_{name}_{size}"] = perf_counter() - begun
        curves[name] = _tune(searcher, tuning[:QUERIES], tuning_answers)
        report(f"{name} built in {perf_counter() - begun:.0f} s, {size} items")
    for name, times in _rounds(searchers, queries).items():
        recall = _recall(searchers[name], queries, answers)
        figures[f"recall_{name}_{size}"] = recall
        figures[f"p50_us_{name}_{size}"] = median(np.median(lap) for lap in times)
        figures[f"p99_us_{name}_{size}"] = median(np.percentile(lap, 99) for lap in times)
        report(_line(name, size, figures))
    figures[f"ours_over_best_{size}"] = _over_best(figures, "p50_us", size)
    figures |= _updating(searchers, vectors, queries, size, report)
    if items == SIZES["100k"]:
        _draw_latencies(searchers["ours"], queries, answers, curves)
    return figures


def _tune(searcher: Searcher, queries: Floats32, answers: list[Ids]) -> list[tuple[float, float]]:
    """Sets the least effort that finds enough; (recall, latency) of those that were tried."""
    tried = []
    for effort in searcher.efforts:
        searcher.set_effort(effort)
        recall = _recall(searcher, queries, answers)
        tried.append((recall, float(np.median(_latencies(searcher, queries)))))
        if recall >= RECALL:
            break
    return tried


def _rounds(
    searchers: dict[str, Searcher], queries: Floats32
) -> dict[str, list[NDArray[np.float64]]]:
    times: dict[str, list[NDArray[np.float64]]] = {name: [] for name in searchers}
    for _ in range(ROUNDS):
        for name, searcher in searchers.items():
            times[name].append(_latencies(searcher, queries))
    return times


def _over_best(figures: dict[str, float], what: str, size: str) -> float:
    others = [
        value
        for name, value in figures.items()
        if name.startswith(what) and name.endswith(f"_{size}") and "_ours_" not in name
    ]
    return figures[f"{what}_ours_{size}"] / min(others, default=np.inf)


def _line(name: str, size: str, figures: dict[str, float]) -> str:
    told = {
        f.removesuffix(f"_{name}_{size}"): v
        for f, v in figures.items()
        if f.endswith(f"_{name}_{size}")
    }
    return f"{name} {size}: " + ", ".join(f"{what} {value:,.4g}" for what, value in told.items())


def _updating(
    searchers: dict[str, Searcher],
    vectors: Floats32,
    queries: Floats32,
    size: str,
    report: Callable[[str], None],
) -> dict[str, float]:
    """Latencies while vectors move, and the recall for where they are then."""
    figures: dict[str, float] = {}
    for name, searcher in searchers.items():
        if name == "faiss_graph":
            continue
        now = vectors.copy()
        for label, rate in (("updating", UPDATES_PER_S), ("flat_out", 1e12)):
            if label == "flat_out" and name != "ours":
                continue
            moving = _Moving(searcher, now, rate)
            moving.start()
            begun, times = perf_counter(), []
            while perf_counter() - begun < UPDATING_S or not moving.written:
                times.append(_latencies(searcher, queries))
            moving.end()
            if label == "flat_out":
                figures[f"updates_per_s_{size}"] = moving.rate
                report(f"ours {size}: {moving.rate:,.0f} updates/s with searches going on")
                continue
            laps = np.concatenate(times)
            figures |= {
                f"updating_p50_us_{name}_{size}": float(np.median(laps)),
                f"updating_p99_us_{name}_{size}": float(np.percentile(laps, 99)),
                f"updating_rate_{name}_{size}": moving.rate,
                f"recall_{name}_updating_{size}": _recall(
                    searcher, queries, _answers(now, queries)
                ),
            }
            report(
                f"{_line(name, size, figures)}; recall"
                f" {figures[f'recall_{name}_updating_{size}']:.3f}"
            )
    figures[f"ours_over_best_updating_{size}"] = _over_best(figures, "updating_p50_us", size)
    return figures


class _Moving(threading.Thread):
    """Moves random items a little, so many a second; `vectors` are where they are."""

    def __init__(self, searcher: Searcher, vectors: Floats32, wanted: float) -> None:
        super().__init__(daemon=True)
        self._searcher, self._vectors, self._wanted = searcher, vectors, wanted
        self._ending = threading.Event()
        self.written, self.rate = 0, 0.0

    def run(self) -> None:
        rng = np.random.default_rng(1)
        # Drawn before the clock starts: only what an index does is measured.
        batch = self._searcher.batch
        noise = 0.02 * rng.standard_normal((batch, WIDTH), np.float32)
        begun = perf_counter()
        while not self._ending.is_set():
            # No item twice in a batch: some libraries have trouble with that.
            step, start = 7919, int(rng.integers(len(self._vectors)))
            ids = (start + step * np.arange(batch)) % len(self._vectors)
            self._vectors[ids] = _unit(self._vectors[ids] + noise)
            self._searcher.write(ids, self._vectors[ids])
            self.written += batch
            self.rate = self.written / (perf_counter() - begun)
            ahead = self.written / self._wanted - (perf_counter() - begun)
            if ahead > 0:
                sleep(ahead)

    def end(self) -> None:
        """Waits for the batch that is being written."""
        self._ending.set()
        self.join()


def _moving_for_long(report: Callable[[str], None]) -> dict[str, float]:
    """The recall while every vector moves on and on, with and without new lists."""
    start, queries = make_vectors(SIZES["100k"], 100)
    kept = IndexConfig(distance=1e9, imbalance=1e9, recall_missed=1.0)
    indexes = {
        "new lists when they drift": ItemIndex(WIDTH),
        "the same lists for ever": ItemIndex(WIDTH, kept),
    }
    ids = np.arange(len(start))
    for index in indexes.values():
        index.upsert(ids, start)
        index.settle()
    rng, vectors = np.random.default_rng(2), start.copy()
    recalls: dict[str, list[float]] = {name: [] for name in indexes}
    times: dict[str, list[float]] = {name: [] for name in indexes}
    for sweep in range(SWEEPS + 1):
        answers = _answers(vectors, queries)
        for name, index in indexes.items():
            found, laps = [], []
            for query, answer in zip(queries, answers, strict=True):
                begun = perf_counter()
                got, _ = index.search(query[None], COUNT, _NONE)
                laps.append(perf_counter() - begun)
                found.append(np.isin(answer, got).mean())
            recalls[name].append(float(np.mean(found)))
            times[name].append(median(laps) * 1e6)
        if sweep == SWEEPS:
            break
        # All turn together, users too, as towers that learn do; and each item goes its own way.
        turn = 0.02 * rng.standard_normal((WIDTH, WIDTH), np.float32)
        turn = np.linalg.qr(np.eye(WIDTH, dtype=np.float32) + turn - turn.T)[0]
        vectors = _unit((vectors + 0.01 * rng.standard_normal(vectors.shape, np.float32)) @ turn)
        queries = _unit(queries @ turn)
        for part in np.array_split(rng.permutation(ids), len(ids) // 1000):
            for index in indexes.values():
                index.upsert(part, vectors[part])
                for query in queries[rng.integers(len(queries), size=4)]:
                    index.search(query[None], COUNT, _NONE)
    line_plot(
        DOCS / "index-updates.svg",
        "Recall@100 while every vector of 100 k items moves on",
        ("times that every vector was updated", "recall"),
        list(range(SWEEPS + 1)),
        recalls,
    )
    new, old = indexes
    figures = {
        "recall_while_moving": float(np.mean(recalls[new])),
        "recall_while_moving_same_lists": float(np.mean(recalls[old])),
        "recall_while_moving_least": min(recalls[new]),
        "us_after_sweeps_over_before": times[new][-1] / times[new][0],
        "us_after_sweeps_over_before_same_lists": times[old][-1] / times[old][0],
        "lists_made": indexes[new].figures()["trainings"],
    }
    report(", ".join(f"{name} {value:,.4g}" for name, value in figures.items()))
    return figures


def _draw_latencies(
    ours: Searcher,
    queries: Floats32,
    answers: list[Ids],
    curves: dict[str, list[tuple[float, float]]],
) -> None:
    """How long it takes to find what share of the answer."""
    curve = []
    for margin in (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55):
        ours.set_effort(margin)
        recall = _recall(ours, queries, answers)
        curve.append((recall, float(np.median(_latencies(ours, queries)))))
    drawn = {"Headrace": curve} | {
        name.replace("_", " "): points for name, points in curves.items() if name != "ours"
    }
    shares = np.arange(0.90, RECALL + 0.001, 0.01)
    series = {}
    for name, points in drawn.items():
        recalls, latencies = np.array(sorted(points)).T
        series[name] = np.interp(shares, recalls, latencies).tolist()
    line_plot(
        DOCS / "index.svg",
        "Search among 100 k items, 100 best, one thread",
        ("recall@100", "microseconds"),
        [float(share) for share in shares],
        series,
    )
