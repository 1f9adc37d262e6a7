"""What the contracts of all families share: which models there are, and users and items of whom
everything is known.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from features.batch import Details, Ids, Items, Jagged, Moments, Users
from streaming.event_columns import field_codes, scenario_codes
from trainers import models
from trainers.models import about

NOW_US = 1_700_000_000_000_000
DAY_US = 86_400_000_000
FIELDS = ("title", "genres", "category", "brand", "shop")  # what describes the items here
SCENARIOS = ("home", "search", "detail")
KINDS = 4
ITEMS = 90


def registered(family: str) -> list[str]:
    """The house's own and those of installed packages, not what other tests have registered."""
    installed = entry_points(group="headrace.models").names
    return [
        name
        for name in models.names()
        if about(name).family == family
        and (name in installed or about(name).origin.startswith("trainers.models."))
    ]


def skips_of(name: str) -> dict[str, str]:
    return dict(getattr(models._REGISTRY[name], "skips", {}))


def mark_skipped(name: str, request: pytest.FixtureRequest) -> None:
    """A rule that the model says it cannot keep: if it does, that fails."""
    reason = skips_of(name).get(request.node.originalname)
    if reason is not None:
        request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def jagged(lists: Sequence[Sequence[int]]) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int64)
    return Jagged.of(values, np.array([len(one) for one in lists], np.int64))


def lists(rng: np.random.Generator, count: int, longest: int, ids: int) -> Jagged:
    lengths = rng.integers(0, longest + 1, count)
    lengths[1::6] = 0  # of these nothing is known
    return Jagged.of(rng.integers(0, ids, lengths.sum()), lengths)


def times(rng: np.random.Generator, owners: Jagged) -> Ids:
    """For each value when it was, the oldest of a list first: from a second to a month ago."""
    ages = np.exp(rng.uniform(np.log(1e6), np.log(30 * DAY_US), len(owners.values)))
    order = np.lexsort((-ages, owners.owners()))
    return NOW_US - ages[order].astype(np.int64)


def some_users(count: int, seed: int = 0, longest: int = 7) -> Users:
    rng = np.random.default_rng(seed)
    history = lists(rng, count, longest, ITEMS)
    size = len(history.values)
    rewards = rng.random(size).astype(np.float32)
    here = scenario_codes(SCENARIOS)
    details = Details(
        rng.integers(-1, KINDS, size).astype(np.int32),
        times(rng, history),
        np.append(here, -1)[rng.integers(0, 4, size)].astype(np.int32),
        rng.integers(0, 3, size).astype(np.int32),
        rng.choice([np.nan, 1.0, 4.5], size).astype(np.float32),
    )
    words, passed = lists(rng, count, 4, 20), lists(rng, count, 3, ITEMS)
    said_at = times(rng, words)
    said_at -= said_at % DAY_US  # the words of one day are one search
    return Users(
        rng.integers(0, 2**62, count),
        history,
        rewards,
        details,
        Moments(words, said_at, said_at // DAY_US % 3 == 0),
        Moments(passed, times(rng, passed)),
        np.full(count, NOW_US),
        here[rng.integers(0, 3, count)],
        described_items(np.arange(0, ITEMS, 2)),
    )


def known_by_history(count: int, seed: int = 0) -> Users:
    """Users as samples of older releases tell of them."""
    users = some_users(count, seed)
    nothing = described_items(np.empty(0, np.int64))
    return Users(users.ids, users.history, users.rewards, described=nothing)


def strangers(count: int) -> Users:
    """Users of whom nothing is known."""
    nothing = described_items(np.empty(0, np.int64))
    return Users(np.arange(count), jagged([[]] * count), np.empty(0, np.float32), described=nothing)


def described_items(ids: Ids) -> Items:
    """Of each item some values in each field, the same whenever it is asked for."""
    codes = field_codes(FIELDS)
    tokens, fields = [], []
    for item in ids.tolist():
        rng = np.random.default_rng(item)
        of_field = [(100 * f + rng.permutation(9)[: rng.integers(4)]).tolist() for f in range(5)]
        tokens.append([token for one in of_field for token in one])
        fields += [codes[f] for f, one in enumerate(of_field) for _ in one]
    return Items(np.asarray(ids, np.int64), jagged(tokens), np.array(fields, np.int32))


def some_items(count: int, seed: int = 0) -> Items:
    return described_items(np.random.default_rng(seed).permutation(count))


def rows(model: Any) -> int:
    return sum(len(table) for table in model.tables.values())


def held_beside_tables(model: Any) -> int:
    """Bytes of all that the model keeps but for its rows."""
    return len(pickle.dumps({k: v for k, v in vars(model).items() if k != "tables"}))


def arrays(thing: Any) -> list[Any]:
    """All arrays and tensors in it, however deep."""
    if isinstance(thing, np.ndarray | Tensor):
        return [thing]
    if not dataclasses.is_dataclass(thing):
        return []
    return [a for f in dataclasses.fields(thing) for a in arrays(getattr(thing, f.name))]


def other_columns(users: Users, items: Items) -> dict[str, tuple[Users, Items]]:
    """By column of the samples: the same users and items, but for what stands in this column."""
    change = dataclasses.replace
    details, searched, passed = users.details, users.searched, users.passed_over
    assert users.described is not None

    def with_tokens(one: Items) -> Items:
        return change(one, tokens=change(one.tokens, values=one.tokens.values + 1))

    def without_fields(one: Items) -> Items:
        return Items(one.ids, one.tokens)

    def with_details(**columns: Any) -> tuple[Users, Items]:
        return change(users, details=change(details, **columns)), items

    def of_items(changed: Callable[[Items], Items]) -> tuple[Users, Items]:
        return change(users, described=changed(users.described)), changed(items)  # type: ignore[arg-type]

    def other_ids(moments: Moments) -> Moments:
        return change(moments, ids=change(moments.ids, values=moments.ids.values[::-1].copy()))

    def at_once(moments: Moments) -> Moments:
        return change(moments, at_us=np.full_like(moments.at_us, NOW_US - DAY_US))

    def suggested(moments: Moments) -> Moments:
        return change(moments, suggested=~moments.suggested)

    history = change(users.history, values=users.history.values[::-1].copy())
    return {
        "user_id": (change(users, ids=users.ids[::-1].copy()), items),
        "item_id": (users, Items(items.ids[::-1].copy(), items.tokens, items.fields)),
        "at": (change(users, at_us=users.at_us + 9 * DAY_US + DAY_US // 3), items),
        "scenario": (change(users, scenarios=np.roll(users.scenarios, 1)), items),
        "item_tokens": of_items(with_tokens),
        "item_fields": of_items(without_fields),
        "history": (change(users, history=history), items),
        "history_rewards": (change(users, rewards=users.rewards[::-1].copy()), items),
        "history_kinds": with_details(kinds=(details.kinds + 1) % KINDS),
        "history_at_us": with_details(at_us=NOW_US - 5 * (NOW_US - details.at_us)),
        "history_scenarios": with_details(scenarios=details.scenarios[::-1].copy()),
        "history_sessions": with_details(sessions=np.arange(len(details.sessions), dtype=np.int32)),
        "history_values": with_details(values=5 - np.nan_to_num(details.values)),
        "searched": (change(users, searched=other_ids(searched)), items),
        "searched_at_us": (change(users, searched=at_once(searched)), items),
        "searched_suggested": (change(users, searched=suggested(searched)), items),
        "passed_over": (change(users, passed_over=other_ids(passed)), items),
        "passed_over_at_us": (change(users, passed_over=at_once(passed)), items),
    }
