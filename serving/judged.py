"""Judged requests: what was shown together and all that came of it, out of the topic `samples`.

A sample tells each label once, when it is known: what is known of one impression is put together
again here, and a request of which something is still open is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from features.batch import Ids
from features.shown import read_shown
from serving.fusion import Floats
from serving.served import Changes
from serving.served_ranker import ServedRanker
from streaming.errors import ArtefactCorrupt, ConfigError
from streaming.log import NOBODY, SAMPLES, Log, Positions
from streaming.samples import decode_samples
from trainers.item_book import ItemBook
from trainers.versions import Version

_LABEL, _OF_ACTIONS = "label_", ("label_liked",)
_RECORDS_AT_ONCE = 64
_PAIRS_AT_ONCE = 8_192


@dataclass(frozen=True, slots=True)
class Judged:
    """n items that were shown, those of one request after another, the earliest request first.

    `rows` (n) are their samples as far as they were the first of an item, for a ranker to read.
    `values` (n,) are what came of them, in what it is worth; of what came to nothing each stands
    for `weights` (n,) that did. `served` (n,) are the scores with which they were served, `places`
    (n,) where they stood, from 0 on; NaN where that is not known.
    """

    rows: pa.RecordBatch
    values: Floats
    weights: Floats
    groups: Ids
    served: Floats
    places: Floats

    def __len__(self) -> int:
        return len(self.values)

    @property
    def requests(self) -> int:
        return len(np.unique(self.groups))


def newest_samples(log: Log, rows: int) -> pa.RecordBatch:
    """At least so many of the newest samples, if there are as many; what is damaged is left out.

    Raises:
        ConfigError: there is none.
    """
    end, first = log.ends([SAMPLES]), log.positions(NOBODY, [SAMPLES])
    parts: list[pa.RecordBatch] = []
    while sum(part.num_rows for part in parts) < rows and any(end[p] > first[p] for p in end):
        begin = {place: max(first[place], at - _RECORDS_AT_ONCE) for place, at in end.items()}
        parts = [*_between(log, begin, end), *parts]
        end = begin
    if not any(part.num_rows for part in parts):
        raise ConfigError("there are no samples yet: weights are tuned by what came of impressions")
    table = pa.concat_tables(map(_table, parts), promote_options="default")
    return table.combine_chunks().to_batches()[0]


def _between(log: Log, begin: Positions, end: Positions) -> Iterator[pa.RecordBatch]:
    """The samples of the records of a part of the log."""
    for place, first in begin.items():
        position = first
        while position < end[place]:
            records = log.read({place: position}, end[place] - position, 0.0)
            for record in records:
                if record.offset < end[place]:
                    with suppress(ArtefactCorrupt):
                        batch = decode_samples(record)
                        yield batch.filter(batch["user_id"].is_valid())
            position = records[-1].offset + 1 if records else end[place]


def _table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def judge(
    samples: pa.RecordBatch, worth: Mapping[str, float], scenario: str | None = None
) -> Judged:
    """The requests among samples, oldest first, of which all is known that is worth something; of
    one scenario, if it is named. `worth` says what a label of 1 is worth, by its name.

    Raises:
        ConfigError: samples have no such label.
    """
    labels = _labels(samples)
    if unknown := sorted(worth.keys() - set(labels)):
        raise ConfigError(
            f"samples have no label {unknown[0]!r}; they have {', '.join(labels) or 'none'}"
        )
    told = np.stack([_column(samples, _LABEL + name) for name in labels], 1)  # (rows, labels)
    was_shown = pc.and_(samples["request_id"].is_valid(), samples["negative_rate"].is_valid())
    if scenario is not None:
        was_shown = pc.and_(was_shown, pc.equal(samples["scenario"], scenario).fill_null(False))
    kept = was_shown.to_numpy(zero_copy_only=False) & ~np.isnan(told).all(1)
    rows, told = samples.filter(pa.array(kept)), told[kept]
    requests, items = rows["request_id"].to_numpy(), rows["item_id"].to_numpy()
    order = np.lexsort((np.arange(len(items)), items, requests))
    new = np.append(True, np.diff(requests[order]) != 0) | np.append(
        True, np.diff(items[order]) != 0
    )
    first = np.flatnonzero(new[: len(order)])
    if not first.size:
        raise ConfigError("none of the samples is of an impression: there is nothing to tune by")
    known = np.fmax.reduceat(told[order], first)  # (n, labels), NaN where still open
    chosen = order[first]
    groups = requests[chosen]
    open_ = np.isnan(known[:, [labels.index(name) for name in worth]]).any(1)
    whole = ~np.isin(groups, groups[open_]) & (_sizes(groups) > 1)
    at_us = rows["at"].cast(pa.int64()).to_numpy()[chosen]
    by_time = np.lexsort((groups, _earliest(groups, at_us)))
    by_time = by_time[whole[by_time]]
    chosen, known, groups = chosen[by_time], known[by_time], groups[by_time]
    nothing = ~(known > 0).any(1)
    values = sum(worth[name] * known[:, labels.index(name)] for name in worth)
    return Judged(
        rows.take(pa.array(chosen)),
        np.asarray(values, np.float64),
        np.where(nothing, 1.0 / _column(rows, "negative_rate")[chosen], 1.0),
        groups,
        _column(rows, "served_score")[chosen],
        _column(rows, "position")[chosen],
    )


@torch.inference_mode()
def predicted(version: Version, judged: Judged) -> dict[str, Floats]:
    """What the ranker of a version, with all that it stands on, expects of each item (n,), for
    each task.
    """
    changes = Changes.of(version)
    ranker, book = ServedRanker(version.info), ItemBook()
    ranker.check(changes)
    ranker.lay(changes)
    if changes.items is not None:
        book.add(changes.items)
    found: dict[str, list[NDArray[np.float32]]] = {}
    for begin in range(0, len(judged), _PAIRS_AT_ONCE):
        rows = judged.rows.slice(begin, _PAIRS_AT_ONCE)
        pairs = read_shown(rows, _labels(rows)).pairs
        users = pairs.users
        if ranker.model.describes:
            users = replace(users, described=book.describe(users.history.values))
        described = replace(pairs, users=users, items=book.items(pairs.items.ids))
        for task, made in ranker.model.predict(described).items():
            found.setdefault(task, []).append(made.cpu().numpy())
    return {task: np.concatenate(parts).astype(np.float64) for task, parts in found.items()}


def split(judged: Judged, share: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which items (n,) are of the earlier requests, this share of them, and which of the later."""
    _, number = np.unique(judged.groups, return_inverse=True)
    starts = np.append(True, np.diff(judged.groups) != 0)
    in_order = np.cumsum(starts) - 1
    earlier = in_order < share * (number.max(initial=-1) + 1)
    return earlier, ~earlier


def _labels(samples: pa.RecordBatch) -> list[str]:
    """The labels of impressions that samples may tell."""
    columns = [name for name in samples.schema.names if name.startswith(_LABEL)]
    return [name.removeprefix(_LABEL) for name in columns if name not in _OF_ACTIONS]


def _column(batch: pa.RecordBatch, name: str) -> Floats:
    found: Floats = batch[name].cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return found


def _sizes(groups: Ids) -> Ids:
    _, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sizes: Ids = counts[number]
    return sizes


def _earliest(groups: Ids, at_us: Ids) -> Ids:
    _, number = np.unique(groups, return_inverse=True)
    earliest = np.full(number.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(earliest, number, at_us)
    found: Ids = earliest[number]
    return found
