"""Weights by uncertainty: in which unit a task's label is told makes no difference to the others.

Kendall, Gal and Cipolla, *Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
and Semantics*, CVPR 2018: tasks on different scales are learnt together without weights by hand.

Here: a shared bottom of 16 units (MMoE of one expert) with the tasks click, by log loss, and watch,
by the squared error, on the planted world. Told in tenths, the fraction watched has a loss a
hundred times as large. How well the order by clicks agrees with the true relevance within lists
that were not learnt.

Fixed weights lose less than is claimed: .005 (-.001 to .011) of eight seeds. It was .009 (.004 to
.014) while towers did not leak: what a loss a hundred times as large did was to put units off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks._claims import Claim, Report
from benchmarks._impressions import WORLD, Setting, agreement, asked, impressions, predicted, taught
from streaming.log import Record
from streaming.samples import decode_samples, encode_samples

_SETTING = Setting(replace(WORLD, days=12))
_TENTHS = 10.0
_TASKS = {"click": {}, "watch": {"after": "click", "loss": "squared"}}


def measure(seed: int, report: Report) -> Mapping[str, float]:
    """The agreement of what clicks say, by each balance in each unit."""
    first, rest = impressions(seed, _SETTING).split()
    in_tenths = replace(first, records=[_in_tenths(record) for record in first.records])
    made = {}
    for balance in ("fixed", "uncertainty"):
        for unit, given in (("whole", first), ("tenths", in_tenths)):
            options = {"tasks": _TASKS, "balance": {"how": balance}, "experts": 1, "expert": 16}
            trainer = taught("mmoe", options, given, seed, dense_learning_rate=0.005)
            held = asked(rest, trainer)
            found = agreement(
                predicted(trainer, held.pairs)["click"], held.relevance, held.requests
            )
            report(f"    {balance}, {unit}: {found:.4f}")
            made[f"{balance}, {unit}"] = found
    return made


def _in_tenths(record: Record) -> Record:
    rows = decode_samples(record)
    column = rows.schema.get_field_index("label_watch")
    told = pc.multiply(rows["label_watch"], pa.scalar(_TENTHS, pa.float32()))
    made = encode_samples(rows.set_column(column, rows.schema.field(column), told))
    return record._replace(value=made.value)


_SEEDS = tuple(range(11, 19))
CLAIMS = (
    Claim(
        "tenths",
        "with one loss a hundred times as large, clicks are learnt better than by fixed weights",
        measure,
        ours="uncertainty, tenths",
        baseline="fixed, tenths",
        reproduces=False,
        seeds=_SEEDS,
    ),
    Claim(
        "unit",
        "in which unit a fraction is told makes no difference to clicks",
        measure,
        ours="uncertainty, tenths",
        baseline="uncertainty, whole",
        margin=0.01,
        seeds=_SEEDS,
    ),
)
