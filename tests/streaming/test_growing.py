"""Arrays that grow: in memory, in a file, and when there is no more room."""

from __future__ import annotations

import gc
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.errors import TableFull
from streaming.growing import GrowingArray

WHERE = pytest.mark.parametrize("where", ["memory", "file"])


@pytest.fixture
def directory(where: str, tmp_path: Path) -> Path | None:
    return tmp_path / "rows" if where == "file" else None


def filled(array: GrowingArray, start: int, end: int) -> None:
    """Writes to each row its own number."""
    rows = array.rows[start:end]
    rows[:] = np.arange(start, end).reshape(-1, *[1] * (rows.ndim - 1))


def holds(array: GrowingArray, count: int) -> bool:
    rows = array.rows[:count]
    numbers = np.arange(count).reshape(-1, *[1] * (rows.ndim - 1))
    return bool((rows == numbers).all())


@WHERE
@pytest.mark.parametrize("shape", [(), (3,), (64,), (2, 5)])
def test_what_was_written_survives_growth_and_new_rows_are_zero(
    directory: Path | None, shape: tuple[int, ...]
) -> None:
    array = GrowingArray(np.float32, shape, directory)
    written = 0
    for wanted in (0, 1, 1_000, 1_001, 30_000, 100_000):
        rows = array.reserve(wanted)
        assert rows is array.rows
        assert rows.shape[1:] == shape
        assert rows.dtype == np.float32
        assert len(rows) >= wanted
        assert not rows[written:].any()
        filled(array, written, wanted)
        written = wanted
        assert holds(array, written)


@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=6))
@settings(max_examples=25)
def test_every_row_that_was_ever_reserved_stays(sizes: list[int]) -> None:
    array = GrowingArray(np.int64)
    for size in sizes:
        array.reserve(size)
        assert len(array.rows) >= max(size, 8_192)
        filled(array, 0, len(array.rows))
    assert holds(array, max(sizes))


@WHERE
def test_somebody_who_holds_a_view_is_no_obstacle_and_loses_nothing(
    directory: Path | None,
) -> None:
    array = GrowingArray(np.int64, (4,), directory)
    filled(array, 0, 2_000)
    view = array.rows[:2_000]
    array.reserve(1_000_000)
    assert holds(array, 2_000)
    assert not array.rows[2_048:].any()
    filled(array, 0, 1_000_000)
    assert view.shape == (2_000, 4)
    assert (view[:, 0] == np.arange(2_000)).all()  # still there to be read
    del view
    array.reserve(3_000_000)
    assert holds(array, 1_000_000)


@WHERE
def test_rows_without_numbers_take_any_number(directory: Path | None) -> None:
    array = GrowingArray(np.float32, (0,), directory)
    for wanted in (10, 1_000_000):
        assert array.reserve(wanted).shape[1:] == (0,)
        assert len(array.rows) >= wanted
    assert array.rows[[3, 999_999]].shape == (2, 0)


def test_growing_a_little_at_a_time_does_not_map_anew_each_time() -> None:
    array, sizes = GrowingArray(np.int64), set()
    for wanted in range(0, 300_000, 100):
        array.reserve(wanted)
        sizes.add(array.nbytes)
    assert len(sizes) < 10


def test_rows_that_nobody_wrote_to_take_no_memory() -> None:
    def resident() -> int:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * resource.getpagesize()

    before = resident()
    array = GrowingArray(np.float32, (64,))
    array.reserve(4_000_000)  # a gigabyte
    assert array.nbytes >= 1_000_000_000
    assert resident() - before < 1 << 26


def test_a_large_array_consists_of_whole_huge_pages_so_that_it_can_lie_in_them() -> None:
    array = GrowingArray(np.float32, (48,))
    for wanted in (1_000, 20_000, 333_333, 1_000_001):
        array.reserve(wanted)
        assert array.nbytes < 1 << 21 or array.nbytes % (1 << 21) == 0


# Files


def test_a_file_has_no_name_and_leaves_when_its_array_does(tmp_path: Path) -> None:
    gc.collect()  # what other tests have left to the collector
    opened = os.listdir("/proc/self/fd")  # noqa: PTH208
    array = GrowingArray(np.int64, (), tmp_path / "new" / "rows")
    array.reserve(100_000)
    assert list((tmp_path / "new" / "rows").iterdir()) == []
    del array
    gc.collect()  # a file that is not closed would be a ResourceWarning here: an error
    assert os.listdir("/proc/self/fd") == opened  # noqa: PTH208


def fill_and_wait(directory: Path, ready: Path) -> None:
    array = GrowingArray(np.int64, (), directory)
    filled(array, 0, len(array.reserve(500_000)))
    ready.touch()
    time.sleep(60)


def test_a_killed_process_leaves_no_file(
    processes: ForkServerContext, make_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk, ready = make_disk("16m"), tmp_path / "ready"
    free = os.statvfs(disk).f_bfree
    child = processes.Process(target=fill_and_wait, args=(disk, ready))
    child.start()
    while not ready.exists():
        time.sleep(0.005)
    assert os.statvfs(disk).f_bfree < free
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    assert list(disk.iterdir()) == []
    assert os.statvfs(disk).f_bfree == free


def test_a_full_disk_is_named_before_anything_is_written(small_disk: Path) -> None:
    array = GrowingArray(np.int64, (), small_disk)
    array.reserve(20_000)
    count = len(array.rows)
    filled(array, 0, count)
    for _ in range(2):
        with pytest.raises(TableFull, match=r"no space for [\d,]+ bytes of rows .*free some"):
            array.reserve(100_000)
        assert holds(array, count)  # and it goes on with what it has
    array.reserve(count + 1_000)
    filled(array, 0, count + 1_000)
    assert holds(array, count + 1_000)


def test_a_disk_that_is_full_from_the_start_is_named(small_disk: Path) -> None:
    (small_disk / "everything").write_bytes(bytes(1 << 19))
    with pytest.raises(TableFull, match="no space"):
        GrowingArray(np.int64, (), small_disk)
    gc.collect()


def grow_beyond_the_limit(directory: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
    array = GrowingArray(np.int64, (), directory)
    filled(array, 0, 8_192)
    with pytest.raises(TableFull, match="File too large"):
        array.reserve(1 << 20)
    assert holds(array, 8_192)


def test_a_file_that_may_not_grow_is_named(processes: ForkServerContext, tmp_path: Path) -> None:
    child = processes.Process(target=grow_beyond_the_limit, args=(tmp_path,))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def grow_beyond_memory() -> None:
    array = GrowingArray(np.int64)
    filled(array, 0, 8_192)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    with pytest.raises(OSError, match="Cannot allocate memory"):
        array.reserve(1 << 31)
    assert holds(array, 8_192)
    array.reserve(10_000)
    assert holds(array, 8_192)


def test_where_memory_ends_the_array_stays_as_it_was(processes: ForkServerContext) -> None:
    child = processes.Process(target=grow_beyond_memory)
    child.start()
    child.join(60)
    assert child.exitcode == 0
