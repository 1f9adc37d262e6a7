"""The threads of a process that serves: they end together, and the first failure is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from streaming.errors import HeadraceError

logger = logging.getLogger(__name__)
JOIN_S = 30.0


class Threads:
    """Threads that go on until `stopping` is set; what fails sets it, and is kept as `failure`.

    `log_file` is where whoever reads the sentence of a failure finds its traceback.
    """

    def __init__(self, log_file: Path) -> None:
        self.stopping = threading.Event()
        self.failure: str | None = None
        self._log_file = log_file

    def fail(self, sentence: str) -> None:
        """Ends the process with an error; the first one is the one that is told."""
        self.failure = self.failure or sentence
        self.stopping.set()

    @contextmanager
    def running(self, name: str, run: Callable[[threading.Event], None]) -> Iterator[None]:
        """A thread that begins and ends with the block."""
        thread = threading.Thread(target=self._guarded, args=(name, run), name=name)
        thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            thread.join(JOIN_S)

    def _guarded(self, name: str, run: Callable[[threading.Event], None]) -> None:
        try:
            run(self.stopping)
        except HeadraceError as error:
            self.fail(str(error))
        except Exception as error:
            logger.exception("the thread %s failed", name)
            self.fail(f"the thread {name} failed ({error!r}); see {self._log_file}")
