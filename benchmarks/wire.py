"""Rows of half the width on the wire: what it costs in recall, and what it saves in bytes.

The trainer of the main job learns all of MovieLens latest-small, once with each `wire`, over three
seeds; what it learns is the same to the bit. Every ten steps a version goes through the disk to a
replica, and what people liked in every fourth micro-batch is asked of the replica before the
trainer learns it: recall@50 over the whole corpus, as served. Ratios are of the same seed, and
the median over the seeds is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np
import torch

from benchmarks.replay import micro_batches
from features.batch import Jagged, Samples, Users, read_samples
from infra.recipe import load_recipe
from serving.replica import Applied, Replica
from streaming.samples import decode_samples
from trainers.trainer import Trainer
from trainers.version_store import VersionStore

SEEDS = (0, 1, 2)
WIRES: tuple[Literal["float32", "float16"], ...] = ("float32", "float16")
STEPS_A_VERSION = 10
ASKED_EVERY = 4
COUNT = 50
PROMISES = {
    "recall_float16_over_float32": (0.99, 1.01),
    "bytes_float16_over_float32": (0.4, 0.7),
}


class Job(NamedTuple):
    """One pass of the trainer."""

    wire: Literal["float32", "float16"]
    seed: int


class Served(NamedTuple):
    """What a replica answered: how many liked samples it was asked for, and had in its answer."""

    asked: int
    found: int
    bytes: int

    @property
    def recall(self) -> float:
        return self.found / self.asked


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Recalls at 50, and bytes of all versions of a pass."""
    jobs = [Job(wire, seed) for seed, wire in product(SEEDS, WIRES)]
    report(f"the trainer and a replica, {len(jobs)} times ...")
    served: dict[Job, Served] = {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for job, answer in zip(jobs, pool.map(_pass, jobs), strict=True):
            served[job] = answer
            report(
                f"{job.wire}, seed {job.seed}: {answer.recall:.4f} of {answer.asked:,},"
                f" {answer.bytes / 1e6:,.1f} MB"
            )
    wide, narrow = ([served[Job(wire, seed)] for seed in SEEDS] for wire in WIRES)
    pairs = list(zip(wide, narrow, strict=True))
    recalls = [half.recall / full.recall for full, half in pairs]
    return {
        "recall_float32": median(one.recall for one in wide),
        "recall_float16": median(one.recall for one in narrow),
        "recall_float16_over_float32": median(recalls),
        "recall_ratio_spread": max(recalls) - min(recalls),
        "bytes_float32": median(one.bytes for one in wide),
        "bytes_float16": median(one.bytes for one in narrow),
        "bytes_float16_over_float32": median(half.bytes / full.bytes for full, half in pairs),
    }


def _pass(job: Job) -> Served:
    """One pass over all samples, in a process of its own."""
    torch.set_num_threads(1)
    recipe = load_recipe("movielens").trainer
    options = {**recipe.options, "seed": job.seed}
    config = replace(recipe, wire=job.wire, seed=job.seed, options=options, publish_every_s=0.0)
    trainer, replica = Trainer(config, "benchmark"), Replica()
    asked = found = size = 0
    with TemporaryDirectory() as folder:
        store = VersionStore(Path(folder))
        for number, record in enumerate(micro_batches()):
            if number % STEPS_A_VERSION == 0:
                size += _publish(trainer, store, replica)
            if number % ASKED_EVERY == 0:
                answers = _answers(replica, read_samples(decode_samples(record)))
                asked, found = asked + len(answers), found + sum(answers)
            trainer.on_batch([record])
    return Served(asked, found, size)


def _publish(trainer: Trainer, store: VersionStore, replica: Replica) -> int:
    """Takes what the trainer has to tell through the disk to the replica; its size in bytes."""
    size = 0
    for version in trainer.on_time(0):
        (announcement,) = store.execute([version])
        # A snapshot beside a delta brings what is there already.
        if replica.take(store.read(version.info)) not in (Applied.APPLIED, Applied.DUPLICATE):
            raise RuntimeError(f"{version.info.name} was not taken")
        size += json.loads(announcement.value)["bytes"]
    return size


def _answers(replica: Replica, samples: Samples) -> list[bool]:
    """For each sample that was liked, whether its item is among what the replica recommends."""
    answers = []
    with replica.reading() as served:
        if served is None or len(served) == 0:
            return []
        for sample in np.flatnonzero(samples.liked).tolist():
            user = _one(samples.users, sample)
            items, _ = served.retrieve(user, COUNT, hidden=user.history.values)
            answers.append(bool((items == samples.item_ids[sample]).any()))
    return answers


def _one(users: Users, number: int) -> Users:
    here = slice(*users.history.offsets[number : number + 2])
    values = users.history.values[here]
    history = Jagged.of(values, np.array([len(values)]))
    return Users(users.ids[number : number + 1], history, users.rewards[here])
