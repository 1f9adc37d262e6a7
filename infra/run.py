"""The main job: one process that replays, serves and watches, and an actor for each step."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn

from features.catalog import Catalog
from features.definitions import USER_HISTORY
from features.freshness import saved_freshness
from features.skew import Skew
from features.store import FeastStore
from infra.home import Home, Learning
from infra.progress import Reporter
from infra.recipe import NO_SOURCE, Recipe
from infra.signals import stopped_by_signals
from infra.status import newest_version, progress, status
from infra.wiring import archiver
from infra.workers import Workers, log_to_file
from serving.api import Service, create_app
from serving.follower import Follower
from serving.metrics import ServingMetrics
from serving.recommender import Recommender
from serving.replica import Replica
from serving.skew_watch import SkewWatch
from serving.times import time_text
from streaming.archiver import Archiver
from streaming.errors import ConfigError, HeadraceError, LogError
from streaming.log import EVENTS, NOBODY, SAMPLES, TOPICS, Log
from streaming.loop import Loop
from streaming.open_log import open_log
from streaming.sources.registry import open_source
from streaming.sources.replay import Replay
from trainers.versions import VersionInfo, VersionStore

logger = logging.getLogger(__name__)
ROLES: Mapping[Learning, Sequence[str]] = {
    "realtime": ("joiner", "aggregator", "trainer"),
    "daily": ("joiner", "aggregator"),  # versions come from `headrace daily`
}
SETTLED_S = 1.0


class System:
    """A running Headrace on one machine: everything that `headrace run` starts."""

    def __init__(self, recipe: Recipe, home: Home, port: int) -> None:
        # One thread: laying versions over a replica is no work for several, and idle threads of
        # torch spin on the cores that the trainer needs.
        torch.set_num_threads(1)
        self._recipe = recipe
        self._home = home
        self._port = port
        self.stopping = threading.Event()
        self.failure: str | None = None
        self.metrics = ServingMetrics()
        self.log: Log = _open(home, recipe.group.ranks)
        self.replica = Replica()
        self.skew = self._make_skew_watch()
        self.replay = self._make_replay()
        self._events_per_s = 0.0
        self._settled: tuple[object, float] = (None, 0.0)
        self._archiver: Archiver | None = None
        home.note_learning(recipe.learning)
        self.workers = Workers(ROLES[recipe.learning], recipe, home, self.fail)

    @property
    def url(self) -> str:
        return f"http://{self._recipe.serving.host}:{self._port}"

    def fail(self, sentence: str) -> None:
        """Ends the run with an error; the first one is the one that is told."""
        self.failure = self.failure or sentence
        self.stopping.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything is up inside the block, except that Ray may still be starting its actors."""
        with ExitStack() as stack:
            stack.callback(self.log.close)
            features = FeastStore(self._home.features, self._recipe.features)
            features.apply()
            catalog_loop = self._make_catalog_loop()
            catalog = catalog_loop.step
            recommender = Recommender(self.replica, catalog, features, self._recipe.cold_start)
            service = Service(
                self.log,
                self._recipe.events,
                recommender,
                catalog,
                self.metrics,
                self.status,
                self.not_ready,
                self.skew.note,
            )
            stack.enter_context(self._serving(service))
            stack.callback(self.workers.stop)
            stack.callback(self.stopping.set)
            self.workers.start()
            threads = {
                "catalog": catalog_loop.run,
                "follower": self._make_follower().run,
                "skew": self.skew.run,
                "replay": self._run_replay,
            }
            if self._recipe.archive.enabled:
                threads["archive"] = self._run_archive
            for name, run in threads.items():
                stack.enter_context(self._thread(name, run))
            yield

    def not_ready(self) -> str | None:
        """Why requests cannot be answered from a model yet; None if they can.

        By day the first version comes after the first day, which needs events: until then what is
        popular is the answer.
        """
        if self.replica.info is not None:
            return None
        if self._recipe.learning == "realtime":
            return "no model version has been published yet; the trainer is starting"
        newest = newest_version(self.log)
        if newest is None:
            return None
        return f"{newest['name']} is not loaded; if it cannot be, {self._home.log_file('run')} says"

    def status(self) -> dict[str, Any]:
        """What `/v1/status` answers.

        `caught_up`: all of the source is learnt and served; or by day, is in the archive.
        """
        replay = None if self.replay is None else self.replay.progress
        info = self.replica.info
        found = status(self.log, self._home)
        return {
            **found,
            "ready": self.not_ready() is None,
            "caught_up": (replay is None or replay.done >= replay.total)
            and self._is_settled(found, info),
            "replay": None
            if replay is None
            else {
                "done": replay.done,
                "total": replay.total,
                "at": time_text(replay.at_us),
                "finished": replay.done >= replay.total,
            },
            "events_per_s": self._events_per_s,
            "served_version": None if info is None else info.name,
            "features": saved_freshness(self._home.features),
            "skew": self.skew.figures(),
            "restarts": self.workers.restarts,
        }

    def _is_settled(self, found: dict[str, Any], info: VersionInfo | None) -> bool:
        """Whether nothing waits, and what is served is the newest that can be."""
        now = time.monotonic()
        served = None if info is None else info.name
        waiting = any(found["lag"].values()) or served != found["version"]
        if self._recipe.learning == "daily":
            # Of what the archiver has read, rows wait until a file is worth it.
            return not waiting and self._archiver is not None and self._archiver.writer.rows == 0
        if waiting or info is None:
            self._settled = (None, now)
            return False
        if self._home.log_is_embedded:  # there a step is an offset
            return bool(info.step == found["positions"]["trainer"])
        # A trainer that has learnt more publishes it soon.
        state = (found["version"], found["records"])
        if state != self._settled[0]:
            self._settled = (state, now)
        return now - self._settled[1] > SETTLED_S + self._recipe.trainer.publish_every_s

    # -- the parts -------------------------------------------------------------------------

    def _make_replay(self) -> Replay | None:
        if self._recipe.source == NO_SOURCE:
            return None
        data = Path(self._recipe.data) if self._recipe.data else None
        source = open_source(self._recipe.source, data)
        return Replay(self.log, source, self._waiting, self._recipe.replay)

    def _waiting(self) -> int:
        """Records on the way: in front of the feature store, or of a trainer of this run."""
        lag = progress(self.log, self._recipe.learning).lag
        return max(lag["aggregator"], lag["joiner"] + lag.get("trainer", 0))

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
        self._archiver = archiver(self._recipe, self._home, self.log)
        self._archiver.run(stopping)

    def _make_catalog_loop(self) -> Loop[Catalog]:
        return Loop(
            self.log,
            "catalog",
            [EVENTS],
            lambda state: Catalog(
                self._recipe.events,
                self._recipe.behaviour,
                self._recipe.aggregator,
                state,
                self._recipe.catalog,
            ),
            self._home.cuts("catalog"),
            config=self._recipe.loop,
        )

    def _make_follower(self) -> Follower:
        return Follower(
            self.log,
            VersionStore(self._home.versions),
            self.replica,
            # Three offsets an announcement: each comes in a transaction, which may use up some.
            look_back=3 * (2 * self._recipe.trainer.snapshot_every + 1),
            applied=self._observe_version,
        )

    def _make_skew_watch(self) -> SkewWatch:
        behaviour, joiner = self._recipe.behaviour, self._recipe.joiner
        # What of a history reaches training, in the order of the view's sequences.
        lengths = (
            min(behaviour.length, joiner.history),
            min(behaviour.searched_words, joiner.searched_words),
        )
        return SkewWatch(self.log, Skew(USER_HISTORY, lengths, self._recipe.skew), self.metrics)

    def _observe_version(self, info: VersionInfo, seconds: float) -> None:
        metrics = self.metrics
        metrics.versions.inc()
        metrics.apply_seconds.observe(seconds)
        metrics.version_number.set(info.number)
        if info.learnt_logged_us is not None:  # it has learnt something new
            metrics.freshness.observe(time.time() - info.learnt_logged_us / 1e6)
        if info.watermark_us is not None:
            metrics.watermark.set(info.watermark_us / 1e6)
        for figure, value in info.metrics.items():
            metrics.quality.labels(figure).set(value)

    @contextmanager
    def _thread(self, name: str, run: Callable[[threading.Event], None]) -> Iterator[None]:
        """A thread that ends when the run is stopping; its failure ends the run."""

        def guarded() -> None:
            try:
                run(self.stopping)
            except HeadraceError as error:
                self.fail(str(error))
            except Exception as error:
                logger.exception("the thread %s failed", name)
                self.fail(f"the thread {name} failed ({error!r}); see {self._home.log_file('run')}")

        thread = threading.Thread(target=guarded, name=name)
        thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            thread.join(timeout=30)

    @contextmanager
    def _serving(self, service: Service) -> Iterator[None]:
        """The HTTP server in a thread of its own."""
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(service, self._recipe.serving),
                host=self._recipe.serving.host,
                port=self._port,
                log_config=None,
                access_log=False,
            )
        )
        with self._thread("http", lambda stopping: server.run()):  # noqa: ARG005
            try:
                while not server.started and not self.stopping.is_set():
                    time.sleep(0.01)
                yield
            finally:
                server.should_exit = True


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
        _check_port(recipe.serving.host, port)
        if fresh:
            _refuse_fresh_on_a_shared_log(home)
            home.clear()
            home.make()
            FeastStore(home.features, recipe.features).clear()
        if realtime:
            locks.enter_context(home.locked_for_training("headrace run"))
        log_to_file(home.log_file("run"))
        system = System(recipe, home, port)
        with stopped_by_signals(system.stopping), Reporter(system.url, home.path) as reporter:
            # Once more inside: Ray puts handlers of its own in place of ours when it starts.
            with system.running(), stopped_by_signals(system.stopping):
                while not system.stopping.wait(0.2):
                    found = system.status()
                    reporter.update(found)
                    if until_learnt and found["caught_up"]:
                        break
                reporter.stopping()
            reporter.stopped(system.failure is None)
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


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on {host} cannot be used ({error.strerror}): stop what uses it, or"
                " set HEADRACE_PORT (or --port) to another"
            ) from None
