"""The live watch: how well the model that answers now ranks what users like next.

Liked samples are ranked among all items by the version that is served, test-then-train as the
trainer does it (`trainers.trainer`): what the user had in his history is hidden, and a version that
may have learnt the sample already is not asked. Beside it stand what the newest version says of
itself, which may be held back, and popularity: with a good gate the live model is above both or
nearly the candidate.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from features.batch import Jagged, Samples, read_samples
from features.definitions import FeatureError
from serving import bounds
from serving.replica import Replica
from serving.sample_watch import Joined
from serving.served_model import ServedModel
from serving.served_watch import QualityConfig
from streaming.metrics import Metrics
from trainers.evaluation import RankingQuality, best_scores, corpus_ranks
from trainers.versions import VersionInfo

logger = logging.getLogger(__name__)
Ids = NDArray[np.int64]
OF = ("live", "candidate", "popularity")


class LiveWatch:
    """Tests the served model on some of the samples that come, and not the whole time.

    Any thread may ask, or tell of versions; one takes samples.
    """

    def __init__(
        self,
        replica: Replica,
        config: QualityConfig,
        metrics: Metrics,
        *,
        k: int = 50,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replica = replica
        self._config = config
        self._clock = clock
        self._figure = f"recall@{k}"
        self._live = RankingQuality([k], half_life=config.tested_half_life)
        self._tested = 0
        self._newest: VersionInfo | None = None
        self._rest_until = 0.0
        self._lock = threading.Lock()
        self._complained = False
        told = metrics.gauge(
            "headrace_progressive_figure",
            "Test-then-train figures of the model that answers, of the newest version, and of"
            " popularity, lately.",
            ["figure", "of"],
        )
        self._told = {of: told.labels(self._figure, of) for of in OF}

    def patience_s(self) -> float | None:
        """None after a test, which takes a sample that is not learnt yet."""
        return max(0.0, self._rest_until - self._clock()) if self._config.enabled else None

    def know(self, info: VersionInfo) -> None:
        """Hears of the newest version, whether it is served or held back."""
        self._newest = info
        for of in ("candidate", "popularity"):
            value = self._announced(of)
            if value is not None:
                self._told[of].set(value)

    def take(self, joined: Joined) -> None:
        begun = self._clock()
        if not self._config.enabled or begun < self._rest_until:
            return
        try:
            ranks = self._ranks(joined.rows)
        except FeatureError as error:  # samples of another release
            if not self._complained:
                logger.warning("the served model is not tested: %s", error)
                self._complained = True
            return
        if not len(ranks):
            return
        with self._lock:
            self._live.update(ranks)
            self._tested += len(ranks)
            live = self._live.get()[f"recent_{self._figure}"]
        self._told["live"].set(live)
        done = self._clock()
        self._rest_until = done + (done - begun) / self._config.share

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Of the live model, the newest version and popularity the recall among all items, of the
        recent samples; of the live one also 95 % bounds and how many were `tested` since the start.
        """
        with self._lock:
            live = self._live.get().get(f"recent_{self._figure}")
            tested = self._tested
            count = float(self._live.sums()[1, 0, 0])
        return {
            "live": {self._figure: live, **self._bounds(live, count), "tested": float(tested)},
            "candidate": {self._figure: self._announced("candidate")},
            "popularity": {self._figure: self._announced("popularity")},
        }

    def _bounds(self, live: float | None, count: float) -> dict[str, float | None]:
        if live is None:
            return {"low": None, "high": None}
        # Under fading weights twice as many count as the sum of the weights says (as of a large
        # half-life: sum^2 over the sum of squares).
        size = np.array([min(2 * count, float(self._tested))])
        value = np.array([live])
        told = bounds.rate(value, value * (1 - value) / size, size).told(0) or {}
        return {"low": told["low"], "high": told["high"]}

    def _announced(self, of: str) -> float | None:
        if self._newest is None:
            return None
        name = f"popularity_{self._figure}" if of == "popularity" else self._figure
        return self._newest.metrics.get(f"recent_{name}")

    def _ranks(self, rows: pa.RecordBatch) -> Ids:
        """How many items stand before each liked one, (n,); of few of them."""
        liked = rows["label_liked"].fill_null(False).to_numpy(zero_copy_only=False)
        with self._replica.reading() as served:
            if served is None or len(served) == 0:
                return np.empty(0, np.int64)
            learnt_us = served.info.learnt_logged_us
            if learnt_us is not None:
                liked &= rows["logged_us"].to_numpy() > learnt_us
            chosen = np.flatnonzero(liked)[: self._config.tested]
            samples = read_samples(rows.take(pa.array(chosen)))
            return _ranks(served, samples) if len(samples.item_ids) else np.empty(0, np.int64)


@torch.inference_mode()
def _ranks(served: ServedModel, samples: Samples) -> Ids:
    """The rank (n,) of the item of each sample among all that its user has not in his history."""
    items = np.sort(served.items)
    vectors, _ = served.vectors(items)
    queries = np.stack([asked.queries for asked in served.ask(samples.users)])  # (n, K, d)
    scores = best_scores(torch.from_numpy(queries), torch.from_numpy(vectors)).numpy()
    targets, history = _find(items, samples.item_ids), samples.users.history
    places = Jagged(_find(items, history.values), history.offsets)
    return corpus_ranks(scores, targets, places)


def _find(items: Ids, wanted: Ids) -> Ids:
    """The places of ids among sorted ones, -1 of those that are not there."""
    places = np.minimum(np.searchsorted(items, wanted), len(items) - 1)
    return np.where(items[places] == wanted, places, -1)
