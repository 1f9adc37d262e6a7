"""Which step runs for which group, on which topics, from which state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infra.home import TRAINER, Home
from infra.recipe import Recipe
from infra.tracing import open_tracing
from streaming.archive import Archive
from streaming.archiver import GROUP as ARCHIVE
from streaming.archiver import Archiver, ArchiveStep
from streaming.artefact import Artefact
from streaming.log import EVENTS, SAMPLES, Log, TopicPartition
from streaming.loop import Loop, LoopObserver, Read, Turn, Unobserved
from streaming.loop_metrics import LoopMetrics
from streaming.metrics import Metrics
from streaming.shares import Shares, SharesConfig
from streaming.tail import Tail, TailConfig

if TYPE_CHECKING:
    from features.catalog import Catalog
    from serving.live_fusion import LiveFusion
    from trainers.exchange import Exchange
    from trainers.group import Led, Member
    from trainers.version_store import VersionStore

# Each builder imports what only its own process needs: importing Feast takes seconds. What it makes
# tells `metrics`, where there are any.
_HOURS_KEPT = 6  # of each the first snapshot stays, so that `headrace versions rollback` finds one


def joiner_loop(recipe: Recipe, home: Home, log: Log, metrics: Metrics | None = None) -> Shares:
    """`events` -> `samples` and `dead-letters`; joiners share the partitions of `events`."""
    from features.behaviour import Behaviour
    from streaming.joiner import Joiner
    from streaming.joiner_metrics import JoinerMetrics
    from streaming.samples import samples_partition

    observer = _traced(recipe, "joiner", None if metrics is None else JoinerMetrics(metrics))

    def of_partition(place: TopicPartition) -> Loop[Any]:
        return Loop(
            log,
            "joiner",
            [EVENTS],
            lambda state: Joiner(
                recipe.joiner,
                recipe.events,
                Behaviour(recipe.behaviour, state),
                state,
                place.partition,
                samples_partition(log, place.partition),
            ),
            home.cuts(f"joiner/{place.partition}"),
            only=[place],
            config=recipe.loop,
            observer=observer,
        )

    config = SharesConfig(recipe.loop.limit, recipe.loop.idle_s)
    return Shares(log, "joiner", [EVENTS], of_partition, config)


def aggregator_loop(
    recipe: Recipe, home: Home, log: Log, metrics: Metrics | None = None
) -> Loop[Any]:
    """`events` -> the feature store."""
    from features.aggregator import Aggregator
    from features.aggregator_metrics import AggregatorMetrics
    from features.store import FeastStore

    store = FeastStore(home.features, recipe.features)
    store.apply()
    return Loop(
        log,
        "aggregator",
        [EVENTS],
        lambda state: Aggregator(recipe.aggregator, recipe.events, recipe.behaviour, state),
        home.cuts("aggregator"),
        execute=store.push,
        redo=store.push_again,
        flush=store.flush,
        config=replace(recipe.loop, background=True),
        observer=None if metrics is None else AggregatorMetrics(metrics),
    )


def catalog_loop(
    recipe: Recipe, home: Home, log: Log, metrics: Metrics | None = None
) -> Loop[Catalog]:
    """`events` -> what serving knows of items and users."""
    return Loop(
        log,
        "catalog",
        [EVENTS],
        _catalog(recipe),
        home.cuts("catalog"),
        config=recipe.loop,
        observer=None if metrics is None else LoopMetrics(metrics, "catalog"),
    )


def catalog_tail(recipe: Recipe, home: Home, log: Log) -> Tail[Catalog]:
    """The same catalog in one more process, which leaves the group `catalog` alone."""
    config = TailConfig(recipe.loop.limit, recipe.loop.idle_s)
    return Tail(log, [EVENTS], _catalog(recipe), home.cuts("catalog"), config)


def _catalog(recipe: Recipe) -> Callable[[Artefact | None], Catalog]:
    from features.catalog import Catalog

    return lambda state: Catalog(
        recipe.events, recipe.behaviour, recipe.aggregator, state, recipe.catalog
    )


def version_store(recipe: Recipe, home: Home) -> VersionStore:
    """Where versions are published, and replicas find them."""
    from streaming.artefact_store import open_artefacts
    from trainers.version_store import VersionStore

    place = open_artefacts(recipe.versions or home.versions)
    return VersionStore(place, hours_kept=_HOURS_KEPT)


def live_fusion(recipe: Recipe, home: Home, log: Log) -> LiveFusion:
    """The weights of tasks that were set while the system runs."""
    from serving.live_fusion import FusionSettings, LiveFusion
    from streaming.artefact_store import open_artefacts

    settings = FusionSettings(open_artefacts(recipe.versions or home.versions))
    return LiveFusion(log, settings, recipe.recommend)


def trainer_loop(
    recipe: Recipe, home: Home, log: Log, metrics: Metrics | None = None, role: str = TRAINER
) -> Loop[Any]:
    """`samples` -> versions, of the model that this role trains."""
    from trainers.trainer import Trainer
    from trainers.versions import new_lineage

    _use_one_thread()
    lineage, store, config = new_lineage(), version_store(recipe, home), recipe.trainers[role]
    good = store.last_good(config.called)

    def make(state: Artefact | None) -> Trainer:
        return Trainer(config, lineage, state, last_good=good)

    return _loop_to_versions(recipe, home, log, store, make, metrics, role)


def trainer_rank(
    recipe: Recipe,
    home: Home,
    log: Log,
    exchange: Exchange,
    metrics: Metrics | None = None,
    role: str = TRAINER,
) -> Led | Member:
    """One of the ranks that together do what `trainer_loop` does."""
    from trainers.group import Leader, Led, Member
    from trainers.peers import Ranks
    from trainers.trainer import Trainer
    from trainers.trainer_metrics import TrainerMetrics

    _use_one_thread()
    cuts, store, peers = home.cuts(role), version_store(recipe, home), Ranks(exchange)
    config = recipe.trainers[role]
    good = store.last_good(config.called)

    def make(lineage: str, state: Artefact | None) -> Trainer:
        return Trainer(config, lineage, state, peers, good)

    if exchange.rank > 0:
        told = {} if metrics is None else {"told": TrainerMetrics(metrics).told}
        return Member(exchange, log, make, cuts, store, **told)
    leader = Leader(exchange, log, make, cuts, store, recipe.group)
    loop = _loop_to_versions(recipe, home, log, store, leader.build, metrics, role, leader.read)
    return Led(loop, leader)


def _loop_to_versions(  # noqa: PLR0913 - what its two callers share
    recipe: Recipe,
    home: Home,
    log: Log,
    store: VersionStore,
    build: Callable[[Artefact | None], Any],
    metrics: Metrics | None,
    role: str,
    read: Read | None = None,
) -> Loop[Any]:
    observer = None if metrics is None else _TrainerLoopMetrics(metrics, role)
    return Loop(
        log,
        role,
        [SAMPLES],
        build,
        home.cuts(role),
        read=read,
        execute=store.execute,
        config=recipe.trainer_loop,
        observer=_traced(recipe, role, observer),
    )


class _TrainerLoopMetrics(LoopMetrics):
    """The observer of a trainer's loop; in a group, that of the rank that leads."""

    def __init__(self, metrics: Metrics, role: str) -> None:
        from trainers.trainer_metrics import TrainerMetrics

        super().__init__(metrics, role)
        self._trainer = TrainerMetrics(metrics)

    def turned(self, turn: Turn) -> None:
        super().turned(turn)
        trainer = getattr(turn.step, "trainer", turn.step)  # a leader has one
        self._trainer.told(trainer, turn.records, turn.outputs, turn.done_s, turn.appends)


def _traced(recipe: Recipe, process: str, observer: LoopObserver | None) -> LoopObserver | None:
    tracing = open_tracing(recipe.tracing, process)
    return observer if tracing is None else tracing.loop(observer or Unobserved())


def _use_one_thread() -> None:
    """The other processes need the other cores, and bits must not depend on how many there are."""
    import torch

    torch.set_num_threads(1)


def archive_step(recipe: Recipe, state: Artefact | None = None) -> ArchiveStep:
    """What the archiver makes of records: it must remember just what the joiner remembers."""
    return ArchiveStep(recipe.events, recipe.joiner.remembered_events, state)


def archiver(recipe: Recipe, home: Home, log: Log, metrics: Metrics | None = None) -> Archiver:
    """`events` and `samples` -> Parquet by day."""
    return Archiver(
        log,
        Archive(home.archive),
        lambda state: archive_step(recipe, state),
        home.cuts(ARCHIVE),
        recipe.archive,
        None if metrics is None else LoopMetrics(metrics, ARCHIVE),
    )


def loop_of(
    role: str, recipe: Recipe, home: Home, log: Log, metrics: Metrics | None
) -> Loop[Any] | Shares:
    """What an actor of a run does."""
    if role in recipe.trainers:
        return trainer_loop(recipe, home, log, metrics, role)
    if role == "joiner":
        return joiner_loop(recipe, home, log, metrics)
    return aggregator_loop(recipe, home, log, metrics)
