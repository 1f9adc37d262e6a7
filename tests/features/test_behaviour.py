"""Behaviour: what a user did last, just before each action."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.behaviour import Behaviour, BehaviourConfig, Scale
from features.text import word_ids
from streaming.artefact import Artefact, read_artefact, write_artefact
from streaming.errors import ArtefactError, ConfigError
from streaming.event_columns import NONE, EventColumns, Histories, event_columns, scenario_codes
from streaming.ids import stable_id
from streaming.rings import Lists

AsBatch = Callable[..., pa.RecordBatch]
SECOND = 1_000_000
FIRST_US = 1_672_531_200 * SECOND  # when event 0 of these tests happens; one a second follows


@pytest.fixture(scope="session")
def as_columns(as_batch: AsBatch) -> Callable[..., EventColumns]:
    def make(events: Sequence[dict[str, Any]], start: int = 0) -> EventColumns:
        batch = as_batch(events, start)
        return event_columns(batch, np.zeros(batch.num_rows, np.int64))

    return make


AsColumns = Callable[..., EventColumns]


def click(user: str, item: str, **more: Any) -> dict[str, Any]:
    return {"kind": "click", "user_id": user, "item_id": item, **more}


def ids(items: str) -> list[int]:
    return [stable_id(item) for item in items]


def search(user: str, query: str, **more: Any) -> dict[str, Any]:
    return {"kind": "search", "user_id": user, "query": query, **more}


def word_id(word: str) -> int:
    (found,) = word_ids([word], 1).values.tolist()
    return int(found)


def column(found: Lists, name: str) -> list[list[Any]]:
    pairs = zip(found.offsets[:-1], found.offsets[1:], strict=True)
    return [found.records[name][start:end].tolist() for start, end in pairs]


def lists(found: Histories) -> list[list[int]]:
    return column(found.actions, "item")


def rewards(found: Histories) -> list[list[float]]:
    return column(found.actions, "reward")


def take(behaviour: Behaviour, events: EventColumns, rows: Any, users: Any) -> Histories:
    """Takes the events; the histories of users as they were just before rows."""
    return behaviour.observe(behaviour.actions(events), behaviour.searches(events), rows, users)


def observe(behaviour: Behaviour, events: EventColumns) -> list[list[int]]:
    """Takes the events; the history that each action saw just before it."""
    actions = behaviour.actions(events)
    return lists(take(behaviour, events, actions.rows, actions.user_id))


def history(behaviour: Behaviour, user: str) -> list[int]:
    return lists(behaviour.histories(np.array([stable_id(user)]))[0])[0]


def newest_us(behaviour: Behaviour, user: str) -> int:
    return int(behaviour.histories(np.array([stable_id(user)]))[1][0])


def state(behaviour: Behaviour) -> Artefact:
    return Artefact({}, behaviour.tables())


def saved(behaviour: Behaviour, name: str, length: int) -> list[dict[str, Any]]:
    """What a state has of each user, who got a record longest ago first; None for NaN."""
    tables = behaviour.tables()
    users, places = tables[name].to_pylist(), tables[f"{name}-records"].to_pylist()
    record_at = {place.pop("id"): place for place in places}
    found = []
    for user in sorted(users, key=lambda user: int(user["clock"])):
        numbers = range(user["count"])[-length:]
        records = [record_at.pop(user["id"] * length + number % length) for number in numbers]
        fields = {
            column: [None if isnan(record[column]) else record[column] for record in records]
            for column in records[0]
        }
        one = {"user_id": user["user_id"], **fields, "newest_us": user["newest_us"]}
        found.append({column.removeprefix("record_"): told for column, told in one.items()})
    assert not record_at
    return found


# Actions


@pytest.mark.parametrize(
    ("kind", "value", "reward"),
    [
        ("click", None, 0.3),
        ("click", 5.0, 0.3),
        ("buy", 99.0, 1.0),
        ("rate", 0.5, 0.0),
        ("rate", 2.0, 0.0),
        ("rate", 2.5, 0.25),
        ("rate", 4.0, 1.0),
        ("rate", 5.0, 1.0),
        ("watch", 0.1, 0.0),
        ("watch", 0.45, 0.5),
        ("watch", 1.0, 1.0),
        ("impression", None, None),
        ("item", 1.0, None),
    ],
)
def test_the_reward_of_an_event(
    as_columns: AsColumns, kind: str, value: float | None, reward: float | None
) -> None:
    event = {"kind": kind, "user_id": "u", "item_id": "i", "value": value}
    found = BehaviourConfig().actions(as_columns([event])).reward.tolist()
    assert found == ([] if reward is None else [pytest.approx(reward)])


def test_a_value_that_is_absent_pleases_like_the_least(as_columns: AsColumns) -> None:
    config = BehaviourConfig(rewards={"click": Scale(zero=0.1, one=0.8)})
    assert config.actions(as_columns([click("u", "i")])).reward.tolist() == [0.0]


def test_rewards_are_those_of_the_config(as_columns: AsColumns) -> None:
    config = BehaviourConfig(rewards={"wish": 0.9, "rate": Scale(zero=0, one=10)})
    events = [
        {"kind": kind, "user_id": "u", "item_id": "i", "value": 5.0}
        for kind in ("wish", "rate", "click")
    ]
    found = config.actions(as_columns(events))
    assert found.rows.tolist() == [0, 1]
    assert found.reward.tolist() == [pytest.approx(0.9), 0.5]
    assert found.reward.dtype == np.float32


def test_an_action_needs_a_user_and_an_item(as_columns: AsColumns) -> None:
    config = BehaviourConfig(rewards={"search": 1.0, "item": 1.0, "click": 1.0})
    events = [
        {"kind": "search", "user_id": "u", "query": "q"},
        {"kind": "item", "item_id": "i"},
        click("u", "i"),
    ]
    assert config.actions(as_columns(events)).rows.tolist() == [2]


# Observing


def test_each_action_sees_its_users_history_just_before_it(as_columns: AsColumns) -> None:
    events = as_columns(
        [
            click("u", "a"),
            {"kind": "impression", "user_id": "u", "item_id": "z"},
            click("v", "b"),
            {"kind": "rate", "user_id": "u", "item_id": "c", "value": 2.5},
            {"kind": "item", "item_id": "c"},
            click("u", "a"),
        ]
    )
    behaviour = Behaviour(BehaviourConfig())
    actions = behaviour.actions(events)
    found = take(behaviour, events, actions.rows, actions.user_id)
    assert actions.rows.tolist() == [0, 2, 3, 5]
    assert actions.user_id.tolist() == ids("uvuu")
    assert actions.item_id.tolist() == ids("abca")
    assert actions.reward == pytest.approx([0.3, 0.3, 0.25, 0.3])
    assert actions.at_us.tolist() == [FIRST_US + n * SECOND for n in (0, 2, 3, 5)]
    assert lists(found) == [[], [], ids("a"), ids("ac")]
    assert rewards(found) == [[], [], [pytest.approx(0.3)], [pytest.approx(0.3), 0.25]]


def test_others_than_those_who_act_may_be_asked_for_at_any_row(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig())
    events = as_columns([click("u", "a"), click("v", "b"), click("u", "c")])
    rows = np.array([0, 0, 1, 1, 2, 3, 9])
    users = np.array(ids("uvuvuux"))
    found = lists(take(behaviour, events, rows, users))
    assert found == [[], [], ids("a"), [], ids("a"), ids("ac"), []]


def test_events_without_an_action_change_nothing(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig())
    for events in ([], [{"kind": "item", "item_id": "i"}, {"kind": "user", "user_id": "u"}]):
        assert observe(behaviour, as_columns(events)) == []
    assert len(behaviour) == 0
    assert (history(behaviour, "u"), newest_us(behaviour, "u")) == ([], 0)


def test_asking_for_somebody_does_not_make_him_known(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig())
    observe(behaviour, as_columns([click("u", "a")]))
    found, newest = behaviour.histories(np.array(ids("xux")))
    assert lists(found) == [[], ids("a"), []]
    assert newest.tolist() == [0, FIRST_US, 0]
    assert len(behaviour) == 1


def test_observing_does_not_change_the_histories_given_before(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig(length=2))
    observe(behaviour, as_columns([click("u", "a")]))
    now, _ = behaviour.histories(np.array(ids("u")))
    before = take(behaviour, as_columns([click("u", "b")], start=1), np.array([0]),
                  np.array(ids("u")))  # fmt: skip
    observe(behaviour, as_columns([click("u", "c"), click("u", "d")], start=2))
    assert lists(now) == lists(before) == [ids("a")]


def test_the_newest_time_is_the_latest_event_time_even_if_events_come_late(
    as_columns: AsColumns,
) -> None:
    behaviour = Behaviour(BehaviourConfig())
    late = [click("u", "a", at="2023-01-01T00:00:09Z"), click("u", "b", at="2023-01-01T00:00:04Z")]
    observe(behaviour, as_columns(late))
    assert newest_us(behaviour, "u") == FIRST_US + 9 * SECOND
    assert history(behaviour, "u") == ids("ab")


# Bounds


def test_memory_is_bounded_by_users_times_length(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig(length=3, users=7))
    for start in range(0, 600, 50):
        users = 5 if start < 300 else 40
        events = [click(f"u{n % users}", f"i{n}") for n in range(start, start + 50)]
        observe(behaviour, as_columns(events, start))
        assert len(behaviour) == behaviour.tables()["behaviour"].num_rows == min(users, 7)
        assert behaviour.tables()["behaviour-records"].num_rows <= 7 * 3


def test_who_has_not_acted_for_longest_is_forgotten_first(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig(users=2))
    events = [click("u", "a"), click("v", "b"), click("u", "c"), click("w", "d")]
    observe(behaviour, as_columns(events))
    assert (history(behaviour, "u"), history(behaviour, "v")) == (ids("ac"), [])
    assert newest_us(behaviour, "v") == 0
    # Who comes back begins anew, with nothing of him whose place he takes.
    assert observe(behaviour, as_columns([click("v", "e"), click("v", "f")], start=4)) == [
        [], ids("e"),
    ]  # fmt: skip
    assert history(behaviour, "u") == []


Entry = dict[str, Any]


@dataclass
class Past:
    entries: list[Entry]
    newest_us: int


NOTHING = Past([], 0)


class Account:
    """What `Behaviour` promises of actions, or of words searched for: a dictionary that is kept in
    the order in which users last got an entry.
    """

    def __init__(self, length: int, users: int) -> None:
        self.length, self.most = length, users
        self.users: OrderedDict[int, Past] = OrderedDict()

    def give(self, user: int, entry: Entry) -> None:
        if self.length == 0:
            return
        if user not in self.users and len(self.users) == self.most:
            self.users.popitem(last=False)
        past = self.users.pop(user, NOTHING)
        entries = [*past.entries, entry][-self.length :]
        self.users[user] = Past(entries, max(past.newest_us, entry["at_us"]))

    def entries(self, users: Sequence[int]) -> list[list[Entry]]:
        return [self.users.get(user, NOTHING).entries for user in users]

    def newest_us(self, users: Sequence[int]) -> list[int]:
        return [self.users.get(user, NOTHING).newest_us for user in users]

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {"user_id": user, **{name: [entry[name] for entry in past.entries] for name in names},
             "newest_us": past.newest_us}
            for user, past in self.users.items()
        ]  # fmt: skip


ACTION_NAMES = ("item", "at_us", "value", "reward", "scenario", "session", "kind")
REWARDS: dict[str, float | Scale] = {"rate": Scale(zero=2.0, one=4.0), "click": 0.25}


def entries(found: Lists) -> list[list[Entry]]:
    """The records as dictionaries, with None for a value that is not there."""
    names = found.records.dtype.names or ()
    columns = [column(found, name) for name in names]
    return [
        [
            {name: None if isnan(value) else value for name, value in zip(names, row, strict=True)}
            for row in zip(*of_one, strict=True)
        ]
        for of_one in zip(*columns, strict=True)
    ]


EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["rate", "rate", "click", "search", "impression"]),
            "user_id": st.sampled_from("abcdef"),
            "item_id": st.sampled_from("vwxyz"),
            "value": st.sampled_from([2.0, 2.5, 3.0, 4.0]),
            "at": st.sampled_from([f"2023-01-01T00:00:0{n}Z" for n in range(9)]),
            "scenario": st.sampled_from([None, "home", "search"]),
            "session_id": st.sampled_from([None, "s", "t"]),
            "query": st.sampled_from(["Heat", "", "toy story", "the toy, the heat!"]),
            "attributes": st.sampled_from([None, {"suggested": True}, {"suggested": False}]),
        }
    ),
    max_size=40,
)


def told(account: Account, searched: Account, event: dict[str, Any], user: int, item: int,
         at_us: int) -> None:  # fmt: skip
    """One event, as a person would write it into the books."""
    kind, scenario, session = event["kind"], event["scenario"], event["session_id"]
    if kind == "search":
        suggested = (event["attributes"] or {}).get("suggested", False)
        for word in re.findall("[a-z]+", event["query"].lower()):
            record = {"id": word_id(word), "at_us": at_us, "suggested": suggested}
            searched.give(user, record)
    if kind in REWARDS:
        reward = (event["value"] - 2) / 2 if kind == "rate" else 0.25
        account.give(
            user,
            {"item": item, "at_us": at_us, "reward": reward, "kind": list(REWARDS).index(kind),
             "scenario": NONE if scenario is None else stable_id(scenario) >> 32,
             "session": NONE if session is None else stable_id(session) >> 32,
             "value": event.get("value")},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("attributes", "suggested"),
    [
        (None, False),
        ({}, False),
        ({"suggested": True, "place": 3}, True),
        ({"suggested": False}, False),
        ({"suggested": "by a friend"}, False),  # means something else by it
    ],
)
def test_a_search_says_whether_it_was_suggested(
    as_columns: AsColumns, attributes: dict[str, Any] | None, *, suggested: bool
) -> None:
    behaviour = Behaviour(BehaviourConfig())
    events = as_columns([search("u", "toy story", attributes=attributes), search("v", "heat")])
    take(behaviour, events, np.empty(0, np.int64), np.empty(0, np.int64))
    found, _ = behaviour.histories(np.array(ids("uv")))
    assert column(found.searches, "suggested") == [[suggested, suggested], [False]]


@given(
    EVENTS, st.lists(st.integers(1, 12), max_size=5), st.booleans(), st.integers(1, 4),
    st.integers(0, 5), st.sampled_from([1, 2, 4, 99]),
)  # fmt: skip
def test_all_that_is_told_is_that_of_a_plain_account(
    as_columns: AsColumns,
    events: list[dict[str, Any]],
    sizes: list[int],
    restarts: bool,
    length: int,
    words: int,
    users: int,
) -> None:
    events = [
        {name: value for name, value in event.items() if event["kind"] == "rate" or name != "value"}
        for event in events
    ]
    config = BehaviourConfig(length=length, users=users, searched_words=words, rewards=REWARDS)
    account, searched = Account(length, users), Account(words, users)
    behaviour = Behaviour(config)
    start = 0
    for size in [*sizes, len(events)]:
        columns = as_columns(events[start : start + size], start)
        found = take(behaviour, columns, np.arange(len(columns)), columns.user_id)
        expected: list[tuple[list[Entry], list[Entry]]] = []
        all_users = columns.user_id.tolist()
        for event, user, item, at_us in zip(events[start : start + size], all_users,
                                            columns.item_id.tolist(), columns.at_us.tolist(),
                                            strict=True):  # fmt: skip
            expected.append((account.entries([user])[0], searched.entries([user])[0]))
            told(account, searched, event, user, item, at_us)
        assert entries(found.actions) == [actions for actions, _ in expected]
        assert entries(found.searches) == [words for _, words in expected]
        assert len(behaviour) == len(account.users)
        assert saved(behaviour, "behaviour", length) == account.rows(ACTION_NAMES)
        words_of = searched.rows(("id", "at_us", "suggested"))
        assert saved(behaviour, "behaviour-searches", words) == words_of
        start += size
        if restarts:
            behaviour = Behaviour(config, state(behaviour))
    asked = ids("abcdefg")
    now, newest = behaviour.histories(np.array(asked))
    assert entries(now.actions) == account.entries(asked)
    assert entries(now.searches) == searched.entries(asked)
    both = zip(account.newest_us(asked), searched.newest_us(asked), strict=True)
    assert newest.tolist() == [max(times) for times in both]


def test_a_user_with_very_many_events_costs_what_any_other_does(as_columns: AsColumns) -> None:
    """Ten million would take long here; what is kept does not depend on how many there were."""
    behaviour = Behaviour(BehaviourConfig(length=4, searched_words=3))
    few = as_columns([click("u", "a"), search("u", "one two")])
    for turn in range(3):
        many = [click("u", f"i{n}") for n in range(3_000)] + [search("u", "one two three")]
        observe(behaviour, as_columns(many, turn * 3_001))
    kept = sum(table.nbytes for table in behaviour.tables().values())
    other = Behaviour(BehaviourConfig(length=4, searched_words=3))
    observe(other, few)
    observe(other, as_columns([click("u", item) for item in "abc"] + [search("u", "x")], 2))
    assert kept == sum(table.nbytes for table in other.tables().values())


# Searches


def test_searches_are_kept_word_by_word_and_told_apart_by_their_times(
    as_columns: AsColumns,
) -> None:
    behaviour = Behaviour(BehaviourConfig())
    events = as_columns([search("u", "Toy Story"), click("u", "a"), search("v", "heat")])
    found = take(behaviour, events, np.array([0, 1, 3]), np.array(ids("uuu")))
    words = [word_id("toy"), word_id("story")]
    assert column(found.searches, "id") == [[], words, words]
    assert column(found.searches, "at_us")[1] == [FIRST_US, FIRST_US]
    assert newest_us(behaviour, "v") == FIRST_US + 2 * SECOND


def test_one_search_cannot_crowd_out_all_others(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig())
    events = as_columns([search("u", "first"), search("u", "word " * 5_000)])
    found = take(behaviour, events, np.array([2]), np.array(ids("u")))
    assert column(found.searches, "id") == [[word_id("first"), *[word_id("word")] * 16]]


def test_a_search_needs_a_user_and_other_kinds_with_a_query_are_none(
    as_columns: AsColumns,
) -> None:
    events = as_columns([click("u", "a", query="heat"), {"kind": "item", "item_id": "i"}])
    assert len(Behaviour(BehaviourConfig()).searches(events).rows) == 0


# What is known of an action


def test_an_action_tells_its_kind_scenario_session_and_value(as_columns: AsColumns) -> None:
    config = BehaviourConfig(rewards={"watch": 1.0, "click": 0.3})
    events = [
        click("u", "a", scenario="home", session_id="s"),
        {"kind": "watch", "user_id": "u", "item_id": "b", "value": 0.25},
    ]
    found = config.actions(as_columns(events)).records()
    assert found["kind"].tolist() == [config.kinds.index("click"), config.kinds.index("watch")]
    assert found["scenario"].tolist() == [*scenario_codes(["home"]).tolist(), NONE]
    assert found["session"].tolist() == [stable_id("s") >> 32, NONE]
    assert np.isnan(found["value"][0])
    assert found["value"][1] == 0.25


def test_a_value_beyond_what_is_kept_becomes_the_largest(as_columns: AsColumns) -> None:
    """It may be a price in any currency; infinity would poison whatever learns from it."""
    found = BehaviourConfig().actions(as_columns([{**click("u", "a"), "value": 1e300}]))
    assert found.records()["value"].tolist() == [float(np.finfo(np.float32).max)]


def test_scenario_codes_are_the_same_for_ever() -> None:
    assert scenario_codes(["home", "search"]).tolist() == [705456213, 1316664091]


def test_more_kinds_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match="behaviour.rewards: 128 kinds, at most 127"):
        BehaviourConfig(rewards={f"kind{n}": 1.0 for n in range(128)})


# Restarting


def test_the_state_survives_the_disk(as_columns: AsColumns, tmp_path: Path) -> None:
    behaviour = Behaviour(BehaviourConfig(length=3))
    observe(behaviour, as_columns([click("uv"[n % 2], item) for n, item in enumerate("abcdefgh")]))
    write_artefact(tmp_path / "cut", {}, behaviour.tables())
    again = Behaviour(BehaviourConfig(length=3), read_artefact(tmp_path / "cut"))
    more = as_columns([click("u", "x"), click("v", "y"), click("w", "z")], start=8)
    assert observe(again, more) == observe(behaviour, more) == [ids("ceg"), ids("dfh"), []]
    assert saved(again, "behaviour", 3) == saved(behaviour, "behaviour", 3)


def test_a_shorter_length_after_a_restart_keeps_the_newest(as_columns: AsColumns) -> None:
    long = Behaviour(BehaviourConfig(length=5))
    observe(long, as_columns([click("u", item) for item in "abcde"]))
    short = Behaviour(BehaviourConfig(length=2), state(long))
    assert history(short, "u") == ids("de")
    observe(short, as_columns([click("u", "f")], start=5))
    assert history(short, "u") == ids("ef")


def test_fewer_users_after_a_restart_are_those_who_acted_last(as_columns: AsColumns) -> None:
    many = Behaviour(BehaviourConfig())
    observe(many, as_columns([click(user, "a") for user in "uvwxu"]))
    few = Behaviour(BehaviourConfig(users=2), state(many))
    assert len(few) == 2
    assert [len(history(few, user)) for user in "uvwx"] == [2, 0, 0, 1]


def test_an_empty_state_is_restored(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig(), state(Behaviour(BehaviourConfig())))
    assert len(behaviour) == 0
    assert observe(behaviour, as_columns([click("u", "a")])) == [[]]


def test_new_kinds_may_follow_those_of_the_saved_state(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig(rewards={"click": 0.3}))
    observe(behaviour, as_columns([click("u", "a")]))
    more = Behaviour(BehaviourConfig(rewards={"click": 0.5, "like": 1.0}), state(behaviour))
    assert history(more, "u") == ids("a")


@pytest.mark.parametrize("rewards", [{"like": 1.0}, {"like": 1.0, "click": 0.3}, {}])
def test_kinds_that_got_other_numbers_are_refused(
    as_columns: AsColumns, rewards: dict[str, float]
) -> None:
    behaviour = Behaviour(BehaviourConfig(rewards={"click": 0.3}))
    observe(behaviour, as_columns([click("u", "a")]))
    with pytest.raises(ConfigError, match=r"another order \(click\): keep those"):
        Behaviour(BehaviourConfig(rewards=rewards), state(behaviour))


def test_a_state_of_a_release_that_kept_less_says_how_to_go_on() -> None:
    tables = Behaviour(BehaviourConfig()).tables()
    first = {"behaviour": pa.table({"user_id": [1], "items": [[2]], "rewards": [[0.5]]})}
    records = tables["behaviour-records"].drop_columns("record_session")
    for old in (first, {**tables, "behaviour-records": records}):
        with pytest.raises(ArtefactError, match="less of each record in 'behaviour'.*run --fresh"):
            Behaviour(BehaviourConfig(), Artefact({}, old))


def test_less_that_is_kept_after_a_restart_is_the_newest_of_it(as_columns: AsColumns) -> None:
    behaviour = Behaviour(BehaviourConfig())
    observe(behaviour, as_columns([search("u", "one two three")]))
    fewer = Behaviour(BehaviourConfig(searched_words=2), state(behaviour))
    found, _ = fewer.histories(np.array(ids("u")))
    assert column(found.searches, "id") == [[word_id("two"), word_id("three")]]
    none = Behaviour(BehaviourConfig(searched_words=0), state(behaviour))
    assert column(none.histories(np.array(ids("u")))[0].searches, "id") == [[]]
