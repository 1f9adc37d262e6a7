"""The trainer: a Step from `samples` to versions. Each record is one training step."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from features.batch import Ids, Jagged, Samples, read_declarations, read_samples
from streaming.artefact import Artefact
from streaming.cuts import GONE
from streaming.dead_letters import DeadLetter, encode_letter
from streaming.errors import ArtefactError
from streaming.log import Append, Record
from streaming.samples import decode_samples
from trainers.arrays import (
    arrays_table,
    matrix_column,
    table_arrays,
    table_tensors,
    tensors_table,
)
from trainers.corpus import Corpus
from trainers.evaluation import RankingQuality, best_scores, full_ranks
from trainers.frequency import FrequencyConfig, FrequencyEstimator
from trainers.models import RetrievalStep, Retriever, create
from trainers.negatives import Negatives, NegativesConfig
from trainers.versions import Version, VersionInfo

import pyarrow as pa  # isort: skip

logger = logging.getLogger(__name__)
_NOT_FOUND = np.iinfo(np.int64).max  # the rank of an item that is not in the corpus


@dataclass(frozen=True)
class TrainerConfig:
    """How a model is trained and published.

    `refresh` item vectors are renewed each step in turn, beside those of the step's items: none
    is older than the number of items over `refresh`, in steps. A version goes out
    `publish_every_s` after the one before if anything was learnt; each `snapshot_every`-th is a
    snapshot. Rows travel as `wire` numbers. `popularity_half_life` counts samples.
    """

    model: str = "two_tower"
    options: Mapping[str, Any] = field(default_factory=dict)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    dense_learning_rate: PositiveFloat = 0.002
    refresh: NonNegativeInt = 256
    recall_at: tuple[int, ...] = (10, 50)
    publish_every_s: float = 0.1
    snapshot_every: PositiveInt = 100
    wire: Literal["float32", "float16"] = "float32"
    popularity_half_life: PositiveFloat = 20_000.0
    frequency: FrequencyConfig = field(default_factory=FrequencyConfig)
    seed: int = 0


class Trainer:
    """Scores each micro-batch, learns it, and hands out versions of what it has learnt.

    `lineage` names this incarnation. The state that `snapshot` gives is the whole of it: a
    trainer built from it and given the same records ends with the same bits.
    """

    def __init__(self, config: TrainerConfig, lineage: str, state: Artefact | None = None) -> None:
        self._config = config
        self._lineage = lineage
        self.model: Any = create(config.model, config.options)
        self._retriever: Retriever = self.model
        self._dense = torch.optim.Adam(
            self.model.parameters(), lr=config.dense_learning_rate, fused=True
        )
        self._frequency = FrequencyEstimator(config.frequency)
        self.corpus = Corpus(self.model.width)
        self._rng = np.random.Generator(np.random.PCG64(config.seed))
        self._negatives = Negatives(config.negatives, self._rng)
        self._ranking = RankingQuality(config.recall_at)
        self._popularity = RankingQuality(config.recall_at, "popularity_")
        self.steps = 0
        self.samples = 0
        self.refused = 0
        self._loss = 0.0
        self._gradient_norm = 0.0
        self._watermark_us: int | None = None
        self._learnt_logged_us: int | None = None
        if state is not None:
            try:
                self._restore(state)
            except (ValueError, RuntimeError, KeyError) as error:
                raise ArtefactError(
                    f"the saved state does not fit the recipe's [trainer] ({error}): undo the"
                    " change, or start over with `headrace run --fresh`"
                ) from error
        self._published = _Cursor()
        self._durable = self.mark()

    # -- the Step protocol -----------------------------------------------------------------

    def on_batch(self, records: Sequence[Record]) -> list[Append]:
        refused = []
        for record in records:
            batch = decode_samples(record)
            self._declare(batch)
            samples = read_samples(batch)
            if len(samples.item_ids):
                self._test(samples)
                if not self._learn(samples):
                    refused.append(_refusal(record))
            self._learnt_logged_us = int(batch["logged_us"].to_numpy().max())
            self.steps += 1
        return refused

    def on_time(self, now_us: int) -> list[Version]:
        due = now_us - self._published.at_us >= self._config.publish_every_s * 1e6
        changed = self.steps != self._published.step
        if self._published.number is not None and not (due and changed):
            return []
        return [self._version(now_us)]

    def snapshot(self) -> Artefact:
        return self.changes(Clocks())

    def mark(self) -> Clocks:
        return Clocks(self.corpus.clock, {n: t.clock for n, t in self._retriever.tables.items()})

    def changes(self, since: Clocks) -> Artefact:
        """As `snapshot`, but of tables and corpus only what changed since a mark."""
        meta = {
            "model": self._config.model,
            "rng": self._rng.bit_generator.state,
            "steps": self.steps,
            "samples": self.samples,
            "refused": self.refused,
            "loss": self._loss,
            "gradient_norm": self._gradient_norm,
            "watermark_us": self._watermark_us,
            "learnt_logged_us": self._learnt_logged_us,
        }
        shards = {
            "dense": tensors_table(self.model.state_dict()),
            "optimizer": arrays_table(self._optimizer_state()),
            "frequency": arrays_table(self._frequency.state()),
            "negatives": arrays_table(self._negatives.state()),
            "ranking": arrays_table(self._ranking.state()),
            "popularity": arrays_table(self._popularity.state()),
            "corpus": self.corpus.table(since.corpus),
        }
        for name, table in self._retriever.tables.items():
            clock = since.tables.get(name)
            shards[f"table-{name}"] = table.table(clock)
            shards[f"filter-{name}"] = arrays_table(table.filter_state())
            if clock is not None:
                shards[f"table-{name}{GONE}"] = pa.table({"id": table.gone_since(clock)})
        return Artefact(json.loads(json.dumps(meta)), shards)

    def settle(self, mark: Clocks) -> None:
        self._durable = mark
        self._forget_told()

    @property
    def metrics(self) -> dict[str, float]:
        """Progressive figures; recall is that of liked items against the whole corpus."""
        return {
            **self._ranking.get(),
            **self._popularity.get(),
            "loss": self._loss,
            "gradient_norm": self._gradient_norm,
            "samples": float(self.samples),
            "items": float(len(self.corpus)),
            "refused": float(self.refused),
            "oldest_vector_steps": len(self.corpus) / max(1, self._config.refresh),
            **self._table_figures(),
            **self._frequency.figures(step=self.samples / max(1, self.steps)),
        }

    def _table_figures(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for name, table in self._retriever.tables.items():
            figures |= {f"{name}_rows": len(table), f"{name}_rows_evicted": table.evicted}
        return figures

    # -- one step --------------------------------------------------------------------------

    def _declare(self, batch: pa.RecordBatch) -> None:
        items = read_declarations(batch)
        if items.ids.size:
            self._refresh(self.corpus.add(items))

    @torch.no_grad()
    def _test(self, samples: Samples) -> None:
        """Scores what was liked, by the model and by popularity, as serving would have."""
        liked = np.flatnonzero(samples.liked)
        if liked.size == 0 or len(self.corpus) == 0:
            return
        targets = self.corpus.find(samples.item_ids[liked])
        known = targets >= 0
        history = samples.users.history
        places = Jagged(self.corpus.find(history.values), history.offsets).take(liked)
        seen = places.where(places.values >= 0)
        queries = self._retriever.query(samples.users)[liked]  # (B, K, d)
        scores = best_scores(queries, self.corpus.vectors).numpy()  # (B, N)
        popular = np.broadcast_to(self.corpus.counts, scores.shape)
        for quality, table in ((self._ranking, scores), (self._popularity, popular)):
            ranks = full_ranks(table, np.maximum(targets, 0), seen)
            quality.update(np.where(known, ranks, _NOT_FOUND))

    def _learn(self, samples: Samples) -> bool:
        """One gradient step; False if it was refused: a number in it is not finite."""
        self.corpus.add_unseen(np.unique(samples.item_ids))
        places, step = self._retrieval_step(samples)
        for table in self._retriever.tables.values():
            table.training = True
            table.now_us = max(int(samples.at_us.max()), self._watermark_us or 0)
        try:
            loss = self._retriever.loss(step)
            learnt = _is_finite(samples, loss) and self._finds_gradients(loss)
            if learnt:
                self._dense.step()
                self._loss += 0.02 * (float(loss.detach()) - self._loss)
            else:
                self.refused += 1
            for table in self._retriever.tables.values():
                table.step() if learnt else table.forget_calls()
        finally:
            for table in self._retriever.tables.values():
                table.training = False
        self._refresh(places)
        self._refresh(self.corpus.next_slice(self._config.refresh))
        if learnt:
            self.samples += len(samples.item_ids)
            self._watermark_us = max(int(samples.at_us.max()), self._watermark_us or 0)
        return learnt

    def _finds_gradients(self, loss: Tensor) -> bool:
        """Whether all gradients of the dense parameters are finite."""
        self._dense.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._gradient_norm = float(norm)
        return bool(torch.isfinite(norm))

    def _retrieval_step(self, samples: Samples) -> tuple[Ids, RetrievalStep]:
        """The places of the step's own items, and what the model learns from."""
        size = len(samples.item_ids)
        self._frequency.update(samples.item_ids, elapsed=float(size))
        places = self.corpus.find(samples.item_ids)
        self.corpus.count(places, size, self._config.popularity_half_life)
        history = samples.users.history
        candidates = self._negatives.choose(
            samples.users.ids,
            places,
            Jagged(self.corpus.find(history.values), history.offsets),
            len(self.corpus),
            lambda places: self._frequency.probability(self.corpus.ids[places]),
        )
        step = RetrievalStep(
            samples.users,
            self.corpus.items(candidates.places),
            self.corpus.vectors[torch.from_numpy(candidates.remembered)],
            candidates.sampling,
            torch.tensor(samples.rewards),
        )
        return np.unique(places), step

    @torch.no_grad()
    def _refresh(self, places: Ids) -> None:
        if places.size:
            self.corpus.refresh(places, self._retriever.items(self.corpus.items(places)))

    # -- versions and cuts -----------------------------------------------------------------

    def _version(self, now_us: int) -> Version:
        before = self._published
        number = 0 if before.number is None else before.number + 1
        whole = number % self._config.snapshot_every == 0
        if whole:
            before = _Cursor()
        tables = self._retriever.tables
        vectors = self.corpus.refreshed_since(before.clocks.corpus)
        shards = {"vectors": self._rows_table(vectors.ids, vectors.rows)}
        for name, table in tables.items():
            clock = before.clocks.tables.get(name, 0)
            shards[f"table-{name}"] = self._rows_table(*table.touched_since(clock))
            if not whole:
                shards[f"table-{name}{GONE}"] = pa.table({"id": table.gone_since(clock)})
        shards["dense"] = tensors_table(self.model.state_dict())
        info = VersionInfo(
            self._config.model,
            self._lineage,
            number,
            None if whole else number - 1,
            self._watermark_us,
            # What was replayed after a restart is not news.
            self._learnt_logged_us if self._published.number is not None else None,
            self.steps,
            dict(self._config.options),
            self.metrics,
        )
        self._published = _Cursor(number, now_us, self.steps, self.mark())
        self._forget_told()
        return Version(info, shards)

    def _forget_told(self) -> None:
        """What both the versions and the cuts have told of need not be remembered."""
        for name, table in self._retriever.tables.items():
            published = self._published.clocks.tables.get(name, 0)
            table.settle(min(published, self._durable.tables[name]))

    def _rows_table(self, ids: Ids, rows: NDArray[np.float32]) -> pa.Table:
        return pa.table(
            {"id": ids, "row": matrix_column(rows.astype(self._config.wire, copy=False))}
        )

    def _optimizer_state(self) -> dict[str, NDArray[Any]]:
        return {
            f"{index}.{name}": value.detach().numpy()
            for index, values in self._dense.state_dict()["state"].items()
            for name, value in values.items()
        }

    def _restore(self, state: Artefact) -> None:
        meta, shards = state.meta, state.shards
        if meta["model"] != self._config.model:
            raise ArtefactError(
                f"the saved state is of model {meta['model']!r}, the recipe says"
                f" {self._config.model!r}: name the old one, or start over with"
                " `headrace run --fresh`"
            )
        for name, table in self._retriever.tables.items():
            table.restore(shards[f"table-{name}"], table_arrays(shards[f"filter-{name}"]))
        self.model.load_state_dict(table_tensors(shards["dense"]))
        optimizer: dict[int, dict[str, Tensor]] = {}
        for key, tensor in table_tensors(shards["optimizer"]).items():
            index, name = key.split(".", 1)
            optimizer.setdefault(int(index), {})[name] = tensor
        self._dense.load_state_dict({**self._dense.state_dict(), "state": optimizer})
        self._frequency.load(table_arrays(shards["frequency"]))
        self._negatives.load(table_arrays(shards["negatives"]))
        self._ranking.load(table_arrays(shards["ranking"]))
        self._popularity.load(table_arrays(shards["popularity"]))
        self.corpus.restore(shards["corpus"])
        self._rng.bit_generator.state = meta["rng"]
        self.steps, self.samples, self.refused = meta["steps"], meta["samples"], meta["refused"]
        self._loss, self._gradient_norm = meta["loss"], meta["gradient_norm"]
        self._watermark_us = meta["watermark_us"]
        self._learnt_logged_us = meta["learnt_logged_us"]


@dataclass(frozen=True, slots=True)
class Clocks:
    """How far a consumer has told of what changed; the defaults stand for nothing at all."""

    corpus: int = -1
    tables: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The last version that went out; the defaults stand for none."""

    number: int | None = None
    at_us: int = 0
    step: int = -1
    clocks: Clocks = field(default_factory=Clocks)


def _is_finite(samples: Samples, loss: Tensor) -> bool:
    # A model may only compare the rewards of a history: then the loss does not show what they are.
    return bool(np.isfinite(samples.users.rewards).all()) and bool(torch.isfinite(loss))


def _refusal(record: Record) -> Append:
    """The whole micro-batch as a dead letter: the log forgets its samples in time."""
    letter = DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        reason="this micro-batch, its loss or a gradient is not finite; it was not learnt",
        record=record.value,
        logged_us=record.logged_us,
    )
    return encode_letter(letter, record.key)
