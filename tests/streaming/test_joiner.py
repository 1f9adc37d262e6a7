"""The joiner: each sample knows what was known just before it, and nothing later."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.behaviour import Behaviour, BehaviourConfig
from streaming.artefact import Artefact, read_artefact, write_artefact
from streaming.events import (
    EVENT_SCHEMA,
    EventRules,
    decode_events,
    encode_events,
    event_batch,
    parse_event,
)
from streaming.ids import stable_id
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import DEAD_LETTERS, EVENTS, SAMPLES, Append, Record
from streaming.samples import SAMPLE_SCHEMA, decode_samples

RULES = EventRules()
NOW_US = 1_700_000_000_000_000
SECOND = 1_000_000
LENGTH = 3  # of the histories in these tests

Rows = list[dict[str, Any]]


def joiner(state: Artefact | None = None, **config: Any) -> Joiner:
    return Joiner(
        JoinerConfig(**config), RULES, Behaviour(BehaviourConfig(length=LENGTH), state), state
    )


def rate(user: str, item: str, value: float = 4.0, **more: Any) -> dict[str, Any]:
    return {"kind": "rate", "user_id": user, "item_id": item, "value": value, **more}


def records(events: Sequence[dict[str, Any]], start: int = 0) -> list[Record]:
    """One JSON record for each event; an event without an id gets its number for one."""
    return [
        Record(
            EVENTS, 0, n, b"key", json.dumps({"event_id": f"e{n}", **event}).encode(), NOW_US + n
        )
        for n, event in enumerate(events, start)
    ]


def rows(outputs: Sequence[Append]) -> Rows:
    """All rows of the micro-batches among the outputs, times as microseconds."""
    found: Rows = []
    for n, output in enumerate(outputs):
        if output.topic == SAMPLES:
            batch = decode_samples(Record(SAMPLES, 0, n, None, output.value, 0))
            assert batch.schema == SAMPLE_SCHEMA
            times = pa.table(batch)["at"].cast(pa.int64()).to_pylist()
            found += [row | {"at": at} for row, at in zip(batch.to_pylist(), times, strict=True)]
    return found


def samples(outputs: Sequence[Append]) -> Rows:
    return [row for row in rows(outputs) if row["user_id"] is not None]


def declarations(outputs: Sequence[Append]) -> Rows:
    return [row for row in rows(outputs) if row["user_id"] is None]


def letters(outputs: Sequence[Append]) -> Rows:
    return [json.loads(output.value) for output in outputs if output.topic == DEAD_LETTERS]


# Samples


def test_a_sample_tells_who_what_when_and_what_came_of_it() -> None:
    event = rate(
        "u", "i", 3.5, at="2023-11-14T22:13:20.000005Z",
        scenario="home", request_id="r", position=4,
    )  # fmt: skip
    (row,) = rows(joiner().on_batch(records([event])))
    assert row == {
        "user_id": stable_id("u"),
        "item_id": stable_id("i"),
        "at": NOW_US + 5,
        "kind": "rate",
        "scenario": "home",
        "request_id": "r",
        "position": 4,
        "history": [],
        "history_rewards": [],
        "item_tokens": None,
        "reward": 0.75,
        "label_liked": True,
        "logged_us": NOW_US,
    }


@pytest.mark.parametrize(
    ("value", "reward", "liked"),
    [(0.5, 0.0, False), (2.9, 0.45, False), (3.0, 0.5, True), (5.0, 1.0, True)],
)
def test_liked_begins_at_the_configured_reward(value: float, reward: float, liked: bool) -> None:
    (row,) = rows(joiner(liked_from=0.5).on_batch(records([rate("u", "i", value)])))
    assert row["reward"] == pytest.approx(reward)
    assert row["label_liked"] is liked


def test_the_history_is_what_the_user_did_before_and_never_the_action_itself() -> None:
    events = [rate("u", "a", 4), rate("v", "x"), rate("u", "b", 2), rate("u", "a", 3)]
    found = samples(joiner().on_batch(records(events)))
    a, b = stable_id("a"), stable_id("b")
    assert [row["history"] for row in found] == [[], [], [a], [a, b]]
    assert [row["history_rewards"] for row in found] == [[], [], [1.0], [1.0, 0.0]]


def test_the_history_reaches_back_over_earlier_records_and_no_further_than_its_length() -> None:
    join = joiner()
    histories = []
    for n in range(6):
        (row,) = samples(join.on_batch(records([rate("u", f"i{n}")], start=n)))
        histories.append(row["history"])
    ids = [stable_id(f"i{n}") for n in range(6)]
    assert histories == [ids[max(0, n - LENGTH) : n] for n in range(6)]


def test_kinds_that_are_no_actions_make_no_samples() -> None:
    events: list[dict[str, Any]] = [
        {"kind": "impression", "user_id": "u", "item_id": "i"},
        {"kind": "search", "user_id": "u", "query": "q"},
        {"kind": "user", "user_id": "u"},
        {"kind": "click", "user_id": "u", "item_id": "i"},
    ]
    (row,) = rows(joiner().on_batch(records(events)))
    assert (row["kind"], row["history"]) == ("click", [])
    assert row["reward"] == pytest.approx(0.3)


def test_a_repeat_makes_no_second_sample_and_does_not_enter_the_history() -> None:
    join = joiner()
    first = rate("u", "a", event_id="once")
    outputs = join.on_batch(records([first, first]))
    outputs += join.on_batch(records([first, rate("u", "b")], start=2))
    found = samples(outputs)
    assert [row["item_id"] for row in found] == [stable_id("a"), stable_id("b")]
    assert found[1]["history"] == [stable_id("a")]


def test_one_micro_batch_has_step_size_rows_and_the_last_the_rest() -> None:
    events = [{"kind": "item", "item_id": f"i{n}"} for n in range(4)]
    events += [rate(f"u{n}", "i") for n in range(8)]
    outputs = joiner(step_size=5).on_batch(records(events))
    assert [len(rows([output])) for output in outputs] == [5, 5, 2]
    assert [row["item_id"] for row in declarations(outputs)] == [
        stable_id(f"i{n}") for n in range(4)
    ]
    assert [row["user_id"] for row in samples(outputs)] == [stable_id(f"u{n}") for n in range(8)]


def test_nothing_to_learn_is_nothing_to_append() -> None:
    join = joiner()
    assert join.on_batch([]) == []
    assert join.on_batch(records([{"kind": "user", "user_id": "u"}])) == []
    assert join.on_time(NOW_US) == []


# Declarations


def test_an_item_event_declares_the_item_with_its_tokens() -> None:
    attributes = {"title": "Heat", "year": 1995, "genres": ["Action", "Crime"], "colour": "blue"}
    event = {"kind": "item", "item_id": "i", "attributes": attributes}
    (row,) = rows(joiner(token_fields=("genres", "year")).on_batch(records([event])))
    tokens = ["genres=Action", "genres=Crime", "year=1995"]
    assert row["item_tokens"] == [stable_id(token) for token in tokens]
    assert (row["user_id"], row["item_id"], row["kind"]) == (None, stable_id("i"), "item")
    assert row["reward"] is row["label_liked"] is row["history"] is None


@pytest.mark.parametrize("attributes", [None, {}, {"genres": None}, {"genres": []}, {"size": 3}])
def test_an_item_that_nothing_describes_is_declared_without_tokens(attributes: Any) -> None:
    event = {"kind": "item", "item_id": "i", "attributes": attributes}
    (row,) = rows(joiner().on_batch(records([event])))
    assert row["item_tokens"] == []


def test_a_declaration_of_an_arrow_record_is_read_the_same() -> None:
    event = {"event_id": "e", "kind": "item", "item_id": "i", "attributes": {"genres": ["é"]}}
    parsed = parse_event(event, RULES, NOW_US)
    arrow = Record(EVENTS, 0, 0, None, encode_events(event_batch([parsed])).value, NOW_US)
    assert rows(joiner().on_batch([arrow])) == rows(joiner().on_batch(records([event])))


@pytest.mark.parametrize("depth", [*range(800, 1_000, 10), 30_000])
def test_attributes_of_any_depth_never_stop_the_joiner(depth: int) -> None:
    """A record that stops the joiner stops it again after every start."""
    nested = b"[" * depth + b"]" * depth
    value = b'{"kind":"item","item_id":"i","event_id":"e","attributes":{"genres":%b}}' % nested
    outputs = joiner().on_batch([Record(EVENTS, 0, 0, None, value, NOW_US)])
    assert len(outputs) == 1


# Dead letters


def test_a_dead_letter_tells_place_field_value_and_reason_and_holds_the_record() -> None:
    good = rate("u", "i")
    bad = Record(EVENTS, 3, 41, b"who", b'{"kind":"rate","user_id":7}', NOW_US)
    outputs = joiner().on_batch([*records([good]), bad])
    assert len(samples(outputs)) == 1
    (letter,) = letters(outputs)
    assert letter.pop("reason").startswith("Expected `str | null`, got `int`: ids are strings")
    assert base64.b64decode(letter.pop("record")) == bad.value
    assert letter == {
        "topic": "events", "partition": 3, "offset": 41, "row": None,
        "field": "user_id", "value": "7",
    }  # fmt: skip
    (key,) = [output.key for output in outputs if output.topic == DEAD_LETTERS]
    assert key == b"who"


def test_bytes_of_every_kind_survive_in_a_dead_letter() -> None:
    bad = Record(EVENTS, 0, 0, None, bytes(range(256)), NOW_US)
    (letter,) = letters(joiner().on_batch([bad]))
    assert base64.b64decode(letter["record"]) == bytes(range(256))


def test_a_bad_row_of_an_arrow_record_is_a_letter_of_its_own() -> None:
    good = {"event_id": "e", "kind": "rate", "user_id": "u", "item_id": "i", "value": 4.0}
    table = [{**good, "event_id": "a"}, {**good, "event_id": "b", "value": 9.0}]
    arrays = [
        pa.array([row.get(f.name, NOW_US if f.name == "at" else None) for row in table], f.type)
        for f in EVENT_SCHEMA
    ]
    value = encode_events(pa.RecordBatch.from_arrays(arrays, schema=EVENT_SCHEMA)).value
    outputs = joiner().on_batch([Record(EVENTS, 0, 5, None, value, NOW_US)])
    assert len(samples(outputs)) == 1
    (letter,) = letters(outputs)
    assert (letter["offset"], letter["row"], letter["field"]) == (5, 1, "value")
    assert letter["value"] == "9.0"
    # What it holds is that row alone, and can be read again.
    again = Record(EVENTS, 0, 0, None, base64.b64decode(letter["record"]), NOW_US)
    (rejected,) = decode_events([again], RULES).rejected
    assert (rejected.row, rejected.error.value) == (0, "9.0")
    assert rejected.error.reason == letter["reason"]


# Against a straightforward account, and cut anywhere


EVENTS_DRAWN = st.lists(
    st.one_of(
        st.builds(
            rate,
            st.sampled_from("uvw"),
            st.sampled_from("abcd"),
            st.sampled_from([0.5, 3.0, 3.5, 5.0, 7.0]),  # 7 is out of range
            event_id=st.sampled_from([f"id{n}" for n in range(9)]),
        ),
        st.fixed_dictionaries(
            {
                "kind": st.sampled_from(["item", "dance", "click", "impression"]),
                "user_id": st.sampled_from("uv"),
                "item_id": st.sampled_from("abcd"),
                "event_id": st.sampled_from([f"id{n}" for n in range(9)]),
                "attributes": st.just({"genres": ["x"]}),
            }
        ),
    ),
    max_size=14,
)


@given(EVENTS_DRAWN)
def test_samples_are_those_of_a_plain_account_of_the_events(events: Rows) -> None:
    config = BehaviourConfig()
    past: dict[str, list[tuple[int, float]]] = {}
    seen: set[str] = set()
    expected = []
    for n, event in enumerate(events):
        if event["kind"] == "dance" or event.get("value") == 7.0 or event["event_id"] in seen:
            continue
        seen.add(event["event_id"])
        reward = config.reward(event["kind"], event.get("value"))
        if reward is None:
            continue
        before = past.setdefault(event["user_id"], [])
        expected.append(
            (stable_id(event["user_id"]), stable_id(event["item_id"]), NOW_US + n,
             [item for item, _ in before[-LENGTH:]],
             pytest.approx([reward for _, reward in before[-LENGTH:]]), pytest.approx(reward))
        )  # fmt: skip
        before.append((stable_id(event["item_id"]), reward))

    found = [
        (row["user_id"], row["item_id"], row["logged_us"], row["history"], row["history_rewards"],
         row["reward"])
        for row in samples(joiner(step_size=4).on_batch(records(events)))
    ]  # fmt: skip
    assert found == expected


@given(EVENTS_DRAWN, st.lists(st.integers(1, 5), max_size=5), st.booleans())
def test_any_cut_into_batches_with_a_restart_at_each_gives_the_same_rows(
    events: Rows, sizes: list[int], restarts: bool
) -> None:
    stream = records(events)
    whole = joiner(remembered_events=3)
    expected = whole.on_batch(stream)

    join = joiner(remembered_events=3)
    found: list[Append] = []
    start = 0
    for size in [*sizes, len(stream)]:
        found += join.on_batch(stream[start : start + size])
        start += size
        if restarts:
            join = joiner(join.snapshot(), remembered_events=3)
    assert samples(found) == samples(expected)
    assert declarations(found) == declarations(expected)
    assert letters(found) == letters(expected)
    one, other = join.snapshot(), whole.snapshot()
    assert one.meta == other.meta
    assert one.shards.keys() == other.shards.keys()
    for name, table in one.shards.items():
        assert table.equals(other.shards[name]), name


def test_the_state_survives_the_disk(tmp_path: Any) -> None:
    join = joiner()
    join.on_batch(records([rate("u", "a"), rate("u", "b", 2.5)]))
    state = join.snapshot()
    write_artefact(tmp_path / "cut", state.meta, state.shards)
    again = joiner(read_artefact(tmp_path / "cut"))
    more = records([rate("u", "a", event_id="e0"), rate("u", "c")], start=2)
    assert samples(again.on_batch(more)) == samples(join.on_batch(more))
