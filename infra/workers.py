"""Ray: every step runs in an actor of its own, watched, and started again when it dies.

Ray restarts an actor without its state, so an actor here has none: what it needs it takes from
the cut and the log, and a new actor is as good as the old one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from infra.home import Home
from infra.logs import log_to_file
from infra.recipe import Recipe
from infra.targets import telling
from infra.tracing import open_tracing
from infra.wiring import loop_of, trainer_rank
from streaming.errors import Fenced, HeadraceError
from streaming.log import Log
from streaming.metrics import Metrics
from streaming.open_log import open_log

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray's own name for "one machine only": its servers then listen on the loopback address alone.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
import ray

logger = logging.getLogger(__name__)
_RESTART_AFTER_S = 0.5
_NOTICE_S = 5.0  # in which every rank of a group notices that another is gone
_OBJECT_STORE_BYTES = 80_000_000  # Ray's least; nothing travels through it
# Answers come before learning, but learning is no background job either: at Ray's 15, beside three
# busy processes on two cores, a twentieth of a core was left to the joiner.
_NICENESS = 5


class Worker:
    """Runs one loop until it is told to stop, or one rank of a group that is one loop together."""

    def __init__(self, role: str, recipe: Recipe, home: Home, rank: int = 0) -> None:
        self._role = role
        self._recipe = recipe
        self._home = home
        self._rank = rank
        self._name = _name(role, rank)
        self._store: Any = None  # where the ranks of a group meet
        self._stopping = threading.Event()
        log_to_file(home.log_file(role if rank == 0 else f"{role}-{rank}"), recipe.logs)

    def open_meeting(self) -> tuple[str, int]:
        """Makes a place where the ranks of a group meet; returns its address."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host = ray.util.get_node_ip_address()
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def run(self, meeting: tuple[str, int] | None = None) -> str | None:
        """Returns None after a stop, or the sentence of the error that ended it."""
        log = open_log(self._home.log_url)
        logger.info("the %s is process %d", self._name, os.getpid())
        try:
            with telling(self._recipe.metrics, self._home, self._role, self._rank) as metrics:
                self._loop(log, meeting, metrics).run(self._stopping)
            logger.info("the %s has stopped, with a cut", self._name)
        except Fenced:
            logger.warning("another %s was still at work", self._name)
            raise  # it is a dying one: a new actor goes on from what both have committed
        except HeadraceError as error:
            logger.exception("the %s cannot go on", self._name)
            return str(error)
        except Exception:
            logger.exception("the %s failed", self._name)
            raise
        finally:
            log.close()
            if (tracing := open_tracing(self._recipe.tracing, self._role)) is not None:
                tracing.flush()
        return None

    def stop(self) -> None:
        """Asks `run` to end after its turn, with a cut."""
        self._stopping.set()

    def _loop(self, log: Log, meeting: tuple[str, int] | None, metrics: Metrics | None) -> Any:
        if meeting is None:
            return loop_of(self._role, self._recipe, self._home, log, metrics)
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from trainers.exchange import connect

        store = self._store or TCPStore(*meeting, is_master=False)
        group, device = self._recipe.group, self._recipe.trainers[self._role].device
        host = ray.util.get_node_ip_address()
        exchange = connect(store, host, self._rank, group.ranks, group.answer_within_s, device)
        return trainer_rank(self._recipe, self._home, log, exchange, metrics, self._role)


class Workers:
    """The actors of a run. `failed` is told when one cannot be kept alive."""

    def __init__(
        self,
        roles: Sequence[str],
        recipe: Recipe,
        home: Home,
        failed: Callable[[str], None],
        restarts_a_minute: int = 5,
    ) -> None:
        self._roles = roles
        self._recipe = recipe
        self._home = home
        self._failed = failed
        self._restarts_a_minute = restarts_a_minute
        self._actors: dict[str, list[Any]] = {}
        self._stopping = threading.Event()
        self._watchers: list[threading.Thread] = []
        self.restarts = dict.fromkeys(roles, 0)

    def start(self) -> None:
        """Starts Ray on this machine, and an actor for each role.

        Raises:
            HeadraceError: Ray does not start here.
        """
        try:
            ray.init(
                num_cpus=len(self._roles),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
                _system_config={"worker_niceness": _NICENESS},
            )
        except (RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
            raise HeadraceError(
                f"Ray does not start on this machine ({error}): look for space in the temporary"
                " directory and in shared memory, then start again"
            ) from error
        for role in self._roles:
            watcher = threading.Thread(target=self._watch, args=(role,), name=f"watch-{role}")
            self._watchers.append(watcher)
            watcher.start()

    def stop(self) -> None:
        """Lets every actor finish its turn and make its cut, then stops Ray."""
        self._stopping.set()
        for actors in list(self._actors.values()):
            for actor in actors:
                actor.stop.remote()
        for watcher in self._watchers:
            watcher.join(timeout=30)
        ray.shutdown()

    def _watch(self, role: str) -> None:
        """Keeps one role alive: a death is followed by a new life, an error by the end."""
        deaths: deque[float] = deque(maxlen=self._restarts_a_minute)
        while not self._stopping.is_set():
            ended = self._live(role)
            if ended is not None:
                if ended.sentence is not None:
                    self._failed(ended.sentence)
                return
            self.restarts[role] += 1
            self._stopping.wait(_RESTART_AFTER_S)
            deaths.append(time.monotonic())
            if len(deaths) == deaths.maxlen and deaths[-1] - deaths[0] < 60:
                self._failed(
                    f"the {role} died {len(deaths)} times within a minute:"
                    f" {self._home.log_file(role)} says why"
                )
                return

    def _live(self, role: str) -> _Ended | None:
        """One life of a role, of all its ranks together; None if it is to begin again."""
        trainer = self._recipe.trainers.get(role)
        ranks = range(1 if trainer is None else self._recipe.group.ranks)
        make = _actor_class("cpu" if trainer is None else trainer.device)
        actors = [make.remote(role, self._recipe, self._home, rank) for rank in ranks]
        self._actors[role] = actors
        if self._stopping.is_set():  # it was set before there was anybody to be told
            return _Ended()
        runs: dict[Any, int] = {}
        try:
            meeting = ray.get(actors[0].open_meeting.remote()) if len(ranks) > 1 else None
            runs = {actor.run.remote(meeting): rank for rank, actor in enumerate(actors)}
            ended = self._outcome(role, runs)
        except ray.exceptions.RayActorError:
            logger.warning("the %s died; a new one goes on from its last cut", role)
            ended = None
        if ended is None:
            for actor in actors:
                ray.kill(actor)
        return ended

    def _outcome(self, role: str, runs: dict[Any, int]) -> _Ended | None:
        """How a life ends. Where one rank has failed, those that do not notice it hang."""
        left, failed, sentences = list(runs), False, []
        while left:
            done, left = ray.wait(left, timeout=_NOTICE_S if failed else None)
            if not done:
                break
            name = _name(role, runs[done[0]])
            try:
                sentence = ray.get(done[0])
            except ray.exceptions.RayActorError:
                logger.warning("the %s died; a new one goes on from its last cut", name)
                failed = True
            except ray.exceptions.RayTaskError as error:
                logger.warning("the %s failed: %s", name, error.cause)
                failed = True
            else:
                if sentence is not None:
                    sentences.append(f"{name}: {sentence}")
                    failed = True
        if failed:
            for run in left:
                logger.warning(
                    "the %s hangs: it is killed, and all start again", _name(role, runs[run])
                )
        if failed and not sentences:
            return None
        return _Ended(next(iter(sentences), None))


@dataclass(frozen=True, slots=True)
class _Ended:
    """A role has come to its end: it was told to stop, or cannot go on, as the sentence says."""

    sentence: str | None = None


def _name(role: str, rank: int) -> str:
    return f"{role}'s rank {rank}" if rank else role


def _actor_class(device: str) -> Any:
    """`run` keeps one thread of the actor busy, the other hears `stop`."""
    gpus = int(device != "cpu")
    options = {"num_cpus": 0, "num_gpus": gpus, "max_restarts": 0, "max_concurrency": 2}
    return ray.remote(**options)(Worker)
