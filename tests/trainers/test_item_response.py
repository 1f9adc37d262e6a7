"""COEC as a field of items: what it says, and that it lasts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from features.batch import Items, Jagged
from features.coec import CoecConfig
from streaming.errors import ConfigError
from streaming.event_columns import NONE, field_codes
from trainers.item_response import OUTCOME, ItemResponseConfig, ItemResponses, saved_responses
from trainers.models import create

CODE = int(field_codes(["coec"])[0])


def shown(items: Any, clicked: Any, **columns: Any) -> NDArray[np.void]:
    rows = np.zeros(len(items), OUTCOME)
    rows["stands_for"] = 1.0
    told = {"item_id": items, "clicked": clicked, **columns}
    for name, values in told.items():
        rows[name] = values
    return rows


def plain(*ids: int) -> Items:
    return Items(np.array(ids), Jagged.of(np.empty(0, np.int64), np.zeros(len(ids), np.int64)))


def values(responses: ItemResponses, *ids: int) -> list[int | None]:
    found = responses.on(plain(*ids)).of_field(CODE)
    bounds = found.offsets.tolist()
    return [
        int(found.values[begin]) if end > begin else None
        for begin, end in itertools.pairwise(bounds)
    ]


def after(*outcomes: NDArray[np.void], **config: Any) -> ItemResponses:
    responses = ItemResponses(ItemResponseConfig(**config))
    for one in outcomes:
        responses.update(one)
    return responses


def test_an_item_is_judged_by_what_its_places_promise() -> None:
    """Items 1 and 2 are clicked on alike, 2 where half as many click."""
    places = np.tile([0, 1], 2_000)
    others = shown(np.tile([8, 9], 2_000), np.tile([1, 1, 1, 0], 1_000), position=places)
    alike = shown(np.repeat([1, 2], 40), np.tile([1, 0], 40), position=np.repeat([0, 1], 40))
    of_places, of_first, of_second = values(after(others, alike), 8, 1, 2)
    assert of_places == of_second != of_first
    same = shown(np.repeat([1, 2], 40), np.tile([1, 0], 40), position=0)
    first, second = values(after(others, same), 1, 2)
    assert first == second == of_first


def test_one_in_vain_counts_for_those_that_were_left_out() -> None:
    often = shown([1] * 5 + [2] * 5, [1, 0, 0, 0, 0] * 2)
    thinned = shown([1, 1, 2, 2], [1, 0, 1, 0], stands_for=[1, 4, 1, 4])
    assert values(after(often), 1, 2) == values(after(thinned), 1, 2)


def test_nothing_is_said_of_what_nobody_saw_or_saw_nowhere() -> None:
    responses = after(shown([1, 2], [1, 0], position=[0, NONE]))
    told = values(responses, 1, 2, 3)
    assert told[0] is not None
    assert told[1:] == [None, None]
    assert values(after(), 1) == [None]
    assert values(after(shown([], [])), 1) == [None]


def test_a_field_takes_the_place_of_its_older_value_and_of_no_other() -> None:
    responses = after(shown([7, 8], [1, 0]))
    described = Items(
        np.array([7, 9, 8]),
        Jagged.of(np.array([70, 71, 90]), np.array([2, 1, 0])),
        np.array([1, 2, 1], np.int32),
    )
    once = responses.on(described)
    assert once.tokens.lengths.tolist() == [3, 1, 1]
    assert once.of_field(1).values.tolist() == [70, 90]
    assert once.of_field(2).values.tolist() == [71]
    again = responses.on(once)
    assert again.tokens.values.tolist() == once.tokens.values.tolist()
    assert again.fields.tolist() == once.fields.tolist()
    assert not len(responses.changed(once).ids)
    responses.update(shown([8] * 3, [1, 1, 1]))
    changed = responses.changed(once)
    assert changed.ids.tolist() == [8]
    assert changed.of_field(CODE).values.tolist() != once.of_field(CODE).values[1:].tolist()


@pytest.mark.parametrize("clicked", [0.0, 1.0])
def test_there_is_a_value_for_the_best_and_the_worst(clicked: float) -> None:
    unsmoothed = {"coec": CoecConfig(strength=0.0)}
    mixed = shown([2, 3] * 500, [1, 0] * 500)
    ends = after(mixed, shown([1] * 100, [clicked] * 100), **unsmoothed)
    (found,) = values(ends, 1)
    assert found is not None


def test_it_goes_on_from_a_cut_as_if_nothing_had_been() -> None:
    rng = np.random.default_rng(0)
    fading = ItemResponseConfig(CoecConfig(half_life_s=60.0, strength=1.0))
    unbroken, broken = ItemResponses(fading), ItemResponses(fading)
    for step in range(8):
        at_us = 30_000_000 * step + rng.integers(0, 90_000_000, 50)
        clicks = (rng.random(50) < 0.3).astype(np.float32)
        told = shown(rng.integers(0, 9, 50), clicks, at_us=at_us, position=rng.integers(0, 5, 50))
        unbroken.update(told)
        broken.update(told)
        broken = saved_responses(fading, broken.tables())
        assert values(broken, *range(9)) == values(unbroken, *range(9))
    for name, table in unbroken.tables().items():
        assert table.equals(broken.tables()[name])


def test_it_begins_anew_where_a_cut_has_none() -> None:
    assert values(saved_responses(ItemResponseConfig(), {}), 1) == [None]


def test_what_is_no_event_cannot_be_counted() -> None:
    options = {"tasks": {"watch": {"loss": "squared"}}, "fields": ("user_id", "item_id", "coec")}
    with pytest.raises(ConfigError, match="coec.*watch is a value: put a binary task before it"):
        create("shared_bottom", options)
