"""Recipes: one TOML file says what runs; each component's own Config says what it may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from features.aggregator import AggregatorConfig
from features.behaviour import BehaviourConfig
from features.catalog import CatalogConfig
from features.skew import SkewConfig
from features.store_config import StoreConfig
from infra.home import TRAINER, Learning
from infra.logs import LogsConfig
from infra.monitor.monitor import MonitorConfig
from infra.recipe_file import RECIPES, read_recipe
from infra.targets import MetricsConfig
from infra.tracing import TracingConfig
from serving.drift import DriftConfig
from serving.http.api import ApiConfig
from serving.impression_log import ImpressionLogConfig
from serving.recommender import RecommendConfig
from serving.replica import ReplicaConfig
from serving.served_watch import QualityConfig
from streaming.archive import ArchiveConfig
from streaming.errors import ConfigError
from streaming.events import EventRules
from streaming.joiner import JoinerConfig
from streaming.loop import LoopConfig
from streaming.settings import changed, fill
from streaming.sources.registry import find_source
from streaming.sources.replay import ReplayConfig
from trainers.group import GroupConfig
from trainers.models import RETRIEVAL, family_of
from trainers.models import find as find_model
from trainers.models import names as registered
from trainers.trainer import TrainerConfig

__all__ = ["NO_SOURCE", "RECIPES", "Recipe", "load_recipe"]
NO_SOURCE = "none"  # live events only


@dataclass(frozen=True)
class Recipe:
    """Everything that `headrace run` needs to know beside where its home is.

    `models` are trained beside that of [trainer], each by its name: a registered model, or what a
    variant of [trainer]'s is called. A table has what its trainer does otherwise than [trainer]; of
    the options a variant takes over those that it does not set, another model has its own.

    Raises:
        ConfigError: it is to learn from an archive that is not kept, or `models` are not as above.
    """

    source: str = "ml-latest-small"  # a name in streaming.sources.registry, or NO_SOURCE
    learning: Learning = "realtime"
    log: str | None = None  # the URL of a log in Kafka; else the embedded one in the home
    versions: str | None = None  # path or URL of their store, s3://bucket/prefix; else in the home
    data: str = ""  # the directory with data that is not shipped; else that of HEADRACE_DATA
    events: EventRules = field(default_factory=EventRules)
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    joiner: JoinerConfig = field(default_factory=JoinerConfig)
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    features: StoreConfig = field(default_factory=StoreConfig)
    catalog: CatalogConfig = field(default_factory=CatalogConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    group: GroupConfig = field(default_factory=GroupConfig)
    serving: ApiConfig = field(default_factory=ApiConfig)
    replica: ReplicaConfig = field(default_factory=ReplicaConfig)
    recommend: RecommendConfig = field(default_factory=RecommendConfig)
    impressions: ImpressionLogConfig = field(default_factory=ImpressionLogConfig)
    skew: SkewConfig = field(default_factory=SkewConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    archive: ArchiveConfig = field(default_factory=ArchiveConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    logs: LogsConfig = field(default_factory=LogsConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    # Few records a turn: a version goes out between turns, and a step takes its time. Its state
    # is large, so cuts are written in the background.
    trainer_loop: LoopConfig = field(default_factory=lambda: LoopConfig(limit=2, background=True))

    def __post_init__(self) -> None:
        if self.learning == "daily" and not self.archive.enabled:
            raise ConfigError(
                'learning = "daily" learns from the archive, and [archive] enabled = false keeps'
                ' none: set it to true, or learning to "realtime"'
            )
        called = [one.called for one in self.trainers.values()]
        if twice := {name for name in called if called.count(name) > 1}:
            raise ConfigError(
                f"two models are called {', '.join(twice)}, that of [trainer] and one of [models]:"
                " give one another name, and say by `model = ...` which registered one it is"
            )

    @cached_property
    def trainers(self) -> Mapping[str, TrainerConfig]:
        """Each model's, by the role of who trains it; that of [trainer] first."""
        beside = {f"{TRAINER}-{name}": self._beside(name) for name in self.models}
        return {TRAINER: self.trainer, **beside}

    def _beside(self, name: str) -> TrainerConfig:
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
            raise ConfigError(
                f"models.{name!r}: a name begins with a letter, and has letters, digits and _"
            )
        own = dict(self.models[name])
        own.setdefault("model", name if name in registered() else self.trainer.model)
        variant = own["model"] == self.trainer.model
        own["options"] = _merged(self.trainer.options if variant else {}, own.get("options", {}))
        called = None if own["model"] == name else name
        return replace(changed(self.trainer, own, f"models.{name}"), name=called)


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe in a TOML file, or the shipped one of that name.

    Raises:
        ConfigError: there is none, it is not TOML, or a setting is unknown or does not fit.
    """
    recipe = fill(Recipe, read_recipe(name_or_path), "")
    if recipe.source != NO_SOURCE:
        find_source(recipe.source)
    for role, trainer in recipe.trainers.items():  # sooner than the trainer would
        where = "trainer" if role == TRAINER else f"models.{trainer.called}"
        find_model(trainer.model, trainer.options, f"{where}.options")
    family = family_of(recipe.trainer.model)
    if family != RETRIEVAL:
        raise ConfigError(
            f"trainer.model = {recipe.trainer.model!r}: a model of family {family} finds nothing"
            f" by itself; train it beside a retriever, in [models.{recipe.trainer.model}]"
        )
    return recipe


def _merged(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Tables in tables, laid over others."""
    merged = {**given, **own}
    for key in given.keys() & own.keys():
        if isinstance(given[key], Mapping) and isinstance(own[key], Mapping):
            merged[key] = _merged(given[key], own[key])
    return merged
