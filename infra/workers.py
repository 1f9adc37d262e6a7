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
from pathlib import Path
from typing import Any

from infra.home import Home
from infra.recipe import Recipe
from infra.wiring import LOOPS
from streaming.errors import Fenced, HeadraceError
from streaming.open_log import open_log

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray's own name for "one machine only": its servers then listen on the loopback address alone.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
import ray

logger = logging.getLogger(__name__)
_RESTART_AFTER_S = 0.5
_OBJECT_STORE_BYTES = 80_000_000  # Ray's least; nothing travels through it


class Worker:
    """Runs one loop until it is told to stop."""

    def __init__(self, role: str, recipe: Recipe, home: Home) -> None:
        self._role = role
        self._recipe = recipe
        self._home = home
        self._stopping = threading.Event()
        log_to_file(self._home.log_file(role))

    def run(self) -> str | None:
        """Returns None after a stop, or the sentence of the error that ended it."""
        log = open_log(self._home.log_url)
        logger.info("the %s is process %d", self._role, os.getpid())
        try:
            LOOPS[self._role](self._recipe, self._home, log).run(self._stopping)
        except Fenced:
            logger.warning("another %s was still at work", self._role)
            raise  # it is a dying one: a new actor goes on from what both have committed
        except HeadraceError as error:
            logger.exception("the %s cannot go on", self._role)
            return str(error)
        except Exception:
            logger.exception("the %s failed", self._role)
            raise
        finally:
            log.close()
        return None

    def stop(self) -> None:
        """Asks `run` to end after its turn, with a cut."""
        self._stopping.set()


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
        self._actors: dict[str, Any] = {}
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
        for actor in list(self._actors.values()):
            actor.stop.remote()
        for watcher in self._watchers:
            watcher.join(timeout=30)
        ray.shutdown()

    def _watch(self, role: str) -> None:
        """Keeps one role alive: a death is followed by a new actor, an error by the end."""
        deaths: deque[float] = deque(maxlen=self._restarts_a_minute)
        while not self._stopping.is_set():
            actor = _actor_class().remote(role, self._recipe, self._home)
            self._actors[role] = actor
            try:
                sentence = ray.get(actor.run.remote())
            except ray.exceptions.RayActorError:
                logger.warning("the %s died; a new one goes on from its last cut", role)
            except ray.exceptions.RayTaskError as error:
                logger.warning("the %s failed: %s", role, error.cause)
            else:
                if sentence is not None:
                    self._failed(f"{role}: {sentence}")
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


def _actor_class() -> Any:
    """`run` keeps one thread of the actor busy, the other hears `stop`."""
    return ray.remote(num_cpus=0, max_restarts=0, max_concurrency=2)(Worker)


def log_to_file(path: Path) -> None:
    """Sends what is logged in this process to a file."""
    logging.raiseExceptions = False  # a full disk must not bury its own error under this one
    logging.getLogger("feast").setLevel(logging.WARNING)
    logging.basicConfig(
        filename=path, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
