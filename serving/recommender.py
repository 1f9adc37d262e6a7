"""The recommender: what is known of a user, and what several sources make of it together."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat

from features.batch import Ids, known_user
from features.behaviour import words_of
from features.catalog import Catalog, CatalogItem
from features.definitions import ITEM_STATISTICS, USER_HISTORY, View
from serving.answers import Answer, KnownAction, KnownUser, Recommendation, Wanted
from serving.cold_start import CONTENT, NOBODY, POPULAR, Source, Visit
from serving.experiments import Experiment, arm_of
from serving.filters import Filters
from serving.fusion import FusionConfig
from serving.index import Subset
from serving.parts import Parts, PartsConfig, Told, Work
from serving.pipeline import NO_RANKER, Ordered, Pipeline, PipelineConfig, Proposed, Ranker
from serving.replica import Replica, ServedRanker
from serving.request import REQUEST_ID
from streaming.errors import ConfigError
from streaming.ids import stable_id, stable_ids
from streaming.kernels import EMPTY
from streaming.settings import changed

# Of a scenario and of the arms of a user, by their experiments; None leaves it to the config.
Fusion = Callable[[str | None, Mapping[str, str]], FusionConfig | None]
Found = tuple[int, float, str]  # item, score, who proposed it
_FILLERS = 1_000  # items that fill an answer, at most


class OnlineFeatures(Protocol):
    """Reads the newest features of entities; the defaults of the view for an unknown one.

    `is_local` if it is in memory or in a file of this machine: then nobody is waited for.
    """

    @property
    def is_local(self) -> bool: ...

    def read(self, view: View, keys: Sequence[int]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class RecommendConfig(PipelineConfig):
    """How answers are made, and within which time.

    A whole answer is to be made `within_ms`; a feature store that is not local has
    `features_within_ms` of it for each question. Items whose attribute `available` is false are
    never shown. `scenarios` and the arms of `experiments` say which
    settings of the pipeline are others there.
    """

    within_ms: PositiveFloat = 500.0
    features_within_ms: PositiveFloat = 200.0
    available: str = "available"
    parts: PartsConfig = field(default_factory=PartsConfig)
    scenarios: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    experiments: Mapping[str, Experiment] = field(default_factory=dict)

    @property
    def pipeline(self) -> PipelineConfig:
        """What holds for everybody."""
        return PipelineConfig(**{f.name: getattr(self, f.name) for f in fields(PipelineConfig)})


class Recommender:
    """Answers from models as far as the user is known, from what is hot as far as he is not.

    `replica` has the model that is asked unless the config names others, which are `beside` it.
    `rankers` say what is to be expected of candidates; the config says which of them is asked.
    `sources` are candidate sources beside its own; they may wait for something, and so may a
    `ranker` from outside. `kinds` names the kinds of actions in histories by their numbers.
    `fusion` says with which weights tasks become scores, if with others than the config's, and
    `clock_us` what time it is.

    Raises:
        ConfigError: what a scenario or an arm does otherwise is not a setting, or it asks a model
            that is not there.
    """

    def __init__(  # noqa: PLR0913 - the wiring of all that answers, done once
        self,
        replica: Replica,
        catalog: Catalog,
        features: OnlineFeatures,
        config: RecommendConfig | None = None,
        *,
        beside: Sequence[Replica] = (),
        rankers: Sequence[Replica[ServedRanker]] = (),
        kinds: Sequence[str] = (),
        ranker: Ranker | None = None,
        sources: Mapping[str, Source] | None = None,
        told: Told = lambda _part, _outcome, _seconds: None,
        proposed: Proposed = lambda _source, _candidates: None,
        fusion: Fusion = lambda _scenario, _arms: None,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        self._replica = replica
        self._replicas = {one.model: one for one in (replica, *beside)}
        self._rankers = {one.model: one for one in rankers}
        self._catalog = catalog
        self._features = features
        self._config = config or RecommendConfig()
        self._kinds = kinds
        self._ranker = ranker
        self._sources = sources
        self._proposed = proposed
        self._fusion = fusion
        self._clock_us = clock_us
        self._filters = Filters(catalog.items, self._config.available)
        self._parts = Parts(self._config.parts, told)
        self._pipelines: dict[tuple[str | None, tuple[tuple[str, str], ...]], Pipeline] = {}
        self._check_changes()

    @property
    def waits(self) -> bool:
        """Whether a part of an answer waits for something outside of this process."""
        return bool(self._ranker or self._sources or not self._features.is_local)

    # -- asking ------------------------------------------------------------------------------

    def recommend(self, wanted: Wanted) -> Answer:
        """At most so many items, best first; none that the user has acted upon lately, unless they
        are wanted.

        Raises:
            BadQuestion: items have no field of that name.
        """
        allowed = self._filters.allowed(wanted.filters)
        return self._answer(wanted, allowed)

    def rank(self, wanted: Wanted, item_ids: Sequence[str]) -> Answer:
        """These items, best first by their scores alone; those that nobody knows are `unknown`.

        Rules do not apply, and an item of which nothing is expected stands last.
        """
        ids = dict(zip(stable_ids(item_ids).tolist(), item_ids, strict=True))
        known = {item: name for item, name in ids.items() if self._catalog.get(item) is not None}
        unknown = [name for item, name in ids.items() if item not in known]
        listed = Subset.of(np.array(list(known), np.int64))
        asked = replace(wanted, count=len(known), seen=True, filters={})
        return self._answer(asked, listed, in_order=list(known), unknown=unknown)

    def similar(self, item_id: str, count: int) -> Answer:
        """The items nearest to an item in the model's space, or by what is said of it while nobody
        has acted upon it; what is popular if nothing is known of it.
        """
        item = stable_id(item_id)
        info, by_model = None, list[Found]()
        allowed = self._filters.allowed({})
        with self._replica.reading() as served:
            if served is not None:
                info = served.info
                by_model = _found(*served.similar(item, count, allowed), info.model)
        found = by_model
        if not by_model or self._catalog.untried(item):
            ids, alike = self._catalog.content.neighbours(np.array([item]), count)
            there = ids[0] != EMPTY
            found = _found(ids[0, there], alike[0, there], CONTENT) or by_model
        listed = chain(found, self._fillers(allowed))
        shown = list(self._described(listed, count, {item}, {}))
        return Answer(uuid.uuid4().hex, _plain(shown), info)

    def known(self, user_id: str) -> KnownUser:
        """What is known of a user."""
        user = stable_id(user_id)
        work = self._parts.begin(self._config.within_ms / 1e3)
        read = self._read(user, work)
        declared = self._catalog.user(user)
        return KnownUser(
            user_id,
            {} if declared is None else declared.attributes,
            self._catalog.interests(user),
            list(self._actions(read)),
            len(read["searched"]),
            read["newest_us"],
            {name: arm_of(name, one, user) for name, one in self._config.experiments.items()},
            work.degraded,
        )

    # -- one answer --------------------------------------------------------------------------

    def _answer(
        self,
        wanted: Wanted,
        allowed: Subset | None,
        *,
        in_order: Sequence[int] | None = None,
        unknown: Sequence[str] = (),
    ) -> Answer:
        """An answer of what is allowed; of just the items `in_order`, if these are given."""
        work = self._parts.begin(self._config.within_ms / 1e3)
        user = stable_id(wanted.user_id)
        arms = self._arms(user, wanted.scenario)
        read = self._read(user, work)
        now_us, words = self._clock_us(), words_of(wanted.words or "")
        users = known_user(user, read, now_us, wanted.scenario, words)
        history = users.history.values
        excluded = stable_ids(wanted.excluded)
        hidden = excluded if wanted.seen else np.concatenate([history, excluded])
        pipeline = self._pipeline(wanted.scenario, arms)
        with ExitStack() as reading:
            versions = {
                name: reading.enter_context(work.holding(self._replicas[name].reading()))
                for name in pipeline.models
            }
            asked = pipeline.ranker_of(list(self._rankers))
            ranker = None
            if asked is not None:
                held = work.holding(self._rankers[asked].reading())
                ranker = pipeline.trusted(reading.enter_context(held))
            visit = Visit(
                users, hidden, self._catalog.interests(user), wanted.count,
                pipeline.consulted(versions), allowed, wanted.words, ranker,
            )  # fmt: skip
            served = visit.served
            candidates = pipeline.candidates(visit, work)
            ordered = pipeline.order(
                visit,
                candidates,
                work,
                fusion=self._fusion(wanted.scenario, arms),
                ruled=in_order is None,
            )
        fillers = (
            self._fillers(allowed) if in_order is None else ((i, 0.0, NOBODY) for i in in_order)
        )
        listed = chain(ordered.found(), fillers)
        shown = list(self._described(listed, wanted.count, set(hidden.tolist()), wanted.filters))
        items = self._explained(shown, ordered, work) if wanted.explain else _plain(shown)
        return Answer(
            request_id=REQUEST_ID.get() or uuid.uuid4().hex,
            items=items,
            version=None if served is None else served.info,
            known_actions=len(history),
            features_at_us=read["newest_us"],
            user=user,
            user_id=wanted.user_id,
            read=read,
            scenario=wanted.scenario,
            arms=arms,
            degraded=work.degraded,
            took_ms={**work.took_ms, "all": 1e3 * work.elapsed_s},
            unknown=unknown,
            ranker=None if ranker is None else ranker.info,
            fusion=ordered.fusion,
        )

    def _read(self, user: int, work: Work) -> Mapping[str, Any]:
        """What the store has of a user; nothing, if it does not say so in time."""
        read = self._ask_store("features", USER_HISTORY, [user], work)
        return dict(USER_HISTORY.defaults) if read is None else read[0]

    def _ask_store(
        self, part: str, view: View, keys: Sequence[int], work: Work
    ) -> list[dict[str, Any]] | None:
        """Rows of the store; None if it has not answered in time."""
        if self._features.is_local:  # faster read than handed over
            return work.do(part, self._features.read, view, keys)
        within_s = self._config.features_within_ms / 1e3
        return work.apart(part, self._features.read, view, keys, within_s=within_s)

    def _described(
        self,
        listed: Iterable[Found],
        count: int,
        hidden: set[int],
        filters: Mapping[str, Sequence[str]],
    ) -> Iterator[tuple[CatalogItem, int, float, str]]:
        """Of what is listed the first items that can be shown, with what is known of them now."""
        left, looked_at = iter(listed), set(hidden)
        while count and (some := list(islice(_others(left, looked_at), count))):
            items = self._catalog.get_each([item for item, _, _ in some])
            for described, (item, score, source) in zip(items, some, strict=True):
                if described is not None and self._filters.passes(filters, described.described):
                    count -= 1
                    yield described, item, score, source

    def _explained(
        self, shown: Sequence[tuple[CatalogItem, int, float, str]], ordered: Ordered, work: Work
    ) -> list[Recommendation]:
        """What is shown, each with what the store knows of it and why it stands where it stands."""
        items = [item for _, item, _, _ in shown]
        why = ordered.explanations(items)
        read = self._ask_store("statistics", ITEM_STATISTICS, items, work) if items else []
        statistics = read or [ITEM_STATISTICS.defaults] * len(items)
        return [
            Recommendation(described, score, source, known, why.get(item))
            for (described, item, score, source), known in zip(shown, statistics, strict=True)
        ]

    def _fillers(self, allowed: Subset | None) -> Iterator[Found]:
        """What stands in places for which nobody proposes anything."""
        popular = np.array(self._catalog.popular(_FILLERS), np.int64)
        if allowed is not None:
            fit = popular[allowed.holds(popular)]
            popular = np.concatenate([fit, allowed.ids[:_FILLERS]])
        for item in popular.tolist():
            yield item, 0.0, POPULAR

    def _actions(self, read: Mapping[str, Any]) -> Iterator[KnownAction]:
        """The actions of a history, newest first."""
        columns = [read[name] for name in ("items", "kinds", "at_us", "rewards", "values")]
        for item, kind, at_us, reward, value in reversed(list(zip(*columns, strict=True))):
            described = self._catalog.get(item)
            if described is not None:  # it was not forgotten
                yield KnownAction(
                    described,
                    self._kinds[kind] if 0 <= kind < len(self._kinds) else None,
                    at_us or None,
                    reward,
                    None if math.isnan(value) else value,
                )

    # -- scenarios and experiments -----------------------------------------------------------

    def _arms(self, user: int, scenario: str | None) -> dict[str, str]:
        """The arm of a user in every experiment that goes on in a scenario."""
        return {
            name: arm_of(name, experiment, user)
            for name, experiment in self._config.experiments.items()
            if not experiment.scenarios or scenario in experiment.scenarios
        }

    def _pipeline(self, scenario: str | None, arms: Mapping[str, str]) -> Pipeline:
        """How users in these arms are answered in this scenario."""
        known = scenario if scenario in self._config.scenarios else None
        key = known, tuple(arms.items())
        pipeline = self._pipelines.get(key)
        if pipeline is None:
            config = self._pipeline_config(known, arms)
            pipeline = Pipeline(
                config, self._catalog, self._replica.model, self._ranker, self._sources,
                self._proposed,
            )  # fmt: skip
            self._pipelines[key] = pipeline
        return pipeline

    def _pipeline_config(self, scenario: str | None, arms: Mapping[str, str]) -> PipelineConfig:
        where, config = "recommend", self._config.pipeline
        if scenario is not None:
            where = f"recommend.scenarios.{scenario}"
            config = changed(config, self._config.scenarios[scenario], where)
        for name, arm in arms.items():
            changes = self._config.experiments[name].arms[arm].changes
            where = f"recommend.experiments.{name}.arms.{arm}.changes"
            config = changed(config, changes, where)
        if others := sorted(config.models.keys() - self._replicas.keys()):
            raise ConfigError(
                f"{where}.models names {', '.join(others)}, which the recipe does not train; it"
                f" trains {', '.join(sorted(self._replicas))}"
            )
        if config.ranker not in ("", NO_RANKER, *self._rankers):
            raise ConfigError(
                f"{where}.ranker = {config.ranker!r}: the recipe trains"
                f" {', '.join(sorted(self._rankers)) or 'no ranker'}; or say {NO_RANKER!r}"
            )
        return config

    def _check_changes(self) -> None:
        self._pipeline_config(None, {})
        for scenario in self._config.scenarios:
            self._pipeline_config(scenario, {})
        for name, experiment in self._config.experiments.items():
            for arm in experiment.arms:
                self._pipeline_config(None, {name: arm})


def _others(listed: Iterator[Found], looked_at: set[int]) -> Iterator[Found]:
    """What is listed, each item once and none that was looked at; then it is."""
    for found in listed:
        if found[0] not in looked_at:
            looked_at.add(found[0])
            yield found


def _plain(shown: Iterable[tuple[CatalogItem, int, float, str]]) -> list[Recommendation]:
    return [Recommendation(described, score, source) for described, _, score, source in shown]


def _found(ids: Ids, scores: NDArray[np.float32], source: str) -> list[Found]:
    return [(i, s, source) for i, s in zip(ids.tolist(), scores.tolist(), strict=True)]
