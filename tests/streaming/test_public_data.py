"""Every source by its name: what its entry says of it is what its reader makes of the data."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from streaming.decode import decode_events
from streaming.errors import ConfigError, SourceError
from streaming.events import EVENT_SCHEMA, EventRules, encode_events
from streaming.log import Record
from streaming.sources.diginetica import Diginetica
from streaming.sources.movielens import MovieLens1M
from streaming.sources.registry import SOURCES, find_source, open_source
from streaming.sources.source import SHIPPED, Source, SourceInfo

DATA = Path(os.environ.get("HEADRACE_DATA") or Path(__file__).parents[3] / "shared" / "data")
OF_FILES = [name for name, info in SOURCES.items() if info.files]


def read(name: str) -> Source:
    """The source, unless its data is not here."""
    info = SOURCES[name]
    try:
        directory = info.directory(DATA)
    except SourceError:
        pytest.skip(f"needs {info.folder} in HEADRACE_DATA")
    return info.open(directory)


@cache
def opened(name: str) -> Source:
    """The source, read once for all tests."""
    return read(name)


def whole(source: Source) -> pa.RecordBatch:
    return source.batch(0, source.total)


@pytest.mark.parametrize("name", OF_FILES)
def test_a_source_is_what_its_entry_says(name: str) -> None:
    info, source = SOURCES[name], opened(name)
    events = whole(source)
    assert source.name == name
    assert source.total == events.num_rows == info.events
    assert count(events, "user_id") == info.users
    assert count(events, "item_id") == info.items


def count(events: pa.RecordBatch, column: str) -> int:
    return int(pc.count_distinct(events[column], mode="only_valid").as_py())


@pytest.mark.parametrize("name", OF_FILES)
def test_a_source_lies_along_time_with_ids_of_its_own(name: str) -> None:
    events = whole(opened(name))
    assert events.schema == EVENT_SCHEMA
    assert np.all(np.diff(events["at"].cast(pa.int64()).to_numpy()) >= 0)
    assert count(events, "event_id") == events.num_rows
    prefix = pc.starts_with(events["event_id"], f"{name}/")
    assert pc.all(prefix).as_py()


@pytest.mark.parametrize("name", OF_FILES)
def test_every_event_keeps_the_rules(name: str, as_records: Callable[..., list[Record]]) -> None:
    source = opened(name)
    ends = [source.batch(0, 50_000), source.batch(max(0, source.total - 50_000), 50_000)]
    decoded = decode_events(as_records([encode_events(batch) for batch in ends]), EventRules())
    assert decoded.rejected == []
    assert decoded.events.num_rows == sum(batch.num_rows for batch in ends)


@pytest.mark.parametrize("name", OF_FILES)
def test_a_source_is_the_same_in_every_reading(name: str) -> None:
    source, again = opened(name), read(name)
    assert whole(source).equals(whole(again))
    parts = [again.batch(start, 65_536) for start in range(0, again.total, 65_536)]
    assert pa.concat_batches(parts).equals(whole(source))
    assert source.batch(source.total, 5).num_rows == 0


def test_the_large_movielens_keeps_the_order_of_each_user_and_says_what_is_exact() -> None:
    source = opened("ml-1m")
    assert isinstance(source, MovieLens1M)
    events = whole(source)
    is_rating = pc.equal(events["kind"], "rate").to_numpy(zero_copy_only=False)
    assert source.exact[is_rating].sum() == 738_789
    assert source.exact[~is_rating].all()
    values = events["value"].to_numpy(zero_copy_only=False)
    assert source.exact[is_rating & (values >= 4)].all()  # as its README says


def test_diginetica_keeps_its_periods_in_their_weeks() -> None:
    source = opened("diginetica")
    events = whole(source)
    clicks = events.filter(pc.equal(events["kind"], "click"))
    since_us = clicks["at"].cast(pa.int64()).to_numpy() - Diginetica.START_US
    sizes = np.bincount(since_us // Diginetica.PERIOD_US)
    assert sizes.tolist() == [
        70_739, 37_586, 31_089, 32_687, 30_419, 57_913, 52_225, 57_100, 69_042,
        82_834, 82_935, 50_037, 63_133, 70_050, 71_670, 56_959, 77_065,
    ]  # fmt: skip


def test_trivago_shows_every_list_and_most_clicks_are_in_it() -> None:
    events = whole(opened("trivago"))
    shown = events.filter(pc.equal(events["kind"], "impression"))
    assert count(shown, "request_id") == 13_597
    assert count(events, "session_id") == 7_610  # of 7,612: two only sort a list
    clicks = events.filter(pc.equal(events["kind"], "click"))
    of_lists = clicks.filter(pc.is_valid(clicks["request_id"]))
    share = np.bincount(of_lists["position"].to_numpy()) / of_lists.num_rows
    assert of_lists.num_rows == 13_596
    assert share[:3].round(3).tolist() == [0.310, 0.105, 0.076]  # as its README says


# Names and places


def test_an_unknown_name_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"source = 'ml-20m': .*known are ml-latest-small, ml-1m"):
        find_source("ml-20m")


def test_shipped_sources_need_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_DATA", raising=False)
    for info in SOURCES.values():
        if info.shipped:
            assert info.directory(None) == SHIPPED / info.folder
            assert open_source(info.name).total == info.events


def test_data_that_is_not_named_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_DATA", raising=False)
    with pytest.raises(SourceError) as error:
        open_source("ml-1m")
    assert str(error.value) == (
        "source 'ml-1m' needs data that is not shipped: put movies.dat, users.dat and ratings.dat"
        " or ratings.parquet into DIR/ml-1m and give `--data DIR`, or set HEADRACE_DATA to DIR"
    )


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_DATA", str(tmp_path))
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "movies.dat").touch()
    with pytest.raises(SourceError, match=r"in .*/ml-1m, and users\.dat is not there"):
        open_source("ml-1m")


def test_the_folder_itself_may_be_named(tmp_path: Path) -> None:
    info = SourceInfo("x", "", Diginetica, 0, 0, 0, "", "", "folder", ("a", "b|c"))
    for place in (tmp_path, tmp_path / "folder"):
        place.mkdir(exist_ok=True)
        (place / "a").touch()
        with pytest.raises(SourceError, match=rf"in {place}, and b or c is not there"):
            info.directory(tmp_path)
        (place / "c").touch()
        assert info.directory(tmp_path) == place
        (place / "a").unlink()
        (place / "c").unlink()


def test_the_world_is_a_source_too() -> None:
    world = open_source("world")
    first = world.batch(0, 4_000)
    times = first["at"].cast(pa.int64()).to_pylist()
    assert all(before <= after for before, after in pairwise(times))
