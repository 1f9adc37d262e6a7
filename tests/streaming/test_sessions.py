"""Session logs as events: small files made here, so that the logic is tested without the data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streaming.decode import decode_events
from streaming.errors import SourceError
from streaming.events import EventRules, encode_events
from streaming.log import Record
from streaming.sources.diginetica import Diginetica
from streaming.sources.source import Source
from streaming.sources.taobao import Taobao
from streaming.sources.trivago import Trivago

Rows = list[dict[str, Any]]
Records = Callable[..., list[Record]]


def rows(source: Source) -> Rows:
    """The events without their nulls."""
    batch = source.batch(0, source.total)
    return [{k: v for k, v in row.items() if v is not None} for row in batch.to_pylist()]


def of_kind(events: Rows, kind: str) -> Rows:
    return [event for event in events if event["kind"] == kind]


def all_accepted(source: Source, as_records: Records) -> bool:
    batch = source.batch(0, source.total)
    return decode_events(as_records([encode_events(batch)]), EventRules()).rejected == []


# Diginetica


def diginetica(directory: Path, clicks: list[tuple[int, int, int]]) -> Diginetica:
    table = pa.table(list(zip(*clicks, strict=True)), names=["period", "session", "item"])
    pq.write_table(table, directory / "diginetica.parquet")
    return Diginetica(directory)


CLICKS = [(0, 1, 10), (0, 2, 20), (0, 1, 11), (0, 2, 10), (1, 2, 30), (1, 3, 10)]


def test_sessions_are_users_and_keep_the_order_of_their_clicks(
    tmp_path: Path, as_records: Records
) -> None:
    source = diginetica(tmp_path, CLICKS)
    clicks = of_kind(rows(source), "click")
    by_session: dict[str, list[str]] = {}
    for click in clicks:
        by_session.setdefault(click["user_id"], []).append(click["item_id"])
    assert by_session == {
        "session-1": ["10", "11"],
        "session-2": ["20", "10", "30"],
        "session-3": ["10"],
    }
    assert [click["session_id"] for click in clicks] == [click["user_id"] for click in clicks]
    assert sorted(click["event_id"] for click in clicks) == [f"diginetica/{n}" for n in range(6)]
    assert all_accepted(source, as_records)


def test_the_invented_clock_puts_a_period_into_its_week(tmp_path: Path) -> None:
    clicks = of_kind(rows(diginetica(tmp_path, CLICKS)), "click")
    start = datetime.fromtimestamp(Diginetica.START_US / 1e6, UTC)
    weeks = [(click["at"] - start).days // 7 for click in clicks]
    assert weeks == [0, 0, 0, 0, 1, 1]
    of_one = [click["at"] for click in clicks if click["user_id"] == "session-1"]
    assert (of_one[1] - of_one[0]).total_seconds() == 30


def test_items_are_declared_once_and_first(tmp_path: Path) -> None:
    events = rows(diginetica(tmp_path, CLICKS))
    known: list[str] = []
    for event in events:
        if event["kind"] == "item":
            known.append(event["item_id"])
        assert event["item_id"] in known
    assert sorted(known) == ["10", "11", "20", "30"]


def test_periods_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"diginetica\.parquet is not in the order"):
        diginetica(tmp_path, CLICKS[::-1])


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_truncated_parquet_file_is_named(tmp_path: Path, part: float) -> None:
    diginetica(tmp_path, CLICKS)
    file = tmp_path / "diginetica.parquet"
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(SourceError, match=r"diginetica\.parquet is truncated or not the file"):
        Diginetica(tmp_path)


def test_a_parquet_file_with_other_columns_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"period": [0], "session": [1]}), tmp_path / "diginetica.parquet")
    with pytest.raises(SourceError, match=r"diginetica\.parquet is truncated or not the file"):
        Diginetica(tmp_path)


# trivago

T0 = 1_541_599_523


def step(
    at: int, action: str, reference: str, shown: str | None = None, prices: str | None = None
) -> dict[str, Any]:
    user = {"user_id": "U", "session_id": "S", "platform": "FR", "device": "mobile"}
    what = {"timestamp": T0 + at, "action_type": action, "reference": reference}
    return {**user, **what, "impressions": shown, "prices": prices}


def trivago(directory: Path, log: Rows) -> Trivago:
    pq.write_table(pa.Table.from_pylist(log), directory / "events.parquet")
    return Trivago(directory)


LOG = [
    step(0, "search for destination", "Paris, France"),
    step(5, "interaction item image", "7"),
    step(9, "clickout item", "8", "7|8|9", "70|80|90"),
    step(9, "interaction item info", "unknown"),
    step(12, "change of sort order", "price only"),
    step(20, "clickout item", "5", "8|9", "81|91"),
]


def test_a_clickout_is_a_request_with_its_list(tmp_path: Path, as_records: Records) -> None:
    source = trivago(tmp_path, LOG)
    events = rows(source)
    first = [e for e in events if e.get("request_id") == "trivago/2"]
    assert [(e["kind"], e["item_id"], e["position"], e.get("value")) for e in first] == [
        ("impression", "7", 0, 70.0),
        ("impression", "8", 1, 80.0),
        ("impression", "9", 2, 90.0),
        ("click", "8", 1, None),
    ]
    assert {(e["user_id"], e["scenario"], e["at"].timestamp()) for e in first} == {
        ("U", "FR", T0 + 9.0)
    }
    assert all_accepted(source, as_records)
    ids = [e["event_id"] for e in events]
    assert len(set(ids)) == len(ids)


def test_a_click_on_what_was_not_shown_belongs_to_no_request(tmp_path: Path) -> None:
    (click,) = [
        e for e in rows(trivago(tmp_path, LOG)) if e["kind"] == "click" and e["item_id"] == "5"
    ]
    assert "request_id" not in click
    assert "position" not in click


def test_what_is_done_without_a_list_is_organic(tmp_path: Path) -> None:
    events = rows(trivago(tmp_path, LOG))
    organic = [e for e in of_kind(events, "click") if e["at"].timestamp() == T0 + 5]
    assert [(e["item_id"], e.get("request_id")) for e in organic] == [("7", None)]
    (search,) = of_kind(events, "search")
    assert (search["user_id"], search["query"]) == ("U", "Paris, France")
    assert not any(e.get("item_id") == "unknown" for e in events)
    (user,) = of_kind(events, "user")
    assert json.loads(user["attributes"]) == {"platform": "FR", "device": "mobile"}
    assert events[0] == user


def test_what_users_do_has_the_session_of_the_log(tmp_path: Path) -> None:
    log = [*LOG[:3], {**LOG[5], "session_id": "T"}]
    events = rows(trivago(tmp_path, log))
    done = [(e["kind"], e.get("session_id")) for e in events if e["kind"] not in ("item", "user")]
    assert done == [
        ("search", "S"), ("click", "S"),
        *[("impression", "S")] * 3, ("click", "S"),
        *[("impression", "T")] * 2, ("click", "T"),
    ]  # fmt: skip
    assert not any("session_id" in e for e in events if e["kind"] in ("item", "user"))


def test_hotels_are_declared_before_they_are_shown(tmp_path: Path) -> None:
    known: list[str] = []
    for event in rows(trivago(tmp_path, LOG)):
        if event["kind"] == "item":
            known.append(event["item_id"])
        elif "item_id" in event:
            assert event["item_id"] in known
    assert sorted(known) == ["5", "7", "8", "9"]


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ({"prices": "70|80"}, "more or fewer prices than hotels"),
        ({"prices": None}, "a clickout without prices"),
        ({"prices": "70|80|dear"}, "truncated or not the file"),
        ({"reference": None}, "no reference in line 3"),
    ],
)
def test_a_broken_clickout_is_named(tmp_path: Path, spoilt: dict[str, Any], reason: str) -> None:
    log = [*LOG[:2], {**LOG[2], **spoilt}, *LOG[3:]]
    with pytest.raises(SourceError, match=rf"events\.parquet.*{reason}"):
        trivago(tmp_path, log)


def test_a_session_without_a_clickout_is_read(tmp_path: Path) -> None:
    events = rows(trivago(tmp_path, LOG[:2]))
    assert [e["kind"] for e in events] == ["user", "search", "item", "click"]


# Taobao


def taobao(directory: Path, text: str) -> Taobao:
    file = directory / "log.csv.gz"
    file.write_bytes(gzip.compress(text.encode()))
    return Taobao(file, "taobao-test")


def test_behaviours_have_their_kinds(tmp_path: Path, as_records: Records) -> None:
    text = "1,10,5,fav,1002\n1,10,5,pv,1000\n2,11,6,buy,1001\n2,10,5,cart,1001\n"
    source = taobao(tmp_path, text)
    found = [(e["kind"], e.get("user_id"), e["item_id"], e["event_id"]) for e in rows(source)]
    assert found == [
        ("item", None, "10", "taobao-test/item/10"),
        ("click", "1", "10", "taobao-test/1"),
        ("item", None, "11", "taobao-test/item/11"),
        ("buy", "2", "11", "taobao-test/2"),
        ("cart", "2", "10", "taobao-test/3"),
        ("wish", "1", "10", "taobao-test/0"),
    ]
    assert json.loads(rows(source)[0]["attributes"]) == {"category": "5"}
    assert all_accepted(source, as_records)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,10,5,stare,1000\n", "has the behaviour 'stare', and known are pv, cart, fav, buy"),
        ("1,10,5,pv,soon\n", "truncated or not the file"),
        ("1,10,5,pv\n", "truncated or not the file"),
        ("", "truncated or not the file"),
    ],
)
def test_a_wrong_taobao_file_is_named(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(SourceError, match=rf"log\.csv\.gz.*{reason}"):
        taobao(tmp_path, text)


def test_attributes_survive_quotes(tmp_path: Path) -> None:
    source = taobao(tmp_path, '1,10,"a ""b"" \\c",pv,1000\n')
    assert json.loads(rows(source)[0]["attributes"]) == {"category": 'a "b" \\c'}


def test_times_never_go_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [f"{n % 7},{n % 5},1,pv,{at}\n" for n, at in enumerate(rng.integers(1, 50, 200))]
    source = taobao(tmp_path, "".join(lines))
    times = [e["at"] for e in rows(source)]
    assert times == sorted(times)
