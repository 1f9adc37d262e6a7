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
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from streaming.artefact import Artefact
from streaming.cuts import GONE
from streaming.dead_letters import DeadLetter, encode_letter
from streaming.errors import ArtefactError
from streaming.log import Append, Record
from streaming.samples import decode_samples
from trainers.arrays import (
    arrays_table,
    column_matrix,
    rows_table,
    table_arrays,
    table_tensors,
    tensors_table,
)
from trainers.families import Batch, Moment
from trainers.gate import Gate, GateConfig, Soundness, size_of
from trainers.models import RANKING, create, family_of
from trainers.peers import Alone, Arrays, Peers
from trainers.ranking import Ranking, RankingConfig
from trainers.resharding import SavedRanks, shard_name
from trainers.retrieval import Retrieval, RetrievalConfig
from trainers.table import EmbeddingTable
from trainers.versions import Version, VersionInfo

import pyarrow as pa  # isort: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerConfig(RetrievalConfig, RankingConfig):
    """How a model is trained and published.

    `model` is a registered one, and `name` what it is called where that is not the same.
    A version goes out `publish_every_s` after the one before if anything was learnt: the first of
    a lineage as a snapshot, every other as a delta, and each `snapshot_every`-th as a snapshot
    too. Rows travel as `wire` numbers.
    """

    model: str = "two_tower"
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dense_learning_rate: PositiveFloat = 0.002
    publish_every_s: float = 0.1
    snapshot_every: PositiveInt = 100
    wire: Literal["float32", "float16"] = "float32"
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
        self.tables: Mapping[str, EmbeddingTable] = self.model.tables
        self.model.tables = self._peers.tables(self.tables)
        self._parameters = list(self.model.parameters())
        self._dense = torch.optim.Adam(self._parameters, lr=config.dense_learning_rate, fused=True)
        self.gate = Gate(config.gate)
        self.family = self._make_family()  # a Family: which one, the model says
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

    def _make_family(self) -> Any:
        config, model = self._config, self.model
        if family_of(config.model) == RANKING:
            return Ranking(model, config, self._peers, self.gate)
        return Retrieval(
            model, config, config.device, config.wire, config.seed, self._peers, self.gate
        )

    # -- the Step protocol -----------------------------------------------------------------

    def on_batch(self, records: Sequence[Record]) -> list[Append]:
        return [letter for record in records for letter in self.step(record)]

    def step(self, record: Record | None) -> list[Append]:
        """One step of all ranks, with this rank's record; returns a letter if that was refused."""
        with self._timed("read"):
            batch = None if record is None else decode_samples(record)
            mine = self.family.read(batch)
            told = [_Told.of(arrays) for arrays in self._peers.share(_Told.arrays(batch, mine))]
        with self._timed("declare"):
            samples = self.family.declare([t.own for t in told], mine.samples)
        with self._timed("test"):
            if samples is not None:
                self.family.test(samples, Moment(self.steps, self.samples))
        learnt = self._learn(samples, mine.size, told)
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
        return Clocks(self.family.clock, {n: t.clock for n, t in self.tables.items()})

    def changes(self, since: Clocks) -> Artefact:
        """As `snapshot`, but of tables and what its family keeps only what changed since a mark."""
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
        shards = {**self.family.state(), "gate": arrays_table(self.gate.state())}
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
            shards |= self.family.common_state(since.family)
        return Artefact(json.loads(json.dumps(meta)), shards)

    def settle(self, mark: Clocks) -> None:
        self._durable = mark
        self._forget_told()

    @property
    def metrics(self) -> dict[str, float]:
        """Progressive figures, which all ranks ask for together."""
        counts = {
            f"{name}_{what}": float(count)
            for name, table in self.tables.items()
            for what, count in (("rows", len(table)), ("rows_evicted", table.evicted))
        }
        figures = torch.tensor([*counts.values()], dtype=torch.float64)
        self._peers.add_up([figures])
        return {
            **self.family.metrics(Moment(self.steps, self.samples)),
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "samples": float(self.samples),
            "refused": float(self.refused),
            **dict(zip(counts, figures.tolist(), strict=True)),
            **self.gate.figures,
        }

    @property
    def failed_check(self) -> str:
        """The check of the gate that the newest version failed; "" if it passed."""
        return self._soundness.check_name or self.gate.check_name

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begun

    # -- one step --------------------------------------------------------------------------

    def _check(self) -> None:
        """Asks the gate whether what was learnt may be served."""
        sums = torch.from_numpy(self.gate.sums())
        self._peers.add_up([sums])
        self.gate.check(self.steps, self.samples, self._learnt_logged_us or 0, sums.numpy())

    def _learn(self, samples: Any, size: int, told: Sequence[_Told]) -> bool:
        """One gradient step; False if it was refused: a number of this rank's is not finite."""
        total = sum(t.size for t in told)
        if not total:
            return True
        self.family.note([t.own for t in told])
        self._tell_time(told)
        self._dense.zero_grad()
        loss, learnt, weight = 0.0, True, self.family.weight(total)
        with self._timed("gradients"):
            if samples is not None:
                loss, learnt = self._gradients(samples, size / total, weight)
            self._peers.meet()
        with self._timed("optimise"):
            self._take_step(loss, learnt, told)
        with self._timed("refresh"):
            self.family.refresh([t.own for t in told])
        return learnt

    def _gradients(self, samples: Any, share: float, weight: float) -> tuple[float, bool]:
        """The loss and, if all is finite, its gradients, as this share of all ranks' samples; the
        step counts with this weight.
        """
        for table in self.model.tables.values():
            table.training = True
        try:
            seed = self.steps * self._peers.size + self._peers.rank
            loss = self.family.loss(samples, seed) * share
        finally:
            for table in self.model.tables.values():
                table.training = False
        if not (self.family.is_finite(samples) and torch.isfinite(loss)):
            return 0.0, False
        (loss if weight == 1.0 else weight * loss).backward()
        return float(loss.detach()), self._measure_gradients()

    def _take_step(self, loss: float, learnt: bool, told: Sequence[_Told]) -> None:
        """Learns what the ranks that found gradients have found."""
        outcomes = self._peers.share([np.array([loss, learnt])])
        learnt_by = [bool(outcome[1]) for (outcome,) in outcomes]
        heard = [t for t, theirs in zip(told, learnt_by, strict=True) if theirs]
        size = sum(t.size for t in heard)
        self.refused += learnt_by.count(False)
        if size:
            self._tell_time(heard)
            self._add_up_gradients(learnt)
            self._dense.step()
            loss = sum(float(outcome[0]) for (outcome,) in outcomes)
            loss *= sum(t.size for t in told) / size  # of those that were refused, none
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
        names = [*(f"table-{name}" for name in self.tables), *self.family.rows, "dense"]
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
            shards[shard] = rows_table(*table.touched_since(clock or 0), self._config.wire)
            if clock is not None:
                shards[f"{shard}{GONE}"] = pa.table({"id": table.gone_since(clock)})
        if self._peers.rank == 0:
            shards |= self.family.shards(since.family)
            shards["dense"] = tensors_table(self.model.state_dict())
        return shards

    def _forget_told(self) -> None:
        """What both the versions and the cuts have told of need not be remembered."""
        for name, table in self.tables.items():
            published = self._published.clocks.tables.get(name, 0)
            table.settle(min(published, self._durable.tables[name]))

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
        self.family.restore(saved, shards)
        if (own := saved.own("gate")) is not None:
            self.gate.load(own)
        self.gate.load_verdict(table_arrays(shards["gate"]))
        self.steps, self.samples, self.refused = meta["steps"], meta["samples"], meta["refused"]
        self.loss, self.gradient_norm = meta["loss"], meta["gradient_norm"]
        self.watermark_us = meta["watermark_us"]
        self._learnt_logged_us = meta["learnt_logged_us"]


@dataclass(frozen=True, slots=True)
class Clocks:
    """How far a consumer has told of what changed; the defaults stand for nothing at all."""

    family: int = -1
    tables: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The last version that went out; the defaults stand for none."""

    number: int | None = None
    at_us: int = 0
    step: int = -1
    clocks: Clocks = field(default_factory=Clocks)


class _Told(NamedTuple):
    """What a rank tells of its micro-batch; no times if it has none."""

    size: int  # samples
    at_us: NDArray[np.int64]  # (1,), the newest of their times
    logged_us: NDArray[np.int64]  # (1,), when the newest of its events was logged
    own: Arrays  # what the family tells

    @staticmethod
    def arrays(batch: pa.RecordBatch | None, mine: Batch) -> Arrays:
        logged_us = np.empty(0, np.int64) if batch is None else batch["logged_us"].to_numpy()
        newest_us = logged_us.max(keepdims=True) if logged_us.size else logged_us
        return [np.array([mine.size]), mine.at_us, newest_us, *mine.told]

    @staticmethod
    def of(arrays: Arrays) -> _Told:
        size, at_us, logged_us, *own = arrays
        return _Told(int(size[0]), at_us, logged_us, own)


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
