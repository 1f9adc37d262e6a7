"""Open Bandit as events: every impression with its place and chance, every click at its own."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from streaming.decode import decode_events
from streaming.errors import SourceError
from streaming.events import EventRules, encode_events
from streaming.log import Record
from streaming.sources.open_bandit import CAMPAIGNS, OPEN_BANDIT, OpenBandit
from streaming.sources.source import SHIPPED

Records = Callable[..., list[Record]]


@pytest.fixture(scope="module")
def events() -> pa.RecordBatch:
    source = OpenBandit()
    return source.batch(0, source.total)


def of_kind(events: pa.RecordBatch, kind: str) -> pa.RecordBatch:
    return events.filter(pc.equal(events["kind"], kind))


def test_every_row_is_an_impression_and_every_hit_a_click(events: pa.RecordBatch) -> None:
    counts = {row["values"]: row["counts"] for row in events["kind"].value_counts().to_pylist()}
    assert counts == {"impression": 60_000, "click": 287, "user": 337, "item": 160}
    assert events.num_rows == OPEN_BANDIT.events
    assert pc.count_distinct(events["event_id"]).as_py() == events.num_rows
    assert np.all(np.diff(events["at"].cast(pa.int64()).to_numpy()) >= 0)


def test_an_impression_is_the_line_that_its_id_names(events: pa.RecordBatch) -> None:
    shown = of_kind(events, "impression")
    for row in shown.take(pa.array([0, 31_415, 59_999])).to_pylist():
        _, policy, campaign, number, _ = row["event_id"].split("/")
        file = SHIPPED / "open-bandit" / policy / campaign / f"{campaign}.csv.gz"
        with gzip.open(file, "rt") as lines:
            fields = lines.read().splitlines()[int(number) + 1].split(",")
        assert row["at"].isoformat(sep=" ") == fields[1]
        assert row["item_id"] == f"{campaign}/{fields[2]}"
        assert row["position"] == int(fields[3]) - 1
        assert row["scenario"] == campaign
        chosen = json.loads(row["attributes"])
        assert (chosen["policy"], chosen["propensity"]) == (policy, float(fields[5]))
        affinity = float(fields[10 + int(fields[2])])
        assert chosen.get("affinity", 0.0) == affinity


def test_uniform_chances_are_one_in_the_number_of_items(events: pa.RecordBatch) -> None:
    shown = of_kind(events, "impression")
    found: dict[str, set[float]] = {campaign: set() for campaign in CAMPAIGNS}
    for campaign, text in zip(
        shown["scenario"].to_pylist(), shown["attributes"].to_pylist(), strict=True
    ):
        chosen = json.loads(text)
        if chosen["policy"] == "random":
            found[campaign].add(chosen["propensity"])
    assert found == {"all": {1 / 80}, "men": {1 / 34}, "women": {1 / 46}}


def test_a_click_follows_its_impression(events: pa.RecordBatch) -> None:
    keys = ("request_id", "item_id", "user_id", "position", "scenario", "at")
    rows = events.to_pylist()
    seen = set()
    for row in rows:
        key = tuple(row[name] for name in keys)
        if row["kind"] == "impression":
            seen.add(key)
        elif row["kind"] == "click":
            assert key in seen
    assert len(seen) == 60_000


def test_users_and_items_are_described_before_they_appear(events: pa.RecordBatch) -> None:
    known: set[str] = set()
    for row in events.to_pylist():
        if row["kind"] in ("user", "item"):
            described = json.loads(row["attributes"])
            assert set(described) == {f"{row['kind']}_feature_{n}" for n in range(4)}
            known.add(row["user_id"] or row["item_id"])
        else:
            assert row["user_id"] in known
            assert row["item_id"] in known


def test_every_event_keeps_the_rules(events: pa.RecordBatch, as_records: Records) -> None:
    decoded = decode_events(as_records([encode_events(events)]), EventRules())
    assert decoded.rejected == []
    assert decoded.events.num_rows == events.num_rows


# Files that are not as they should be


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the data that a test may spoil."""
    return Path(shutil.copytree(SHIPPED / "open-bandit", tmp_path / "open-bandit"))


def respell(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Rewrites the first row of a compressed CSV file."""
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    lines[1] = ",".join(change(lines[1].split(",")))
    file.write_bytes(gzip.compress("\n".join(lines).encode()))


@pytest.mark.parametrize("name", OPEN_BANDIT.files)
def test_a_truncated_file_is_named(directory: Path, name: str) -> None:
    whole = (directory / name).read_bytes()
    (directory / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=rf"{name} is truncated or not .*fetch it again"):
        OpenBandit(directory)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (2, "80", r"random/all/all\.csv\.gz shows an item_id that is not in 80 items"),
        (5, "0.0", r"random/all/all\.csv\.gz has a propensity_score outside"),
        (5, "", r"random/all/all\.csv\.gz has no propensity_score in line 2"),
        (4, "yes", r"random/all/all\.csv\.gz is truncated or not the file it should be"),
    ],
)
def test_a_wrong_value_is_named(directory: Path, field: int, value: str, reason: str) -> None:
    respell(
        directory / "random/all/all.csv.gz",
        lambda fields: [*fields[:field], value, *fields[field + 1 :]],
    )
    with pytest.raises(SourceError, match=reason):
        OpenBandit(directory)
