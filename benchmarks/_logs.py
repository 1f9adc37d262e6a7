"""What public logs show: impressions at places, and which of them were clicked on.

The joiner makes samples of them, as it does in the product; so counters and rankers can learn them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks._impressions import clicked_or_not
from features.behaviour import Behaviour
from infra.recipe import load_recipe
from streaming.events import encode_events
from streaming.ids import stable_ids
from streaming.impressions import ImpressionsConfig, Label
from streaming.joiner import Joiner
from streaming.log import EVENTS, SAMPLES, Record
from streaming.samples import decode_samples, encode_samples
from streaming.sources.chance import Bools, Floats, Ints
from streaming.sources.registry import open_source

SEEDS = tuple(range(11, 21))  # many: halves of a log differ more than what learns them
_AT_ONCE = 65_536  # events
_STEP = 512  # samples
_CLICK = Label(window_s=1.0)  # these logs give a click the time of its impression


@dataclass(frozen=True, slots=True)
class Log:
    """n impressions by their time, those of a list by their places.

    `rows` are samples. `items` (n,), `requests` (n,) and `places` (n,) are numbers from 0 on,
    `clicked` (n,) is 0 or 1, and `randomised` (n,) tells which items were drawn uniformly.
    """

    rows: pa.RecordBatch
    items: Ints
    requests: Ints
    places: Ints
    clicked: Floats
    randomised: Bools

    def __len__(self) -> int:
        return len(self.items)

    def take(self, at: Ints) -> Log:
        """The impressions with these numbers, in this order."""
        return Log(
            self.rows.take(pa.array(at)), self.items[at], self.requests[at],
            self.places[at], self.clicked[at], self.randomised[at],
        )  # fmt: skip

    def where(self, chosen: Bools) -> Log:
        """The impressions that are chosen (n,)."""
        return self.take(np.flatnonzero(chosen))

    def halves(self, seed: int) -> tuple[Log, Log]:
        """A half of the lists, at random, and the others."""
        drawn = np.random.default_rng(seed).random(self.requests.max() + 1) < 0.5
        first = drawn[self.requests]
        return self.where(first), self.where(~first)

    def without(self, chosen: Bools) -> Log:
        """The same, as if nobody had clicked on those that are chosen (n,)."""
        clicked = np.where(chosen, 0.0, self.clicked)
        column = self.rows.schema.get_field_index("label_click")
        label = pa.array(clicked, pa.float32())
        return replace(
            self, rows=self.rows.set_column(column, "label_click", label), clicked=clicked
        )

    @property
    def records(self) -> Sequence[Record]:
        """Steps for a trainer."""
        return [
            Record(SAMPLES, 0, number, None, encode_samples(self.rows.slice(at, _STEP)).value, 0)
            for number, at in enumerate(range(0, len(self), _STEP))
        ]


@cache
def log(name: str) -> Log:
    """All impressions of a source but those of its last second; joined once in a process.

    Raises:
        SourceError: its files are not there; set HEADRACE_DATA.
    """
    source, recipe = open_source(name), load_recipe("world")
    config = replace(
        recipe.joiner,
        token_fields=(),
        text_fields=(),
        impressions=ImpressionsConfig(labels={"click": _CLICK}),
    )
    # A click is all that these logs know of what pleases.
    behaviour = replace(recipe.behaviour, rewards={"click": 1.0})
    joiner = Joiner(config, recipe.events, Behaviour(behaviour))
    found: list[pa.RecordBatch] = []
    drawn: list[str] = []
    for at in range(0, source.total, _AT_ONCE):
        events = source.batch(at, min(_AT_ONCE, source.total - at))
        uniform = pc.match_substring(events["attributes"], '"policy": "random"')
        drawn += events.filter(uniform)["request_id"].drop_null().to_pylist()
        given = Record(EVENTS, 0, at, None, encode_events(events).value, events["at"][-1].value)
        found += (
            clicked_or_not(decode_samples(Record(one.topic, 0, 0, None, one.value, 0)))
            for one in joiner.on_batch([given])
            if one.topic == SAMPLES
        )
    rows = pa.concat_batches(found)
    items, requests = (
        np.unique(rows[column].to_numpy(), return_inverse=True)[1]
        for column in ("item_id", "request_id")
    )
    places, at_us = rows["position"].to_numpy().astype(np.int64), rows["at"].cast(pa.int64())
    whole = Log(
        rows,
        items,
        requests,
        places,
        rows["label_click"].to_numpy().astype(np.float64),
        np.isin(rows["request_id"].to_numpy(), stable_ids(drawn)),
    )
    return whole.take(np.lexsort((places, requests, at_us.to_numpy())))


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Pairs of impressions, one just above the other in a list, of which one was clicked on: their
    numbers `upper` (p,) and `lower` (p,), and whether it was the upper one, `first` (p,).
    """

    upper: Ints
    lower: Ints
    first: Bools

    @staticmethod
    def of(shown: Log, learnt: Log) -> Neighbours:
        """Those of lists that were not learnt, of items that were."""
        upper, lower = np.arange(len(shown) - 1), np.arange(1, len(shown))
        pairs = shown.requests[upper] == shown.requests[lower]
        pairs &= shown.places[lower] == shown.places[upper] + 1
        pairs &= shown.clicked[upper] != shown.clicked[lower]
        known = np.isin(shown.items, learnt.items)
        pairs &= known[upper] & known[lower]
        upper, lower = upper[pairs], lower[pairs]
        return Neighbours(upper, lower, shown.clicked[upper] > 0)

    def found(self, scores: Floats) -> float:
        """Of how many pairs the one that was clicked on has the higher one of scores (n,), a tie
        counted half.

        Those where it is the upper one count as much as those where it is the lower one: knowing
        the place is of no use.
        """
        ahead = np.sign(scores[self.upper] - scores[self.lower])
        return float(0.5 + (ahead[self.first].mean() - ahead[~self.first].mean()) / 4)
