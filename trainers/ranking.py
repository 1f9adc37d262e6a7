"""What rankers learn from: pairs that were shown and their labels; and how they are tested.

What describes items is kept beside the model, and goes out with its versions. In a group it is the
same in all ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.batch import Ids, Items, Jagged, read_declarations
from features.shown import Shown, read_shown
from trainers.arrays import arrays_table
from trainers.families import Batch, Moment
from trainers.item_book import ItemBook
from trainers.metrics import outcomes
from trainers.models import Ranker, RankingStep
from trainers.peers import Arrays, Peers
from trainers.resharding import SavedRanks
from trainers.sliced_metrics import ALL, SlicedMetrics, SlicedSums, merged
from trainers.tasks import came_to_nothing, labels_read

_POSITIVE = 0.5  # graded labels count as positive from here on


class Ranking:
    """The family of rankers (`trainers.families.Family`).

    Each binary task is tested by AUC, GAUC and calibration, any other by how far it is off.
    """

    rows: tuple[str, ...] = ()

    def __init__(self, model: Any, peers: Peers) -> None:
        self._model: Ranker = model
        self._peers = peers
        self.book = ItemBook()
        self._binary = [name for name, task in self._model.tasks.items() if task.is_binary]
        self._metrics = SlicedMetrics(self._binary)

    # -- reading ---------------------------------------------------------------------------

    def read(self, batch: pa.RecordBatch | None) -> Batch:
        if batch is None:
            return Batch(None, 0, _NOTHING, [_NOTHING, _NOTHING, _NO_FIELDS, _NOTHING])
        items, shown = read_declarations(batch), read_shown(batch, labels_read(self._model.tasks))
        told = _Told(items.ids, items.tokens.values, items.fields, items.tokens.offsets)
        if not len(shown.pairs):
            return Batch(None, 0, _NOTHING, told)
        return Batch(shown, len(shown.pairs), shown.at_us.max(keepdims=True), told)

    def declare(self, told: Sequence[Arrays], samples: Shown | None) -> Shown | None:
        for rank in map(_Told._make, told):
            if rank.declared.size:
                self.book.add(rank.items)
        return None if samples is None else self.describe(samples)

    def describe(self, samples: Shown) -> Shown:
        """The samples with what is known of their items, and of those in histories if the model
        reads that.
        """
        pairs = samples.pairs
        users = pairs.users
        if self._model.describes:
            users = replace(users, described=self.book.describe(users.history.values))
        return replace(
            samples, pairs=replace(pairs, users=users, items=self.book.items(pairs.items.ids))
        )

    # -- testing ---------------------------------------------------------------------------

    @torch.no_grad()
    def test(self, samples: Shown, now: Moment) -> None:  # noqa: ARG002
        predicted = self._model.predict(samples.pairs)
        labels = {name: torch.from_numpy(label) for name, label in samples.labels.items()}
        nothing = came_to_nothing(self._model.tasks, labels).numpy()
        kept = np.where(nothing, samples.rates, np.float32(1.0))
        for task in self._binary:
            label = samples.labels[task]
            rows = outcomes(
                predicted[task].cpu().numpy(),
                np.where(np.isnan(label), np.nan, label >= _POSITIVE),
                weights=1.0 / kept,  # it stands for those that were left out
                groups=samples.groups,
            )
            self._metrics.update(task, rows)

    # -- learning --------------------------------------------------------------------------

    def note(self, told: Sequence[Arrays]) -> None:
        pass

    def loss(self, samples: Shown, seed: int) -> Tensor:
        labels = {name: torch.tensor(label) for name, label in samples.labels.items()}
        step = RankingStep(samples.pairs, labels, torch.tensor(samples.rates), samples.groups, seed)
        return self._model.loss(step)

    def is_finite(self, samples: Shown) -> bool:
        # A label that is infinite is none; and a model may only compare the rewards of a history.
        labels = all(not np.isinf(label).any() for label in samples.labels.values())
        return labels and bool(np.isfinite(samples.pairs.users.rewards).all())

    def refresh(self, told: Sequence[Arrays]) -> None:
        pass

    # -- figures ---------------------------------------------------------------------------

    def metrics(self, now: Moment) -> dict[str, float]:  # noqa: ARG002
        """`auc[click]` and so on; of all scenarios together."""
        whole = merged(
            _unpacked(arrays) for arrays in self._peers.share(_packed(self._metrics.sums()))
        )
        return {
            f"{name}[{task}]": value
            for name, task, scenario, value in self._metrics.figures(whole)
            if scenario == ALL
        }

    def gauges(self) -> dict[str, float]:
        return {}

    # -- versions and cuts -----------------------------------------------------------------

    @property
    def clock(self) -> int:
        return self.book.clock

    def shards(self, since: int) -> dict[str, pa.Table]:
        return {"items": self.book.table(since)}

    def state(self) -> dict[str, pa.Table]:
        return {"tested": arrays_table(self._metrics.state())}

    def common_state(self, since: int) -> dict[str, pa.Table]:
        return {"items": self.book.table(since)}

    def restore(self, saved: SavedRanks, shards: Mapping[str, pa.Table]) -> None:
        self.book.restore(shards["items"])
        saved.metric("tested", self._metrics, lambda: SlicedMetrics(self._binary))


class _Told(NamedTuple):
    """The items that a rank's micro-batch describes."""

    declared: Ids
    tokens: Ids
    fields: NDArray[np.int32]
    offsets: Ids

    @property
    def items(self) -> Items:
        return Items(self.declared, Jagged(self.tokens, self.offsets), self.fields)


_NOTHING, _NO_FIELDS = np.empty(0, np.int64), np.empty(0, np.int32)


def _packed(sums: SlicedSums) -> Arrays:
    """Sums as arrays, for other ranks: their names first."""
    names = np.frombuffer(json.dumps(list(sums)).encode(), np.uint8)
    return [names, *sums.values()]


def _unpacked(arrays: Arrays) -> SlicedSums:
    names, *sums = arrays
    told = json.loads(names.tobytes())
    return {(task, code, kind): one for (task, code, kind), one in zip(told, sums, strict=True)}
