"""What the tests of the ground floor share: a disk that fills up, records."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from streaming.events import EventRules
from streaming.log import EVENTS, Append, Record

# The same examples in every run, and time enough for each on a busy machine.
settings.register_profile("headrace", deadline=None, derandomize=True)
settings.load_profile("headrace")


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes an empty file system of a size, like `512k`."""
    disks: list[Path] = []

    def make(size: str) -> Path:
        disk = tmp_path / f"disk-{len(disks)}"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        try:
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs the right to mount a small file system")
        disks.append(disk)
        return disk

    yield make
    for disk in disks:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture
def small_disk(make_disk: Callable[[str], Path]) -> Path:
    """An empty file system of 512 KiB."""
    return make_disk("512k")


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
