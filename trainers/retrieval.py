"""What retrieval models learn from: a corpus of items, negatives, frequencies; and their tests.

Each of them puts users and items into one space, so the vectors of all items are kept beside the
model, and go out with its versions. In a group the corpus and the counters are the same in all
ranks; each computes a part of the vectors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from features.batch import Ids, Items, Jagged, Samples, Users, read_declarations, read_samples
from trainers.arrays import arrays_table, rows_table
from trainers.corpus import Corpus
from trainers.descriptions import description_columns
from trainers.evaluation import RankingQuality, best_scores, corpus_ranks, predicted_hits
from trainers.families import Batch, Evenly, Moment
from trainers.frequency import FrequencyConfig, FrequencyEstimator
from trainers.gate import Gate, bits_of_ranks
from trainers.models import RetrievalStep, Retriever
from trainers.negatives import Negatives, NegativesConfig
from trainers.peers import Arrays, Peers
from trainers.resharding import SavedRanks

_POPULAR = 64  # items whose frequencies are compared with counted ones
# In how many steps the model's own chances are looked at, and for how many tests of such a one:
# that takes longer than a test.
_PREDICT_EVERY, _PREDICTED = 8, 8


@dataclass(frozen=True)
class RetrievalConfig:
    """What retrieval models are trained and tested against.

    With `evenly` every sample counts as much, else every step, however few samples it has: then
    what comes alone is learnt at once, and what comes among many hardly; rankers learn evenly.
    `refresh` item vectors are renewed each step in turn, beside those of the step's items: none is
    older than the number of items over `refresh`, in steps. `popularity_half_life` counts samples.
    """

    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    evenly: bool = False
    refresh: NonNegativeInt = 256
    recall_at: tuple[int, ...] = (10, 50)
    popularity_half_life: PositiveFloat = 20_000.0
    frequency: FrequencyConfig = field(default_factory=FrequencyConfig)


class Retrieval:
    """The family of retrieval models (`trainers.families.Family`).

    Vectors go out as `wire` numbers; what is drawn is drawn by `seed`. It tells the `gate` of its
    tests.
    """

    rows = ("vectors",)

    def __init__(  # noqa: PLR0913 - what the trainer has made for its model
        self,
        model: Any,
        config: RetrievalConfig,
        device: str,
        wire: str,
        seed: int,
        peers: Peers,
        gate: Gate,
    ) -> None:
        self._model: Retriever = model
        self._config = config
        self._device = device
        self._wire = wire
        self._peers = peers
        self._gate = gate
        self._estimator = FrequencyEstimator(config.frequency)
        self._frequency = peers.frequency(self._estimator)
        self.corpus = Corpus(model.width)
        others = (peers.rank,) if peers.rank else ()
        seeds = np.random.SeedSequence(seed, spawn_key=others)
        self._rng = np.random.Generator(np.random.PCG64(seeds))
        self._negatives = Negatives(config.negatives, self._rng)
        self._evenly = Evenly() if config.evenly else None
        self._ranking = RankingQuality(config.recall_at)
        self._popularity = RankingQuality(config.recall_at, "popularity_")

    # -- reading ---------------------------------------------------------------------------

    def read(self, batch: pa.RecordBatch | None) -> Batch:
        if batch is None:
            return Batch(None, 0, _NOTHING, [_NOTHING, _NOTHING, _NO_FIELDS, _NOTHING, _NOTHING])
        items, samples = read_declarations(batch), read_samples(batch)
        count = len(samples.item_ids)
        told = _Told(
            items.ids, items.tokens.values, items.fields, items.tokens.offsets, samples.item_ids
        )
        if not count:
            return Batch(None, 0, _NOTHING, told)
        return Batch(samples, count, samples.at_us.max(keepdims=True), told)

    def declare(self, told: Sequence[Arrays], samples: Samples | None) -> Samples | None:
        places = [self.corpus.add(t.items) for t in map(_Told._make, told) if t.declared.size]
        if places:
            self._renew(np.unique(np.concatenate(places)))
        return None if samples is None else replace(samples, users=self.describe(samples.users))

    def describe(self, users: Users) -> Users:
        """The users with what describes the items of their histories, if the model reads that."""
        if not self._model.describes:
            return users
        return replace(users, described=self.corpus.describe(users.history.values))

    # -- testing ---------------------------------------------------------------------------

    @torch.no_grad()
    def test(self, samples: Samples, now: Moment) -> None:
        """Scores what was liked, by the model and by popularity, as serving would have."""
        liked = np.flatnonzero(samples.liked)
        if liked.size == 0 or len(self.corpus) == 0:
            return
        targets = self.corpus.find(samples.item_ids[liked])
        users = samples.users.take(liked)
        seen = Jagged(self.corpus.find(users.history.values), users.history.offsets)
        queries = self._model.query(users).cpu()  # (B, K, d)
        scores = best_scores(queries, self.corpus.vectors).numpy()  # (B, N)
        popular = np.broadcast_to(self.corpus.counts, scores.shape)
        ranks = []
        for quality, table in ((self._ranking, scores), (self._popularity, popular)):
            ranks.append(corpus_ranks(table, targets, seen))
            quality.update(ranks[-1])
        if not self._gate.wants(now.samples):
            return
        self._gate.observe(
            now.steps,
            users.ids,
            np.diff(users.history.offsets),
            bits_of_ranks(np.minimum(ranks, len(self.corpus))),  # who is not there is no further
            ranks[0] < max(self._config.recall_at),
            self._predicted(scores, seen, now.steps),
        )

    def _predicted(
        self, scores: NDArray[np.float32], seen: Jagged, steps: int
    ) -> NDArray[np.float64]:
        """The chance that each item (B,) is found, as the model says; NaN where not asked."""
        predicted = np.full(len(scores), np.nan)
        if steps % _PREDICT_EVERY == 0:
            predicted[:_PREDICTED] = predicted_hits(
                scores[:_PREDICTED],
                seen.where(seen.values >= 0),
                self._model.temperature,
                max(self._config.recall_at),
            )
        return predicted

    # -- learning --------------------------------------------------------------------------

    def note(self, told: Sequence[Arrays]) -> None:
        taken = _taken(told)
        self.corpus.add_unseen(np.unique(taken))
        self._frequency.update(taken, elapsed=float(taken.size))
        self.corpus.count(self.corpus.find(taken), taken.size, self._config.popularity_half_life)

    def weight(self, size: int) -> float:
        return 1.0 if self._evenly is None else self._evenly.weight(size)

    def loss(self, samples: Samples, seed: int) -> Tensor:
        history = samples.users.history
        candidates = self._negatives.choose(
            samples.users.ids,
            self.corpus.find(samples.item_ids),
            Jagged(self.corpus.find(history.values), history.offsets),
            len(self.corpus),
            lambda places: self._frequency.probability(self.corpus.ids[places]),
        )
        step = RetrievalStep(
            samples.users,
            self.corpus.items(candidates.places),
            self.corpus.vectors[torch.from_numpy(candidates.remembered)].to(self._device),
            candidates.sampling,
            torch.tensor(samples.rewards),
            samples.item_ids,
            candidates.drawn,
            seed,
        )
        return self._model.loss(step)

    def is_finite(self, samples: Samples) -> bool:
        # A model may only compare the rewards of a history: the loss does not show what they are.
        return bool(np.isfinite(samples.users.rewards).all())

    def refresh(self, told: Sequence[Arrays]) -> None:
        in_turn = self.corpus.next_slice(self._config.refresh)
        places = self.corpus.find(_taken(told))
        self._renew(np.unique(np.concatenate([places, in_turn])))

    @torch.no_grad()
    def _renew(self, places: Ids) -> None:
        """Sets the vectors of items anew; each rank computes its part of them."""
        ranks = self._peers.size
        mine, vectors = places[self._peers.rank :: ranks], torch.empty(0, self._model.width)
        if mine.size:
            vectors = self._model.items(self.corpus.items(mine)).cpu()
        self._peers.meet()
        all_vectors = torch.empty(len(places), self._model.width)
        for rank, (theirs,) in enumerate(self._peers.share([vectors.numpy()])):
            all_vectors[rank::ranks] = torch.from_numpy(theirs)
        self.corpus.refresh(places, all_vectors)

    # -- figures ---------------------------------------------------------------------------

    def metrics(self, now: Moment) -> dict[str, float]:
        """Recall is that of liked items against the whole corpus."""
        trust = self._estimator.figures(step=now.samples / max(1, now.steps))
        ranking, popularity, figures = (
            torch.from_numpy(self._ranking.sums()),
            torch.from_numpy(self._popularity.sums()),
            torch.tensor([*trust.values()], dtype=torch.float64),
        )
        self._peers.add_up([ranking, popularity, figures])
        figures /= self._peers.size  # of a rank, on average
        return {
            **self._ranking.both_figures(ranking.numpy()),
            **self._popularity.both_figures(popularity.numpy()),
            "items": float(len(self.corpus)),
            "oldest_vector_steps": len(self.corpus) / max(1, self._config.refresh),
            **dict(zip(trust, figures.tolist(), strict=True)),
        }

    def gauges(self) -> dict[str, float]:
        """`frequency_error`, the mean relative difference of the estimated frequencies of the most
        popular items from those that were counted, which fade alike; not in a group, where each
        rank knows a part.
        """
        counts = self.corpus.counts
        if self._peers.size > 1 or counts.size < _POPULAR or not counts.sum():
            return {}
        places = np.argpartition(counts, -_POPULAR)[-_POPULAR:]
        counted = counts[places] / counts.sum()
        estimated = self._estimator.probability(self.corpus.ids[places])
        error = np.abs(estimated / np.maximum(counted, 1e-12) - 1.0).mean()
        return {"frequency_error": float(error)}

    # -- versions and cuts -----------------------------------------------------------------

    @property
    def clock(self) -> int:
        return self.corpus.clock

    def shards(self, since: int) -> dict[str, pa.Table]:
        vectors = self.corpus.refreshed_since(since)
        table = rows_table(vectors.ids, vectors.rows, self._wire)
        if self._model.describes:
            items = self.corpus.items(self.corpus.find(vectors.ids))
            for name, column in description_columns(items).items():
                table = table.append_column(name, column)
        return {"vectors": table}

    def state(self) -> dict[str, pa.Table]:
        generator = json.dumps(self._rng.bit_generator.state).encode()
        return {
            "frequency": arrays_table(self._estimator.state()),
            "negatives": arrays_table(self._negatives.state()),
            "ranking": arrays_table(self._ranking.state()),
            "popularity": arrays_table(self._popularity.state()),
            "rng": arrays_table({"state": np.frombuffer(generator, np.uint8)}),
        }

    def common_state(self, since: int) -> dict[str, pa.Table]:
        steps = {} if self._evenly is None else {"steps": self._evenly.table()}
        return {"corpus": self.corpus.table(since), **steps}

    def restore(self, saved: SavedRanks, shards: Mapping[str, pa.Table]) -> None:
        self._estimator.load(saved.frequency())
        for name, quality in (("ranking", self._ranking), ("popularity", self._popularity)):
            saved.metric(name, quality, lambda: RankingQuality(self._config.recall_at))
        self.corpus.restore(shards["corpus"])
        if self._evenly is not None and "steps" in shards:
            self._evenly.load(shards["steps"])
        if (own := saved.own("negatives")) is not None:
            self._negatives.load(own)
        if (own := saved.own("rng")) is not None:
            self._rng.bit_generator.state = json.loads(own["state"].tobytes())


class _Told(NamedTuple):
    """What a rank tells of its micro-batch; nothing in any field if it has none."""

    declared: Ids  # items that it describes, by these tokens of these fields
    tokens: Ids
    fields: NDArray[np.int32]
    offsets: Ids
    taken: Ids  # the items of its samples, in their order

    @property
    def items(self) -> Items:
        return Items(self.declared, Jagged(self.tokens, self.offsets), self.fields)


_NOTHING, _NO_FIELDS = np.empty(0, np.int64), np.empty(0, np.int32)


def _taken(told: Sequence[Arrays]) -> Ids:
    return np.concatenate([_Told._make(arrays).taken for arrays in told])
