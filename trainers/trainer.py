"""The trainer: a Step from `samples` to versions. Each record is one training step."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from features.batch import Ids, Jagged, Samples, read_declarations, read_samples
from streaming.artefact import Artefact
from streaming.errors import ArtefactError
from streaming.log import DEAD_LETTERS, Append, Record
from streaming.samples import decode_samples
from trainers.arrays import (
    arrays_table,
    matrix_column,
    table_arrays,
    table_tensors,
    tensors_table,
)
from trainers.corpus import Corpus
from trainers.evaluation import ProgressiveRecall, best_scores, full_ranks, hidden_columns
from trainers.frequency import FrequencyConfig, FrequencyEstimator
from trainers.models import RetrievalStep, Retriever, create
from trainers.versions import Version, VersionInfo

import pyarrow as pa  # isort: skip

logger = logging.getLogger(__name__)
_NOT_FOUND = np.iinfo(np.int64).max  # the rank of an item that is not in the corpus


@dataclass(frozen=True)
class TrainerConfig:
    """How a model is trained and published.

    `negatives` items are drawn uniformly from the corpus for every step, beside the batch's own.
    `corrected` subtracts the log of the probability of being a candidate from every logit.
    `refresh` item vectors are renewed each step in turn, beside those of the step's items.
    A version goes out `publish_every_s` after the one before if anything was learnt; each
    `snapshot_every`-th is a snapshot. `popularity_half_life` counts samples.
    """

    model: str = "two_tower"
    options: Mapping[str, Any] = field(default_factory=dict)
    negatives: NonNegativeInt = 512
    corrected: bool = True
    dense_learning_rate: PositiveFloat = 0.002
    refresh: NonNegativeInt = 256
    recall_at: tuple[int, ...] = (10, 50)
    publish_every_s: float = 0.1
    snapshot_every: PositiveInt = 100
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
        self._dense = torch.optim.Adam(self.model.parameters(), lr=config.dense_learning_rate)
        self._frequency = FrequencyEstimator(config.frequency)
        self.corpus = Corpus(self.model.width)
        self._rng = np.random.Generator(np.random.PCG64(config.seed))
        self._recall = ProgressiveRecall(config.recall_at)
        self._popularity = ProgressiveRecall(config.recall_at, "popularity_recall")
        self.steps = 0
        self.samples = 0
        self.refused = 0
        self._loss = 0.0
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
        optimizer = {
            f"{index}.{name}": value.detach().numpy()
            for index, values in self._dense.state_dict()["state"].items()
            for name, value in values.items()
        }
        meta = {
            "model": self._config.model,
            "rng": self._rng.bit_generator.state,
            "steps": self.steps,
            "samples": self.samples,
            "refused": self.refused,
            "loss": self._loss,
            "watermark_us": self._watermark_us,
            "learnt_logged_us": self._learnt_logged_us,
        }
        return Artefact(
            json.loads(json.dumps(meta)),
            {
                **{f"table-{n}": t.table() for n, t in self._retriever.tables.items()},
                "dense": tensors_table(self.model.state_dict()),
                "optimizer": arrays_table(optimizer),
                "frequency": arrays_table(self._frequency.state()),
                "recall": arrays_table(self._recall.state()),
                "popularity": arrays_table(self._popularity.state()),
                "corpus": self.corpus.table(),
            },
        )

    @property
    def metrics(self) -> dict[str, float]:
        """Progressive figures; recall is that of liked items against the whole corpus."""
        return {
            **self._recall.get(),
            **self._popularity.get(),
            "loss": self._loss,
            "samples": float(self.samples),
            "items": float(len(self.corpus)),
            "refused": float(self.refused),
        }

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
        for progressive, table in ((self._recall, scores), (self._popularity, popular)):
            ranks = full_ranks(table, np.maximum(targets, 0), seen)
            progressive.update(np.where(known, ranks, _NOT_FOUND))

    def _learn(self, samples: Samples) -> bool:
        """One gradient step; False if it was refused because its loss is not a number."""
        self.corpus.add_unseen(np.unique(samples.item_ids))
        places, step = self._retrieval_step(samples)
        for table in self._retriever.tables.values():
            table.training = True
        try:
            loss = self._retriever.loss(step)
            learnt = bool(torch.isfinite(loss))
            if learnt:
                self._dense.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
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

    def _retrieval_step(self, samples: Samples) -> tuple[Ids, RetrievalStep]:
        """The places of the step's own items, and what the model learns from."""
        size = len(samples.item_ids)
        self._frequency.update(samples.item_ids, elapsed=float(size))
        places = self.corpus.find(samples.item_ids)
        self.corpus.count(places, size, self._config.popularity_half_life)
        drawn = self._rng.integers(len(self.corpus), size=self._config.negatives)
        candidates = np.unique(np.concatenate([places, drawn]))
        items = self.corpus.items(candidates)
        log_inclusion = self._log_inclusion(samples.users.ids, items.ids)
        positive = torch.from_numpy(np.searchsorted(candidates, places))
        step = RetrievalStep(
            samples.users,
            items,
            positive,
            torch.from_numpy(log_inclusion),
            self._hidden(samples, positive, candidates),
            torch.tensor(samples.rewards),
        )
        return np.unique(places), step

    def _log_inclusion(self, users: Ids, candidates: Ids) -> NDArray[np.float32]:
        """Log of the probability that a candidate stands before a user as a negative, (B, C).

        An item comes up in the samples of *other* users (a user's own are hidden from him) and
        among the drawn; the columns are distinct, so what counts is that it comes up at all.
        """
        if not self._config.corrected:
            return np.zeros((len(users), len(candidates)), np.float32)
        _, user, own = np.unique(users, return_inverse=True, return_counts=True)
        others = len(users) - own[user]  # (B,)
        expected = np.outer(others, self._frequency.probability(candidates))
        expected += self._config.negatives / len(self.corpus)
        np.maximum(expected, 1e-9, out=expected)  # without a negative there is no chance at all
        inclusion: NDArray[np.float32] = np.log(-np.expm1(-expected)).astype(np.float32)
        return inclusion

    def _hidden(self, samples: Samples, positive: Tensor, candidates: Ids) -> Tensor:
        """Candidates the user took at another time are no negatives: history, and this batch."""
        history = samples.users.history
        taken = _index_in(candidates, self.corpus.find(history.values))
        hidden = hidden_columns(history.owners(), taken, (len(positive), len(candidates)))
        users = samples.users.ids
        same = torch.from_numpy(users[:, None] == users[None, :])  # (B, B)
        hidden |= (
            torch.zeros(hidden.shape, dtype=torch.int32)
            .index_add_(1, positive, same.to(torch.int32))
            .bool()
        )
        hidden[torch.arange(len(positive)), positive] = False
        return hidden

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
        vectors = self.corpus.refreshed_since(before.corpus)
        shards = {"vectors": _rows_table(vectors.ids, vectors.rows)}
        for name, table in tables.items():
            shards[f"table-{name}"] = _rows_table(*table.touched_since(before.tables.get(name, 0)))
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
        clocks = {name: table.clock for name, table in tables.items()}
        self._published = _Cursor(number, now_us, self.steps, self.corpus.clock, clocks)
        return Version(info, shards)

    def _restore(self, state: Artefact) -> None:
        meta, shards = state.meta, state.shards
        if meta["model"] != self._config.model:
            raise ArtefactError(
                f"the saved state is of model {meta['model']!r}, the recipe says"
                f" {self._config.model!r}: name the old one, or start over with"
                " `headrace run --fresh`"
            )
        for name, table in self._retriever.tables.items():
            table.restore(shards[f"table-{name}"])
        self.model.load_state_dict(table_tensors(shards["dense"]))
        optimizer: dict[int, dict[str, Tensor]] = {}
        for key, tensor in table_tensors(shards["optimizer"]).items():
            index, name = key.split(".", 1)
            optimizer.setdefault(int(index), {})[name] = tensor
        self._dense.load_state_dict({**self._dense.state_dict(), "state": optimizer})
        self._frequency.load(table_arrays(shards["frequency"]))
        self._recall.load(table_arrays(shards["recall"]))
        self._popularity.load(table_arrays(shards["popularity"]))
        self.corpus.restore(shards["corpus"])
        self._rng.bit_generator.state = meta["rng"]
        self.steps, self.samples, self.refused = meta["steps"], meta["samples"], meta["refused"]
        self._loss, self._watermark_us = meta["loss"], meta["watermark_us"]
        self._learnt_logged_us = meta["learnt_logged_us"]


@dataclass(frozen=True, slots=True)
class _Cursor:
    """How far versions have told of what was learnt; the defaults stand for nothing at all."""

    number: int | None = None
    at_us: int = 0
    step: int = -1
    corpus: int = 0
    tables: Mapping[str, int] = field(default_factory=dict)


def _rows_table(ids: Ids, rows: NDArray[np.float32]) -> pa.Table:
    return pa.table({"id": ids, "row": matrix_column(rows)})


def _index_in(ordered: Ids, values: Ids) -> Ids:
    """Where each value stands in an ordered array without repeats; -1 if it is not there."""
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[at] == values, at, -1)


def _refusal(record: Record) -> Append:
    reason = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "reason": "the loss of this micro-batch is not a finite number; it was not learnt",
    }
    return Append(DEAD_LETTERS, json.dumps(reason).encode())
