"""What every user did and searched for last, kept in one way for training and for serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from features.definitions import SAMPLE_FEATURES
from features.history_columns import sample_columns
from features.text import word_ids
from streaming.artefact import Artefact
from streaming.errors import ConfigError
from streaming.event_columns import (
    ACTION,
    NONE,
    WORD,
    Actions,
    EventColumns,
    Histories,
    Ids,
    Searches,
    codes,
)
from streaming.rings import Lists, Rings

_SEARCH = "search"
_MOST_WORDS = 16  # of one search, or of a text that describes an item
_MOST_KINDS = 127  # so that a number of one fits into a byte


@dataclass(frozen=True)
class Scale:
    """A reward that grows with the event's value: 0 up to `zero`, 1 from `one` on."""

    zero: float
    one: float


@dataclass(frozen=True)
class BehaviourConfig:
    """The newest `length` actions of a user are kept; `rewards` says which kinds are actions.

    A reward tells how much the action says that the item pleased, from 0 to 1. The number of a
    kind is its place in that table, so that new kinds belong at its end. Of what a user searched
    for, the newest `searched_words` words are kept. At most `users` who acted, and as many who
    searched, are remembered: who has not done so for longest is forgotten first.
    """

    length: PositiveInt = 100
    rewards: Mapping[str, float | Scale] = field(
        default_factory=lambda: {
            "click": 0.3,
            "like": 1.0,
            "wish": 0.7,
            "cart": 0.8,
            "buy": 1.0,
            "watch": Scale(zero=0.1, one=0.8),
            "rate": Scale(zero=2.0, one=4.0),
        }
    )
    users: PositiveInt = 1_000_000
    searched_words: NonNegativeInt = 20

    def __post_init__(self) -> None:
        if len(self.rewards) > _MOST_KINDS:
            raise ConfigError(f"behaviour.rewards: {len(self.rewards)} kinds, at most"
                              f" {_MOST_KINDS} can be told apart")  # fmt: skip

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are actions, by number."""
        return tuple(self.rewards)

    def actions(self, events: EventColumns) -> Actions:
        """The events that are actions, each with its reward."""
        rewards = np.full(len(events), np.nan, np.float32)
        kinds = np.full(len(events), NONE, np.int8)
        for number, kind in enumerate(events.kinds):
            rule = self.rewards.get(kind)
            if rule is None:
                continue
            rows = np.flatnonzero(events.kind == number)
            kinds[rows] = self.kinds.index(kind)
            if isinstance(rule, Scale):
                values = np.nan_to_num(events.value[rows])
                rewards[rows] = np.clip((values - rule.zero) / (rule.one - rule.zero), 0.0, 1.0)
            else:
                rewards[rows] = rule
        known = (events.user_id != NONE) & (events.item_id != NONE)
        rows = np.flatnonzero(~np.isnan(rewards) & known)
        return Actions(
            rows,
            events.user_id[rows],
            events.item_id[rows],
            rewards[rows],
            events.at_us[rows],
            kinds[rows],
            events.scenario_code()[rows],
            events.value[rows].clip(*_FLOAT32).astype(np.float32),
            codes(events.session_id[rows]),
        )


_FLOAT32 = (float(np.finfo(np.float32).min), float(np.finfo(np.float32).max))


def searched_words(events: EventColumns) -> Searches:
    """The words of the searches among the events, the first 16 of each.

    A search whose attributes say `{"suggested": true}` was not typed by the user.
    """
    if _SEARCH not in events.kinds:
        return Searches(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, WORD))
    rows = np.flatnonzero(events.of_kind(_SEARCH) & (events.user_id != NONE))
    queries = events.query.take(pa.array(rows)).fill_null("")
    words = word_ids(queries.to_pylist(), _MOST_WORDS)
    suggested = _suggested(events.attributes.take(pa.array(rows)))[words.owners()]
    rows = rows[words.owners()]
    found = np.empty(len(rows), WORD)
    found["id"], found["at_us"], found["suggested"] = words.values, events.at_us[rows], suggested
    return Searches(rows, events.user_id[rows], found)


class _Said(msgspec.Struct):
    """What a search says of itself among its attributes."""

    suggested: bool = False


_SAID = msgspec.json.Decoder(_Said)


def _suggested(attributes: pa.StringArray) -> NDArray[np.bool_]:
    found = np.zeros(len(attributes), np.bool_)
    said = np.flatnonzero(attributes.is_valid())
    texts = attributes.take(pa.array(said)).to_pylist()
    for row, text in zip(said.tolist(), texts, strict=True):
        try:
            found[row] = _SAID.decode(text).suggested
        except (msgspec.ValidationError, msgspec.DecodeError):  # they mean something else by it
            continue
    return found


def words_of(search: str) -> Ids:
    """The words of one search, as those of events are kept."""
    return word_ids([search], _MOST_WORDS).values


class Behaviour:
    """The histories of every user, in memory bounded by `users` times what is kept of one: 33
    bytes an action and 17 a word.

    Raises:
        ConfigError: the kinds of the state have other numbers than those of `config`.
        ArtefactError: the state is of a release that kept less of an action.
    """

    def __init__(self, config: BehaviourConfig, state: Artefact | None = None) -> None:
        self._config = config
        self._actions = Rings(ACTION, config.length, config.users)
        self._searches = Rings(WORD, config.searched_words, config.users)
        if state is not None:
            self._restore(state.shards)

    def __len__(self) -> int:
        """How many users are remembered for what they did."""
        return len(self._actions)

    @property
    def sample_features(self) -> pa.Schema:
        """The columns of samples that `columns` answers with."""
        return SAMPLE_FEATURES

    def columns(self, histories: Histories, passed_over: Lists) -> dict[str, pa.Array]:
        """What m users did, searched for and passed over before, as columns of samples."""
        return {**sample_columns(histories, passed_over)}

    def actions(self, events: EventColumns) -> Actions:
        """The events that are actions, each with its reward."""
        return self._config.actions(events)

    def searches(self, events: EventColumns) -> Searches:
        """The words of the events that are searches."""
        return searched_words(events)

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """The words of each text, the first 16, by the ids that those of searches have."""
        found = word_ids(texts, _MOST_WORDS)
        return [found.values[i:j].tolist() for i, j in pairwise(found.offsets)]

    def observe(self, actions: Actions, searches: Searches, rows: Ids, users: Ids) -> Histories:
        """Takes what was done in order; answers with the histories of `users`, each as it was just
        before row `rows[i]` of the events, ascending.
        """
        return Histories(
            self._actions.take(actions.rows, actions.user_id, actions.records(), rows, users),
            self._searches.take(searches.rows, searches.user_id, searches.words, rows, users),
        )

    def histories(self, users: Ids) -> tuple[Histories, Ids]:
        """The histories of each user as they are now, and the event time of the newest action or
        search (µs).

        Who did nothing yet has empty histories and the time 0.
        """
        actions, acted_us = self._actions.get(users)
        searches, searched_us = self._searches.get(users)
        return Histories(actions, searches), np.maximum(acted_us, searched_us)

    def newest_us(self, users: Ids) -> Ids:
        """The event time of the newest action or search of each user (µs), 0 for none."""
        return np.maximum(self._actions.newest_us(users), self._searches.newest_us(users))

    def mark(self) -> tuple[int, int]:
        """A cursor on what has changed so far, for `tables`."""
        return self._actions.mark(), self._searches.mark()

    def tables(self, since: tuple[int, int] | None = None) -> dict[str, pa.Table]:
        """All of the state, or what changed of it after a mark, as `Rings.tables` has it."""
        acted, searched = since or (None, None)
        return {
            **self._actions.tables("behaviour", acted),
            **self._searches.tables("behaviour-searches", searched),
            "behaviour-kinds": pa.table({"kind": pa.array(self._config.kinds, pa.string())}),
        }

    def _restore(self, shards: Mapping[str, pa.Table]) -> None:
        self._actions.restore("behaviour", shards)
        self._searches.restore("behaviour-searches", shards)
        saved = tuple(shards["behaviour-kinds"]["kind"].to_pylist())
        if self._config.kinds[: len(saved)] != saved:
            raise ConfigError(
                f"behaviour.rewards has other kinds than the saved state, or in another order"
                f" ({', '.join(saved)}): keep those and add new ones at the end, or start over"
                " with `headrace run --fresh`"
            )
