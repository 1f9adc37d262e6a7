"""Parts of an answer: small callables, each with a deadline, that an answer can do without.

A part that is late or broken leaves its place empty, and the answer says so. A part that waits for
something outside of this process runs `apart`, in a thread that can be left behind; one that only
computes runs where it is called, for handing it over would take longer than most of them do. Who is
late or broken several times in a row is not asked for a while, so that a store that is away costs
its deadline now and then and not with every answer (Nygard, *Release It!*: the circuit breaker).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from pydantic import PositiveFloat, PositiveInt

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Outcome(StrEnum):
    """What became of a part of an answer."""

    DONE = "done"
    LATE = "late"
    FAILED = "failed"
    RESTING = "resting"  # it was late or failed too often, and was not asked
    BUSY = "busy"  # earlier answers still wait for it
    SKIPPED = "skipped"  # the answer had no time left for it


Told = Callable[[str, Outcome, float], None]  # a part, what became of it, and the seconds it took


@dataclass(frozen=True)
class PartsConfig:
    """A part that was late or failed `failures` times in a row rests for `rest_s`, and twice as
    long each time it fails again, up to `longest_rest_s`. Of one part `at_once` may be under way.
    """

    failures: PositiveInt = 5
    rest_s: PositiveFloat = 1.0
    longest_rest_s: PositiveFloat = 30.0
    at_once: PositiveInt = 8


@dataclass(slots=True)
class _Record:
    """How a part did lately."""

    failures: int = 0  # in a row
    rest_s: float = 0.0
    rests_until: float = 0.0  # on the monotonic clock
    under_way: int = 0


class Parts:
    """What all answers share: the threads, and how each part did lately."""

    def __init__(
        self,
        config: PartsConfig | None = None,
        told: Told = lambda _part, _outcome, _seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config or PartsConfig()
        self._told = told
        self._clock = clock
        self._lock = threading.Lock()
        self._records: dict[str, _Record] = {}
        self._pool = ThreadPoolExecutor(64, "apart")  # made when first needed, one by one

    def begin(self, within_s: float) -> Work:
        """The work on one answer, which is to be done within this time."""
        begun = self._clock()
        return Work(self, begun, begun + within_s)

    def close(self) -> None:
        """Starts no more threads; those that were left behind end when they end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- what `Work` calls -------------------------------------------------------------------

    def now(self) -> float:
        return self._clock()

    def rests(self, name: str) -> bool:
        """Whether a part is not to be asked now, because it was late or failed too often."""
        record = self._records.get(name)
        return record is not None and self._clock() < record.rests_until

    def submit(self, name: str, call: Callable[[], T]) -> Future[T] | None:
        """Sets a part going in a thread; None if earlier answers have all of its places."""
        with self._lock:
            record = self._records.setdefault(name, _Record())
            if record.under_way >= self._config.at_once:
                return None
            record.under_way += 1
        future = self._pool.submit(call)
        future.add_done_callback(lambda _: self._left(record))
        return future

    def note(self, name: str, outcome: Outcome, seconds: float, why: str = "") -> None:
        """Takes down what became of a part, and lets it rest if that was too much."""
        self._told(name, outcome, seconds)
        if outcome not in (Outcome.DONE, Outcome.LATE, Outcome.FAILED):
            return
        config = self._config
        record = self._records.get(name)
        if outcome is Outcome.DONE and (record is None or not record.failures):
            return  # as nearly always, and without waiting for anybody
        with self._lock:
            record = self._records.setdefault(name, _Record())
            if outcome is Outcome.DONE:
                record.failures, record.rest_s = 0, 0.0
                return
            record.failures += 1
            if record.failures < config.failures:
                return
            record.rest_s = min(config.longest_rest_s, max(config.rest_s, 2 * record.rest_s))
            record.rests_until = self._clock() + record.rest_s
            record.failures = config.failures - 1  # one more, and it rests again
            rest_s = record.rest_s
        logger.warning(
            "%s is %s (%s): answers do without it for %g s",
            name,
            outcome,
            why or "too slow",
            rest_s,
        )

    def _left(self, record: _Record) -> None:
        with self._lock:
            record.under_way -= 1


@dataclass(slots=True)
class _Started(Generic[T]):
    """A part that runs apart, or the reason why it does not."""

    name: str
    begun: float
    due: float
    future: Future[T] | None


@dataclass(slots=True)
class Work:
    """The parts of one answer: `degraded` names those that it does without, `took_ms` how long
    each part took.
    """

    parts: Parts
    begun: float  # on the clock of `parts`, as `due`
    due: float
    degraded: list[str] = field(default_factory=list)
    took_ms: dict[str, float] = field(default_factory=dict)
    _futures: list[Future[Any]] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        """How long the answer has taken so far."""
        return self.parts.now() - self.begun

    @contextmanager
    def holding(self, resource: AbstractContextManager[T]) -> Iterator[T]:
        """As `with resource`, but it is let go of only when every part that was started inside has
        ended: one that was left behind may still be reading it.
        """
        before = len(self._futures)
        with ExitStack() as stack:
            yield stack.enter_context(resource)
            inside = [f for f in self._futures[before:] if not f.done()]
            if inside:
                _after(inside, stack.pop_all().close)

    def do(self, name: str, call: Callable[..., T], *args: Any) -> T | None:
        """What a part that only computes makes of it; None without it."""
        begun = self.parts.now()
        if begun >= self.due:
            self._without(name, Outcome.SKIPPED, begun)
            return None
        if self.parts.rests(name):
            self._without(name, Outcome.RESTING, begun)
            return None
        try:
            made = call(*args)
        except Exception as error:  # noqa: BLE001 - a part may be anybody's; the answer goes on
            self._without(name, Outcome.FAILED, begun, repr(error))
            return None
        self._done(name, begun)
        return made

    def start(self, name: str, call: Callable[..., T], *args: Any, within_s: float) -> _Started[T]:
        """Sets a part going that may wait for others; `get` has what became of it."""
        begun = self.parts.now()
        due = min(self.due, begun + within_s)
        future = None
        if begun >= due:
            self._without(name, Outcome.SKIPPED, begun)
        elif self.parts.rests(name):
            self._without(name, Outcome.RESTING, begun)
        else:
            future = self.parts.submit(name, lambda: call(*args))
            if future is None:
                self._without(name, Outcome.BUSY, begun)
            else:
                self._futures.append(future)
        return _Started(name, begun, due, future)

    def get(self, started: _Started[T]) -> T | None:
        """What a part that was started has made; None without it."""
        if started.future is None:
            return None
        left_s = max(0.0, started.due - self.parts.now())
        try:
            made = started.future.result(left_s)
        except TimeoutError:
            late = f"nothing after {1e3 * (started.due - started.begun):.0f} ms"
            self._without(started.name, Outcome.LATE, started.begun, late)
            return None
        except Exception as error:  # noqa: BLE001 - as in `do`
            self._without(started.name, Outcome.FAILED, started.begun, repr(error))
            return None
        self._done(started.name, started.begun)
        return made

    def apart(self, name: str, call: Callable[..., T], *args: Any, within_s: float) -> T | None:
        """As `do`, of a part that may wait for others."""
        return self.get(self.start(name, call, *args, within_s=within_s))

    def _done(self, name: str, begun: float) -> None:
        took_s = self.parts.now() - begun
        self.took_ms[name] = 1e3 * took_s
        self.parts.note(name, Outcome.DONE, took_s)

    def _without(self, name: str, outcome: Outcome, begun: float, why: str = "") -> None:
        """What went wrong is in the log; the answer only says with which part."""
        took_s = self.parts.now() - begun
        self.took_ms[name] = 1e3 * took_s
        self.degraded.append(f"{name}: {outcome}")
        self.parts.note(name, outcome, took_s, why)


def _after(futures: list[Future[Any]], then: Callable[[], None]) -> None:
    """Calls `then` once, when all of these are done."""
    lock = threading.Lock()
    left = len(futures)

    def one_less(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            then()

    for future in futures:
        future.add_done_callback(one_less)
