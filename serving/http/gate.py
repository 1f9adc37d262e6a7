"""A gate before work that takes its time: a few at once, a few wait, the rest comes again later."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from serving.http.api_config import GateConfig
from serving.http.refusals import Overloaded
from serving.metrics import ServingMetrics

logger = logging.getLogger(__name__)
T = TypeVar("T")
_BURST_S = 0.25  # a queue that stands for longer is none that will pass
_OVER_S = 5.0  # without anybody turned away: the storm is over


class Gate:
    """Runs work for one event loop: in threads of its own, or `here`, in that of the loop.

    What is turned away was not begun, so it may be sent again.
    """

    def __init__(self, name: str, config: GateConfig, metrics: ServingMetrics) -> None:
        self._name = name
        self._config = config
        self._free = config.concurrent
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._empty_at = 0.0  # when nobody waited, as far as was looked
        self._was_full = False  # since then
        self._turned_away = 0  # since it was last said that nobody is
        self._last_at = 0.0
        self._threads = ThreadPoolExecutor(config.concurrent, thread_name_prefix=name)
        self._shed = metrics.shed.labels(name)
        metrics.waiting.labels(name).set_function(lambda: len(self._waiting))

    def check(self) -> None:
        """Looks ahead, so that nothing is read for work that would be turned away.

        Raises:
            Overloaded: nobody else can wait now.
        """
        now = time.monotonic()
        if not self._waiting:
            self._empty_at, self._was_full = now, False
            self._tell_of_the_end(now)
        # In a storm, a queue that was full and still stands, all would only wait longer.
        storm = self._was_full and now - self._empty_at > _BURST_S
        most = self._config.waiting // 4 if storm else self._config.waiting
        if not self._free and len(self._waiting) >= most:
            self._was_full = True
            raise self._overloaded()

    async def run(self, work: Callable[[], T], *, begun: bool = False, here: bool = False) -> T:
        """The result of the work; if it has `begun` with other work, it waits as long as it takes.

        What is quick and waits for nobody is best done `here`: to hand it to a thread and to be
        handed its result takes as long as a third of an answer.

        Raises:
            Overloaded: too many wait already, or it waited too long.
        """
        if not begun:
            self.check()
        if self._free:
            self._free -= 1
        else:
            await self._wait(None if begun else self._config.wait_s)
        return await (self._do_here(work) if here else self._hand_over(work))

    async def _do_here(self, work: Callable[[], T]) -> T:
        try:
            # Who came at the same time is let in, told to wait or turned away first.
            await asyncio.sleep(0)
            return work()
        finally:
            self._leave()

    async def _hand_over(self, work: Callable[[], T]) -> T:
        in_context = copy_context().run  # of the request: its id, its span
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._threads, in_context, work)
        # Not when the request ends: if that is given up, the thread still works.
        running.add_done_callback(self._leave)
        return await asyncio.shield(running)

    async def _wait(self, longest_s: float | None) -> None:
        """Waits until a place is handed over."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(longest_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave(turn)  # the place came just then: on to the next
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._overloaded() from None
            raise

    def _tell_of_the_end(self, now: float) -> None:
        if self._turned_away and now - self._last_at > _OVER_S:
            logger.warning("%s are taken again: %d were not", self._name, self._turned_away)
            self._turned_away = 0

    def _leave(self, _: asyncio.Future[T] | None = None) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _overloaded(self) -> Overloaded:
        self._shed.inc()
        self._turned_away += 1
        self._last_at = time.monotonic()
        if self._turned_away == 1:
            logger.warning("%s are turned away: too many at once", self._name)
        return Overloaded(
            f"too many requests for {self._name} at once: send it again after Retry-After seconds",
            1.0,
        )
