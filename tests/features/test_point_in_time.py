"""One truth: what training got for a moment is what Feast knew of that moment.

A stream is replayed through the joiner, and through the aggregator into a real feature store. For
every sample Feast's `get_historical_features` is asked for the features of its user at its moment.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from features.aggregator import Aggregator, AggregatorConfig
from features.behaviour import Behaviour, BehaviourConfig
from features.definitions import EVENT_TIME, USER_HISTORY
from features.store import FeastStore
from streaming.events import EventRules
from streaming.impressions import ImpressionsConfig, Label
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import SAMPLES, Record
from streaming.samples import decode_samples

AsRecords = Callable[..., list[Record]]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RULES = EventRules()
HISTORIES = BehaviourConfig(length=4, searched_words=3)
LABELS = {"click": Label(window_s=60.0)}
KINDS = ("impression", "click", "rate", "watch", "search")
TRAVELS = {f.name: f.sample for f in USER_HISTORY.features if f.sample is not None}


def stream(seed: int, count: int) -> list[dict[str, Any]]:
    """Users who are shown things, act and search, a second apart."""
    rng = random.Random(seed)
    events: list[dict[str, Any]] = []
    for n in range(count):
        kind = rng.choice(KINDS)
        event: dict[str, Any] = {"kind": kind, "user_id": f"u{rng.randrange(6)}"}
        if kind == "search":
            event["query"] = " ".join(rng.sample(["heat", "up", "blade", "runner"], 2))
        else:
            event["item_id"] = f"i{rng.randrange(9)}"
            event["scenario"] = rng.choice([None, "home", "mail"])
            event["session_id"] = rng.choice([None, "s1", "s2"])
        if kind == "impression":
            event |= {"request_id": f"r{n}", "position": rng.randrange(5)}
        if kind in ("rate", "watch"):
            event["value"] = rng.choice([0.0, 0.5, 3.0, 4.5])
        events.append({name: value for name, value in event.items() if value is not None})
    return events


def trained(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The samples that the joiner makes, of all that training gets."""
    config = JoinerConfig(
        step_size=7, history=4, searched_words=3, impressions=ImpressionsConfig(LABELS)
    )
    joiner = Joiner(config, RULES, Behaviour(HISTORIES))
    found = []
    for output in joiner.on_batch(records):
        if output.topic == SAMPLES:
            batch = decode_samples(Record(SAMPLES, 0, 0, None, output.value, 0))
            at_us = batch["at"].cast(pa.int64()).to_pylist()
            found += [row | {"at_us": at} for row, at in zip(batch.to_pylist(), at_us, strict=True)]
    return found


def asked(store: FeastStore, moments: Sequence[tuple[int, datetime]]) -> list[dict[str, Any]]:
    """Feast itself, by its public interface, over the same registry."""
    entities = pd.DataFrame(moments, columns=["user_id", EVENT_TIME])
    names = [f"{USER_HISTORY.name}:{name}" for name in TRAVELS]
    job = store._store.get_historical_features(entity_df=entities, features=names)
    found: list[dict[str, Any]] = job.to_arrow().select(list(TRAVELS)).to_pylist()
    return found


def plain(values: Sequence[float | None] | None) -> list[float | None]:
    """A list as both sides mean it: nobody known has an empty one, not a number is none."""
    return [None if v is None or math.isnan(v) else v for v in values or []]


@pytest.mark.parametrize("seed", range(3))
def test_training_gets_what_feast_knew_of_the_moment(
    as_records: AsRecords, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    records = as_records(stream(seed, 300))
    store = FeastStore(tmp_path / "features")
    store.apply()
    step = Aggregator(AggregatorConfig(), RULES, HISTORIES)
    start = 0
    while start < len(records):
        end = start + rng.randrange(1, 80)
        cut = step.snapshot()
        pushes = step.on_batch(records[start:end])
        store.push(pushes)
        if rng.random() < 0.5:
            store.flush()
            if rng.random() < 0.5:  # killed after it, before its cut: the same is done again
                step = Aggregator(AggregatorConfig(), RULES, HISTORIES, cut)
                store.push_again(step.on_batch(records[start:end]))
        start = end
    store.flush()

    samples = trained(records)
    assert {"impression", "click", "rate"} <= {row["kind"] for row in samples}
    # A sample made by an action has the history before it; an impression changes none.
    moments = [
        (row["user_id"], EPOCH + timedelta(microseconds=row["at_us"] - (row["request_id"] is None)))
        for row in samples
    ]
    known = asked(store, moments)
    for row, features in zip(samples, known, strict=True):
        for name, column in TRAVELS.items():
            assert plain(features[name]) == plain(row[column]), (name, row)
    for name in TRAVELS:  # and that is not because nothing is known
        assert sum(bool(plain(features[name])) for features in known) > len(known) / 3
