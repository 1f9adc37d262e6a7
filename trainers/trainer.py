"""The trainer: a Step from `samples` to versions. Each record is one training step.

In a group of ranks (`trainers.group`) a step takes a record of each rank, or none. What is dense,
the corpus and the counters are then the same in all ranks; tables and frequencies are sharded.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from features.batch import Ids, Items, Jagged, Samples, Users, read_declarations, read_samples
from streaming.artefact import Artefact
from streaming.cuts import GONE
from streaming.dead_letters import DeadLetter, encode_letter
from streaming.errors import ArtefactError
from streaming.log import Append, Record
from streaming.samples import decode_samples
from trainers.arrays import (
    arrays_table,
    column_matrix,
    matrix_column,
    table_arrays,
    table_tensors,
    tensors_table,
)
from trainers.corpus import Corpus
from trainers.descriptions import description_columns
from trainers.evaluation import RankingQuality, best_scores, corpus_ranks, predicted_hits
from trainers.frequency import FrequencyConfig, FrequencyEstimator
from trainers.gate import Gate, GateConfig, Soundness, size_of
from trainers.models import RetrievalStep, Retriever, create
from trainers.negatives import Negatives, NegativesConfig
from trainers.peers import Alone, Peers
from trainers.resharding import SavedRanks, shard_name
from trainers.table import EmbeddingTable
from trainers.versions import Version, VersionInfo

import pyarrow as pa  # isort: skip

logger = logging.getLogger(__name__)
_POPULAR = 64  # items whose frequencies are compared with counted ones
# In how many steps the model's own chances are looked at, and for how many tests of such a one:
# that takes longer than a test.
_PREDICT_EVERY, _PREDICTED = 8, 8


@dataclass(frozen=True)
class TrainerConfig:
    """How a model is trained and published.

    `model` is a registered one, and `name` what it is called where that is not the same.
    `refresh` item vectors are renewed each step in turn, beside those of the step's items: none
    is older than the number of items over `refresh`, in steps. A version goes out
    `publish_every_s` after the one before if anything was learnt: the first of a lineage as a
    snapshot, every other as a delta, and each `snapshot_every`-th as a snapshot too. Rows travel as
    `wire` numbers. `popularity_half_life` counts samples.
    """

    model: str = "two_tower"
    name: str | None = None
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
    gate: GateConfig = field(default_factory=GateConfig)
    seed: int = 0

    @property
    def called(self) -> str:
        """The name under which its versions are published."""
        return self.name or self.model

    @property
    def device(self) -> str:
        """Where the model computes: where its tables have their rows."""
        return str(self.options.get("table", {}).get("device", "cpu"))


class Trainer:
    """Scores each micro-batch, learns it, and hands out versions of what it has learnt.

    `lineage` names this incarnation. The state that `snapshot` gives is the whole of it: a
    trainer built from it and given the same records ends with the same bits. Of a rank among
    `peers` it is the part that no other has, and rank 0's part has what is the same in all.

    `last_good` names the last version of an incarnation before that replicas may serve.
    """

    def __init__(
        self,
        config: TrainerConfig,
        lineage: str,
        state: Artefact | None = None,
        peers: Peers | None = None,
        last_good: str | None = None,
    ) -> None:
        self._config = config
        self._lineage = lineage
        self._peers = peers or Alone()
        self.model: Any = create(config.model, config.options).to(config.device)
        self._retriever: Retriever = self.model
        self.tables: Mapping[str, EmbeddingTable] = self.model.tables
        self.model.tables = self._peers.tables(self.tables)
        self._parameters = list(self.model.parameters())
        self._dense = torch.optim.Adam(self._parameters, lr=config.dense_learning_rate, fused=True)
        self._estimator = FrequencyEstimator(config.frequency)
        self._frequency = self._peers.frequency(self._estimator)
        self.corpus = Corpus(self.model.width)
        others = (self._peers.rank,) if self._peers.rank else ()
        seeds = np.random.SeedSequence(config.seed, spawn_key=others)
        self._rng = np.random.Generator(np.random.PCG64(seeds))
        self._negatives = Negatives(config.negatives, self._rng)
        self._ranking = RankingQuality(config.recall_at)
        self._popularity = RankingQuality(config.recall_at, "popularity_")
        self.gate = Gate(config.gate)
        self._soundness = Soundness(config.gate.growth)
        self._faulted = False  # by the gate, as of the last version
        # As many as the store keeps at least.
        self._good: deque[tuple[int, str]] = deque(maxlen=config.snapshot_every)
        if last_good is not None:
            self._good.append((0, last_good))
        self.steps = 0
        self.samples = 0
        self.refused = 0
        self.seconds: dict[str, float] = {}  # by part of a step, since the process began
        self.loss = 0.0
        self.gradient_norm = 0.0
        self.watermark_us: int | None = None
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
        return [letter for record in records for letter in self.step(record)]

    def step(self, record: Record | None) -> list[Append]:
        """One step of all ranks, with this rank's record; returns a letter if that was refused."""
        with self._timed("read"):
            samples, mine = _read(record)
            told = [_Told(*arrays) for arrays in self._peers.share(mine)]
        with self._timed("declare"):
            self._declare(told)
            if samples is not None and self._retriever.describes:
                samples = replace(samples, users=self._describe(samples.users))
        with self._timed("test"):
            if samples is not None:
                self._test(samples)
        learnt = self._learn(samples, told)
        self.steps += sum(len(t.logged_us) for t in told)
        self._learnt_logged_us = int(max(t.logged_us.max() for t in told if t.logged_us.size))
        if self.gate.is_due(self.steps):
            self._check()
        return [_refusal(record)] if record is not None and not learnt else []

    def on_time(self, now_us: int) -> list[Version]:
        """The next version if it is due: its delta, its snapshot, or both in this order."""
        if not self.is_due(now_us):
            return []
        with self._timed("publish"):
            return self._versions(now_us)

    def is_due(self, now_us: int) -> bool:
        """Whether a version would go out now."""
        due = now_us - self._published.at_us >= self._config.publish_every_s * 1e6
        changed = self.steps != self._published.step
        return self._published.number is None or (due and changed)

    def snapshot(self) -> Artefact:
        return self.changes(Clocks())

    def mark(self) -> Clocks:
        return Clocks(self.corpus.clock, {n: t.clock for n, t in self.tables.items()})

    def changes(self, since: Clocks) -> Artefact:
        """As `snapshot`, but of tables and corpus only what changed since a mark."""
        meta = {
            "model": self._config.model,
            "ranks": self._peers.size,
            "steps": self.steps,
            "samples": self.samples,
            "refused": self.refused,
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "watermark_us": self.watermark_us,
            "learnt_logged_us": self._learnt_logged_us,
        }
        shards = {
            "frequency": arrays_table(self._estimator.state()),
            "negatives": arrays_table(self._negatives.state()),
            "ranking": arrays_table(self._ranking.state()),
            "popularity": arrays_table(self._popularity.state()),
            "gate": arrays_table(self.gate.state()),
            "rng": arrays_table({"state": _as_bytes(self._rng.bit_generator.state)}),
        }
        for name, table in self.tables.items():
            clock = since.tables.get(name)
            shards[f"table-{name}"] = table.table(clock)
            shards[f"filter-{name}"] = arrays_table(table.filter_state())
        shards = {shard_name(name, self._peers.rank): table for name, table in shards.items()}
        for name, table in self.tables.items():
            if (clock := since.tables.get(name)) is not None:
                gone = shard_name(f"table-{name}", self._peers.rank) + GONE
                shards[gone] = pa.table({"id": table.gone_since(clock)})
        if self._peers.rank == 0:
            shards["dense"] = tensors_table(self.model.state_dict())
            shards["optimizer"] = arrays_table(self._optimizer_state())
            shards["corpus"] = self.corpus.table(since.corpus)
        return Artefact(json.loads(json.dumps(meta)), shards)

    def settle(self, mark: Clocks) -> None:
        self._durable = mark
        self._forget_told()

    @property
    def metrics(self) -> dict[str, float]:
        """Progressive figures; recall is that of liked items against the whole corpus.

        All ranks ask for them together.
        """
        counts = {
            f"{name}_{what}": float(count)
            for name, table in self.tables.items()
            for what, count in (("rows", len(table)), ("rows_evicted", table.evicted))
        }
        trust = self._estimator.figures(step=self.samples / max(1, self.steps))
        ranking, popularity, figures = (
            torch.from_numpy(self._ranking.sums()),
            torch.from_numpy(self._popularity.sums()),
            torch.tensor([*counts.values(), *trust.values()], dtype=torch.float64),
        )
        self._peers.add_up([ranking, popularity, figures])
        figures[len(counts) :] /= self._peers.size  # of a rank, on average
        return {
            **self._ranking.both_figures(ranking.numpy()),
            **self._popularity.both_figures(popularity.numpy()),
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "samples": float(self.samples),
            "items": float(len(self.corpus)),
            "refused": float(self.refused),
            "oldest_vector_steps": len(self.corpus) / max(1, self._config.refresh),
            **dict(zip([*counts, *trust], figures.tolist(), strict=True)),
            **self.gate.figures,
        }

    @property
    def failed_check(self) -> str:
        """The check of the gate that the newest version failed; "" if it passed."""
        return self._soundness.check_name or self.gate.check_name

    def frequency_error(self) -> float | None:
        """The mean relative difference of the estimated frequencies of the most popular items from
        those that were counted, which fade alike; None in a group, where each rank knows a part.
        """
        counts = self.corpus.counts
        if self._peers.size > 1 or counts.size < _POPULAR or not counts.sum():
            return None
        places = np.argpartition(counts, -_POPULAR)[-_POPULAR:]
        counted = counts[places] / counts.sum()
        estimated = self._estimator.probability(self.corpus.ids[places])
        return float(np.abs(estimated / np.maximum(counted, 1e-12) - 1.0).mean())

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begun

    # -- one step --------------------------------------------------------------------------

    def _declare(self, told: Sequence[_Told]) -> None:
        places = [self.corpus.add(t.items) for t in told if t.declared.size]
        if places:
            self._refresh(np.unique(np.concatenate(places)))

    def _describe(self, users: Users) -> Users:
        return replace(users, described=self.corpus.describe(users.history.values))

    @torch.no_grad()
    def _test(self, samples: Samples) -> None:
        """Scores what was liked, by the model and by popularity, as serving would have."""
        liked = np.flatnonzero(samples.liked)
        if liked.size == 0 or len(self.corpus) == 0:
            return
        targets = self.corpus.find(samples.item_ids[liked])
        users = samples.users.take(liked)
        seen = Jagged(self.corpus.find(users.history.values), users.history.offsets)
        queries = self._retriever.query(users).cpu()  # (B, K, d)
        scores = best_scores(queries, self.corpus.vectors).numpy()  # (B, N)
        popular = np.broadcast_to(self.corpus.counts, scores.shape)
        ranks = []
        for quality, table in ((self._ranking, scores), (self._popularity, popular)):
            ranks.append(corpus_ranks(table, targets, seen))
            quality.update(ranks[-1])
        if self.samples < self._config.gate.warm_up or self._config.gate.mode == "off":
            return
        hits = ranks[0] < max(self._config.recall_at)
        self.gate.observe(
            self.steps,
            users.ids,
            np.diff(users.history.offsets),
            np.minimum(ranks, len(self.corpus)),  # who is not there is no further behind
            hits,
            self._predicted(scores, seen),
        )

    def _predicted(self, scores: NDArray[np.float32], seen: Jagged) -> NDArray[np.float64]:
        """The chance that each item (B,) is found, as the model says; NaN where not asked."""
        predicted = np.full(len(scores), np.nan)
        if self.steps % _PREDICT_EVERY == 0:
            predicted[:_PREDICTED] = predicted_hits(
                scores[:_PREDICTED],
                seen.where(seen.values >= 0),
                self._retriever.temperature,
                max(self._config.recall_at),
            )
        return predicted

    def _check(self) -> None:
        """Asks the gate whether what was learnt may be served."""
        sums = torch.from_numpy(self.gate.sums())
        self._peers.add_up([sums])
        self.gate.check(self.steps, self.samples, self._learnt_logged_us or 0, sums.numpy())

    def _learn(self, samples: Samples | None, told: Sequence[_Told]) -> bool:
        """One gradient step; False if it was refused: a number of this rank's is not finite."""
        taken = np.concatenate([t.taken for t in told])
        if not taken.size:
            return True
        self.corpus.add_unseen(np.unique(taken))
        self._frequency.update(taken, elapsed=float(taken.size))
        places = self.corpus.find(taken)
        self.corpus.count(places, taken.size, self._config.popularity_half_life)
        self._tell_time(told)
        self._dense.zero_grad()
        loss, learnt = 0.0, True
        with self._timed("gradients"):
            if samples is not None:
                loss, learnt = self._gradients(samples, len(samples.item_ids) / taken.size)
            self._peers.meet()
        with self._timed("optimise"):
            self._take_step(loss, learnt, told)
        with self._timed("refresh"):
            in_turn = self.corpus.next_slice(self._config.refresh)
            self._refresh(np.unique(np.concatenate([places, in_turn])))
        return learnt

    def _gradients(self, samples: Samples, share: float) -> tuple[float, bool]:
        """The loss and, if all is finite, its gradients, as this share of all ranks' samples."""
        for table in self.model.tables.values():
            table.training = True
        try:
            loss = self._retriever.loss(self._retrieval_step(samples)) * share
        finally:
            for table in self.model.tables.values():
                table.training = False
        if not _is_finite(samples, loss):
            return 0.0, False
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), self._measure_gradients()

    def _take_step(self, loss: float, learnt: bool, told: Sequence[_Told]) -> None:
        """Learns what the ranks that found gradients have found."""
        outcomes = self._peers.share([np.array([loss, learnt])])
        learnt_by = [bool(outcome[1]) for (outcome,) in outcomes]
        heard = [t for t, theirs in zip(told, learnt_by, strict=True) if theirs]
        size = sum(t.taken.size for t in heard)
        self.refused += learnt_by.count(False)
        if size:
            self._tell_time(heard)
            self._add_up_gradients(learnt)
            self._dense.step()
            loss = sum(float(outcome[0]) for (outcome,) in outcomes)
            loss *= sum(t.taken.size for t in told) / size  # of those that were refused, none
            self.loss += 0.02 * (loss - self.loss)
            self.samples += size
            self.watermark_us = self._newest_us(heard)
        self._peers.learn(learnt_by)

    def _add_up_gradients(self, learnt: bool) -> None:
        """The gradients of the dense parameters become those of all ranks' samples."""
        if self._peers.size == 1:
            return
        for p in self._parameters:
            if p.grad is None or not learnt:
                p.grad = torch.zeros_like(p)
        self._peers.add_up([p.grad for p in self._parameters if p.grad is not None])
        self._measure_gradients()

    def _measure_gradients(self) -> bool:
        """Whether all gradients of the dense parameters are finite."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        self.gradient_norm = float(torch.nn.utils.get_total_norm(gradients))
        return math.isfinite(self.gradient_norm)

    def _newest_us(self, told: Sequence[_Told]) -> int:
        return max([self.watermark_us or 0, *(int(at) for t in told for at in t.at_us)])

    def _tell_time(self, told: Sequence[_Told]) -> None:
        for table in self.tables.values():
            table.now_us = self._newest_us(told)

    def _retrieval_step(self, samples: Samples) -> RetrievalStep:
        """What the model learns from."""
        history = samples.users.history
        candidates = self._negatives.choose(
            samples.users.ids,
            self.corpus.find(samples.item_ids),
            Jagged(self.corpus.find(history.values), history.offsets),
            len(self.corpus),
            lambda places: self._frequency.probability(self.corpus.ids[places]),
        )
        return RetrievalStep(
            samples.users,
            self.corpus.items(candidates.places),
            self.corpus.vectors[torch.from_numpy(candidates.remembered)].to(self._config.device),
            candidates.sampling,
            torch.tensor(samples.rewards),
            samples.item_ids,
            candidates.drawn,
            self.steps * self._peers.size + self._peers.rank,
        )

    @torch.no_grad()
    def _refresh(self, places: Ids) -> None:
        """Sets the vectors of items anew; each rank computes its part of them."""
        ranks = self._peers.size
        mine, vectors = places[self._peers.rank :: ranks], torch.empty(0, self.model.width)
        if mine.size:
            vectors = self._retriever.items(self.corpus.items(mine)).cpu()
        self._peers.meet()
        all_vectors = torch.empty(len(places), self.model.width)
        for rank, (theirs,) in enumerate(self._peers.share([vectors.numpy()])):
            all_vectors[rank::ranks] = torch.from_numpy(theirs)
        self.corpus.refresh(places, all_vectors)

    # -- versions and cuts -----------------------------------------------------------------

    def _versions(self, now_us: int) -> list[Version]:
        before = self._published
        first = before.number is None
        number = 0 if before.number is None else before.number + 1
        info = VersionInfo(
            self._config.called,
            self._lineage,
            number,
            before.number,
            self.watermark_us,
            # What was replayed after a restart is not news.
            None if first else self._learnt_logged_us,
            self.steps,
            dict(self._config.options),
            self.metrics,
            kind=None if self._config.name is None else self._config.model,
        )
        wanted = [] if first else [(info, before.clocks)]
        if number % self._config.snapshot_every == 0:
            wanted.append((replace(info, base=None), Clocks()))
        versions = [Version(one, self._shards(since)) for one, since in wanted]
        self._published = _Cursor(number, now_us, self.steps, self.mark())
        self._forget_told()
        verdict = self._verdict(versions)
        return [replace(one, info=replace(one.info, **verdict)) for one in versions]

    def _verdict(self, versions: Sequence[Version]) -> dict[str, Any]:
        """What the versions of one number say of whether they may be served."""
        mode, name = self._config.gate.mode, versions[0].info.name
        if mode == "off":
            return {}
        for version in versions:
            sizes = self._sizes(version.shards)
            self._soundness.look(sizes, whole=version.info.base is None)
        reason = self._soundness.reason or self.gate.reason
        self._tell_of_verdict(name, reason)
        if reason is None:
            self._good.append((self.steps, name))
        if reason is None or mode == "shadow":
            return {"suspect": reason}
        # Of what the newest tests speak of nothing is trusted.
        trusted = self.gate.trusted_step if self.gate.holds else self.steps
        good = [name for step, name in self._good if step <= trusted]
        oldest = self._good[0][1] if self._good else None
        return {"held": reason, "last_good": good[-1] if good else oldest}

    def _tell_of_verdict(self, name: str, reason: str | None) -> None:
        """Logs when the gate closes, and when it opens again."""
        was, self._faulted = self._faulted, reason is not None
        if was == self._faulted or self._peers.rank > 0:
            return
        what = "is held back" if self._config.gate.mode == "hold" else "would be held back"
        if reason is not None:
            logger.error("version %s %s: %s", name, what, reason, extra={"version": name})
        else:
            logger.warning("version %s passes the gate again", name, extra={"version": name})

    def _sizes(self, shards: Mapping[str, pa.Table]) -> dict[str, NDArray[np.float64]]:
        """How large the numbers in shards are, of all ranks together."""
        names = [*(f"table-{name}" for name in self.tables), "vectors", "dense"]
        found = torch.zeros(len(names), 2, dtype=torch.float64)
        dense = self.model.state_dict().values()
        # Counts are no weights, and would hide how large these are.
        weights = [tensor.detach().cpu().numpy() for tensor in dense if tensor.is_floating_point()]
        for row, name in enumerate(names):
            shard = shards.get(shard_name(name, self._peers.rank))
            if shard is not None:
                arrays = weights if name == "dense" else [column_matrix(shard["row"])]
                found[row] = torch.from_numpy(size_of(arrays))
        self._peers.add_up([found])
        return dict(zip(names, found.numpy(), strict=True))

    def _shards(self, since: Clocks) -> dict[str, pa.Table]:
        """What a version says of all that changed since a mark."""
        shards = {}
        for name, table in self.tables.items():
            clock = since.tables.get(name)
            shard = shard_name(f"table-{name}", self._peers.rank)
            shards[shard] = self._rows_table(*table.touched_since(clock or 0))
            if clock is not None:
                shards[f"{shard}{GONE}"] = pa.table({"id": table.gone_since(clock)})
        if self._peers.rank == 0:
            vectors = self.corpus.refreshed_since(since.corpus)
            shards["vectors"] = self._rows_table(vectors.ids, vectors.rows)
            if self._retriever.describes:
                items = self.corpus.items(self.corpus.find(vectors.ids))
                for name, column in description_columns(items).items():
                    shards["vectors"] = shards["vectors"].append_column(name, column)
            shards["dense"] = tensors_table(self.model.state_dict())
        return shards

    def _forget_told(self) -> None:
        """What both the versions and the cuts have told of need not be remembered."""
        for name, table in self.tables.items():
            published = self._published.clocks.tables.get(name, 0)
            table.settle(min(published, self._durable.tables[name]))

    def _rows_table(self, ids: Ids, rows: NDArray[np.float32]) -> pa.Table:
        return pa.table(
            {"id": ids, "row": matrix_column(rows.astype(self._config.wire, copy=False))}
        )

    def _optimizer_state(self) -> dict[str, NDArray[Any]]:
        return {
            f"{index}.{name}": value.detach().cpu().numpy()
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
        saved = SavedRanks(state, self._peers.rank, self._peers.size)
        for name, table in self.tables.items():
            table.restore(*saved.table(name, table.shared))
        self.model.load_state_dict(table_tensors(shards["dense"]))
        optimizer: dict[int, dict[str, Tensor]] = {}
        for key, tensor in table_tensors(shards["optimizer"]).items():
            index, name = key.split(".", 1)
            optimizer.setdefault(int(index), {})[name] = tensor
        self._dense.load_state_dict({**self._dense.state_dict(), "state": optimizer})
        self._estimator.load(saved.frequency())
        for name, quality in (("ranking", self._ranking), ("popularity", self._popularity)):
            saved.metric(name, quality, RankingQuality(self._config.recall_at))
        self.corpus.restore(shards["corpus"])
        if (own := saved.own("gate")) is not None:
            self.gate.load(own)
        self.gate.load_verdict(table_arrays(shards["gate"]))
        if (own := saved.own("negatives")) is not None:
            self._negatives.load(own)
        if (own := saved.own("rng")) is not None:
            self._rng.bit_generator.state = json.loads(own["state"].tobytes())
        self.steps, self.samples, self.refused = meta["steps"], meta["samples"], meta["refused"]
        self.loss, self.gradient_norm = meta["loss"], meta["gradient_norm"]
        self.watermark_us = meta["watermark_us"]
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


class _Told(NamedTuple):
    """What a rank tells of its record; nothing in any field if it has none."""

    declared: Ids  # items that the record describes, by these tokens of these fields
    tokens: Ids
    fields: NDArray[np.int32]
    offsets: Ids
    taken: Ids  # the items of its samples, in their order
    at_us: Ids  # (1,), the newest of its samples
    logged_us: Ids  # (1,), when the newest of its events was logged

    @property
    def items(self) -> Items:
        return Items(self.declared, Jagged(self.tokens, self.offsets), self.fields)


_NOTHING, _NO_FIELDS = np.empty(0, np.int64), np.empty(0, np.int32)


def _read(record: Record | None) -> tuple[Samples | None, _Told]:
    """The samples of a record, None if it has none, and what the other ranks are told of it."""
    if record is None:
        return None, _Told(_NOTHING, _NOTHING, _NO_FIELDS, _NOTHING, _NOTHING, _NOTHING, _NOTHING)
    batch = decode_samples(record)
    items, samples = read_declarations(batch), read_samples(batch)
    has_samples = len(samples.item_ids) > 0
    told = _Told(
        items.ids,
        items.tokens.values,
        items.fields,
        items.tokens.offsets,
        samples.item_ids,
        samples.at_us.max(keepdims=True) if has_samples else _NOTHING,
        batch["logged_us"].to_numpy().max(keepdims=True),
    )
    return samples if has_samples else None, told


def _as_bytes(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


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
