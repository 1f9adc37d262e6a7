"""The pipeline: candidate sources -> ranker -> fusion -> rules -> the order of an answer.

Each of them is a small callable, and an answer can do without any of them: without sources it is
what is popular, without the ranker the order is that of the pooled shares, without a rule the one
before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from features.batch import Ids
from features.catalog import Catalog
from serving.answers import Explanation
from serving.cold_start import (
    Candidates,
    ColdStartConfig,
    Consulted,
    Source,
    Visit,
    all_sources,
    pooled,
)
from serving.fusion import SHARE, FusionConfig, fused
from serving.parts import Work
from serving.replica import ServedModel, ServedRanker
from serving.rules import RulesConfig, Slate, all_rules

Floats = NDArray[np.float64]
# What is expected of each candidate (n,), for each task by its name.
Ranker = Callable[[Visit, Candidates], Mapping[str, Floats]]
Proposed = Callable[[str, int], None]  # a source, and how many candidates it proposes
NO_RANKER = "none"


@dataclass(frozen=True)
class PipelineConfig:
    """How an answer is made; scenarios and arms of experiments may change any of it.

    `models` have a say in it, in proportion to their numbers, such as `{two_tower = 1, sasrec = 2}`
    of a recipe that trains both; none named is that of [trainer] alone. The first of them speaks
    for the answer: it is its version's, and diversity is measured in its space.
    Sources from outside have `source_within_ms` for their proposals. The `ranker` is one of the
    models of family ranking that the recipe trains, the first of them if none is named, or `none`;
    it is asked once it has learnt `ranker_from` samples. It is given the `ranked` best candidates
    by their shares; one from outside has `ranker_within_ms` for them.
    """

    models: Mapping[str, PositiveFloat] = field(default_factory=dict)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    source_within_ms: PositiveFloat = 50.0
    ranker: str = ""
    ranker_from: NonNegativeInt = 10_000
    ranked: PositiveInt = 500
    ranker_within_ms: PositiveFloat = 50.0
    fusion: FusionConfig = field(default_factory=FusionConfig)
    rules: RulesConfig = field(default_factory=RulesConfig)


@dataclass(frozen=True, slots=True)
class Ordered:
    """Candidates in the order in which they are shown: `scores` (n,) and `tasks` of each, which a
    `fusion` made these of, and of every rule the places that they had before and after it, (2, n).
    """

    candidates: Candidates
    scores: Floats
    tasks: Mapping[str, Floats]
    fusion: FusionConfig
    moves: Mapping[str, Ids] = field(default_factory=dict)

    def take(self, order: Ids) -> Ordered:
        """The same candidates in another order."""
        return Ordered(
            self.candidates.where(order),
            self.scores[order],
            {name: task[order] for name, task in self.tasks.items()},
            self.fusion,
            {name: places[:, order] for name, places in self.moves.items()},
        )

    def found(self) -> Iterator[tuple[int, float, str]]:
        """Each item with its score and the source of the largest part of it."""
        for place in range(len(self.candidates)):  # few of them are asked for
            item, score = int(self.candidates.items[place]), float(self.scores[place])
            yield item, score, self.candidates.source(place)

    def explanations(self, items: Sequence[int]) -> dict[int, Explanation]:
        """Why each of these items stands where it stands; nothing of those that are not here."""
        places = {item: place for place, item in enumerate(self.candidates.items.tolist())}
        return {item: self._explain(places[item]) for item in items if item in places}

    def _explain(self, place: int) -> Explanation:
        moves = {name: places[:, place].tolist() for name, places in self.moves.items()}
        return Explanation(
            self.candidates.contributions(place),
            {name: float(task[place]) for name, task in self.tasks.items()},
            {name: before for name, (before, after) in moves.items() if before != after},
        )


class Pipeline:
    """One way to make answers. `own_model` has the say where the config names none."""

    def __init__(
        self,
        config: PipelineConfig,
        catalog: Catalog,
        own_model: str,
        ranker: Ranker | None = None,
        sources: Mapping[str, Source] | None = None,
        proposed: Proposed = lambda _source, _candidates: None,
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._ranker = ranker
        self.models = config.models or {own_model: 1.0}
        self._own = all_sources(config.cold_start, catalog, list(self.models))
        self._others = sources or {}
        self._proposed = proposed
        self._rules = all_rules(config.rules)

    def ranker_of(self, rankers: Sequence[str]) -> str | None:
        """Which of the recipe's rankers is asked; None for none."""
        if self._config.ranker == NO_RANKER:
            return None
        return self._config.ranker or next(iter(rankers), None)

    def consulted(self, served: Mapping[str, ServedModel | None]) -> dict[str, Consulted]:
        """Its models, as far as they are served yet, by their names."""
        there = {name: one for name, one in served.items() if one is not None}
        total = sum(self.models[name] for name in there)
        return {
            name: Consulted(one, self.models[name] / total, self._temperature(one))
            for name, one in there.items()
        }

    def _temperature(self, served: ServedModel) -> float:
        """At which scores of a version become shares: that with which it was trained."""
        options = served.info.options
        return float(options.get("temperature", self._config.cold_start.temperature))

    def trusted(self, ranker: ServedRanker | None) -> ServedRanker | None:
        """A version of it, if it has learnt enough to be asked."""
        enough = ranker is not None and ranker.learnt >= self._config.ranker_from
        return ranker if enough else None

    def candidates(self, visit: Visit, work: Work) -> Candidates:
        """What all sources propose, best first, without what is hidden or not allowed."""
        within_s = self._config.source_within_ms / 1e3
        started = [
            work.start(name, source, visit, within_s=within_s)
            for name, source in self._others.items()
        ]
        proposed = [work.do(name, source, visit) for name, source in self._own.items()]
        proposed += [work.get(one) for one in started]
        proposals = [one for one in proposed if one is not None]
        for one in proposals:
            self._proposed(one.source, len(one.items))
        found = pooled(proposals, visit.hidden)
        if visit.allowed is not None:
            found = found.where(visit.allowed.holds(found.items))
        return found

    def order(
        self,
        visit: Visit,
        candidates: Candidates,
        work: Work,
        *,
        fusion: FusionConfig | None = None,
        ruled: bool = True,
    ) -> Ordered:
        """Scores the candidates, by another `fusion` than its config's if one is given, and lets
        the rules have their say.
        """
        tasks = self._tasks(visit, candidates, work)
        fusion = fusion or self._config.fusion
        scores = fused(tasks, fusion)
        ordered = Ordered(candidates, scores, tasks, fusion)
        if (scores[1:] > scores[:-1]).any():  # shares alone are in order
            ordered = ordered.take(np.argsort(-scores, kind="stable"))
        for name, rule in self._rules.items() if ruled else ():
            slate = self._slate(visit, ordered)
            places = work.do(name, rule, slate, visit.count)
            if places is not None:
                order = np.concatenate([places, np.arange(len(places), len(candidates))])
                moves = {**ordered.moves, name: np.tile(np.arange(len(order)), (2, 1))}
                ordered = replace(ordered, moves=moves).take(order)
                ordered.moves[name][1] = np.arange(len(order))
        return ordered

    def _tasks(self, visit: Visit, candidates: Candidates, work: Work) -> Mapping[str, Floats]:
        tasks = {SHARE: candidates.shares}
        if not len(candidates):
            return tasks
        best = candidates.where(slice(self._config.ranked))
        found: dict[str, Floats] = {}
        if self._ranker is not None:
            within_s = self._config.ranker_within_ms / 1e3
            theirs = work.apart("ranker", self._ranker, visit, best, within_s=within_s)
            found |= theirs or {}
        if visit.ranker is not None:
            found |= work.do("ranking", visit.ranker.rank, visit.users, best.items) or {}
        nothing = np.zeros(len(candidates) - len(best))
        return tasks | {name: np.append(task, nothing) for name, task in found.items()}

    def _slate(self, visit: Visit, ordered: Ordered) -> Slate:
        considered = max(self._config.rules.considered, visit.count)
        items = ordered.candidates.items[:considered]
        return Slate(
            items,
            ordered.scores[:considered],
            lambda: [self._attributes(item) for item in items.tolist()],
            lambda: _unit_vectors(visit, items),
        )

    def _attributes(self, item: int) -> Mapping[str, Any]:
        found = self._catalog.get(item)
        return {} if found is None else found.described


def _unit_vectors(visit: Visit, items: Ids) -> NDArray[np.float32]:
    if visit.served is None:
        return np.zeros((len(items), 1), np.float32)
    vectors, _ = visit.served.vectors(items)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
    return unit
