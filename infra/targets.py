"""Where the processes of a home can be asked for their figures, as each announces it itself.

A process holds its file in `HOME/targets` locked as long as it lives, and the kernel lets go for
the dead: so nobody needs to have been told of an end, and containers that share a home see each
other.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from infra.home import Home
from streaming.metrics import Metrics

_EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 - nobody is to listen there for it


@dataclass(frozen=True)
class MetricsConfig:
    """Whether processes tell their figures. Those without an HTTP interface listen at `host`, each
    at a free port.

    `advertise` is the name under which others reach this machine; by default that at which a
    process listens, and the machine's own where it listens at every address. For containers,
    HEADRACE_METRICS_HOST and HEADRACE_ADVERTISE take the place of the defaults.
    """

    enabled: bool = True
    host: str = field(default_factory=lambda: os.environ.get("HEADRACE_METRICS_HOST", "127.0.0.1"))
    advertise: str = field(default_factory=lambda: os.environ.get("HEADRACE_ADVERTISE", ""))

    def address(self, host: str, port: int) -> str:
        """Where others find what listens there."""
        name = self.advertise or (socket.gethostname() if host in _EVERYWHERE else host)
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


@dataclass(frozen=True, slots=True)
class Target:
    """A process, and the `host:port` whose `/metrics` has its figures."""

    process: str
    rank: int
    address: str


@contextmanager
def announced(home: Home, target: Target) -> Iterator[None]:
    """Lets others find a process for as long as the block lasts, or the process lives."""
    folder = home.path / "targets"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target.process}-{target.rank}-{secrets.token_hex(8)}.json"
    aside = path.with_name(f".{path.name}")
    with aside.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(asdict(target)))
        file.flush()
        aside.rename(path)  # only now, for what is not locked is taken for a dead one's
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def telling(
    config: MetricsConfig, home: Home, process: str, rank: int = 0
) -> Iterator[Metrics | None]:
    """What a process without an HTTP interface tells others, who find it for as long as the block
    lasts; None if it is to tell nothing.
    """
    if not config.enabled:
        yield None
        return
    metrics = Metrics(process=True)
    with metrics.served(config.host) as port:
        address = config.address(config.host, port)
        with announced(home, Target(process, rank, address)):
            yield metrics


def targets(home: Home) -> list[Target]:
    """The processes that live, in the order of their names. What the dead have left is removed."""
    found = []
    for path in sorted((home.path / "targets").glob("[!.]*.json")):
        try:
            with path.open() as file:
                if _is_held(file.fileno()):
                    found.append(Target(**json.load(file)))
                else:
                    path.unlink()
        except FileNotFoundError:  # it went just now
            continue
    return found


def _is_held(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def discovery(found: list[Target]) -> list[dict[str, Any]]:
    """The targets as Prometheus' HTTP service discovery wants them."""
    return [
        {"targets": [one.address], "labels": {"process": one.process, "rank": str(one.rank)}}
        for one in found
    ]
