"""Targets: who lives is found, who died is not, however it died."""

from __future__ import annotations

import os
import signal
import socket
import urllib.request
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from infra.home import Home
from infra.targets import MetricsConfig, Target, announced, discovery, targets, telling
from streaming.metrics import parse

TRAINER = Target("trainer", 1, "127.0.0.1:4000")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_process_is_found_while_it_lasts(home: Home) -> None:
    assert targets(home) == []
    with announced(home, TRAINER), announced(home, Target("joiner", 0, "127.0.0.1:4001")):
        assert [one.process for one in targets(home)] == ["joiner", "trainer"]
        assert TRAINER in targets(home)
    assert targets(home) == []
    assert list((home.path / "targets").iterdir()) == []


def test_two_of_one_name_are_two(home: Home) -> None:
    with announced(home, TRAINER):
        with announced(home, TRAINER):
            assert targets(home) == [TRAINER, TRAINER]
        assert targets(home) == [TRAINER]


def announce(path: Path, ready: Connection) -> None:
    with announced(Home(path), TRAINER):
        ready.send(os.getpid())
        ready.recv()  # for ever


def test_one_that_is_killed_is_gone_at_once(home: Home, processes: ForkServerContext) -> None:
    here, there = processes.Pipe()
    process = processes.Process(target=announce, args=(home.path, there))
    process.start()
    assert here.recv() == process.pid
    assert targets(home) == [TRAINER]
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert targets(home) == []
    assert list((home.path / "targets").iterdir()) == []  # nor is its file left behind


def test_a_process_without_an_interface_tells_its_figures_where_it_is_found(home: Home) -> None:
    with telling(MetricsConfig(), home, "daily", rank=2) as metrics:
        assert metrics is not None
        metrics.counter("headrace_doors_total", "Doors.").labels().inc(7)
        (found,) = targets(home)
        assert (found.process, found.rank) == ("daily", 2)
        with urllib.request.urlopen(f"http://{found.address}/metrics", timeout=10) as answer:
            figures = {one.name: one.value for one in parse(answer.read().decode())}
        assert figures["headrace_doors_total"] == 7
        assert figures["process_resident_memory_bytes"] > 0
    assert targets(home) == []
    with telling(MetricsConfig(enabled=False), home, "daily") as nothing:
        assert nothing is None
        assert targets(home) == []


def test_it_says_what_prometheus_wants_to_hear() -> None:
    assert discovery([TRAINER]) == [
        {"targets": ["127.0.0.1:4000"], "labels": {"process": "trainer", "rank": "1"}}
    ]


def test_an_address_is_one_that_others_reach() -> None:
    assert MetricsConfig().address("127.0.0.1", 80) == "127.0.0.1:80"
    assert MetricsConfig(advertise="there").address("::", 80) == "there:80"
    assert MetricsConfig().address("::", 80) == f"{socket.gethostname()}:80"
    assert MetricsConfig().address("::1", 80) == "[::1]:80"
