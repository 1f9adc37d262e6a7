"""The main job: one process that replays, serves and watches, and an actor for each step."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from features.store import FeastStore
from infra.home import Home
from infra.log_metrics import LogMetrics
from infra.logs import log_to_file
from infra.monitor.monitor import Monitor, Watched
from infra.progress import Reporter
from infra.recipe import NO_SOURCE, Recipe
from infra.serving import Serving, answering, check_port
from infra.signals import stopped_by_signals
from infra.status import groups, progress
from infra.targets import targets
from infra.threads import Threads
from infra.wiring import archiver, catalog_loop, version_store
from infra.workers import Workers
from serving.http.api import Service
from serving.times import time_text
from streaming.archiver import Archiver
from streaming.errors import ConfigError, HeadraceError, LogError
from streaming.log import EVENTS, NOBODY, SAMPLES, TOPICS, Log
from streaming.metrics import Metrics
from streaming.open_log import open_log
from streaming.sources.registry import open_source
from streaming.sources.replay import Replay

logger = logging.getLogger(__name__)
SETTLED_S = 1.0


def roles(recipe: Recipe) -> list[str]:
    """What runs in actors of their own. By day versions come from `headrace daily`."""
    trainers = recipe.trainers if recipe.learning == "realtime" else ()
    return ["joiner", "aggregator", *trainers]


class System:
    """A running Headrace on one machine: everything that `headrace run` starts."""

    def __init__(self, recipe: Recipe, home: Home, port: int) -> None:
        # One thread: laying versions over a replica is no work for several, and idle threads of
        # torch spin on the cores that the trainer needs.
        torch.set_num_threads(1)
        self._recipe = recipe
        self._home = home
        self._port = port
        home.note_learning(recipe.learning, {k: v.called for k, v in recipe.trainers.items()})
        log_file = home.log_file("run")
        self._threads = Threads(log_file)
        self.stopping = self._threads.stopping
        self.log: Log = _open(home, recipe.group.ranks)
        self.metrics = Metrics(process=True)
        told = self.metrics if recipe.metrics.enabled else None
        catalog = catalog_loop(recipe, home, self.log, told)
        self.serving = Serving(recipe, home, self.log, catalog, log_file, self.metrics)
        self._groups = groups(home)
        self._log_metrics = LogMetrics(self.metrics, self.log, self._groups)
        self.replay = self._make_replay()
        self._events_per_s = 0.0
        self._settled: tuple[object, float] = (None, 0.0)
        self._archiver: Archiver | None = None
        self.workers = Workers(roles(recipe), recipe, home, self._threads.fail)

    @property
    def failure(self) -> str | None:
        """The sentence of what ended the run, if it was an error."""
        return self._threads.failure

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything is up inside the block, except that Ray may still be starting its actors."""
        with ExitStack() as stack:
            stack.callback(self.log.close)
            self.serving.features.apply()
            service = replace(self.serving.service(self.status), look=self._log_metrics.look)
            monitor = self._make_monitor(service)
            service = replace(service, monitor=monitor)
            stop_answering = stack.enter_context(
                answering(self.serving, service, self._port, self._threads)
            )
            stack.enter_context(self.serving.announced("run", self._port))
            stack.callback(self.workers.stop)
            stack.callback(self.stopping.set)
            self.workers.start()
            threads = {**self.serving.threads(), "replay": self._run_replay}
            if self._recipe.archive.enabled:
                threads["archive"] = self._run_archive
            if monitor is not None:
                threads["monitor"] = monitor.run
            for name, run in threads.items():
                stack.enter_context(self._threads.running(name, run))
            stack.callback(stop_answering)  # first: what is answered last is noted by the threads
            stack.callback(self.serving.draining.set)
            yield

    def not_ready(self) -> str | None:
        """Why requests cannot be answered from a model yet; None if they can."""
        return self.serving.not_ready()

    def status(self) -> dict[str, Any]:
        """What `/v1/status` answers.

        `caught_up`: all of the source is learnt and served; or by day, is in the archive.
        """
        replay = None if self.replay is None else self.replay.progress
        found = self.serving.status()
        return {
            **found,
            "caught_up": (replay is None or replay.done >= replay.total)
            and self._is_settled(found),
            "replay": None
            if replay is None
            else {
                "done": replay.done,
                "total": replay.total,
                "at": time_text(replay.at_us),
                "finished": replay.done >= replay.total,
            },
            "events_per_s": self._events_per_s,
            "restarts": self.workers.restarts,
        }

    def _is_settled(self, found: dict[str, Any]) -> bool:
        """Whether nothing waits, and what is served is the newest that can be."""
        now = time.monotonic()
        newest = [one for one in (found["newest_version"], *found["beside"].values()) if one]
        whole = len(newest) == len(self._recipe.trainers) and found["served_version"] is not None
        waiting = any(found["lag"].values()) or (
            whole and not self.serving.is_at([one["name"] for one in newest])
        )
        if self._recipe.learning == "daily":
            # Of what the archiver has read, rows wait until a file is worth it.
            return not waiting and self._archiver is not None and self._archiver.writer.rows == 0
        if waiting or not whole:
            self._settled = (None, now)
            return False
        trainers = self._recipe.trainers
        if self._home.log_is_embedded:  # there a step is an offset
            steps = [found["positions"][role] for role in trainers]
            return steps == [one["step"] for one in newest]
        # A trainer that has learnt more publishes it soon.
        state = ([one["name"] for one in newest], found["records"])
        if state != self._settled[0]:
            self._settled = (state, now)
        soon_s = max(one.publish_every_s for one in trainers.values())
        return now - self._settled[1] > SETTLED_S + soon_s

    # -- the parts -------------------------------------------------------------------------

    def _make_replay(self) -> Replay | None:
        if self._recipe.source == NO_SOURCE:
            return None
        data = Path(self._recipe.data) if self._recipe.data else None
        source = open_source(self._recipe.source, data)
        return Replay(self.log, source, self._waiting, self._recipe.replay)

    def _make_monitor(self, service: Service) -> Monitor | None:
        recipe, serving = self._recipe, self.serving
        if not (recipe.monitor.enabled and recipe.metrics.enabled):
            return None
        watched = Watched(
            log=self.log,
            rules=recipe.events,
            catalog=service.catalog,
            replica=serving.replica,
            recommender=service.recommender,
            store=version_store(recipe, self._home),
            metrics=self.metrics,
            exposition=self._exposition,
            targets=lambda: targets(self._home),
            expected=[
                (role, rank)
                for role in roles(recipe)
                for rank in range(recipe.group.ranks if role in recipe.trainers else 1)
            ],
            status=self.status,
            pinned=lambda: serving.pinned,
            gate_mode=recipe.trainer.gate.mode,
            replay_left=self._replay_left,
            quality=lambda: {
                "rows": serving.served.figures(),
                "progressive": serving.live.figures(),
            },
            drift=serving.drift.figures,
        )
        return Monitor(watched, recipe.monitor)

    def _exposition(self) -> bytes:
        """What this process tells, of the log too."""
        self._log_metrics.look()
        return self.metrics.exposition()[0]

    def _replay_left(self) -> int:
        progress = None if self.replay is None else self.replay.progress
        return 0 if progress is None else max(0, progress.total - progress.done)

    def _waiting(self) -> int:
        """Records on the way: in front of the feature store, or of a trainer of this run."""
        lag = progress(self.log, self._groups).lag
        trainers = [lag[role] for role in self._recipe.trainers if role in lag]
        return max(lag["aggregator"], lag["joiner"] + max(trainers, default=0))

    def _run_replay(self, stopping: threading.Event) -> None:
        if self.replay is not None:
            rate = threading.Thread(target=self._measure_rate, args=(self.replay,), daemon=True)
            rate.start()
            self.replay.run(stopping)

    def _measure_rate(self, replay: Replay, period_s: float = 1.0) -> None:
        done = replay.progress.done
        while not self.stopping.wait(period_s):
            now = replay.progress.done
            self._events_per_s = (now - done) / period_s
            done = now

    def _run_archive(self, stopping: threading.Event) -> None:
        told = self.metrics if self._recipe.metrics.enabled else None
        self._archiver = archiver(self._recipe, self._home, self.log, told)
        self._archiver.run(stopping)


def run(recipe: Recipe, home: Home, port: int, *, fresh: bool, until_learnt: bool) -> None:
    """Runs until Ctrl-C, or with `until_learnt` until the source has been learnt whole.

    Raises:
        HeadraceError: it cannot start, or cannot go on.
    """
    realtime = recipe.learning == "realtime"
    if until_learnt and not realtime:
        raise ConfigError(
            '--until-learnt needs learning = "realtime": by day it is `headrace daily` that learns,'
            " beside this command; leave the option out, or set learning"
        )
    home.make()
    with ExitStack() as locks:
        locks.enter_context(home.locked())
        check_port(recipe.serving.host, port)
        if fresh:
            _refuse_fresh_on_a_shared_log(home)
            home.clear()
            home.make()
            FeastStore(home.features, recipe.features).clear()
        if realtime:
            locks.enter_context(home.locked_for_training("headrace run"))
        log_to_file(home.log_file("run"), recipe.logs)
        logger.info("headrace run is process %d", os.getpid())
        if recipe.models and not realtime:
            told = "by day the model of [trainer] learns alone, without %s"
            logger.warning(told, ", ".join(recipe.models))
        with Reporter(f"http://{recipe.serving.host}:{port}", home.path) as reporter:
            system = System(recipe, home, port)
            # Once more inside: Ray puts handlers of its own in place of ours when it starts.
            with (
                stopped_by_signals(system.stopping),
                system.running(),
                stopped_by_signals(system.stopping),
            ):
                while not system.stopping.wait(0.2):
                    found = system.status()
                    reporter.update(found)
                    if until_learnt and found["caught_up"]:
                        break
                reporter.stopping()
            reporter.stopped(system.failure is None)
        logger.info("headrace run has stopped: %s", system.failure or "it was asked to")
        if system.failure is not None:
            raise HeadraceError(system.failure)


def _open(home: Home, ranks: int) -> Log:
    """The log, with all of its topics; a new one with a partition for each rank of the trainer.

    Raises:
        LogError: it cannot be opened, or a topic is missing.
    """
    log = open_log(home.log_url, partitions={EVENTS: ranks, SAMPLES: ranks})
    places = log.positions(NOBODY, TOPICS)
    there = {place.topic for place in places}
    if missing := [topic for topic in TOPICS if topic not in there]:
        log.close()
        raise LogError(
            f"the log has no topic {', '.join(missing)}: `headrace topics` shows the plan, and"
            " `headrace topics --apply` makes them"
        )
    partitions = sum(place.topic == SAMPLES for place in places)
    if partitions < ranks:
        logger.warning(
            "the log has %d partitions of samples, so %d of the trainer's %d ranks read nothing",
            *(partitions, ranks - partitions, ranks),
        )
    return log


def _refuse_fresh_on_a_shared_log(home: Home) -> None:
    if not home.log_is_embedded:
        raise ConfigError(
            "--fresh cannot empty a log in Kafka, which may be others' too: name another"
            " topic_prefix in the log's URL and another HEADRACE_HOME, or delete the topics and the"
            f" groups with Kafka's own tools, and {home.path}"
        )
