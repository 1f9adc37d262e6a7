"""`headrace ingest`: each row counts once, over kills and as files grow; the refused are kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmarks._broker import Broker
from infra.cli import app
from streaming.dead_letters import DeadLetter, Letters
from streaming.decode import decode_events
from streaming.errors import ConfigError, Fenced, HeadraceError, SourceError
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.intake import Intake
from streaming.log import EVENTS, Log
from streaming.open_log import open_log
from streaming.sources.ingestion import LogSink, RowCheck
from streaming.sources.mapping import EventMapping, MappingConfig
from streaming.sources.tabular import TableConfig, open_table

BUY = ["--set", "kind=buy", "--map", "user_id=customer", "--map", "item_id=sku"]
HEADER = "customer,sku,at\n"


def sale(number: int) -> str:
    return f"c{number % 7},s{number},{1_700_000_000 + number}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HEADRACE_LOG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run() -> Callable[..., tuple[int, str]]:
    """The command as one types it: its exit code, and all that it says."""

    def call(*arguments: str, stdin: str | None = None) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["ingest", *arguments], input=stdin)
        if isinstance(result.exception, HeadraceError):
            raise result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    return call


Run = Callable[..., tuple[int, str]]


def events(log: Log) -> list[dict[str, Any]]:
    """All events, partition by partition."""
    found: list[dict[str, Any]] = []
    for place, end in log.ends([EVENTS]).items():
        at = 0
        while at < end:
            records = log.read({place: at}, 1_000, 5)
            decoded = decode_events(records, EventRules())
            assert decoded.rejected == []
            found += decoded.events.to_pylist()
            at = records[-1].offset + 1
    return found


def in_home(home: Path) -> list[dict[str, Any]]:
    log = FileLog(home / "home" / "log.db")
    found = events(log)
    log.close()
    return found


def letters(home: Path) -> list[DeadLetter]:
    log = FileLog(home / "home" / "log.db")
    found = [filed.letter for filed in Letters(log).waiting()]
    log.close()
    return found


def test_a_table_becomes_events(home: Path, run: Run) -> None:
    (home / "sales.csv").write_text(HEADER + sale(1) + sale(2))
    code, told = run("sales.csv", *BUY)
    assert code == 0
    assert "2 accepted, 0 refused" in told
    first, second = in_home(home)
    assert (first["kind"], first["user_id"], first["item_id"]) == ("buy", "c1", "s1")
    assert second["at"].timestamp() == 1_700_000_002


def test_each_form_gives_the_same_events(home: Path, run: Run) -> None:
    rows = [{"customer": f"c{i}", "sku": f"s{i}", "at": 1_700_000_000 + i} for i in range(9)]
    (home / "x.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), home / "x.parquet")
    (home / "x.csv").write_text(HEADER + "".join(f"{r['customer']},{r['sku']},{r['at']}\n" for r in rows))  # noqa: E501 # fmt: skip
    for name in ("x.ndjson", "x.parquet", "x.csv"):
        assert run(name, *BUY, "--batch", "4")[0] == 0
    found = [{k: v for k, v in e.items() if k != "event_id"} for e in in_home(home)]
    assert found[:9] == found[9:18] == found[18:]


def test_the_standard_input_is_read_and_is_new_each_time(home: Path, run: Run) -> None:
    line = '{"kind": "like", "user_id": "u", "item_id": "i"}\n'
    for _ in range(2):
        assert run("-", "--format", "ndjson", stdin=line)[0] == 0
    assert len({e["event_id"] for e in in_home(home)}) == 2


def test_a_named_standard_input_counts_once(home: Path, run: Run) -> None:
    line = '{"kind": "like", "user_id": "u", "item_id": "i"}\n'
    for _ in range(2):
        assert run("-", "--format", "ndjson", "--name", "monday", stdin=line)[0] == 0
    assert len(in_home(home)) == 1


def test_refused_rows_are_told_kept_and_make_the_exit_code_1(home: Path, run: Run) -> None:
    (home / "sales.csv").write_text(f"{HEADER}{sale(1)}c2,s2,soon\n,s3,1700000000\n{sale(4)}c,s\n")
    code, told = run("sales.csv", *BUY)
    assert code == 1
    assert "2 accepted, 3 refused" in told
    assert "'soon'" in told
    assert [e["item_id"] for e in in_home(home)] == ["s1", "s4"]
    kept = [(one.source, one.line, one.field) for one in letters(home)]
    assert kept == [("sales.csv", 3, "at"), ("sales.csv", 4, "user_id"), ("sales.csv", 6, "row")]


def test_to_run_it_again_changes_nothing(home: Path, run: Run) -> None:
    (home / "sales.csv").write_text(HEADER + sale(1) + "c,s,soon\n")
    assert run("sales.csv", *BUY)[0] == 1
    code, told = run("sales.csv", *BUY)
    assert code == 0
    assert "nothing new" in told
    assert len(in_home(home)) == len(letters(home)) == 1


def test_of_a_file_that_has_grown_what_is_new_is_taken(home: Path, run: Run) -> None:
    path = home / "sales.csv"
    for days in (1, 2, 3):
        path.write_text(HEADER + "".join(sale(i) for i in range(10 * days)))
        assert run("sales.csv", *BUY)[0] == 0
    assert [e["item_id"] for e in in_home(home)] == [f"s{i}" for i in range(30)]


def test_a_file_that_was_changed_further_up_is_not_guessed_at(home: Path, run: Run) -> None:
    path = home / "sales.csv"
    path.write_text(HEADER + sale(1) + sale(2) + sale(3))
    run("sales.csv", *BUY)
    path.write_text(HEADER + sale(1) + sale(9) + sale(3))
    with pytest.raises(ConfigError, match=r"changed in its first 4 lines .* --again"):
        run("sales.csv", *BUY)
    assert run("sales.csv", *BUY, "--again")[0] == 0
    log = FileLog(home / "home" / "log.db")
    (place,) = log.ends([EVENTS])
    kept = Intake(EventRules()).take(log.read({place: 0}, 100, 0)).events["item_id"].to_pylist()
    log.close()
    assert kept == ["s1", "s2", "s3", "s9"]  # the rows that were there before are repeats


def test_half_a_row_at_the_end_is_taken_when_it_is_whole(home: Path, run: Run) -> None:
    path = home / "sales.csv"
    path.write_text(HEADER + sale(1) + "c2,s")
    code, told = run("sales.csv", *BUY)
    assert (code, "line 3" in told) == (1, True)
    path.write_text(HEADER + sale(1) + sale(2))
    assert run("sales.csv", *BUY)[0] == 0
    assert [e["item_id"] for e in in_home(home)] == ["s1", "s2"]
    assert letters(home) == []


def test_a_dry_run_shows_and_keeps_nothing(home: Path, run: Run) -> None:
    (home / "sales.csv").write_text(HEADER + sale(1) + "c,s,soon\n")
    code, told = run("sales.csv", *BUY, "--dry-run")
    assert code == 1
    assert "1 would be accepted, 1 refused" in told
    assert '"item_id":"s1"' in told
    assert not (home / "home").exists()


def test_a_strict_run_appends_nothing_beside_a_refusal(home: Path, run: Run) -> None:
    (home / "sales.csv").write_text(HEADER + sale(1) + sale(2) + "c,s,soon\n" + sale(4))
    code, told = run("sales.csv", *BUY, "--strict", "--batch", "2")
    assert (code, "line 4 was refused" in told) == (1, True)
    assert [e["item_id"] for e in in_home(home)] == ["s1", "s2"]
    assert letters(home) == []


def test_a_mapping_that_fits_no_row_does_not_fill_the_dead_letters(home: Path, run: Run) -> None:
    (home / "sales.csv").write_text(HEADER + "".join(sale(i) for i in range(500)))
    options = [*BUY, "--at-format", "%d.%m.%Y"]
    code, told = run("sales.csv", *options)
    assert (code, "--map" in told) == (1, True)
    assert letters(home) == []
    assert run("sales.csv", *options, "--keep-going")[0] == 1
    assert len(letters(home)) == 500


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "kind=bought"], "knows only impression"),
        (["--set", "kind=buy", "--map", "user_id=customer"], "must have item_id.*sku"),
        (["--set", "kind=buy", "--map", "user_id=client"], "no column 'client'"),
        (["--set", "kind"], "NAME=VALUE"),
        (["--set", "kind=buy", "--set", "kind=like"], "given twice"),
        ([*BUY, "--url", "here", "--log", "there"], "one of the two"),
        ([*BUY, "--url", "here"], "http://"),
        ([*BUY, "--log", "nowhere://x"], "nowhere"),
        ([*BUY, "--recipe", "nobody"], "nobody"),
    ],
)
def test_what_cannot_work_is_told_before_the_first_row(
    home: Path, run: Run, arguments: list[str], told: str
) -> None:
    (home / "sales.csv").write_text(HEADER + sale(1))
    with pytest.raises(ConfigError, match=told):
        run("sales.csv", *arguments)


def test_a_file_that_cannot_be_read_on_leaves_whole_batches(home: Path, run: Run) -> None:
    rows = [sale(i).encode() for i in range(10)]
    (home / "sales.csv").write_bytes(b"".join([HEADER.encode(), *rows, b"caf\xe9,s,1\n"]))
    with pytest.raises(SourceError, match="line 12 of sales.csv is not UTF-8"):
        run("sales.csv", *BUY, "--batch", "4")
    assert len(in_home(home)) == 8
    (home / "sales.csv").write_bytes(b"".join([HEADER.encode(), *rows, "café,s,1\n".encode()]))
    assert run("sales.csv", *BUY, "--batch", "4")[0] == 0
    assert [e["item_id"] for e in in_home(home)] == [*(f"s{i}" for i in range(10)), "s"]


def test_items_come_with_attributes(home: Path, run: Run) -> None:
    (home / "movies.csv").write_text("movieId,title,genres\n1,Heat,Crime|Drama\n")
    assert run(
        "movies.csv", "--set", "kind=item", "--map", "item_id=movieId",
        "--attributes", "title,genres", "--split", "genres=|",
    )[0] == 0  # fmt: skip
    (item,) = in_home(home)
    assert json.loads(item["attributes"]) == {"title": "Heat", "genres": ["Crime", "Drama"]}


# Faults


def test_a_killed_ingestion_goes_on_and_repeats_nothing(home: Path, run: Run) -> None:
    count = 60_000
    (home / "sales.csv").write_text(HEADER + "".join(sale(i) for i in range(count)))
    command = [sys.executable, "-m", "infra.cli", "ingest", "sales.csv", *BUY, "--batch", "500"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "HEADRACE_HOME": "home",
                   "PATH": "/usr/bin:/bin"}  # fmt: skip
    reached = 0
    for _ in range(3):
        process = subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
            if (home / "home" / "log.db").exists() and _records(home) > reached + 5:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached = _records(home)
    assert reached > 0
    assert run("sales.csv", *BUY, "--batch", "500")[0] == 0
    assert [e["item_id"] for e in in_home(home)] == [f"s{i}" for i in range(count)]


def _records(home: Path) -> int:
    try:
        log = FileLog(home / "home" / "log.db")
    except HeadraceError:
        return 0
    try:
        return sum(log.ends([EVENTS]).values())
    finally:
        log.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[FileLog]:
    log = FileLog(tmp_path / "log.db", partitions=3)
    yield log
    log.close()


def test_two_ingestions_of_one_file_do_not_both_count(tmp_path: Path, opened: FileLog) -> None:
    path = tmp_path / "sales.csv"
    path.write_text(HEADER + "".join(sale(i) for i in range(20)))
    first, second = LogSink(opened, "sales.csv", "x"), LogSink(opened, "sales.csv", "x")
    config = MappingConfig({"user_id": "customer", "item_id": "sku"}, {"kind": "buy"})
    with open_table(str(path), TableConfig()) as table:
        mapping = EventMapping(config, "sales.csv", table.columns)
        check = RowCheck(mapping, EventRules(), "sales.csv")
        for chunk in table.chunks(5, mapping.wanted):
            checked = check.check(chunk, 1_800_000_000_000_000)
            first.take(chunk, checked)
            with pytest.raises(Fenced):
                second.take(chunk, checked)
    assert len(events(opened)) == 20


def test_a_users_events_lie_in_their_partition_in_order(
    home: Path, run: Run, broker: Broker
) -> None:
    (home / "sales.csv").write_text(HEADER + "".join(sale(i) for i in range(300)) + "c,s,soon\n")
    with pytest.raises(ConfigError, match="headrace topics --apply"):
        run("sales.csv", *BUY, "--log", broker.url)
    assert CliRunner().invoke(app, ["topics", "--apply", "--log", broker.url]).exit_code == 0
    assert run("sales.csv", *BUY, "--log", broker.url, "--batch", "50")[0] == 1
    assert "nothing new" in run("sales.csv", *BUY, "--log", broker.url)[1]
    log = open_log(broker.url)
    places: dict[str, set[int]] = {}
    order: dict[str, list[str]] = {}
    for place, end in log.ends([EVENTS]).items():
        records = log.read({place: 0}, 1_000, 5) if end else []
        for event in decode_events(records, EventRules()).events.to_pylist():
            places.setdefault(event["user_id"], set()).add(place.partition)
            order.setdefault(event["user_id"], []).append(event["item_id"])
    assert places == {f"c{u}": {log.partition_of(EVENTS, f"c{u}".encode())} for u in range(7)}
    assert order == {f"c{u}": [f"s{i}" for i in range(u, 300, 7)] for u in range(7)}
    assert len(list(Letters(log).waiting())) == 1
    log.close()
