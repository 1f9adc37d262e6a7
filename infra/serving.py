"""One replica of the service: what answers, and what keeps it fresh.

`headrace run` has one inside, every `headrace serve` is one in a process of its own, and so is
every replica under Ray Serve. Replicas know nothing of each other: all follow the same log.
"""

from __future__ import annotations

import gc
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from features.catalog import Catalog
from features.definitions import USER_HISTORY, FeatureError
from features.freshness import saved_freshness
from features.skew import Skew
from features.store import FeastStore
from infra.home import Home
from infra.kept_model import KeptModel
from infra.recipe import Recipe
from infra.status import newest_version, status
from infra.targets import Target, announced, discovery, targets
from infra.threads import Threads
from infra.tracing import open_tracing
from infra.wiring import catalog_tail, live_fusion
from serving.answers import Answer, Wanted
from serving.drift_watch import DriftWatch
from serving.http.answer_json import answer_json
from serving.http.api import Service, create_app
from serving.http.connections import guarded
from serving.impression_log import ImpressionLog
from serving.live_watch import LiveWatch
from serving.metrics import ServingMetrics
from serving.recommender import Recommender
from serving.sample_watch import SampleWatch
from serving.served_watch import ServedWatch
from serving.skew_watch import SkewWatch
from streaming.errors import ConfigError
from streaming.log import Log
from streaming.loop_metrics import observe_age
from streaming.metrics import Metrics
from streaming.open_log import open_log
from streaming.tail import Tail
from trainers.models import RANKING
from trainers.trainer import TrainerConfig
from trainers.versions import VersionInfo

Run = Callable[[threading.Event], None]
# An answer and a version give the interpreter away at every compiled part of theirs, and with
# Python's 5 ms they would wait as long to get it back from each other.
_SWITCH_S = 0.0002
_FIRST_ANSWERS = 5
_ASKED_WITHIN_S = 1.0
_NOBODY = "nobody"
_LAST_ANSWERS_S = 20  # for requests that were accepted before a stop


class KeptCatalog(Protocol):
    """The catalog and what keeps it: the `Loop` of a run, or the `Tail` of one more replica."""

    @property
    def step(self) -> Catalog: ...

    def run(self, stopping: threading.Event) -> None: ...


class Serving:
    """Everything between the log and an answer; `threads` keep it fresh.

    `log_file` is where the process writes what went wrong.
    """

    def __init__(
        self,
        recipe: Recipe,
        home: Home,
        log: Log,
        catalog: KeptCatalog,
        log_file: Path,
        metrics: Metrics,
    ) -> None:
        self.recipe = recipe
        self._home = home
        self._log = log
        self._catalog = catalog
        self._log_file = log_file
        self.waiting: Callable[[], str | None] = lambda: None  # says what it still needs
        self.draining = threading.Event()  # from then on nobody is to send requests any more
        self.metrics = ServingMetrics(metrics)
        self._tracing = open_tracing(recipe.tracing, log_file.stem)
        self.features = FeastStore(home.features, recipe.features)
        self.skew = _skew_watch(recipe, self.metrics)
        self.served = ServedWatch(
            recipe.joiner.impressions.labels, recipe.recommend.experiments, recipe.quality, metrics
        )
        own, *beside = recipe.trainers.values()
        self._own = self._kept(own, self._observe_version, self._note_version)
        self._beside = [self._kept(one, self._observe_applied, self.served.know) for one in beside]
        self._models = [self._own, *self._beside]
        self.replica = self._own.replica
        self.live = LiveWatch(self.replica, recipe.quality, metrics)
        self.drift = DriftWatch(recipe.drift, metrics)
        # The live watch first: a sample that waits may be learnt meanwhile.
        self._samples = SampleWatch(log, [self.live, self.skew, self.served, self.drift])
        self.impressions = ImpressionLog(log, recipe.events, recipe.impressions, self.metrics)
        self._answered: VersionInfo | None = None  # the newest version that made an answer
        self._applied_s = 0.0  # when the newest version was applied
        self._fusion = live_fusion(recipe, home, log)
        told = self.metrics.told
        self._recommender = Recommender(
            self.replica,
            catalog.step,
            self.features,
            recipe.recommend,
            beside=[one.replica for one in self._beside if one.family != RANKING],
            rankers=[one.replica for one in self._beside if one.family == RANKING],
            kinds=recipe.behaviour.kinds,
            told=told if self._tracing is None else self._tracing.told(told),
            proposed=self.metrics.proposed,
            fusion=self._fusion.current,
        )
        self.metrics.replica_behind.set_function(self._behind_s)
        self._settled = False  # what is only slow at first is behind it

    def service(self, status: Callable[[], dict[str, Any]]) -> Service:
        """What the HTTP interface stands on; `status` is what it tells of the whole system."""
        return Service(
            self._log,
            self.recipe.events,
            self._recommender,
            self._catalog.step,
            self.metrics,
            status,
            self.not_ready,
            self._shown,
            replica_name=f"{platform.node()}-{os.getpid()}",
            targets=lambda: discovery(targets(self._home)),
        )

    def app(self, service: Service) -> Any:
        """The HTTP interface as an ASGI app."""
        app = create_app(service, self.recipe.serving)
        return app if self._tracing is None else self._tracing.requests(app)

    def threads(self) -> dict[str, Run]:
        """What keeps it fresh, each to be run in a thread of its own."""
        return {
            "catalog": self._catalog.run,
            "follower": self._own.follower.run,
            **{f"follower-{one.name}": one.follower.run for one in self._beside},
            "samples": self._samples.run,
            "impressions": self.impressions.run,
            "fusion": self._fusion.run,
            "settle": self._settle_when_ready,
        }

    def not_ready(self) -> str | None:
        """Why requests should not be sent here; None if they may.

        By day the first version comes after the first day, which needs events: until then what is
        popular is the answer.
        """
        if self.draining.is_set():
            return "stopping"
        if reason := self.waiting() or self._missing():
            return reason
        return None if self._settled else "it makes its first answers"

    def _missing(self) -> str | None:
        """Which version it waits for; None for none."""
        return next(filter(None, map(self._missing_of, self._models)), None)

    def _missing_of(self, model: KeptModel) -> str | None:
        # A ranker learns from what was shown: until something is, answers do without it.
        if model.served is not None or model.family == RANKING:
            return None
        if model.follower.target == "":  # until a version may be served, what is popular is
            return None
        if self.recipe.learning == "realtime":
            of = "" if model is self._own else f" of {model.name}"
            return f"no model version{of} has been published yet; the trainer is starting"
        newest = newest_version(self._log, model.name)
        if newest is None:
            return None
        return f"{newest['name']} is not loaded; if it cannot be, {self._log_file} says"

    def status(self) -> dict[str, Any]:
        """What `/v1/status` answers of a replica: how the system does, and what is served here."""
        reason = self.not_ready()
        return {
            **status(self._log, self._home),
            "ready": reason is None,
            "not_ready": reason,
            "served_version": self._own.served,
            "served_beside": {one.name: one.served for one in self._beside},
            "features": saved_freshness(self._home.features),
            "skew": self.skew.figures(),
            "experiments": self.served.experiments(),
        }

    def settle(self) -> None:
        """Makes some answers for nobody, so that nobody waits for what the first ones load. Then
        takes what is there out of the sight of Python's garbage collector: to go through a large
        catalog holds up every answer for a tenth of a second.
        """
        for _ in range(_FIRST_ANSWERS):
            answer = self._recommender.recommend(Wanted(_NOBODY, shown=False))
            answer_json(answer, explain=False, logged=False)
        gc.collect()
        gc.freeze()
        self._settled = True

    def _settle_when_ready(self, stopping: threading.Event) -> None:
        while self.waiting() or self._missing():
            if stopping.wait(0.05):
                return
        self.settle()

    def _shown(self, answer: Answer) -> bool:
        """Takes note of an answer that a user is shown; says whether it will be in the log."""
        info = answer.version
        if info is not self._answered:
            self._answered = info
            now_s = time.time()
            # Of a version that nobody asked, an answer that comes late says nothing.
            asked = now_s - self._applied_s < _ASKED_WITHIN_S
            if asked and info is not None and info.learnt_logged_us is not None:
                observe_age(self.metrics.answered, info.learnt_logged_us, now_s)
        if self._tracing is not None:
            self._tracing.answered(answer)
        self.skew.note(answer)
        for experiment, arm in answer.arms.items():
            self.metrics.arms.labels(experiment, arm).observe(answer.took_ms["all"] / 1e3)
        return self.impressions.note(answer)

    def announced(self, process: str, port: int) -> AbstractContextManager[None]:
        """Lets others find the figures of this process, which answers HTTP at a port."""
        config = self.recipe.metrics
        if not config.enabled:
            return nullcontext()
        address = config.address(self.recipe.serving.host, port)
        return announced(self._home, Target(process, 0, address))

    def _kept(
        self,
        trainer: TrainerConfig,
        applied: Callable[[VersionInfo, float], None],
        noted: Callable[[VersionInfo], None],
    ) -> KeptModel:
        if self._tracing is not None:
            applied = self._tracing.applied(applied)

        def refused(_info: VersionInfo, _reason: str) -> None:
            self.metrics.versions_refused.inc()

        return KeptModel(self.recipe, self._home, self._log, trainer, applied, refused, noted)

    def _behind_s(self) -> float:
        return max(one.behind_s() for one in self._models)

    def is_at(self, newest: Sequence[str]) -> bool:
        """Whether each model is served at this version, unless it is to stay at another, by hand or
        for the gate: then the newest is not waited for.
        """
        return all(
            one.served == name or one.follower.target is not None
            for one, name in zip(self._models, newest, strict=True)
        )

    @property
    def pinned(self) -> str | None:
        """The version that replicas are held at; None if they follow the newest."""
        return self._own.follower.pinned

    def _note_version(self, info: VersionInfo) -> None:
        self.served.know(info)
        self.live.know(info)

    def _observe_applied(self, info: VersionInfo, seconds: float) -> None:
        metrics = self.metrics
        metrics.versions.inc()
        metrics.apply_seconds.observe(seconds)
        if info.learnt_logged_us is not None:  # it has learnt something new
            observe_age(metrics.served, info.learnt_logged_us, time.time())

    def _observe_version(self, info: VersionInfo, seconds: float) -> None:
        self._observe_applied(info, seconds)
        metrics = self.metrics
        metrics.version_number.set(info.number)
        self._applied_s = time.time()
        metrics.served_at.set(self._applied_s)
        if info.watermark_us is not None:
            metrics.watermark.set(info.watermark_us / 1e6)
        for figure, value in info.metrics.items():
            metrics.quality.labels(figure).set(value)


def _skew_watch(recipe: Recipe, metrics: ServingMetrics) -> SkewWatch:
    behaviour, joiner = recipe.behaviour, recipe.joiner
    # What of a history reaches training, in the order of the view's sequences.
    lengths = (
        min(behaviour.length, joiner.history),
        min(behaviour.searched_words, joiner.searched_words),
    )
    return SkewWatch(Skew(USER_HISTORY, lengths, recipe.skew), metrics)


def _not_judging(recipe: Recipe) -> Recipe:
    """What is served by any replica, the run judges."""
    return replace(
        recipe,
        quality=replace(recipe.quality, enabled=False),
        drift=replace(recipe.drift, enabled=False),
    )


class Beginning:
    """What one more replica still waits for before it can answer as the others do."""

    def __init__(self, catalog: Tail[Catalog], features: FeastStore) -> None:
        self._catalog = catalog
        self._features = features
        self._features_answered = False

    def waiting(self) -> str | None:
        """The reason why it cannot answer yet; None from the moment on at which it can."""
        if behind := self._catalog.behind:
            return f"the catalog has still to take in {behind:,} records of events"
        if not self._features_answered:
            try:
                self._features.read(USER_HISTORY, [0])
            except FeatureError as error:
                return str(error)
            self._features_answered = True
        return None


@contextmanager
def one_more(recipe: Recipe, home: Home, threads: Threads, log_file: Path) -> Iterator[Serving]:
    """One more replica of a running system, kept fresh as long as the block lasts.

    It only reads, but for the events that are posted to it: the run does not notice it.

    Raises:
        ConfigError: nothing has run in the home yet.
        HeadraceError: the log or the newest cut of the catalog cannot be read.
    """
    if not home.exists:
        raise ConfigError(f"nothing has run in {home.path} yet: start with `headrace run`")
    with closing(open_log(home.log_url)) as log, ExitStack() as stack:
        catalog = catalog_tail(recipe, home, log)
        serving = Serving(_not_judging(recipe), home, log, catalog, log_file, Metrics(process=True))
        serving.waiting = Beginning(catalog, serving.features).waiting
        for name, run in serving.threads().items():
            stack.enter_context(threads.running(name, run))
        yield serving


@contextmanager
def answering(
    serving: Serving, service: Service, port: int, threads: Threads
) -> Iterator[Callable[[], None]]:
    """The HTTP server in a thread of its own. What it yields stops it, and returns when all that
    it had accepted is answered; it is called at the end of the block, if not before.
    """
    config = serving.recipe.serving
    sys.setswitchinterval(_SWITCH_S)
    server = uvicorn.Server(
        uvicorn.Config(
            _parting(serving.app(service), serving.draining),
            host=config.host,
            port=port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
            http=guarded(HttpToolsProtocol, config),
        )
    )
    ended = threading.Event()

    def run(stopping: threading.Event) -> None:  # noqa: ARG001
        try:
            server.run()
        finally:
            ended.set()

    def stop() -> None:
        server.should_exit = True
        ended.wait()

    with threads.running("http", run):
        try:
            while not (server.started or ended.is_set() or threads.stopping.is_set()):
                time.sleep(0.01)
            yield stop
        finally:
            stop()


def _parting(app: Any, draining: threading.Event) -> Any:
    """The ASGI app, which asks clients to open another connection once it is draining: one that
    is kept would be closed under the next request.
    """

    async def parting(scope: Any, receive: Any, send: Any) -> None:
        async def last(message: Any) -> None:
            if message["type"] == "http.response.start" and draining.is_set():
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await app(scope, receive, last)

    return parting


def check_port(host: str, port: int) -> None:
    """Tells before anything starts whether it can listen there.

    Raises:
        ConfigError: it cannot.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on {host} cannot be used ({error.strerror}): stop what uses it, or"
                " set HEADRACE_PORT (or --port) to another"
            ) from None
