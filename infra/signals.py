"""Ctrl-C and a polite kill, as a request that work can answer when it suits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopped_by_signals(stopping: threading.Event) -> Iterator[None]:
    """Both ask for a stop inside the block; a second Ctrl-C does not wait for it."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
