"""What several folders of tests need: a whole Headrace, and a real Kafka-protocol broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks._broker import Broker
from benchmarks._broker import broker as run_broker
from benchmarks._service import Service, service

REPLAYED = 14_000  # of 109,129 events: all movies and the first ratings


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that has learnt the first ratings; tests may add users and events to it."""
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
