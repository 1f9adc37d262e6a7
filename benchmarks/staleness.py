"""What a model finds that is so old: the same one updated every step, second, minute, hour, day.

trivago's hotel searches and MovieLens (small), both with true times. One model learns the stream
in steps of 8 samples; before it learns on, it is asked for what it would be asked for until its
next update: with a delay d a sample at time t is ranked by the model as it was at the last
multiple of d, with the user's history as of t. So all delays are asked for the same samples, of
the same model. Only the model is old, features are not; with `0 s` it has learnt all steps before.

Trivago is asked for hotels that the user did not click yet, MovieLens for movies that pleased; both
only for what somebody took before, of which alone a model can have learnt (of trivago's hotels that
are 12%), and from the first midnight on, before which a model of 1 day has learnt nothing.
`popular` is what was taken most, known with the same delays. Trivago's model was chosen by what its
first 160,000 events ask for, all of its first day.

After Liu et al., *Monolith: Real Time Recommendation System With Collisionless Embedding Table*,
2022, table 2, where parameters are synchronised every 5 hours, 1 hour or 30 minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from statistics import mean

import numpy as np
import pyarrow as pa
import torch
from pydantic import NonNegativeInt, PositiveInt

from benchmarks._plot import line_plot
from benchmarks._rankers import Popular
from benchmarks._streams import DATA, Data, Learner, Ranker, Step, ranked, samples_of, seeded, steps
from features.batch import Ids, Samples, read_samples
from infra.recipe import load_recipe
from streaming.sources.registry import open_source
from trainers.negatives import NegativesConfig
from trainers.trainer import TrainerConfig

PICTURES = Path(__file__).parents[1] / "docs"
K = 50
DELAYS_S: Mapping[str, int] = {"0s": 0, "1s": 1, "1min": 60, "1h": 3_600, "1d": 86_400}

UNBOUNDED = float("inf")
PROMISES: dict[str, tuple[float, float]] = {
    "trivago.0s_over_1d": (2.0, UNBOUNDED),
    "ml-latest-small.0s_over_1d": (1.02, UNBOUNDED),
}


def _trainers() -> Mapping[str, TrainerConfig]:
    """For each source what suits it: two-tower as in the recipe; STAMP for sessions of clicks."""
    # A click is rewarded with .3, and gradients are as much smaller than those of a like.
    rows = {"optimiser": {"learning_rate": 0.2, "first_square": 0.0009}}
    of_source = {
        "trivago": TrainerConfig(model="stamp", options={"width": 64, "table": rows}),
        "ml-latest-small": load_recipe("movielens").trainer,
    }
    return {
        name: replace(config, negatives=NegativesConfig(uniform=256), refresh=64)
        for name, config in of_source.items()
    }


@dataclass(frozen=True)
class Config:
    """Of each source the first `events`, 0 for all; at most `asked` samples are asked for."""

    sources: tuple[str, ...] = ("trivago", "ml-latest-small")
    events: NonNegativeInt = 0
    asked: PositiveInt = 10_000
    step_size: PositiveInt = 8
    seeds: tuple[int, ...] = (1, 2, 3)
    trainers: Mapping[str, TrainerConfig] = field(default_factory=_trainers)


def run(report: Callable[[str], None], config: Config | None = None) -> dict[str, float]:
    """`SOURCE.DELAY`, recall@50 on average over the seeds, how many times 1 day's each is, and
    popularity's.
    """
    torch.set_num_threads(1)
    whole, config = config is None, config or Config()
    curves: dict[str, Mapping[str, float]] = {}
    figures: dict[str, float] = {}
    for source in config.sources:
        data = DATA[source]
        test = prepare(samples_of(open_source(source), data, config.events or None), data, config)
        report(f"{source}: {len(test.asked):,} of {len(test.samples.item_ids):,} are asked for")
        popular = curves[f"{source}, popular"] = recalls(Popular(), test)
        report(f"{source}, popular: {_told(popular)}")
        found = []
        for seed in config.seeds:
            found.append(recalls(Learner(seeded(config.trainers[source], seed)), test))
            report(f"{source}, seed {seed}: {_told(found[-1])}")
        curves[source] = {name: mean(one[name] for one in found) for name in DELAYS_S}
        for name, recall in curves[source].items():
            figures[f"{source}.{name}"] = recall
            figures[f"{source}.{name}_over_1d"] = recall / (curves[source]["1d"] or nan)
            figures[f"{source}.popular.{name}"] = popular[name]
    if whole:
        draw(curves)
    return figures


@dataclass(frozen=True)
class Test:
    """A stream, and what is asked about it: the numbers (n,) of samples, in order; and for each
    delay the steps (n,) before which the model was updated last.
    """

    steps: Sequence[Step]
    samples: Samples
    asked: Ids
    due: Mapping[str, Ids]
    repeats: bool


def prepare(rows: pa.RecordBatch, data: Data, config: Config) -> Test:
    """Asks for what somebody took before, from the first update of the oldest model on."""
    samples = read_samples(rows)
    first = np.unique(samples.item_ids, return_index=True)[1]
    asked = np.setdiff1d(data.asks(samples), first)
    asked = asked[before_step(samples, asked, max(DELAYS_S.values()), config.step_size) > 0]
    if len(asked) > config.asked:
        drawn = np.random.default_rng(0).choice(len(asked), config.asked, replace=False)
        asked = asked[np.sort(drawn)]
    due = {name: before_step(samples, asked, s, config.step_size) for name, s in DELAYS_S.items()}
    return Test(list(steps(rows, config.step_size)), samples, asked, due, data.repeats)


def recalls(ranker: Ranker, test: Test) -> dict[str, float]:
    """Recall@50 by delay, over a whole stream."""
    hits = dict.fromkeys(DELAYS_S, 0)
    for number, step in enumerate(test.steps):
        now = {
            name: test.asked[slice(*np.searchsorted(before, [number, number + 1]))]
            for name, before in test.due.items()
        }
        rows = np.unique(np.concatenate([*now.values()]))
        if rows.size:
            users, items = test.samples.users.take(rows), test.samples.item_ids[rows]
            found = rows[ranked(ranker, users, items, repeats=test.repeats) < K]
            for name, asked in now.items():
                hits[name] += int(np.isin(asked, found).sum())
        ranker.declare(step)
        ranker.learn(step)
    return {name: count / len(test.asked) for name, count in hits.items()}


def before_step(samples: Samples, asked: Ids, delay_s: int, step_size: int) -> Ids:
    """For each sample (n,) that is asked for the step before which the model was updated last.

    An update comes at every multiple of the delay, and has all steps that are over by then.
    """
    own = asked // step_size
    if not delay_s:
        return own
    delay_us = delay_s * 1_000_000
    updated_us = samples.at_us[asked] // delay_us * delay_us
    ends_us = np.maximum.accumulate(samples.at_us)[step_size - 1 :: step_size]
    return np.minimum(np.searchsorted(ends_us, updated_us), own)


def draw(curves: Mapping[str, Mapping[str, float]]) -> None:
    line_plot(
        PICTURES / "staleness.svg",
        "What an old model still finds",
        ("the model is updated every", f"recall@{K}"),
        [float(number) for number in range(len(DELAYS_S))],
        {name: list(curve.values()) for name, curve in curves.items()},
        ("8 actions", "second", "minute", "hour", "day"),
    )


def _told(found: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {recall:.4f}" for name, recall in found.items())
