"""What rankers learn from: pairs that were shown and their labels; and how they are tested.

What describes items and what calibrates predictions is kept beside the model, and goes out with
its versions. In a group it is the same in all ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt
from torch import Tensor

from features.batch import Ids, Items, Jagged, read_declarations
from features.shown import Pairs, Shown, read_shown
from streaming.event_columns import scenario_codes
from trainers.arrays import arrays_table, table_arrays
from trainers.calibration import CalibrationConfig, Calibrators
from trainers.families import Batch, Evenly, Moment
from trainers.gate import Gate
from trainers.item_book import ItemBook
from trainers.item_response import OUTCOME, ItemResponseConfig, ItemResponses, saved_responses
from trainers.metrics import AUC, GAUC, Calibration, outcomes
from trainers.models import Ranker, RankingStep
from trainers.peers import Arrays, Peers
from trainers.resharding import SavedRanks
from trainers.sliced_metrics import Metric, Scenarios, SlicedMetrics, SlicedSums, merged
from trainers.tally import Sums
from trainers.tasks import came_to_nothing, labels_read, roots
from trainers.waiting import Waiting

_POSITIVE = 0.5  # graded labels count as positive from here on
_REMEMBER = 2.0 ** (-1 / 5_000)  # of the mean rate, with every sample
_LEAST = 1e-6  # a probability that is surer counts as this sure


@dataclass(frozen=True)
class RankingConfig:
    """What rankers are learnt and served with beside themselves.

    What came to something waits, up to `waiting` samples, until it is known what was shown in vain
    at the same time; with 0 it is learnt as it comes. `response` is for a ranker that reads `coec`.
    """

    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    waiting: NonNegativeInt = 20_000
    response: ItemResponseConfig = field(default_factory=ItemResponseConfig)


class ServedCalibration(Calibration):
    """As `Calibration`, of what is served."""

    name = "served"

    def figures(self, sums: Sums) -> dict[str, float]:
        figures = super().figures(sums)
        return {f"served_{name}": value for name, value in figures.items() if name != "invalid"}


class Ranking:
    """The family of rankers (`trainers.families.Family`).

    Each binary task is tested by AUC, GAUC and calibration; what is calibrated is tested too, as it
    would have been served, over all and in each scenario.
    """

    rows: tuple[str, ...] = ()

    def __init__(self, model: Any, config: RankingConfig, peers: Peers, gate: Gate) -> None:
        self._model: Ranker = model
        self._peers = peers
        self._gate = gate
        gate.says = "what comes of impressions is told {:.2f} bits better than by the mean rate"
        self.book = ItemBook()
        tasks = self._model.tasks
        self._binary = [name for name, task in tasks.items() if task.is_binary]
        self._scenarios = Scenarios(most=config.calibration.scenarios)
        self._tested, self._served = self._metrics(), self._metrics(ServedCalibration)
        self._calibrated = self._binary if config.calibration.how != "none" else []
        self._calibrators = Calibrators(self._binary, config.calibration)
        self._untold = _NOTHING_CAME  # of predictions since the others were told
        self._waiting = Waiting(roots(tasks), config.waiting)
        self._response = config.response
        self._responses = ItemResponses(config.response) if self._model.reads_coec else None
        self._judged = next((name for name in self._binary if tasks[name].after is None), None)
        self._rate = np.zeros(2)  # of the judged task: positives and samples, fading
        self._evenly = Evenly()

    # -- reading ---------------------------------------------------------------------------

    def read(self, batch: pa.RecordBatch | None) -> Batch:
        if batch is None:
            return Batch(None, 0, _NOTHING, _NOTHING_TOLD)
        rows = self._waiting.take(batch)
        items, shown = read_declarations(batch), read_shown(rows, labels_read(self._model.tasks))
        outcomes = _NO_OUTCOMES if self._responses is None else self._outcomes(shown)
        told = _Told(items.ids, items.tokens.values, items.fields, items.tokens.offsets, outcomes)
        if not len(shown.pairs):
            return Batch(None, 0, _NOTHING, told)
        return Batch(shown, len(shown.pairs), shown.at_us.max(keepdims=True), told)

    def declare(self, told: Sequence[Arrays], samples: Shown | None) -> Shown | None:
        for rank in map(_Told._make, told):
            if rank.declared.size:
                items = rank.items
                self.book.add(items if self._responses is None else self._responses.on(items))
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

    def _outcomes(self, samples: Shown) -> NDArray[np.void]:
        """What came of each impression, by the label that comes first."""
        label = samples.labels[roots(self._model.tasks)[0]]
        known = np.flatnonzero(~np.isnan(label))
        pairs, clicked = samples.pairs, label[known] >= _POSITIVE
        rows = np.empty(len(known), OUTCOME)
        rows["item_id"], rows["at_us"] = pairs.items.ids[known], samples.at_us[known]
        rows["position"] = pairs.positions[known]
        rows["scenario"] = pairs.users.scenarios[pairs.user_of[known]]
        rows["clicked"] = clicked
        rows["stands_for"] = self._stands_for(samples)[known]
        return rows

    def _stands_for(self, samples: Shown) -> NDArray[np.float32]:
        """For how many impressions each sample stands (n,): of those in vain some were left out."""
        labels = {name: torch.from_numpy(label) for name, label in samples.labels.items()}
        nothing = came_to_nothing(self._model.tasks, labels).numpy()
        kept: NDArray[np.float32] = np.where(nothing, samples.rates, np.float32(1.0))
        return np.reciprocal(kept)

    # -- testing ---------------------------------------------------------------------------

    @torch.no_grad()
    def test(self, samples: Shown, now: Moment) -> None:
        pairs = samples.pairs
        predicted = self._model.predict(pairs)
        weights = self._stands_for(samples)
        for name in samples.scenarios:
            self._scenarios.code(name)
        codes = pairs.users.scenarios[pairs.user_of]
        curves = self._calibrators.curves()
        came = []
        for number, task in enumerate(self._binary):
            label = samples.labels[task]
            known = np.flatnonzero(~np.isnan(label))
            predictions, label = predicted[task].cpu().numpy()[known], label[known]
            rows = outcomes(
                predictions,
                label >= _POSITIVE,
                weights=weights[known],
                groups=samples.groups[known],
            )
            self._tested.update(task, rows)
            if task in self._calibrated:
                served = curves.calibrated(task, predictions, codes[known])
                rows["prediction"] = served
                self._served.update(task, rows)
                came.append(_came(number, predictions, label, weights[known], codes[known], served))
                predictions = served  # before that it may be no probability of being shown at all
            if task == self._judged and self._gate.wants(now.samples):
                self._tell_gate(now.steps, pairs, known, predictions, label, samples.rates[known])
        self._untold = np.concatenate(came or [_NOTHING_CAME])

    def _tell_gate(
        self,
        step: int,
        pairs: Pairs,
        rows: Ids,
        predictions: NDArray[np.float32],
        labels: NDArray[np.float32],
        rates: NDArray[np.float32],
    ) -> None:
        """How much better than the mean rate the predictions tell what came, among samples."""
        self._rate *= _REMEMBER ** len(rows)
        self._rate += labels.sum(), len(rows)
        positive = labels >= _POSITIVE
        model = predictions / (predictions + (1.0 - predictions) * rates)
        mean = np.full(len(rows), (self._rate[0] + 1.0) / (self._rate[1] + 2.0))
        told = np.stack([np.where(positive, p, 1.0 - p) for p in (model, mean)])
        users = pairs.user_of[rows]
        self._gate.observe(
            step,
            pairs.users.ids[users],
            pairs.users.history.lengths[users],
            np.log2(np.maximum(told, _LEAST)),
            positive,
            model.astype(np.float64),
        )

    # -- learning --------------------------------------------------------------------------

    def note(self, told: Sequence[Arrays]) -> None:
        if self._responses is None:
            return
        outcomes = np.concatenate([_Told._make(rank).outcomes for rank in told])
        self._responses.update(outcomes)
        changed = self._responses.changed(self.book.items(np.unique(outcomes["item_id"])))
        if len(changed.ids):
            self.book.add(changed)

    def weight(self, size: int) -> float:
        return self._evenly.weight(size)

    def loss(self, samples: Shown, seed: int) -> Tensor:
        labels = {name: torch.tensor(label) for name, label in samples.labels.items()}
        step = RankingStep(samples.pairs, labels, torch.tensor(samples.rates), samples.groups, seed)
        return self._model.loss(step)

    def is_finite(self, samples: Shown) -> bool:
        # A label that is infinite is none; and a model may only compare the rewards of a history.
        labels = all(not np.isinf(label).any() for label in samples.labels.values())
        return labels and bool(np.isfinite(samples.pairs.users.rewards).all())

    def refresh(self, told: Sequence[Arrays]) -> None:  # noqa: ARG002
        """Tells all ranks what came of predictions: they calibrate alike."""
        if not self._calibrated:
            return
        for (came,) in self._peers.share([self._untold]):
            for number, task in enumerate(self._calibrated):
                rows = came[came["task"] == number]
                self._calibrators.observe(task, *(rows[name] for name in _CAME_OF_IT))
        self._untold = _NOTHING_CAME

    # -- figures ---------------------------------------------------------------------------

    def metrics(self, now: Moment) -> dict[str, float]:  # noqa: ARG002
        """`auc[click]` and so on, of all scenarios together; `recent_calibration[click,home]` and
        `recent_served_calibration[click,home]`, before and after it is calibrated, of each.
        """
        return dict(self._figures())

    def _figures(self) -> Iterator[tuple[str, float]]:
        for metrics in (self._tested, self._served):
            sums = self._peers.share(_packed(metrics.sums()))
            for name, task, _, value in metrics.figures(merged(map(_unpacked, sums))):
                yield f"{name}[{task}]", value
        names = self._scenario_names()
        for task, code, predicted, served in self._calibrators.figures():
            if code in names:
                yield f"recent_calibration[{task},{names[code]}]", predicted
                yield f"recent_served_calibration[{task},{names[code]}]", served

    def _scenario_names(self) -> dict[int, str]:
        """By their codes, those that any rank has met."""
        mine = np.frombuffer(json.dumps(self._scenarios.names).encode(), np.uint8)
        names = [n for (told,) in self._peers.share([mine]) for n in json.loads(told.tobytes())]
        return dict(zip(scenario_codes(names).tolist(), names, strict=True))

    def gauges(self) -> dict[str, float]:
        return {}

    # -- versions and cuts -----------------------------------------------------------------

    @property
    def clock(self) -> int:
        return self.book.clock

    def shards(self, since: int) -> dict[str, pa.Table]:
        calibration = self._calibrators.curves().table()
        return {"items": self.book.table(since), "calibration": calibration}

    def state(self) -> dict[str, pa.Table]:
        state = {"tested": self._tested.state(), "served": self._served.state()}
        state["learning"] = {"rate": self._rate}
        arrays = {name: arrays_table(arrays) for name, arrays in state.items()}
        return {**arrays, "waiting": self._waiting.table()}

    def common_state(self, since: int) -> dict[str, pa.Table]:
        return {
            "items": self.book.table(since),
            "calibrators": arrays_table(self._calibrators.state()),
            "steps": self._evenly.table(),
            **({} if self._responses is None else self._responses.tables()),
        }

    def restore(self, saved: SavedRanks, shards: Mapping[str, pa.Table]) -> None:
        self.book.restore(shards["items"])
        self._calibrators.load(table_arrays(shards["calibrators"]))
        self._evenly.load(shards["steps"])
        if self._responses is not None:
            self._responses = saved_responses(self._response, shards)
        if (own := saved.own("learning")) is not None:
            self._rate = own["rate"].copy()
        self._waiting.load(saved.handed_out("waiting"))
        saved.metric("tested", self._tested, self._metrics)
        saved.metric("served", self._served, lambda: self._metrics(ServedCalibration))

    def _metrics(self, *kinds: Callable[[], Metric]) -> SlicedMetrics:
        """Over all; of each scenario the calibrators tell."""
        kinds = kinds or (AUC, GAUC, Calibration)
        return SlicedMetrics(
            self._binary, self._scenarios, lambda: [make() for make in kinds], of_scenario=list
        )


class _Told(NamedTuple):
    """The items that a rank's micro-batch describes, and what came of those it showed."""

    declared: Ids
    tokens: Ids
    fields: NDArray[np.int32]
    offsets: Ids
    outcomes: NDArray[np.void]

    @property
    def items(self) -> Items:
        return Items(self.declared, Jagged(self.tokens, self.offsets), self.fields)


_NOTHING, _NO_OUTCOMES = np.empty(0, np.int64), np.empty(0, OUTCOME)
_NOTHING_TOLD = _Told(_NOTHING, _NOTHING, np.empty(0, np.int32), _NOTHING, _NO_OUTCOMES)
_CAME = np.dtype(
    [
        ("task", np.int32),  # its number
        ("prediction", np.float32),
        ("label", np.float32),
        ("weight", np.float32),
        ("scenario", np.int32),
        ("served", np.float32),
    ]
)
_CAME_OF_IT = (_CAME.names or ())[1:]  # as `Calibrators.observe` takes it
_NOTHING_CAME = np.empty(0, _CAME)


def _came(number: int, *columns: NDArray[Any]) -> NDArray[np.void]:
    """What came of the predictions of a task."""
    rows = np.empty(len(columns[0]), _CAME)
    rows["task"] = number
    for name, column in zip(_CAME_OF_IT, columns, strict=True):
        rows[name] = column
    return rows


def _packed(sums: SlicedSums) -> Arrays:
    """Sums as arrays, for other ranks: their names first."""
    names = np.frombuffer(json.dumps(list(sums)).encode(), np.uint8)
    return [names, *sums.values()]


def _unpacked(arrays: Arrays) -> SlicedSums:
    names, *sums = arrays
    told = json.loads(names.tobytes())
    return {(task, code, kind): one for (task, code, kind), one in zip(told, sums, strict=True)}
