"""What the tests of the ground floor share: other processes, a disk that fills up, records."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from hypothesis import settings

from streaming.events import EventRules
from streaming.log import EVENTS, Append, Record

# The same examples in every run, and time enough for each on a busy machine.
settings.register_profile("headrace", deadline=None, derandomize=True)
settings.load_profile("headrace")


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Real processes that start in some ten milliseconds: forked from one that has imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["pytest", "streaming.loop", "streaming.file_log"])
    return context


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="session")
def rules() -> EventRules:
    return EventRules()


@pytest.fixture(scope="session")
def as_records() -> Callable[..., list[Record]]:
    """Appends as the records that they become, numbered from `start`, one microsecond apart."""

    def number(appends: list[Append], start: int = 0) -> list[Record]:
        first_us = 1_700_000_000_000_000
        return [
            Record(EVENTS, 0, n, append.key, append.value, first_us + n)
            for n, append in enumerate(appends, start)
        ]

    return number
