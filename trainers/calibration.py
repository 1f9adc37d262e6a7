"""Calibration on the stream: how predicted probabilities become those that come about.

For each task, over all and in each scenario, what was predicted and what came of it is counted in
`BINS` bins of the logit; older samples fade. From these counts a curve is fitted whenever it is
asked for, from logits to logits and strictly rising, so that it changes no order. Two kinds:

* `platt`: a line, `sigmoid(a z + b)` (Platt, *Probabilistic Outputs for Support Vector Machines*,
  Advances in Large Margin Classifiers 1999), by Newton's method (IRLS) over the bins.
* `isotonic`: any rising curve, by pooling adjacent violators (Zadrozny and Elkan, *Transforming
  Classifier Scores into Accurate Multiclass Probability Estimates*, KDD 2002), straight between
  the middles of what was pooled (Oron and Flournoy, *Centered Isotonic Regression*, Statistics in
  Biopharmaceutical Research 2017). Where it knows little it keeps to the line.

Both begin with what is believed without them: that the model is right, and that a scenario is like
all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pydantic import NonNegativeInt, PositiveFloat

from streaming.event_columns import NONE
from streaming.kernels import compiled_briefly

Floats = NDArray[np.float64]
Codes = NDArray[np.int32]  # of scenarios: `streaming.event_columns.scenario_codes`

ALL = NONE  # the code of all scenarios together
BINS, _SPAN = 128, 16.0  # logits beyond ± this share the outermost bins
_FINITE = 40.0  # a logit that is surer counts as this sure
_LEAST_SLOPE = 0.05
# How many times the information of one sample it takes to believe in another slope, another level.
_SLOPE_PRIOR, _LEVEL_PRIOR = 20.0, 4.0
_PSEUDO = 2.0  # positives and negatives that each bin has seen already, where the line is
_STEPS, _NEAR = 50, 1e-9  # of Newton's method
_ALL, _OTHERS = 0, 1  # slots of the counts, before those of scenarios


@dataclass(frozen=True)
class CalibrationConfig:
    """How what a ranker predicts becomes what is served; of `none` it is the same.

    `half_life` counts the positives of a task: what is rare is remembered for longer. The first
    `scenarios` that come by are calibrated each by itself, the others as all together.
    """

    how: Literal["none", "platt", "isotonic"] = "isotonic"
    half_life: PositiveFloat = 500.0
    scenarios: NonNegativeInt = 16


class Curve(NamedTuple):
    """From logits to logits: straight between `knots` (k,), and of that `slope` beyond them."""

    knots: Floats
    values: Floats
    slope: float

    def __call__(self, logits: Floats) -> Floats:
        inside = np.clip(logits, self.knots[0], self.knots[-1])
        found: Floats = np.interp(inside, self.knots, self.values) + self.slope * (logits - inside)
        return found

    def then(self, slope: float, level: float) -> Curve:
        """That curve, and after it a line."""
        return Curve(self.knots, slope * self.values + level, slope * self.slope)


_SAME = Curve(np.zeros(1), np.zeros(1), 1.0)


class Curves:
    """What a version serves: for each task a curve of all scenarios, ALL, and of some their own."""

    def __init__(self, curves: Mapping[str, Mapping[int, Curve]]) -> None:
        self._curves = curves

    def calibrated(
        self, task: str, predictions: NDArray[Any], scenarios: ArrayLike = ALL
    ) -> NDArray[Any]:
        """What is served of probabilities (n,), in the same order; `scenarios` are codes, (n,) or
        one for all. Of a task that has no curve it is what was predicted.
        """
        of_task = self._curves.get(task)
        if of_task is None:
            return predictions
        codes, logits = np.asarray(scenarios), _logits(predictions)
        if codes.ndim == 0:
            return _probabilities(_of(of_task, int(codes))(logits)).astype(predictions.dtype)
        for code in np.unique(codes).tolist():
            here = codes == code
            logits[here] = _of(of_task, code)(logits[here])
        return _probabilities(logits).astype(predictions.dtype)

    def table(self) -> pa.Table:
        """A shard of versions: a row for each curve; `from_table` takes it back."""
        rows = [
            {"task": task, "scenario": code, **curve._asdict()}
            for task, of_task in self._curves.items()
            for code, curve in of_task.items()
        ]
        return pa.Table.from_pylist(rows, _SCHEMA)

    @staticmethod
    def from_table(table: pa.Table) -> Curves:
        curves = (
            (
                row["task"],
                row["scenario"],
                Curve(np.array(row["knots"]), np.array(row["values"]), row["slope"]),
            )
            for row in table.to_pylist()
        )
        return Curves(
            {
                task: {code: curve for _, code, curve in of_task}
                for task, of_task in groupby(curves, lambda row: row[0])
            }
        )


_SCHEMA = pa.schema(
    {
        "task": pa.string(),
        "scenario": pa.int32(),
        "knots": pa.list_(pa.float64()),
        "values": pa.list_(pa.float64()),
        "slope": pa.float64(),
    }
)


class Calibrators:
    """Learns the curves of tasks whose labels are from 0 to 1.

    >>> rng = np.random.default_rng(0)
    >>> click = Calibrators(["click"], CalibrationConfig("platt"))
    >>> predicted = rng.uniform(0.1, 0.3, 4_000)
    >>> click.observe("click", predicted, rng.random(4_000) < predicted / 2)
    >>> click.curves().calibrated("click", np.array([0.2])).round(2)
    array([0.11])
    """

    def __init__(self, tasks: Sequence[str], config: CalibrationConfig) -> None:
        self._config = config
        self._codes: list[int] = []
        # Of each bin the weight; and times it logits, labels, what was predicted and served.
        self._counts = {
            task: np.zeros((2 + config.scenarios, BINS, 5))
            for task in tasks
            if config.how != "none"
        }
        self._fitted: dict[str, Mapping[int, Curve]] = {}

    def observe(
        self,
        task: str,
        predictions: ArrayLike,
        labels: ArrayLike,
        weights: ArrayLike = 1.0,
        scenarios: ArrayLike = ALL,
        served: ArrayLike | None = None,
    ) -> None:
        """Takes what was predicted, before any calibration, and what came of it, in their order;
        and what was served, if not the same, of which only `figures` tell.

        Each argument (n,) or one for all; labels from 0 to 1, NaN where not known.
        """
        if task not in self._counts:
            return
        served = predictions if served is None else served
        columns = np.broadcast_arrays(predictions, labels, weights, scenarios, served)
        p, y = columns[:2]
        known = ~np.isnan(y) & (p >= 0) & (p <= 1)
        p, y, w, codes, served = (column[known] for column in columns)
        y = np.clip(y, 0.0, 1.0)
        logits = np.clip(_logits(p), -_SPAN, _SPAN)
        bins = np.minimum(((logits + _SPAN) * (BINS / (2 * _SPAN))).astype(np.int64), BINS - 1)
        values = w[:, None] * np.stack([np.ones(len(p)), logits, y, p, served], 1)
        counts = self._counts[task]
        counts *= 0.5 ** (float(y.sum()) / self._config.half_life)
        np.add.at(counts[_ALL], bins, values)
        np.add.at(counts, (self._slots(codes), bins), values)
        self._fitted.pop(task, None)

    def curves(self) -> Curves:
        """Those of all that was observed by now."""
        for task in self._counts.keys() - self._fitted.keys():
            self._fitted[task] = dict(self._fit(task))
        return Curves({task: self._fitted[task] for task in self._counts})

    def figures(self) -> Iterator[tuple[str, int, float, float]]:
        """Of each task and scenario by its code, ALL first: how many positives were predicted for
        each that came, lately, and how many were served. Both are 1 at best.
        """
        for task in self._counts:
            sums = self._counts[task].sum(1)
            for slot, code in ((_ALL, ALL), *enumerate(self._codes, 2)):
                _, _, positives, predicted, served = sums[slot].tolist()
                if positives > 0:
                    yield task, code, predicted / positives, served / positives

    def state(self) -> dict[str, NDArray[Any]]:
        """A copy of all that was counted: it belongs into the cut."""
        used = 2 + len(self._codes)
        counts = {f"counts/{task}": counts[:used].copy() for task, counts in self._counts.items()}
        return {"codes": np.array(self._codes, np.int32), **counts}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on to the bit where `state()` was taken, with as many scenarios as there is room
        for; what was not counted there begins anew.
        """
        self._codes[:] = state["codes"].tolist()[: self._config.scenarios]
        self._fitted.clear()
        used = 2 + len(self._codes)
        for task, counts in self._counts.items():
            counts[:] = 0.0
            if (saved := state.get(f"counts/{task}")) is not None:
                counts[:used] = saved[:used]

    def _slots(self, codes: Codes) -> NDArray[np.int64]:
        """Where each scenario (n,) is counted; one that is new gets a slot if there is one left."""
        distinct, number = np.unique(codes, return_inverse=True)
        for code in distinct.tolist():
            if (
                code not in self._codes
                and code != ALL
                and len(self._codes) < self._config.scenarios
            ):
                self._codes.append(code)
        slots = [
            2 + self._codes.index(code) if code in self._codes else _OTHERS
            for code in distinct.tolist()
        ]
        return np.array(slots, np.int64)[number]

    def _fit(self, task: str) -> Iterator[tuple[int, Curve]]:
        counts = self._counts[task]
        isotonic = self._config.how == "isotonic"
        of_all = _fitted(counts[_ALL], _SAME, isotonic)
        yield ALL, of_all
        for slot, code in enumerate(self._codes, 2):
            yield code, _fitted(counts[slot], of_all, isotonic)


def _fitted(counts: Floats, before: Curve, isotonic: bool) -> Curve:
    """The curve of counts (BINS, 5) that puts right what is not yet right with the one before."""
    weights, logits, positives = counts[counts[:, 0] > 0, :3].T
    if not weights.size:
        return before
    logits = logits / weights
    slope, level = _line(weights, positives, before(logits))
    line = before.then(slope, level)
    if not isotonic:
        return line
    knots, values = _pooled(weights, positives, logits, line(logits))
    return Curve(knots, values, line.slope)


@compiled_briefly
def _line(weights: Floats, positives: Floats, logits: Floats) -> tuple[float, float]:
    """The slope and the level that make `positives` (k,) of `weights` (k,) likeliest.

    The slope turns the line around where samples tell most, so that it says nothing of the level.
    """
    told, middle = 0.0, 0.0
    for i in range(weights.size):
        p = 1.0 / (1.0 + np.exp(-logits[i]))
        told += weights[i] * p * (1.0 - p)
        middle += weights[i] * p * (1.0 - p) * logits[i]
    if told == 0.0:
        return 1.0, 0.0
    middle /= told
    turned, moved = 0.0, 0.0  # the slope less 1, and the level there
    for _ in range(_STEPS):
        g_turned, g_moved = -_SLOPE_PRIOR * turned, -_LEVEL_PRIOR * moved
        h_turned, h_both, h_moved = _SLOPE_PRIOR, 0.0, _LEVEL_PRIOR
        for i in range(weights.size):
            away = logits[i] - middle
            p = 1.0 / (1.0 + np.exp(-(logits[i] + turned * away + moved)))
            off, sure = positives[i] - weights[i] * p, weights[i] * p * (1.0 - p)
            g_turned += off * away
            g_moved += off
            h_turned += sure * away * away
            h_both += sure * away
            h_moved += sure
        turn = (g_turned * h_moved - g_moved * h_both) / (h_turned * h_moved - h_both * h_both)
        turn = max(min(turn, 1.0), -1.0, _LEAST_SLOPE - 1.0 - turned)
        move = max(min((g_moved - h_both * turn) / h_moved, 1.0), -1.0)
        turned += turn
        moved += move
        if abs(turn) + abs(move) < _NEAR:
            break
    return 1.0 + turned, moved - turned * middle


@compiled_briefly
def _pooled(
    weights: Floats, positives: Floats, logits: Floats, line: Floats
) -> tuple[Floats, Floats]:
    """Where blocks of bins have their middles, and the logits of their rates; both rise."""
    weight, positive = np.empty_like(weights), np.empty_like(weights)
    middle = np.empty_like(weights)
    blocks = 0
    for i in range(weights.size):
        p = 1.0 / (1.0 + np.exp(-max(min(line[i], _SPAN), -_SPAN)))
        more = _PSEUDO / min(p, 1.0 - p)
        weight[blocks] = weights[i] + more
        positive[blocks] = positives[i] + more * p
        middle[blocks] = weight[blocks] * logits[i]
        blocks += 1
        while blocks > 1 and (
            positive[blocks - 2] * weight[blocks - 1] >= positive[blocks - 1] * weight[blocks - 2]
        ):
            blocks -= 1
            weight[blocks - 1] += weight[blocks]
            positive[blocks - 1] += positive[blocks]
            middle[blocks - 1] += middle[blocks]
    weight, positive, middle = weight[:blocks], positive[:blocks], middle[:blocks]
    return middle / weight, np.log(positive / (weight - positive))


def _of(curves: Mapping[int, Curve], code: int) -> Curve:
    return curves.get(code, curves[ALL])


def _logits(probabilities: NDArray[Any]) -> Floats:
    p = probabilities.astype(np.float64)
    with np.errstate(divide="ignore"):
        logits: Floats = np.clip(np.log(p) - np.log1p(-p), -_FINITE, _FINITE)
    return logits


def _probabilities(logits: Floats) -> Floats:
    probabilities: Floats = 1.0 / (1.0 + np.exp(-logits))
    return probabilities
