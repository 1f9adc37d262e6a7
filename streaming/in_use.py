"""Users of something that must not be closed under them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from streaming.errors import LogError


class InUse:
    """Counts those who are using something; whoever closes it waits until they are done."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._changed = threading.Condition()
        self._users = 0
        self._closed = False

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keeps `close` waiting for as long as the block lasts.

        Raises:
            LogError: it is closed already.
        """
        with self._changed:
            if self._closed:
                raise LogError(f"{self._what} is closed")
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Lets nobody in any more, and returns when the last one has left."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._users == 0)
