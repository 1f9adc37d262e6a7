"""The joiner: each sample knows what was known just before it, and nothing later."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.behaviour import Behaviour, BehaviourConfig, Scale
from features.definitions import SAMPLE_FEATURES
from features.text import word_ids
from streaming.artefact import Artefact, read_artefact, write_artefact
from streaming.decode import decode_events
from streaming.event_columns import NONE, field_codes, scenario_codes
from streaming.events import EVENT_SCHEMA, EventRules, encode_events, event_batch, parse_event
from streaming.ids import stable_id
from streaming.impressions import ImpressionsConfig, Label
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import DEAD_LETTERS, EVENTS, SAMPLES, Append, Record
from streaming.samples import decode_samples, sample_schema

RULES = EventRules()
NOW_US = 1_700_000_000_000_000
SECOND = 1_000_000
LENGTH = 3  # of the histories in these tests

Rows = list[dict[str, Any]]


LABELS = {"click": Label(10.0), "cart": Label(20.0, after="click")}
IMPRESSIONS = ImpressionsConfig(LABELS, wait_s=2.0, remember_s=5.0)
SCHEMA = sample_schema(LABELS, SAMPLE_FEATURES)


def joiner(state: Artefact | None = None, **config: Any) -> Joiner:
    config = {"history": LENGTH, "impressions": IMPRESSIONS, **config}
    users = Behaviour(BehaviourConfig(length=LENGTH), state)
    return Joiner(JoinerConfig(**config), RULES, users, state)


def rate(user: str, item: str, value: float = 4.0, **more: Any) -> dict[str, Any]:
    return {"kind": "rate", "user_id": user, "item_id": item, "value": value, **more}


def event(kind: str, user: str = "u", item: str = "i", request: str = "r",
          **more: Any) -> dict[str, Any]:  # fmt: skip
    return {"kind": kind, "user_id": user, "item_id": item, "request_id": request, **more}


def tick(at_s: float) -> dict[str, Any]:
    return {"kind": "tick", "at_s": at_s}


def iso(at_s: float) -> str:
    """A time so many seconds after `NOW_US`."""
    return datetime.fromtimestamp(NOW_US / SECOND + at_s, UTC).isoformat()


def records(events: Sequence[dict[str, Any]], start: int = 0) -> list[Record]:
    """One JSON record for each event; an event without an id gets its number for one.

    With `at_s` it happened, and was logged, so many seconds after `NOW_US`.
    """
    made = []
    for n, event in enumerate(events, start):
        told = {"event_id": f"e{n}", **event}
        logged_us = NOW_US + n
        if "at_s" in told:
            logged_us = NOW_US + round(told["at_s"] * SECOND)
            told["at"] = iso(told.pop("at_s"))
        made.append(Record(EVENTS, 0, n, b"key", json.dumps(told).encode(), logged_us))
    return made


def rows(outputs: Sequence[Append]) -> Rows:
    """All rows of the micro-batches among the outputs, times as microseconds."""
    found: Rows = []
    for n, output in enumerate(outputs):
        if output.topic == SAMPLES:
            batch = decode_samples(Record(SAMPLES, 0, n, None, output.value, 0))
            assert batch.schema == SCHEMA
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
        "request_id": stable_id("r"),
        "position": 4,
        "history": [],
        "history_rewards": [],
        "history_kinds": [],
        "history_at_us": [],
        "history_scenarios": [],
        "history_sessions": [],
        "history_values": [],
        "searched": [],
        "searched_at_us": [],
        "searched_suggested": [],
        "passed_over": [],
        "passed_over_at_us": [],
        "item_tokens": None,
        "item_fields": None,
        "reward": 0.75,
        "label_liked": True,
        "negative_rate": None,
        "served_score": None,
        "served_version": None,
        "logged_us": NOW_US,
        "label_click": None,
        "label_cart": None,
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


def test_a_sample_tells_of_each_action_before_it_what_when_where_and_how_much() -> None:
    events = [
        rate("u", "a", 4, scenario="home", at_s=1),
        event("click", item="b", request="none", at_s=2),
        rate("u", "c", 2.5, at_s=3),
        rate("u", "d", at_s=4),
    ]
    row = samples(joiner().on_batch(records(events)))[-1]
    kinds = BehaviourConfig().kinds
    assert [kinds[kind] for kind in row["history_kinds"]] == ["rate", "click", "rate"]
    assert row["history_at_us"] == [NOW_US + n * SECOND for n in (1, 2, 3)]
    assert row["history_scenarios"] == [*scenario_codes(["home"]).tolist(), NONE, NONE]
    assert row["history_values"] == [4.0, None, 2.5]


def test_a_sample_tells_what_its_user_searched_for_before_and_not_after() -> None:
    events = [
        {"kind": "search", "user_id": "u", "query": "Toy Story", "at_s": 1},
        event("impression", item="a", at_s=2),
        {
            "kind": "search",
            "user_id": "u",
            "query": "heat",
            "at_s": 3,
            "attributes": {"suggested": True},
        },
        {"kind": "search", "user_id": "v", "query": "elsewhere", "at_s": 3},
        event("click", item="a", at_s=4),
        rate("u", "b", at_s=5),
    ]
    joined, organic = samples(joiner(searched_words=2).on_batch(records(events)))
    toy, story, heat = word_ids(["toy story heat"], 3).values.tolist()
    assert (joined["searched"], organic["searched"]) == ([toy, story], [story, heat])
    assert joined["searched_at_us"] == [NOW_US + SECOND] * 2
    assert organic["searched_at_us"] == [NOW_US + SECOND, NOW_US + 3 * SECOND]
    assert joined["searched_suggested"] == [False, False]
    assert organic["searched_suggested"] == [False, True]


def test_a_sample_tells_what_its_user_had_passed_over_by_then() -> None:
    events = [
        event("impression", item="a", request="first", at_s=0),
        event("impression", item="b", request="early", at_s=5),
        event("impression", item="c", request="late", at_s=11),
        event("click", item="b", request="early", at_s=12),
        event("click", item="c", request="late", at_s=12),
    ]
    clicked = [row for row in samples(joiner().on_batch(records(events))) if row["label_click"]]
    assert [row["passed_over"] for row in clicked] == [[], [stable_id("a")]]
    assert clicked[1]["passed_over_at_us"] == [NOW_US]


def test_kinds_that_are_no_actions_make_no_samples() -> None:
    events: list[dict[str, Any]] = [
        {"kind": "impression", "user_id": "u", "item_id": "i"},
        {"kind": "search", "user_id": "u", "query": "q"},
        {"kind": "user", "user_id": "u"},
        {"kind": "click", "user_id": "u", "item_id": "i"},
    ]
    (row,) = rows(joiner().on_batch(records(events)))
    assert (row["kind"], row["history"], row["negative_rate"]) == ("click", [], None)
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
    """Declarations stand among the samples, in the order of the events."""
    events: list[dict[str, Any]] = []
    for n in range(4):
        events += [{"kind": "item", "item_id": f"i{n}"}, rate(f"u{n}", "i"), rate(f"v{n}", "i")]
    outputs = joiner(step_size=5).on_batch(records(events))
    assert [len(rows([output])) for output in outputs] == [5, 5, 2]
    found = [(row["user_id"], row["item_id"]) for row in rows(outputs)]
    assert found == [
        (stable_id(event["user_id"]) if "user_id" in event else None, stable_id(event["item_id"]))
        for event in events
    ]
    assert {output.key for output in outputs} == {b"0"}


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
    genres, year = field_codes(["genres", "year"])
    assert row["item_fields"] == [genres, genres, year]
    assert (row["user_id"], row["item_id"], row["kind"]) == (None, stable_id("i"), "item")
    assert row["reward"] is row["label_liked"] is row["history"] is None


def test_a_text_describes_an_item_by_words_that_are_those_of_searches() -> None:
    attributes = {"title": "The heat", "tags": ["Cold case", "HEAT"], "genres": ["Crime"]}
    item = {"kind": "item", "item_id": "i", "attributes": attributes}
    other = {"kind": "item", "item_id": "j", "attributes": {"genres": ["Crime"]}}
    search = {"kind": "search", "user_id": "u", "query": "Heat"}
    like = {"kind": "like", "user_id": "u", "item_id": "i"}
    join = joiner(token_fields=("genres",), text_fields=("title", "tags"))
    declared, bare, sample = rows(join.on_batch(records([item, other, search, like])))
    genres, title, tags = field_codes(["genres", "title", "tags"])
    assert declared["item_fields"] == [genres, title, title, tags, tags, tags]
    _, the, heat, cold, case, heat_again = declared["item_tokens"]
    assert heat == heat_again
    assert len({the, heat, cold, case}) == 4
    assert sample["searched"] == [heat]
    assert bare["item_tokens"] == declared["item_tokens"][:1]


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
        "topic": "events", "partition": 3, "offset": 41, "field": "user_id", "value": "7",
        "logged_us": NOW_US,
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


# Impressions


@pytest.mark.parametrize(
    ("attributes", "score", "version"),
    [
        (None, None, None),
        ({"score": 1}, 1.0, None),
        ({"version": "m/a/3"}, None, stable_id("m/a/3")),
        ({"score": "high", "version": "m/a/3"}, None, None),  # they mean something else by it
        ({"score": 1e300, "version": "m/a/3"}, None, stable_id("m/a/3")),
    ],
)
def test_what_an_impression_says_of_how_it_was_served_travels_with_it(
    attributes: dict[str, Any] | None, score: float | None, version: int | None
) -> None:
    events = [event("impression", attributes=attributes, at_s=0), event("click", at_s=1)]
    (row,) = samples(joiner().on_batch(records(events)))
    assert (row["served_score"], row["served_version"]) == (score, version)


def test_a_joined_row_tells_of_the_impression_and_what_came_of_it() -> None:
    events = [
        event("click", item="before", request="earlier", at_s=0),
        event(
            "impression",
            scenario="home",
            position=4,
            at_s=5,
            attributes={"score": 0.25, "version": "two_tower/a/3", "arms": {"x": "y"}},
        ),
        event("cart", item="other", request="other", at_s=6),
        event("click", scenario="elsewhere", position=7, at_s=7),
        tick(26),
    ]
    found = samples(joiner().on_batch(records(events)))
    common = {
        "user_id": stable_id("u"),
        "item_id": stable_id("i"),
        "at": NOW_US + 5 * SECOND,
        "scenario": "home",
        "request_id": stable_id("r"),
        "position": 4,
        "history": [stable_id("before")],  # as it was when the item was shown
        "history_rewards": [pytest.approx(0.3)],
        "history_kinds": [0],  # a click is the first of the recipe's rewards
        "history_at_us": [NOW_US],
        "history_scenarios": [NONE],
        "history_sessions": [NONE],
        "history_values": [None],
        "searched": [],
        "searched_at_us": [],
        "searched_suggested": [],
        "passed_over": [],
        "passed_over_at_us": [],
        "item_tokens": None,
        "item_fields": None,
        "negative_rate": 1.0,
        "served_score": 0.25,
        "served_version": stable_id("two_tower/a/3"),
    }
    joined = [row for row in found if row["item_id"] == stable_id("i")]
    assert joined == [
        {**common, "kind": "click", "reward": pytest.approx(0.3), "label_liked": False,
         "label_click": 1.0, "label_cart": None, "logged_us": NOW_US + 7 * SECOND},
        {**common, "kind": "impression", "reward": None, "label_liked": None,
         "label_click": None, "label_cart": 0.0, "logged_us": NOW_US + 26 * SECOND},
    ]  # fmt: skip
    assert [row["label_click"] for row in found] == [None, 1.0, None, None]


def test_all_of_a_request_have_the_history_of_its_first_impression() -> None:
    events = [
        event("rate", item="a", value=4, at_s=0),
        event("impression", item="x", at_s=1),
        event("rate", item="b", value=4, at_s=2),
        event("impression", item="y", at_s=3),
        event("click", item="y", at_s=4),
    ]
    histories = [row["history"] for row in samples(joiner().on_batch(records(events)))]
    assert histories[-1] == [stable_id("a")]


def test_feedback_before_its_impression_is_not_in_its_own_history() -> None:
    events = [event("rate", item="a", value=4), event("click"), event("impression")]
    join = joiner()
    assert len(rows(join.on_batch(records(events[:2])))) == 1
    (row,) = rows(join.on_batch(records(events[2:], start=2)))
    assert (row["kind"], row["label_click"], row["history"]) == ("click", 1.0, [stable_id("a")])


def test_the_rate_of_negatives_is_on_every_joined_row() -> None:
    halved = ImpressionsConfig(LABELS, wait_s=2.0, keep_negatives=0.5)
    join = joiner(impressions=halved)
    shown = [event("impression", item=f"i{n}", at_s=1) for n in range(100)]
    clicked = [event("click", item=f"i{n}", at_s=2) for n in range(30)]
    organic = [event("click", request="none", at_s=2)]
    outputs = join.on_batch(records([*shown, *clicked, *organic, tick(30)]))
    found = samples(outputs)
    assert {row["negative_rate"] for row in found if row["label_click"] is not None} == {0.5}
    assert [row["negative_rate"] for row in found if row["request_id"] == stable_id("none")] == [
        None
    ]
    negatives = sum(row["label_click"] == 0 for row in found)
    assert 20 < negatives < 50
    assert join.counts["sampled_out"] + join.counts["negatives"] == 100


def test_feedback_of_a_kind_without_reward_decides_its_label() -> None:
    """Else its impressions would all be negatives."""
    rules = EventRules(kinds={**RULES.kinds, "hide": ("user_id", "item_id")})
    config = JoinerConfig(impressions=ImpressionsConfig({"hide": Label(10.0)}))
    join = Joiner(config, rules, Behaviour(BehaviourConfig()))
    shown = [event("impression", at_s=0), event("hide", at_s=1)]
    organic = [event("hide", request="none", at_s=2), event("hide", item="j", at_s=3), tick(99)]
    (output,) = join.on_batch(records([*shown, *organic]))
    (row,) = decode_samples(Record(SAMPLES, 0, 0, None, output.value, 0)).to_pylist()
    assert (row["label_hide"], row["reward"], row["label_liked"]) == (1.0, None, None)


def test_a_graded_label_has_the_value_of_its_event() -> None:
    config = ImpressionsConfig({"watch": Label(10.0, graded=True)})
    join = Joiner(JoinerConfig(impressions=config), RULES, Behaviour(BehaviourConfig()))
    (output,) = join.on_batch(records([event("impression"), event("watch", value=0.25)]))
    (row,) = decode_samples(Record(SAMPLES, 0, 0, None, output.value, 0)).to_pylist()
    assert (row["label_watch"], row["reward"]) == (0.25, pytest.approx(0.15 / 0.7))


def test_a_history_is_cut_to_what_travels_with_a_sample() -> None:
    """The features floor may keep more of a user; the newest count."""
    config = JoinerConfig(history=2, impressions=IMPRESSIONS)
    join = Joiner(config, RULES, Behaviour(BehaviourConfig(length=50)))
    events = [rate("u", f"i{n}", at_s=0) for n in range(40)]
    events += [event("impression", at_s=1), event("click", at_s=2)]
    found = samples(join.on_batch(records(events)))
    newest = [[stable_id(f"i{m}") for m in range(max(0, n - 2), n)] for n in range(40)]
    assert [row["history"] for row in found] == [*newest, [stable_id("i38"), stable_id("i39")]]


@pytest.mark.parametrize("labels", [LABELS, {"click": Label(10.0)}])
def test_a_tick_that_ends_20_000_windows_makes_20_000_rows_in_order(
    labels: Mapping[str, Label],
) -> None:
    impressions = ImpressionsConfig(labels)
    config = JoinerConfig(step_size=1_000, history=LENGTH, impressions=impressions)
    join = Joiner(config, RULES, Behaviour(BehaviourConfig(length=LENGTH)))
    shown = [
        {"event_id": f"{kind}{n}", "kind": kind, "at": NOW_US + 100 * n, "user_id": f"u{n}",
         "item_id": f"i{n}", "request_id": f"r{n}", "value": 4.0}
        for n in range(20_000)
        for kind in ("rate", "impression")
    ]  # fmt: skip
    batch = pa.RecordBatch.from_pylist(shown, schema=EVENT_SCHEMA)
    join.on_batch([Record(EVENTS, 0, 0, None, encode_events(batch).value, NOW_US + 10 * SECOND)])
    outputs = join.on_batch(records([tick(15)], start=1))
    assert len(outputs) == 20
    found = pa.Table.from_batches(
        decode_samples(Record(SAMPLES, 0, n, None, output.value, 0))
        for n, output in enumerate(outputs)
    )
    items = [stable_id(f"i{n}") for n in range(20_000)]
    assert found["item_id"].to_pylist() == items
    assert found["history"].to_pylist() == [[item] for item in items]
    assert found["history_rewards"].to_pylist() == [[1.0]] * 20_000
    assert set(found["label_click"].to_pylist()) == {0.0}
    assert set(found["logged_us"].to_pylist()) == {NOW_US + 15 * SECOND}


# Ticks


def test_a_tick_is_sent_once_it_would_end_a_window() -> None:
    join = joiner()
    join.on_batch(records([event("impression", at_s=0)]))
    before = join.snapshot()
    for now_s in (0.5, 3, 10):
        assert join.on_time(NOW_US + round(now_s * SECOND)) == []
    (output,) = join.on_time(NOW_US + 11 * SECOND)
    assert (output.topic, output.partition) == (EVENTS, 0)
    assert_same(join.snapshot(), before)
    found = rows(join.on_batch([Record(EVENTS, 0, 1, None, output.value, NOW_US + 11 * SECOND)]))
    assert [(row["label_click"], row["label_cart"]) for row in found] == [(0.0, 0.0)]
    assert found[0]["logged_us"] == NOW_US + 11 * SECOND
    assert join.on_time(NOW_US + 99 * SECOND) == []  # nothing is open any more


def test_ticks_and_samples_go_to_the_joiners_own_partitions() -> None:
    users = Behaviour(BehaviourConfig())
    join = Joiner(JoinerConfig(), RULES, users, partition=3, samples_partition=1)
    join.on_batch(records([event("impression", at_s=0)]))
    (output,) = join.on_time(NOW_US + 700 * SECOND)
    assert output.partition == 3
    (outgoing,) = join.on_batch([Record(EVENTS, 3, 1, None, output.value, NOW_US + 700 * SECOND)])
    assert (outgoing.topic, outgoing.key, outgoing.partition) == (SAMPLES, b"3", 1)


@pytest.mark.parametrize(
    "events", [[], [event("rate", value=4.0)], [{"kind": "user", "user_id": "u"}]]
)
def test_where_nothing_is_open_no_tick_is_sent(events: Rows) -> None:
    join = joiner()
    join.on_batch(records(events))
    assert join.on_time(NOW_US + 10**9) == []


def test_a_partition_in_which_events_come_gets_no_tick() -> None:
    join = joiner(tick_after_s=5)
    join.on_batch(records([event("impression", at_s=0), rate("v", "x", at_s=9)]))
    assert join.on_time(NOW_US + 13 * SECOND) == []
    assert len(join.on_time(NOW_US + 14 * SECOND)) == 1


def test_a_joiner_that_has_much_to_read_does_not_send_a_tick_every_turn() -> None:
    """Its first tick lies in the log behind all that."""
    join = joiner()
    join.on_batch(records([event("impression", at_s=0)]))
    sent = [join.on_time(NOW_US + 60 * SECOND + n * SECOND // 10) for n in range(30)]
    assert sum(map(len, sent)) == 3


def test_a_replay_of_the_past_gets_no_tick() -> None:
    join = joiner()
    past = event("impression") | {"at": iso(-3_600)}
    join.on_batch(records([past]))
    assert join.on_time(NOW_US + 10**9) == []


def test_a_tick_tells_feedback_that_its_impression_did_not_come() -> None:
    join = joiner()
    join.on_batch(records([event("click", at_s=0)]))
    assert join.on_time(NOW_US + 2 * SECOND) == []
    (output,) = join.on_time(NOW_US + 3 * SECOND)
    (row,) = rows(join.on_batch([Record(EVENTS, 0, 1, None, output.value, NOW_US + 3 * SECOND)]))
    assert (row["kind"], row["label_click"]) == ("click", None)


@pytest.mark.parametrize("lateness_s", [0.0, 0.5, 3.0])
def test_in_a_silent_partition_ticks_end_everything_and_then_end_themselves(
    lateness_s: float,
) -> None:
    """And whoever reads the log again makes the same rows of it, without looking at a clock."""
    join = joiner(lateness_s=lateness_s)
    log = records([event("impression", at_s=0), event("impression", item="j", at_s=0.5),
                   event("click", at_s=1)])  # fmt: skip
    found = join.on_batch(log)
    ticks = []
    for now_s in range(2, 200):
        now_us = NOW_US + now_s * SECOND
        for output in join.on_time(now_us):
            ticks.append(now_s)
            log.append(Record(EVENTS, 0, len(log), None, output.value, now_us))
            found += join.on_batch(log[-1:])
    kinds = [(row["kind"], row["item_id"] == stable_id("j")) for row in rows(found)]
    assert kinds == [("click", False), ("impression", True), ("impression", False)]
    assert len(ticks) <= 5
    assert join.counts["late_events"] == 0

    again = joiner(lateness_s=lateness_s)
    assert rows(again.on_batch(log)) == rows(found)
    assert_same(again.snapshot(), join.snapshot())


# Against a straightforward account, and cut anywhere


IDS = st.sampled_from([f"id{n}" for n in range(9)])
EVENTS_DRAWN = st.lists(
    st.one_of(
        st.builds(
            rate,
            st.sampled_from("uvw"),
            st.sampled_from("abcd"),
            st.sampled_from([0.5, 3.0, 3.5, 5.0, 7.0]),  # 7 is out of range
            event_id=IDS,
        ),
        st.fixed_dictionaries(
            {
                "kind": st.sampled_from(["item", "dance", "click", "impression"]),
                "user_id": st.sampled_from("uv"),
                "item_id": st.sampled_from("abcd"),
                "event_id": IDS,
                "attributes": st.just({"genres": ["x"]}),
            }
        ),
    ),
    max_size=14,
)
REWARDS = {"rate": Scale(zero=2.0, one=4.0), "click": 0.3}


@given(EVENTS_DRAWN)
def test_organic_samples_are_those_of_a_plain_account_of_the_events(events: Rows) -> None:
    past: dict[str, list[tuple[int, float]]] = {}
    seen: set[str] = set()
    expected = []
    for n, event in enumerate(events):
        if event["kind"] == "dance" or event.get("value") == 7.0 or event["event_id"] in seen:
            continue
        seen.add(event["event_id"])
        if event["kind"] not in ("rate", "click"):
            continue
        reward = min(1, max(0, (event["value"] - 2) / 2)) if event["kind"] == "rate" else 0.3
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


JOINED = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(
                ["impression"] * 4
                + ["click", "click", "cart", "rate", "search", "item", "dance", "tick"]
            ),
            "query": st.sampled_from(["heat", "toy story"]),
            "user_id": st.sampled_from("uv"),
            "item_id": st.sampled_from("abc"),
            "request_id": st.sampled_from("rst"),
            "scenario": st.sampled_from(["home", "search"]),
            "value": st.just(3.0),
            "at_s": st.integers(0, 30),
        },
        optional={"event_id": IDS},
    ),
    max_size=30,
)


@settings(max_examples=75)
@given(JOINED, st.lists(st.integers(1, 9), max_size=6), st.booleans(), st.sampled_from([0, 4]))
def test_any_cut_into_batches_with_a_restart_at_each_gives_the_same_rows(
    events: Rows, sizes: list[int], restarts: bool, lateness_s: int
) -> None:
    tight = ImpressionsConfig(
        LABELS, wait_s=2.0, remember_s=1.0, most_open=4, most_waiting=2, passed_over=2, users=1
    )
    config: dict[str, Any] = {
        "remembered_events": 3,
        "searched_words": 3,
        "lateness_s": lateness_s,
        "impressions": tight,
    }
    stream = records(events)
    whole = joiner(**config)
    expected = whole.on_batch(stream)

    join = joiner(**config)
    found: list[Append] = []
    start = 0
    for size in [*sizes, len(stream)]:
        found += join.on_batch(stream[start : start + size])
        start += size
        join.on_time(NOW_US + start * SECOND)
        if restarts:
            join = joiner(through_the_disk(join.snapshot()), **config)
    assert rows(found) == rows(expected)
    assert letters(found) == letters(expected)
    assert_same(join.snapshot(), whole.snapshot())


def through_the_disk(state: Artefact) -> Artefact:
    with tempfile.TemporaryDirectory() as place:
        write_artefact(Path(place) / "cut", state.meta, state.shards)
        return read_artefact(Path(place) / "cut")


def assert_same(one: Artefact, other: Artefact) -> None:
    assert one.meta == other.meta
    assert one.shards.keys() == other.shards.keys()
    for name, table in one.shards.items():
        assert table.schema == other.shards[name].schema, name
        # Compared as text: what is absent may be a NaN.
        assert str(table.to_pydict()) == str(other.shards[name].to_pydict()), name


def test_a_request_shown_in_one_batch_and_in_two_has_the_same_histories() -> None:
    """Here its first impression met feedback, and what it knew is not shared."""
    events = [
        event("click", item="a"),
        event("impression", item="a"),
        event("rate", item="b", value=4.0),
        event("impression", item="c"),
        event("click", item="c"),
    ]
    whole, parts = joiner(), joiner()
    found = rows(whole.on_batch(records(events)))
    cut = parts.on_batch(records(events[:3])) + parts.on_batch(records(events[3:], start=3))
    assert rows(cut) == found


def without_intake(state: Artefact) -> Artefact:
    return Artefact(state.meta, {n: t for n, t in state.shards.items() if n != "intake"})


def test_a_snapshot_does_not_change_with_the_joiner_that_made_it() -> None:
    join = joiner(lateness_s=1)
    join.on_batch(records([event("impression", at_s=0), rate("u", "x", at_s=9)]))
    taken = join.snapshot()
    kept = through_the_disk(taken)
    join.on_batch(records([event("click", at_s=10), rate("u", "y", at_s=30)], start=2))
    assert_same(without_intake(taken), without_intake(kept))


def test_the_state_survives_the_disk() -> None:
    join = joiner()
    join.on_batch(records([rate("u", "a"), rate("u", "b", 2.5), event("impression")]))
    again = joiner(through_the_disk(join.snapshot()))
    more = records([rate("u", "a", event_id="e0"), rate("u", "c"), event("click")], start=3)
    found = samples(again.on_batch(more))
    assert [row["kind"] for row in found] == ["rate", "click"]
    assert found == samples(join.on_batch(more))
