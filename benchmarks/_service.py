"""A whole Headrace as a process of its own, as a user starts it; for benchmarks and tests."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.recipe_file import RECIPES

READY_S = 120.0
IDLE_S = 3.0


class Service:
    """Talks to a running service over one kept connection; not for several threads at once."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], output: Path) -> None:
        self.port = port
        self.process = process
        self.output = output
        self._last_used = 0.0
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> dict[str, Any]:
        """The JSON that a GET answers with status 200."""
        status, body = self.request("GET", path)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status} {body!r}")
        return dict(json.loads(body))

    def post_events(self, events: object) -> tuple[int, dict[str, Any]]:
        """Status and JSON of POST /v1/events."""
        status, body = self.request("POST", "/v1/events", json.dumps(events).encode())
        return status, dict(json.loads(body))

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of any request."""
        headers = {"Content-Type": "application/json"} if body else {}
        if time.monotonic() - self._last_used > IDLE_S:
            self._connection.close()  # the server has let go of it by now
        self._last_used = time.monotonic()
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the next request opens a new one
            raise

    def wait_until_ready(self, timeout_s: float = READY_S) -> None:
        """Returns when /readyz says so; raises with the output if the process ends before."""
        self.wait_for(lambda: self.request("GET", "/readyz")[0] == 200, timeout_s)

    def caught_up(self) -> bool:
        """Whether the replay has ended and everything in the log is learnt and served."""
        return bool(self.get("/v1/status")["caught_up"])

    def wait_for(self, condition: Any, timeout_s: float = READY_S) -> None:
        """Polls until the condition holds; a service that does not answer yet counts as no."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if condition():
                    return
            except (OSError, http.client.HTTPException):
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it did not come about:\n{self.output.read_text()}")
            time.sleep(0.05)

    def close(self) -> None:
        """Lets go of the connection."""
        self._connection.close()

    def stop(self, how: signal.Signals = signal.SIGINT, timeout_s: float = 60) -> int:
        """Ctrl-C, or another signal; returns the exit status."""
        self.process.send_signal(how)
        return self.process.wait(timeout_s)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def service(
    home: Path, recipe: Mapping[str, Any] | None = None, *options: str
) -> Iterator[Service]:
    """`headrace run` in a home, on a free port; with the movielens recipe changed by `recipe`.

    `recipe` names settings by their path, such as {"trainer.corrected": False}.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    file = _recipe_file(home)
    if recipe is not None:
        file.write_text(changed_recipe(recipe))
    given = () if recipe is None else (str(file),)
    with _started(home, home.with_name(f"{home.name}.out"), "run", *options, *given) as running:
        yield running


@contextmanager
def replica(home: Path, *options: str) -> Iterator[Service]:
    """`headrace serve` in the home of a `service`, with its recipe, on a free port."""
    file = _recipe_file(home)
    given = (str(file),) if file.exists() else ()
    number = len(list(home.parent.glob(f"{home.name}-serve-*.out")))
    output = home.with_name(f"{home.name}-serve-{number}.out")
    with _started(home, output, "serve", *options, *given) as running:
        yield running


def _recipe_file(home: Path) -> Path:
    return home.with_name(f"{home.name}.toml")


@contextmanager
def _started(home: Path, output: Path, *command: str) -> Iterator[Service]:
    """A command of the CLI that answers at a free port, until the end of the block."""
    port = free_port()
    environment = {**os.environ, "HEADRACE_HOME": str(home), "HEADRACE_PORT": str(port)}
    with output.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", *command], env=environment, stdout=out, stderr=out
        )
    running = Service(port, process, output)
    try:
        yield running
    finally:
        running.close()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def changed_recipe(changes: Mapping[str, Any]) -> str:
    """The shipped movielens recipe with some settings changed, as TOML."""
    table = tomllib.loads((RECIPES / "movielens.toml").read_text())
    for path, value in changes.items():
        place = table
        *outer, last = path.split(".")
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return toml(table)


def toml(table: Mapping[str, Any]) -> str:
    """A table of plain values and tables as TOML."""
    return "\n".join(_toml(table, ""))


def _toml(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Line by line; JSON writes strings, numbers, booleans and lists alike."""
    for name, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{name} = {json.dumps(value)}"
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield f"[{prefix}{name}]"
            yield from _toml(value, f"{prefix}{name}.")
