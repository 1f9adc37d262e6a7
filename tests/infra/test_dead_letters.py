"""`headrace dead-letters`: what was refused is found, explained, mended, and re-driven once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli import app
from streaming.dead_letters import (
    DeadLetter,
    Letters,
    dead_letter,
    decode_letter,
    encode_letter,
    refused_line,
)
from streaming.decode import decode_events
from streaming.errors import ConfigError, EventRejected, Fenced, HeadraceError, LogError
from streaming.events import Event, EventRules, encode_events, event_batch
from streaming.file_log import FileLog
from streaming.log import DEAD_LETTERS, EVENTS, Append, Log, TopicPartition
from streaming.memory_log import Fault, MemoryLog
from streaming.redrive import Mending, redrive

RULES = EventRules()
NOW_US = 1_800_000_000_000_000
PLACE = TopicPartition(EVENTS, 0)
Run = Callable[..., tuple[int, str]]


def refuse(log: Log, *raws: bytes) -> None:
    """Puts records into `events`, and what a consumer refuses of them into the dead letters."""
    start = log.ends([EVENTS])[PLACE]
    log.append([Append(EVENTS, raw, partition=0) for raw in raws])
    records = log.read({PLACE: start}, 1_000, 1)
    rejected = decode_events(records, RULES).rejected
    log.append([dead_letter(one) for one in rejected])


def accepted(log: Log) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = decode_events(
        log.read({PLACE: 0}, 10_000, 1), RULES
    ).events.to_pylist()
    return events


def like(item: str, **more: object) -> bytes:
    return json.dumps({"kind": "like", "user_id": "u", "item_id": item, **more}).encode()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileLog]:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.delenv("HEADRACE_LOG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    opened = FileLog(tmp_path / "log.db")
    yield opened
    opened.close()


@pytest.fixture
def run() -> Run:
    """The command as one types it: its exit code, and all that it says."""

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["dead-letters", *arguments])
        if isinstance(result.exception, HeadraceError):
            raise result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    return call


# The letter


def test_a_letter_says_where_it_came_from_and_holds_the_record_as_it_came(log: FileLog) -> None:
    raw = b'{"kind": "lik\xff\x00'
    refuse(log, like("1"), raw)
    (filed,) = Letters(log).waiting()
    letter = filed.letter
    assert (letter.topic, letter.partition, letter.offset, letter.row) == (EVENTS, 0, 1, None)
    assert (letter.field, letter.record) == ("event", raw)
    assert letter.origin == "events/0/1"


def test_a_letter_is_json_that_anybody_can_read(log: FileLog) -> None:
    refuse(log, b'{"kind": "odd"}')
    (record,) = log.read({TopicPartition(DEAD_LETTERS, 0): 0}, 10, 0)
    values = json.loads(record.value)
    assert (values["topic"], values["offset"], values["field"]) == (EVENTS, 0, "kind")
    assert values["record"] == "eyJraW5kIjogIm9kZCJ9"


def test_a_letter_of_an_older_release_can_be_read() -> None:
    old = {"topic": "events", "partition": 0, "offset": 7, "row": None, "field": "kind",
           "value": "'x'", "reason": "unknown", "record": "e30="}  # fmt: skip
    letter = decode_letter(json.dumps(old).encode())
    assert isinstance(letter, DeadLetter)
    assert (letter.offset, letter.record, letter.source) == (7, b"{}", None)


def test_a_refused_micro_batch_is_listed_and_stays(log: FileLog, run: Run) -> None:
    letter = {"topic": "samples", "partition": 0, "offset": 3, "reason": "the loss is no number"}
    log.append([Append(DEAD_LETTERS, json.dumps(letter).encode())])
    assert "samples/0/3" in run("list")[1]
    assert "cannot be mended" in run("show", "0")[1]
    assert run("redrive", "--all")[0] == 1


@pytest.mark.parametrize("value", [b"", b"{", b"{}", b"\xff", b"[1]", b'{"redriven": 3}'])
def test_what_is_no_letter_is_passed_over(log: FileLog, value: bytes) -> None:
    log.append([Append(DEAD_LETTERS, value)])
    refuse(log, b"{")
    assert len(list(Letters(log).waiting())) == 1


# list and show


def test_there_is_a_list_with_the_reasons_counted(log: FileLog, run: Run) -> None:
    refuse(log, like("1"), b'{"kind": "odd"}', b'{"kind": "odd"}', like("", value=2))
    code, told = run("list")
    assert code == 0
    assert "3 dead letters" in told
    assert "2  kind: unknown" in told
    assert "events/0/3" in told
    assert "must have 1 to 256 characters" in told


def test_the_list_can_be_narrowed(log: FileLog, run: Run) -> None:
    refuse(log, *[b'{"kind": "odd"}'] * 5, like(""))
    assert "1 dead letters" in run("list", "--reason", "ITEM_ID")[1]
    assert "the newest 2 of 6" in run("list", "--limit", "2")[1]
    assert "6 dead letters" in run("list", "--since", "1h")[1]
    assert "No dead letters" in run("list", "--since", "2100-01-01")[1]
    with pytest.raises(ConfigError, match="--since 'monday'"):
        run("list", "--since", "monday")


def test_the_list_is_there_for_machines(log: FileLog, run: Run) -> None:
    refuse(log, b'{"kind": "odd"}', b"\xff")
    found = [json.loads(line) for line in run("list", "--json")[1].splitlines()]
    assert [(one["letter"], one["field"]) for one in found] == [("0/0", "kind"), ("0/1", "event")]


def test_one_is_shown_in_full_with_the_field_marked_and_a_way_to_mend_it(
    log: FileLog, run: Run
) -> None:
    refuse(log, like("1", userid=7), like("1", value="much"), b"\xff[bold]")
    told = run("show", "0/0")[1]
    assert "> userid" in told
    assert "redrive 0/0 --map FIELD=userid, or --drop userid" in told
    assert "redrive 0/1 --set value=VALUE" in run("show", "1")[1]
    told = run("show", "2")[1]
    assert "cannot be mended" in told
    assert "[bold]" in told


@pytest.mark.parametrize("name", ["7", "0/7", "3/0", "x", "-1"])
def test_a_letter_that_is_not_there_is_named(log: FileLog, run: Run, name: str) -> None:
    with pytest.raises(ConfigError, match=f"no dead letter '{name}'"):
        run("show", "--", name)


def test_without_a_log_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="nothing has run"):
        run("list")
    assert not (tmp_path / "nothing").exists()


# redrive


def test_mended_letters_go_in_again_once(log: FileLog, run: Run) -> None:
    refuse(log, like("1", usr=7), like("2", usr=8), b'{"kind": "odd"}')
    code, told = run("redrive", "--reason", "unknown field", "--drop", "usr")
    assert (code, "re-driven: 2" in told) == (0, True)
    assert [e["item_id"] for e in accepted(log)] == ["1", "2"]
    assert "re-driven: 0" in run("redrive", "--reason", "unknown field", "--drop", "usr")[1]
    assert len(accepted(log)) == 2
    told = run("list")[1]
    assert "1 dead letters. 2 were re-driven" in told
    assert "It was re-driven" in run("show", "0/0")[1]


def test_a_field_can_be_set_and_renamed(log: FileLog, run: Run) -> None:
    refuse(log, b'{"kind": "odd", "userId": 7, "item_id": "i", "at": "1.2.2024"}')
    code, _ = run("redrive", "0/0", "--set", "kind=like", "--map", "user_id=userId",
                  "--at-format", "%d.%m.%Y")  # fmt: skip
    assert code == 0
    (event,) = accepted(log)
    assert (event["kind"], event["user_id"], event["at"].isoformat()) == (
        "like", "7", "2024-02-01T00:00:00+00:00",
    )  # fmt: skip


def test_what_is_still_refused_stays_and_is_told(log: FileLog, run: Run) -> None:
    refuse(log, like("1", usr=7), b'{"kind": "odd", "usr": 1}')
    code, told = run("redrive", "--all", "--drop", "usr")
    assert (code, "still refused: 1" in told) == (1, True)
    assert "0/1 (events/0/1)" in told
    assert [f.name for f in Letters(log).waiting()] == ["0/1"]


def test_a_rehearsal_changes_nothing(log: FileLog, run: Run) -> None:
    refuse(log, like("1", usr=7))
    assert "would be re-driven: 1" in run("redrive", "--all", "--drop", "usr", "--dry-run")[1]
    assert accepted(log) == []
    assert len(list(Letters(log).waiting())) == 1


def test_a_recipe_that_knows_the_kind_lets_it_in(log: FileLog, run: Run, tmp_path: Path) -> None:
    refuse(log, b'{"kind": "share", "user_id": "u"}')
    assert run("redrive", "--all")[0] == 1
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[events.kinds]\nshare = ["user_id"]\n')
    assert run("redrive", "--all", "--recipe", str(recipe))[0] == 0


def test_which_ones_must_be_said(log: FileLog, run: Run) -> None:
    with pytest.raises(ConfigError, match="which letters"):
        run("redrive")


def test_an_event_keeps_its_name_and_its_time(log: FileLog) -> None:
    refuse(log, like("1", event_id="mine", at="2024-01-01T00:00:00Z", usr=1), like("2", usr=1))
    letters = Letters(log)
    redrive(letters, letters.waiting(), Mending(dropped=("usr",)), RULES, NOW_US * 10)
    named, unnamed = accepted(log)
    assert (named["event_id"], named["at"].year) == ("mine", 2024)
    assert unnamed["event_id"] == "events/0/1"
    arrived_us = log.read({PLACE: 1}, 1, 0)[0].logged_us
    assert int(unnamed["at"].timestamp() * 1e6) == pytest.approx(arrived_us, abs=1)


def test_a_row_of_an_arrow_record_goes_in_again(log: FileLog) -> None:
    at = datetime(2024, 1, 1, tzinfo=UTC)
    good = Event("like", "u", "1", "e1", at, attributes={"a": [1]})
    bad = Event("odd", "u", "2", "e2", at, attributes={"a": [1]})
    refuse(log, encode_events(event_batch([good, bad])).value)
    letters = Letters(log)
    (filed,) = letters.waiting()
    assert filed.letter.row == 1
    outcome = redrive(letters, [filed], Mending({"kind": "like"}), RULES, NOW_US)
    assert outcome.events == 1
    assert [e["event_id"] for e in accepted(log)] == ["e1", "e2"]
    assert json.loads(accepted(log)[1]["attributes"]) == {"a": [1]}


def test_a_refused_line_of_a_file_goes_in_under_its_letters_name(log: FileLog) -> None:
    error = EventRejected("kind", "odd", "unknown")
    letter = refused_line("x.csv", 7, b'{"kind": "odd", "user_id": 7, "item_id": 1}', error)
    assert letter.origin == "x.csv line 7"
    log.append([encode_letter(letter)])
    letters = Letters(log)
    redrive(letters, letters.waiting(), Mending({"kind": "like"}), RULES, NOW_US)
    (event,) = accepted(log)
    assert event["event_id"] == "dead-letters/0/0/0"


def test_of_two_who_re_drive_at_once_one_is_fenced_and_nothing_counts_twice(log: FileLog) -> None:
    refuse(log, like("1", usr=7))
    first, second = Letters(log), Letters(log)
    mending = Mending(dropped=("usr",))
    redrive(first, first.waiting(), mending, RULES, NOW_US)
    with pytest.raises(Fenced):
        redrive(second, second.waiting(), mending, RULES, NOW_US)
    assert len(accepted(log)) == 1


@pytest.mark.parametrize("kind", ["abort", "unknown"])
def test_a_log_that_fails_in_the_middle_leaves_each_letter_in_once(kind: Any) -> None:
    # The commit of the second five hundred fails, with or without having come through.
    log = MemoryLog(faults=[Fault(kind, at=500 + 600 + 20)])
    refuse(log, *[like(str(i), usr=1) for i in range(600)])
    mending = Mending(dropped=("usr",))
    letters = Letters(log)
    with pytest.raises(LogError):
        redrive(letters, letters.waiting(), mending, RULES, NOW_US)
    letters = Letters(log)
    redrive(letters, letters.waiting(), mending, RULES, NOW_US)
    assert sorted(int(e["item_id"]) for e in accepted(log)) == list(range(600))
