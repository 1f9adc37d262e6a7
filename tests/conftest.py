"""What several folders of tests need: a whole Headrace, a real broker, processes; and an order."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from benchmarks._broker import Broker
from benchmarks._broker import broker as run_broker
from benchmarks._service import Service, service

REPLAYED = 14_000  # of 109,129 events: all movies and the first ratings
TESTS = Path(__file__).parent
# First what is quick to fail, floor by floor from the ground up.
FLOORS = ("streaming", "features", "trainers", "serving", "infra")
# Then what starts whole systems or kills processes, the longest first: a long file that begins
# last would keep one worker busy and leave the others with nothing to do.
LONGEST = (
    "integration/test_prometheus.py",
    "integration/test_replicas.py",
    "integration/test_survival.py",
    "integration/test_group_run.py",
    "integration/test_main_job.py",
    "recovery/test_archive_kills.py",
    "integration/test_on_kafka.py",
    "streaming/test_joiner_faults.py",
    "recovery/test_trainer_kills.py",
    "integration/test_daily_home.py",
    "recovery/test_group_kills.py",
    "browser/test_dashboard.py",
    "browser/test_dashboard_live.py",
    "browser/test_playground.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-xdist hands out files in the order of collection, with `--no-loadscope-reorder`."""
    items.sort(key=lambda item: _place(item.path.relative_to(TESTS)))


def _place(file: Path) -> tuple[int, int]:
    if file.as_posix() in LONGEST:
        return 1, LONGEST.index(file.as_posix())
    return 0, FLOORS.index(file.parts[0]) if file.parts[0] in FLOORS else len(FLOORS)


def pytest_collection_finish() -> None:
    """What has been imported stays: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that has learnt the first ratings; tests may add users and events to it.

    It takes half a minute to start, and time from what runs beside it: one file should need it.
    """
    home = tmp_path_factory.mktemp("shared") / "home"
    with service(home, {"replay.limit": REPLAYED}) as headrace:
        headrace.wait_until_ready()
        headrace.wait_for(headrace.caught_up)
        yield headrace


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A fresh broker with nothing in it; a test may pause, kill and restart it."""
    with run_broker() as started:
        yield started


@pytest.fixture(scope="session")
def processes() -> Iterator[ForkServerContext]:
    """Real processes that start in some ten milliseconds: forked from one that has imported.

    There is one such server in a process, whoever asks for it first: so it has imported all.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(
        [
            *("pytest", "benchmarks._broker", "benchmarks.group_kills", "streaming.archive_check"),
            # What the first optimiser of a process would wait for, 1 to 2 s.
            *("torch._dynamo", "trainers.models.two_tower", "trainers.versions"),
        ]
    )
    yield context
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # else it outlives the tests
