"""The whole loop over all of MovieLens latest-small: events/s, and recall against its rivals.

Three real runs of `headrace run` give the rate, from the first replayed event to the last one
learnt and served, and the recall@50 of what people liked, over the whole corpus, test-then-train.
Then the trainer alone learns the same micro-batches, over three seeds, with and without frequency
correction, each at its best of three temperatures: as the recipe has it, with 1,024 uniform
negatives a step, and with 16, where nearly all negatives are the batch's own. The rival by
popularity is the best of four half-lives.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from benchmarks._service import service
from streaming.log import EVENTS, SAMPLES, Record

RUNS = 3
SEEDS = (0, 1, 2)
TEMPERATURES = (0.05, 0.07, 0.1)
HALF_LIVES = (2_500.0, 5_000.0, 20_000.0, 1e9)
NEGATIVES = (1_024, 16)
PROMISES = {
    "recall_over_popularity": (1.2, 10.0),
    "corrected_over_plain_16_negatives": (1.0, 10.0),
    "events_per_s": (1_000.0, 1e9),
}


class Job(NamedTuple):
    """One pass of the trainer alone."""

    negatives: int
    corrected: bool
    temperature: float
    seed: int
    half_life: float = 20_000.0


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Figures named after what they measure; recalls are at 50, over all liked samples."""
    rates, recalls = [], []
    for number in range(RUNS):
        rate, recall = _whole_loop()
        report(f"whole loop, run {number + 1} of {RUNS}: {rate:,.0f} events/s, {recall:.4f}")
        rates.append(rate)
        recalls.append(recall)
    figures = {
        "events_per_s": statistics.median(rates),
        "recall@50": statistics.median(recalls),
        **_rivals(report),
    }
    figures["recall_over_popularity"] = figures["recall@50"] / figures["popularity_recall@50"]
    for negatives in NEGATIVES:
        corrected, plain = (
            figures[f"{name}_{negatives}_negatives_recall@50"] for name in ("corrected", "plain")
        )
        figures[f"corrected_over_plain_{negatives}_negatives"] = corrected / plain
    return figures


def _whole_loop() -> tuple[float, float]:
    """Events per second and final recall@50 of one run."""
    with tempfile.TemporaryDirectory() as folder, service(Path(folder) / "home") as running:
        running.wait_for(lambda: running.get("/v1/status")["replay"]["done"] > 0)
        begun = time.perf_counter()
        running.wait_for(running.caught_up, timeout_s=600)
        seconds = time.perf_counter() - begun
        status = running.get("/v1/status")
        running.stop()
        return status["replay"]["total"] / seconds, status["metrics"]["recall@50"]


def _rivals(report: Callable[[str], None]) -> dict[str, float]:
    """Recall@50 of the trainer with and without correction, and of popularity."""
    kinds = list(itertools.product(NEGATIVES, (True, False)))
    jobs = [Job(n, c, t, s) for (n, c), t, s in itertools.product(kinds, TEMPERATURES, SEEDS)]
    jobs += [Job(16, True, TEMPERATURES[0], SEEDS[0], half_life) for half_life in HALF_LIVES]
    report(f"the trainer alone, {len(jobs)} times ...")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = dict(zip(jobs, pool.map(_train, jobs), strict=True))
    figures = {"popularity_recall@50": max(popular for _, popular in results.values())}
    for negatives, corrected in kinds:
        by_temperature = {
            t: [results[Job(negatives, corrected, t, s)][0] for s in SEEDS] for t in TEMPERATURES
        }
        best = max(TEMPERATURES, key=lambda t: statistics.mean(by_temperature[t]))
        recalls = by_temperature[best]
        name = f"{'corrected' if corrected else 'plain'}_{negatives}_negatives"
        figures[f"{name}_recall@50"] = statistics.mean(recalls)
        figures[f"{name}_spread"] = max(recalls) - min(recalls)
        figures[f"{name}_temperature"] = best
    return figures


def _train(job: Job) -> tuple[float, float]:
    """Recall@50 of the model and of popularity, after one pass."""
    import torch

    from infra.recipe import load_recipe
    from trainers.negatives import NegativesConfig
    from trainers.trainer import Trainer

    torch.set_num_threads(1)
    recipe = load_recipe("movielens")
    config = dataclasses.replace(
        recipe.trainer,
        negatives=NegativesConfig(uniform=job.negatives, corrected=job.corrected),
        seed=job.seed,
        popularity_half_life=job.half_life,
        options={**recipe.trainer.options, "temperature": job.temperature, "seed": job.seed},
    )
    trainer = Trainer(config, "benchmark")
    for record in micro_batches():
        trainer.on_batch([record])
    return trainer.metrics["recall@50"], trainer.metrics["popularity_recall@50"]


def micro_batches() -> list[Record]:
    """The records of `samples` that the joiner makes of the replay."""
    from features.behaviour import Behaviour
    from infra.recipe import load_recipe
    from streaming.events import encode_events
    from streaming.joiner import Joiner
    from streaming.sources.movielens import MovieLens

    recipe = load_recipe("movielens")
    source = MovieLens()
    joiner = Joiner(recipe.joiner, recipe.events, Behaviour(recipe.behaviour))
    size = recipe.replay.record_size
    now_us = time.time_ns() // 1000
    records: list[Record] = []
    for start in range(0, source.total, size):
        value = encode_events(source.batch(start, size)).value
        event = Record(EVENTS, 0, start, None, value, now_us)
        for sample in joiner.on_batch([event]):
            records.append(Record(SAMPLES, 0, len(records), None, sample.value, now_us))
    return records
