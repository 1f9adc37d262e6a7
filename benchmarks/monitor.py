"""What it costs to watch a system, and how long something is wrong before an alert says so.

Cost: MovieLens is replayed as fast as it goes, then answers are asked for over eight connections,
once with all that watches (figures of every process, the monitor, served quality, drift) and once
without, in turns; the shares that are lost are medians of the pairs. The first fifth of the replay
is not counted, in which code is loaded. Beside that the share of a core that the monitor itself
takes, of a system that rests.

Time to alert: one system under the rules as they are, watched by its own monitor with its two
seconds between two looks; each cause is planted until the alert is there, and again after it has
ended. How well what is served does meanwhile is `headrace bench gate`'s.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks._causes import Causes, Planting
from benchmarks._load import Balancer, load
from benchmarks._service import Service, replica, service
from infra.home import Home
from streaming.log import EVENTS, SAMPLES
from streaming.metrics import parse
from streaming.open_log import open_log

Report = Callable[[str], None]
ROUNDS = 5
REQUESTS, CONNECTIONS = 6_000, 8
WATCHES = ("metrics", "monitor", "quality", "drift")
PROMISES = {
    "replay_lost": (-1.0, 0.03),
    "answers_lost": (-1.0, 0.03),
    "nan_s": (0.0, 10.0),
    "skewed_feature_s": (0.0, 15.0),
    "stuck_replica_s": (0.0, 30.0),
    "hung_replica_s": (0.0, 30.0),
    "frozen_trainer_s": (0.0, 60.0),
    "dead_partition_s": (0.0, 60.0),
    "poisoning_s": (0.0, 120.0),
    "old_version_s": (0.0, 180.0),
}
_LOADED = 20_000  # events
_QUIET_S = 30.0
_PATIENCE_S = 600.0  # windows of five minutes, and what keeps an alert


def run(report: Report) -> dict[str, float]:
    """Shares of throughput that are lost, and seconds from cause to alert."""
    return {**_cost(report), **_times(report)}


# -- cost --------------------------------------------------------------------------------------


def _cost(report: Report) -> dict[str, float]:
    replayed: dict[bool, list[float]] = {True: [], False: []}
    answered: dict[bool, list[float]] = {True: [], False: []}
    for number in range(ROUNDS):
        for watched in (True, False) if number % 2 else (False, True):
            events_per_s, answers_per_s = _round(watched)
            report(f"round {number + 1} of {ROUNDS}, {'' if watched else 'not '}watched:"
                   f" {events_per_s:,.0f} events/s, {answers_per_s:,.0f} answers/s")  # fmt: skip
            replayed[watched].append(events_per_s)
            answered[watched].append(answers_per_s)
    return {
        "replay_events_per_s": median(replayed[True]),
        "replay_lost": _lost(replayed),
        "answers_per_s": median(answered[True]),
        "answers_lost": _lost(answered),
    }


def _lost(rates: dict[bool, list[float]]) -> float:
    pairs = zip(rates[True], rates[False], strict=True)
    return 1.0 - median(watched / alone for watched, alone in pairs)


def _round(watched: bool) -> tuple[float, float]:
    """Events a second until the last one is served, and then answers a second."""
    recipe = {f"{name}.enabled": watched for name in WATCHES}
    with tempfile.TemporaryDirectory() as folder, service(Path(folder) / "home", recipe) as running:
        running.wait_for(lambda: _replayed(running)["done"] >= _LOADED)
        begun, before = time.perf_counter(), _replayed(running)["done"]
        running.wait_for(running.caught_up, timeout_s=600)
        seconds = time.perf_counter() - begun
        events = _replayed(running)["total"] - before
        balancer = Balancer([running.port])
        asyncio.run(load(balancer, _path, 0.0, REQUESTS // 4, CONNECTIONS))  # warm up
        begun = time.perf_counter()
        told = asyncio.run(load(balancer, _path, 0.0, REQUESTS, CONNECTIONS))
        return events / seconds, told.outcomes["200"] / (time.perf_counter() - begun)


def _replayed(running: Service) -> dict[str, int]:
    progress: dict[str, int] = running.get("/v1/status")["replay"]
    return progress


def _path(number: int) -> str:
    return f"/v1/recommend?user_id={number % 600 + 1}&k=10&shown=false"


# -- time to alert -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _System:
    """A run, and a replica beside it."""

    running: Service
    another: Service
    causes: Causes

    def alerts(self) -> set[str]:
        return {one["name"] for one in self.running.get("/v1/monitor")["alerts"]}

    def monitor_cpu_s(self) -> float:
        told = parse(self.running.request("GET", "/metrics")[1].decode())
        return next(one.value for one in told if one.name == "headrace_monitor_cpu_seconds_total")


def _times(report: Report) -> dict[str, float]:
    figures: dict[str, float] = {}
    with _system() as system:
        figures["monitor_cores"] = _monitor_cores(system)
        for plant in _PLANTS:
            found = []
            for _ in range(plant.times):
                _until(lambda alert=plant.alert: alert not in system.alerts())  # type: ignore[misc]
                plant.prepare(system)
                with Planting() as planting:
                    begun = time.monotonic()
                    plant.plant(system, planting)
                    _until(lambda alert=plant.alert: alert in system.alerts())  # type: ignore[misc]
                    found.append(time.monotonic() - begun)
            figures[plant.figure] = median(found)
            report(f"{plant.alert}: after {', '.join(f'{one:.1f}' for one in found)} s")
    return figures


def _monitor_cores(system: _System) -> float:
    """The share of a core that the monitor's thread takes, while nothing else happens."""
    begun, before = time.monotonic(), system.monitor_cpu_s()
    time.sleep(_QUIET_S)
    return (system.monitor_cpu_s() - before) / (time.monotonic() - begun)


def _samples_that_are_no_numbers(system: _System, _planting: Planting) -> None:
    system.causes.samples_that_are_no_numbers()


def _wrong_features(system: _System, planting: Planting) -> None:
    planting.often(system.causes.wrong_features)


def _replica_hangs(system: _System, planting: Planting) -> None:
    planting.stop(system.another.process.pid)


def _nobody_joins(system: _System, planting: Planting) -> None:
    planting.stop(system.causes.process("joiner"))
    planting.often(system.causes.like)


def _nobody_learns(system: _System, planting: Planting) -> None:
    planting.stop(system.causes.process("trainer"))
    planting.often(system.causes.like)


def _version_is_nowhere(system: _System, planting: Planting) -> None:
    """Nothing newer is announced, and what was cannot be reached."""
    planting.stop(system.causes.process("trainer"))
    system.causes.version_that_is_nowhere()


def _people_like_what_they_like(system: _System) -> None:
    with Planting() as planting:
        planting.often(system.causes.likes)
        _until(
            lambda: system.causes.tastes_are_known and "HeadraceVersionHeld" not in system.alerts()
        )


def _people_lie(system: _System, planting: Planting) -> None:
    planting.often(system.causes.lies)


def _version_is_old(system: _System, planting: Planting) -> None:
    """It is pinned, and people like what it has never seen."""
    planting.pin(system.causes)
    planting.often(system.causes.newcomers)


def _nothing(_system: _System) -> None:
    pass


class _Plant(NamedTuple):
    """A cause, the alert that it is to give, and how often that is measured: an alert that looks
    back five minutes lasts as long. What is to be before the cause is not part of the time.
    """

    figure: str
    alert: str
    plant: Callable[[_System, Planting], None]
    times: int = 3
    prepare: Callable[[_System], None] = _nothing


_PLANTS = (
    _Plant("nan_s", "HeadraceMicroBatchesRefused", _samples_that_are_no_numbers, 1),
    _Plant("skewed_feature_s", "HeadraceFeatureSkew", _wrong_features, 1),
    _Plant("hung_replica_s", "HeadraceProcessDown", _replica_hangs),
    _Plant("dead_partition_s", "HeadracePartitionStuck", _nobody_joins),
    _Plant("frozen_trainer_s", "HeadraceTrainerFrozen", _nobody_learns),
    _Plant("stuck_replica_s", "HeadraceReplicaStuck", _version_is_nowhere),
    _Plant("poisoning_s", "HeadraceVersionHeld", _people_lie, 1, _people_like_what_they_like),
    _Plant("old_version_s", "HeadraceQualityDrop", _version_is_old, 1, _people_like_what_they_like),
)


@contextmanager
def _system() -> Iterator[_System]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "home"
        Home(home).make()
        open_log(Home(home).log_url, partitions={EVENTS: 2, SAMPLES: 2}).close()
        running = stack.enter_context(service(home, {"replay.limit": 20_000}))
        running.wait_until_ready()
        another = stack.enter_context(replica(home))
        another.wait_until_ready()
        running.wait_for(running.caught_up)
        yield _System(running, another, Causes(running, home, home.with_name("home.toml")))


def _until(holds: Callable[[], bool]) -> None:
    due = time.monotonic() + _PATIENCE_S
    while not holds():
        if time.monotonic() > due:
            raise RuntimeError("an alert did not begin, or did not end, in ten minutes")
        time.sleep(0.1)
