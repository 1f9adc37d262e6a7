"""What a model finds that is so old: the same one updated every step, second, minute, hour, day.

trivago's hotel searches and MovieLens (small), both with true times. One model learns the stream
in steps of 4 samples; before it learns on, it is asked for what it would be asked for until its
next update: with a delay d a sample at time t is ranked by the model as it was at the last
multiple of d, with the user's history as of t. So all delays are asked for the same samples, of
the same model. Only the model is old, features are not; with `0 s` it has learnt all steps before.

Trivago is asked for hotels that the user did not click yet, MovieLens for movies that pleased.
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
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks._plot import line_plot
from benchmarks._streams import DATA, Data, Learner, ranked, samples_of, seeded, steps
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
    "trivago.0s_over_1d": (1.2, UNBOUNDED),
    "ml-latest-small.0s_over_1d": (1.0, UNBOUNDED),
}


@dataclass(frozen=True)
class Config:
    """Of each source the first `events`, 0 for all; of the samples `share` are asked for."""

    sources: tuple[str, ...] = ("trivago", "ml-latest-small")
    events: NonNegativeInt = 0
    share: PositiveFloat = 0.5
    step_size: PositiveInt = 4
    seeds: tuple[int, ...] = (1, 2, 3)
    trainer: TrainerConfig = field(
        default_factory=lambda: replace(
            load_recipe("movielens").trainer, negatives=NegativesConfig(uniform=256), refresh=64
        )
    )


def run(report: Callable[[str], None], config: Config | None = None) -> dict[str, float]:
    """`SOURCE.DELAY`, recall@50 on average over the seeds, and how many times 1 day's each is."""
    torch.set_num_threads(1)
    whole, config = config is None, config or Config()
    curves: dict[str, list[float]] = {}
    figures: dict[str, float] = {}
    for source in config.sources:
        data = DATA[source]
        rows = samples_of(open_source(source), data, config.events or None)
        found = []
        for seed in config.seeds:
            learner = Learner(seeded(config.trainer, seed))
            found.append(recalls(learner, rows, data, config))
            told = ", ".join(f"{name} {value:.4f}" for name, value in found[-1].items())
            report(f"{source}, seed {seed}: {told}")
        curves[source] = [mean(one[name] for one in found) for name in DELAYS_S]
        for name, recall in zip(DELAYS_S, curves[source], strict=True):
            figures[f"{source}.{name}"] = recall
            figures[f"{source}.{name}_over_1d"] = recall / (curves[source][-1] or nan)
    if whole:
        draw(curves)
    return figures


def recalls(learner: Learner, rows: pa.RecordBatch, data: Data, config: Config) -> dict[str, float]:
    """Recall@50 by delay, over a whole stream."""
    samples, stream = read_samples(rows), list(steps(rows, config.step_size))
    asked = data.asks(samples)
    asked = asked[np.random.default_rng(0).random(len(asked)) < config.share]
    due = {name: before_step(samples, asked, s, config.step_size) for name, s in DELAYS_S.items()}
    hits = dict.fromkeys(DELAYS_S, 0)
    for number, step in enumerate(stream):
        for name, before in due.items():
            now = asked[slice(*np.searchsorted(before, [number, number + 1]))]
            if now.size:
                users, items = samples.users.take(now), samples.item_ids[now]
                hits[name] += int(np.sum(ranked(learner, users, items, repeats=data.repeats) < K))
        learner.declare(step)
        learner.learn(step)
    return {name: count / len(asked) for name, count in hits.items()}


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


def draw(curves: Mapping[str, Sequence[float]]) -> None:
    line_plot(
        PICTURES / "staleness.svg",
        "What an old model still finds",
        ("the model is updated every: step (0), 1 s, 1 min, 1 h, 1 day (4)", f"recall@{K}"),
        [float(n) for n in range(len(DELAYS_S))],
        curves,
    )
