"""The same metrics for every task, over all samples and for each scenario apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainers.metrics import AUC, GAUC, Calibration, Outcomes
from trainers.tally import Sums

ALL, OTHER = "all", "other"
_ALL = -1  # among the codes of scenarios
SlicedSums = dict[tuple[str, str, str], Sums]  # by task, scenario and metric


class Metric(Protocol):
    """A `TallyMetric` that takes `Outcomes`; the metrics of one slice differ in their names."""

    name: str

    def update(self, rows: Outcomes) -> None: ...
    def get(self) -> dict[str, float]: ...
    def sums(self) -> Sums: ...
    def both_figures(self, sums: Sums) -> dict[str, float]: ...
    def absorb(self, sums: Sums) -> None: ...
    def state(self) -> dict[str, NDArray[Any]]: ...
    def load(self, state: Mapping[str, NDArray[Any]]) -> None: ...


class Figure(NamedTuple):
    """One number on the dashboard; `scenario` is "all", "other", or a scenario's own name."""

    metric: str
    task: str
    scenario: str
    value: float


Make = Callable[[], Sequence[Metric]]


def standard_metrics() -> Sequence[Metric]:
    """What every binary task is watched by."""
    return [AUC(), GAUC(), Calibration()]


class Scenarios:
    """Names of scenarios to small numbers: 0 is "other", where all go that find no room.

    `names` are there from the start; up to `most` in all, others join them as they come.
    """

    def __init__(self, names: Sequence[str] = (), most: int = 16) -> None:
        self.names = [OTHER, *names]
        self._most = most

    def encode(self, column: pa.Array) -> NDArray[np.int64]:
        """The code (n,) of each name of a string column; null is "other"."""
        encoded = column.dictionary_encode()
        codes = np.array([0, *map(self.code, encoded.dictionary.to_pylist())], np.int64)
        found: NDArray[np.int64] = codes[1 + encoded.indices.fill_null(-1).to_numpy()]
        return found

    def code(self, name: str) -> int:
        """The code of one name, which joins if there is room."""
        if name not in self.names:
            if name == ALL or len(self.names) > self._most:
                return 0
            self.names.append(name)
        return self.names.index(name)


class SlicedMetrics:
    """For each task the metrics that `make` gives: once over all, and once for each scenario, or
    there those that `of_scenario` gives, of the same names.

    A slice comes into being with its first outcome; `scenarios` bounds their number.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        scenarios: Scenarios | None = None,
        make: Make = standard_metrics,
        of_scenario: Make | None = None,
    ) -> None:
        self.scenarios = scenarios or Scenarios()
        self._make = make
        self._of_scenario = of_scenario or make
        self._kinds = {metric.name: metric for metric in make()}
        self._slices: dict[str, dict[int, Sequence[Metric]]] = {task: {} for task in tasks}

    def update(self, task: str, rows: Outcomes) -> None:
        """Takes outcomes of one task, in their order; ValueError if it was not declared."""
        if task not in self._slices:
            raise ValueError(f"no task {task!r} was declared, only {list(self._slices)}")
        for code in (_ALL, *np.unique(rows["scenario"]).tolist()):
            chosen = rows if code == _ALL else rows[rows["scenario"] == code]
            for metric in self._slice(task, code):
                metric.update(chosen)

    def figures(self, sums: SlicedSums | None = None) -> Iterator[Figure]:
        """Every figure that is defined by now, its own or those of `sums`."""
        told = self.sums() if sums is None else sums
        for (task, scenario, kind), of_metric in told.items():
            for name, value in self._kinds[kind].both_figures(of_metric).items():
                yield Figure(name, task, scenario, value)

    def get(self) -> dict[str, float]:
        """The figures by name: `auc[click]` over all, `auc[click,home]` in one scenario."""
        named = {}
        for metric, task, scenario, value in self.figures():
            labels = task if scenario == ALL else f"{task},{scenario}"
            named[f"{metric}[{labels}]"] = value
        return named

    def sums(self) -> SlicedSums:
        """The sums of every metric; `merged` with those of other ranks they describe the whole."""
        return {
            (task, self._name(code), metric.name): metric.sums()
            for task, code, metric in self._metrics()
        }

    def absorb(self, sums: SlicedSums) -> None:
        """Goes on counting from the `sums()` of others too: those of ranks that are no more."""
        for (task, scenario, kind), of_metric in sums.items():
            code = _ALL if scenario == ALL else self.scenarios.code(scenario)
            for metric in self._slice(task, code):
                if metric.name == kind:
                    metric.absorb(of_metric)

    def state(self) -> dict[str, NDArray[Any]]:
        """A copy of all that was counted: it belongs into the checkpoint's one cut."""
        names = json.dumps(self.scenarios.names).encode()
        arrays: dict[str, NDArray[Any]] = {"scenarios": np.frombuffer(names, np.uint8).copy()}
        for task, code, metric in self._metrics():
            for name, array in metric.state().items():
                arrays[f"{task}/{code}/{metric.name}/{name}"] = array
        return arrays

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on where `state()` was taken; what was not counted there begins anew."""
        names = json.loads(state["scenarios"].tobytes())
        self.scenarios.names[:] = [*names, *(n for n in self.scenarios.names if n not in names)]
        parts: dict[tuple[str, str, str], dict[str, NDArray[Any]]] = {}
        for key, array in state.items():
            if key != "scenarios":
                task, code, kind, name = key.rsplit("/", 3)
                parts.setdefault((task, code, kind), {})[name] = array
        for (task, code, kind), arrays in parts.items():
            if task in self._slices:
                for metric in self._slice(task, int(code)):
                    if metric.name == kind:
                        metric.load(arrays)

    def _name(self, code: int) -> str:
        return ALL if code == _ALL else self.scenarios.names[code]

    def _slice(self, task: str, code: int) -> Sequence[Metric]:
        slices = self._slices[task]
        if code not in slices:
            slices[code] = self._make() if code == _ALL else self._of_scenario()
        return slices[code]

    def _metrics(self) -> Iterator[tuple[str, int, Metric]]:
        for task, slices in self._slices.items():
            for code in sorted(slices):
                for metric in slices[code]:
                    yield task, code, metric


def merged(parts: Iterable[SlicedSums]) -> SlicedSums:
    """The `sums()` of several ranks as those of one."""
    whole: SlicedSums = {}
    for part in parts:
        for key, sums in part.items():
            whole[key] = whole[key] + sums if key in whole else sums
    return whole
