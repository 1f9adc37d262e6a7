"""The served watch: what came of what was really served, by version, scenario, arm and position.

An impression carries the score and the version that it was served with; here they meet its labels.
Of impressions that came to nothing only some become samples (`negative_rate`): each of these counts
for all that it stands for. Every impression counts once in a label (`serving.cohorts` says when).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from serving.cohorts import Cohort
from serving.experiments import Experiment, arm_of
from serving.quality import FIGURES, LabelQuality, impressions_of
from serving.sample_watch import PATIENCE_S, Joined
from streaming.event_columns import NONE
from streaming.ids import stable_id
from streaming.impressions import Label
from streaming.metrics import Metrics
from streaming.samples import labels_in
from trainers.metric_kernels import pair_keys
from trainers.sliced_metrics import Scenarios
from trainers.versions import VersionInfo

Ids = NDArray[np.int64]
_POSITIONS = [*map(str, range(10)), "10+"]
_FIGURES_TOLD = 16_384  # of a family, at most
_NOBODYS, _ALL = 0, 1  # slices
_AT_ONCE = 2_048  # rows
_COLUMNS = (
    "user_id", "item_id", "at", "kind", "scenario", "request_id", "position", "negative_rate",
    "served_score", "served_version",
)  # fmt: skip


@dataclass(frozen=True)
class QualityConfig:
    """How what was served is judged; `enabled = false` leaves only the counts of experiments.

    Figures fade by half every `half_life` impressions whose label became known, what a position
    promises in `position_half_life_s` of event time. A generation is so many versions in a row, of
    the newest `generations` figures are kept. `most_waiting` positives of a label wait for their
    negatives, of the newest `remembered` of which it is known that they have been told. Prometheus
    is told every `tell_every_s`.

    Of the live model at most `tested` liked items are ranked at once, for at most a `share` of one
    core; its recall fades by half every `tested_half_life` of them.
    """

    enabled: bool = True
    half_life: PositiveInt = 20_000
    position_half_life_s: PositiveFloat = 86_400.0
    scenarios: PositiveInt = 16
    generation: PositiveInt = 1_000
    generations: PositiveInt = 20
    most_waiting: PositiveInt = 200_000
    remembered: PositiveInt = 200_000
    tell_every_s: PositiveFloat = 2.0
    tested: PositiveInt = 64
    tested_half_life: PositiveInt = 1_000
    share: PositiveFloat = 0.01


class _Arm(NamedTuple):
    """Of one label in one arm: of how many impressions it is known, and what it adds up to."""

    known: float = 0.0
    total: float = 0.0


class ServedWatch:
    """Judges answers by their impressions; samples that were no answer are not looked at.

    Quality is that of impressions that say with which score they were served; the experiments count
    all. Any thread may ask; one takes samples.
    """

    def __init__(
        self,
        labels: Mapping[str, Label],
        experiments: Mapping[str, Experiment],
        config: QualityConfig,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._labels = labels
        self._experiments = experiments
        self._config = config
        self._metrics = _Told(metrics)
        self._clock = clock
        self._lock = threading.Lock()
        self._slices = _Slices(experiments, config)
        self._generations = _Generations(config)
        self._dtype = impressions_of(self._slices.each)
        self._cohorts = {name: Cohort(config.most_waiting, config.remembered) for name in labels}
        self._quality = {
            name: LabelQuality(
                name,
                len(self._slices),
                config.half_life,
                position_half_life_s=config.position_half_life_s,
                graded=label.graded,
            )
            for name, label in labels.items()
            if config.enabled
        }
        self._arms: dict[tuple[str, str, str], _Arm] = defaultdict(_Arm)
        self._taken: list[pa.RecordBatch] = []  # and not counted yet
        self._untold = False  # whether anything was taken since Prometheus was told
        self._tell_at = clock() + config.tell_every_s

    def patience_s(self) -> float | None:
        return PATIENCE_S if self._config.enabled or self._experiments else None

    def know(self, info: VersionInfo) -> None:
        """Hears of a version, by whose hashed name impressions will call it."""
        with self._lock:
            begun = self._generations.know(info)
            if begun is not None:
                for quality in self._quality.values():
                    quality.forget(self._slices.of_generation(begun))

    def take(self, joined: Joined) -> None:
        rows = joined.outline
        answers = pc.and_(rows["request_id"].is_valid(), rows["negative_rate"].is_valid())
        if not self._experiments:  # only they count what has no score
            answers = pc.and_(answers, rows["served_score"].is_valid())
        with self._lock:
            if pc.any(answers).as_py():
                labels = [f"label_{label}" for label in labels_in(rows.schema)]
                self._take(rows.select([*_COLUMNS, *labels]).filter(answers))
            if self._untold and self._config.enabled and self._clock() >= self._tell_at:
                self._count_taken()
                self._tell()
                self._untold = False
                self._tell_at = self._clock() + self._config.tell_every_s

    def figures(self) -> list[dict[str, Any]]:
        """Every slice of which anything is known: `slice` (all, scenario, arm, position, version),
        `of`, `label`, `known`, and of each figure `value`, `low` and `high`; None if not defined.
        """
        with self._lock:
            self._count_taken()
            return [
                {"slice": slice_, "of": of, "label": label, "known": known, **told}
                for label, slice_, of, known, told in self._rows()
            ]

    def experiments(self) -> dict[str, Any]:
        """Of each experiment, arm and label: of how many impressions it is known, and its mean."""
        found: dict[str, dict[str, dict[str, dict[str, float]]]] = {
            name: {arm: {} for arm in experiment.arms}
            for name, experiment in self._experiments.items()
        }
        with self._lock:
            self._count_taken()
            for (name, arm, label), tally in self._arms.items():
                mean = tally.total / tally.known
                found[name][arm][label] = {"known": tally.known, "mean": mean}
        return found

    # -- counting --------------------------------------------------------------------------

    def _take(self, answered: pa.RecordBatch) -> None:
        if self._taken and self._taken[0].schema != answered.schema:
            self._count_taken()
        self._taken.append(answered)
        self._untold = True
        if sum(batch.num_rows for batch in self._taken) >= _AT_ONCE:
            self._count_taken()

    def _count_taken(self) -> None:
        """Counts what was taken: many rows at once take hardly longer than a few."""
        if self._taken:
            rows, self._taken = pa.concat_batches(self._taken), []
            self._count_rows(rows)

    def _count_rows(self, rows: pa.RecordBatch) -> None:
        shown = self._shown(rows)
        ended = pc.equal(rows["kind"], "impression").to_numpy(zero_copy_only=False)
        stands_for = np.where(ended, 1.0 / rows["negative_rate"].to_numpy(), 1.0)
        for label in [name for name in labels_in(rows.schema) if name in self._labels]:
            values = rows[f"label_{label}"].to_numpy(zero_copy_only=False)
            known = ~np.isnan(values)
            if known.any():
                told = shown[known]
                told["label"], told["weight"] = values[known], stands_for[known]
                self._count(label, self._cohorts[label].admit(told, ended[known]))

    def _shown(self, rows: pa.RecordBatch) -> NDArray[np.void]:
        """What is known of the impressions of rows, but for labels."""
        shown = np.zeros(rows.num_rows, self._dtype)
        shown["key"] = pair_keys(rows["request_id"].to_numpy(), rows["item_id"].to_numpy())
        shown["at_us"] = rows["at"].view(pa.int64()).to_numpy()
        shown["position"] = rows["position"].fill_null(NONE).to_numpy()
        shown["score"] = rows["served_score"].to_numpy(zero_copy_only=False)
        versions = rows["served_version"].fill_null(NONE).to_numpy()
        shown["generation"] = self._generations.of(versions)
        shown["scenario"], shown["places"] = self._slices.places(rows, shown["position"])
        return shown

    def _count(self, label: str, impressions: NDArray[np.void]) -> None:
        if not len(impressions):
            return
        self._count_arms(label, impressions)
        scored = impressions[~np.isnan(impressions["score"])]
        if self._config.enabled and len(scored):
            places = scored["places"].copy()
            places[:, -1] = self._generations.slices(scored["generation"], self._slices)
            self._quality[label].update(scored, places)

    def _count_arms(self, label: str, impressions: NDArray[np.void]) -> None:
        for (name, arm), place in self._slices.arms.items():
            mine = impressions[(impressions["places"] == place).any(1)]
            if not len(mine):
                continue
            known, total = float(mine["weight"].sum()), float(mine["label"].sum())
            before = self._arms[name, arm, label]
            self._arms[name, arm, label] = _Arm(before.known + known, before.total + total)
            self._metrics.arm_known.labels(name, arm, label).inc(known)
            self._metrics.arm_total.labels(name, arm, label).inc(total)

    # -- telling ---------------------------------------------------------------------------

    def _rows(self) -> list[tuple[str, str, str, float, dict[str, Any]]]:
        names = self._slices.names(self._generations.names())
        found = []
        for label, quality in self._quality.items():
            recent, figures = quality.recent, quality.figures()
            for place, (slice_, of) in names.items():
                if recent[place] > 0:
                    told = {
                        name: figures[name].told(place) if name in figures else None
                        for name in FIGURES
                    }
                    found.append((label, slice_, of, float(recent[place]), told))
        return found

    def _tell(self) -> None:
        for label, slice_, of, _, told in self._rows():
            if slice_ == "version":  # there is no end of them
                continue
            for figure, bounds in told.items():
                for bound, value in (bounds or {}).items():
                    if value is not None:
                        self._metrics.figure.labels(figure, label, slice_, of, bound).set(value)
        for label, quality in self._quality.items():
            known = quality.known
            for place, (slice_, of) in self._slices.names({}).items():
                if known[place]:
                    self._metrics.known.set(float(known[place]), label, slice_, of)


class _Told:
    """What Prometheus is told."""

    def __init__(self, metrics: Metrics) -> None:
        self.figure = metrics.gauge(
            "headrace_served_figure",
            "What was served lately, judged by what came of it: value and 95 % bounds of a figure.",
            ["figure", "label", "slice", "of", "bound"],
            most=_FIGURES_TOLD,
        )
        self.known = metrics.totals(
            "headrace_served_known_total",
            "Impressions of what was served whose label is known.",
            ["label", "slice", "of"],
        )
        self.arm_known = metrics.counter(
            "headrace_arm_label_known_total",
            "Impressions of answers whose label is known, by the arm of their user.",
            ["experiment", "arm", "label"],
            most=_FIGURES_TOLD,
        )
        self.arm_total = metrics.counter(
            "headrace_arm_label_total",
            "What these labels add up to: over the number of the known ones, the rate.",
            ["experiment", "arm", "label"],
            most=_FIGURES_TOLD,
        )


class _Slices:
    """The slices of impressions, by number; each impression falls into `each` of them."""

    def __init__(self, experiments: Mapping[str, Experiment], config: QualityConfig) -> None:
        self._experiments = experiments
        self._scenarios = Scenarios(most=config.scenarios)
        self._first_position = _ALL + 1
        self._first_scenario = self._first_position + len(_POSITIONS)
        first_arm = self._first_scenario + config.scenarios + 1
        arms = [(name, arm) for name, one in experiments.items() for arm in one.arms]
        self.arms = {arm: first_arm + n for n, arm in enumerate(arms)}
        self._first_generation = first_arm + len(arms)
        self._generations = config.generations
        self.each = 4 + len(experiments)

    def __len__(self) -> int:
        return self._first_generation + self._generations

    def of_generation(self, number: int) -> int:
        """The slice of a generation, which it takes from an older one."""
        return self._first_generation + number % self._generations

    def names(self, generations: Mapping[int, str]) -> dict[int, tuple[str, str]]:
        """What each slice is called, by its kind and what it is of."""
        names = {_ALL: ("all", "")}
        for n, position in enumerate(_POSITIONS):
            names[self._first_position + n] = ("position", position)
        for n, scenario in enumerate(self._scenarios.names):
            names[self._first_scenario + n] = ("scenario", scenario)
        for (experiment, arm), place in self.arms.items():
            names[place] = ("arm", f"{experiment}/{arm}")
        for number, name in generations.items():
            names[self.of_generation(number)] = ("version", name)
        return names

    def places(self, rows: pa.RecordBatch, positions: Ids) -> tuple[Ids, Ids]:
        """The codes (n,) of the scenarios, and the slices (n, each) of rows; the last one is left
        for the generation.
        """
        scenarios = self._scenarios.encode(rows["scenario"])
        found = np.full((rows.num_rows, self.each), _NOBODYS, np.int64)
        found[:, 0] = _ALL
        placed = positions >= 0
        last = len(_POSITIONS) - 1
        found[placed, 1] = self._first_position + np.minimum(positions[placed], last)
        found[:, 2] = self._first_scenario + scenarios
        for n, (name, experiment) in enumerate(self._experiments.items()):
            found[:, 3 + n] = self._arms_of(name, experiment, rows)
        return scenarios, found

    def _arms_of(self, name: str, experiment: Experiment, rows: pa.RecordBatch) -> Ids:
        users, user = np.unique(rows["user_id"].to_numpy(), return_inverse=True)
        arms = [self.arms[name, arm_of(name, experiment, one)] for one in users.tolist()]
        found: Ids = np.array(arms, np.int64)[user]
        if experiment.scenarios:
            scenarios = pa.array(experiment.scenarios, pa.string())
            inside = pc.is_in(rows["scenario"], scenarios).to_numpy(zero_copy_only=False)
            found = np.where(inside, found, _NOBODYS)
        return found


class _Generations:
    """Numbers versions by generations, the newest of which are known by their hashed names."""

    def __init__(self, config: QualityConfig) -> None:
        self._size, self._most = config.generation, config.generations
        self._newest = NONE
        self._numbers: dict[tuple[str, str, int], int] = {}  # of each that is kept
        self._of: dict[int, int] = {}  # by the stable id of a version's name

    def know(self, info: VersionInfo) -> int | None:
        """Takes a version in; the number of its generation if that has begun with it."""
        key = (info.model, info.lineage, info.number // self._size)
        begun = None
        if key not in self._numbers:
            begun = self._newest = self._newest + 1
            gone = begun - self._most
            self._numbers = {k: n for k, n in self._numbers.items() if n > gone}
            self._of = {name: n for name, n in self._of.items() if n > gone}
            self._numbers[key] = begun
        self._of[stable_id(info.name)] = self._numbers[key]
        return begun

    def of(self, versions: Ids) -> Ids:
        """The generation (n,) of versions by their hashed names; NONE of an unknown one."""
        names, name = np.unique(versions, return_inverse=True)
        found: Ids = np.array([self._of.get(n, NONE) for n in names.tolist()], np.int64)[name]
        return found

    def slices(self, numbers: Ids, slices: _Slices) -> Ids:
        """The slice (n,) of each generation that is still kept."""
        kept = (numbers != NONE) & (numbers > self._newest - self._most)
        return np.where(kept, slices.of_generation(0) + numbers % self._most, _NOBODYS)

    def names(self) -> dict[int, str]:
        """What each generation is called, after its first version."""
        return {
            number: f"{model}/{lineage}/{part * self._size}"
            for (model, lineage, part), number in self._numbers.items()
        }
