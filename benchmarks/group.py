"""Two ranks on two cores against one trainer pinned to one core: samples a second.

Made-up samples lie in a log on disk, in two partitions; a real trainer reads, tests, learns and
publishes them, with a 20,000-item corpus and users and histories of a million ids. The
group has a process for each core and exchanges rows over the loopback. Contenders take turns, each
in processes of their own, and the ratio is the median over the rounds. `exactly_once`: the group's
count of every item is that of the log.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from benchmarks._peers import median_ratio
from benchmarks._samples import micro_batch
from infra.home import Home
from infra.recipe import Recipe
from infra.wiring import trainer_loop, trainer_rank
from streaming.cuts import CutDirectory
from streaming.log import SAMPLES, Log
from streaming.loop import Loop, LoopConfig
from streaming.open_log import open_log
from streaming.samples import encode_samples
from trainers.exchange import connect
from trainers.frequency import FrequencyConfig
from trainers.group import GroupConfig, Leader, Led
from trainers.negatives import NegativesConfig
from trainers.trainer import Trainer, TrainerConfig

BATCHES = (256, 1024, 4096)
SAMPLES_IN_ALL = {256: 60_000, 1024: 160_000, 4096: 240_000}
ROUNDS = 3
IDS, ITEMS, LIKED = 1_000_000, 20_000, 0.1
WARM = 0.25  # the share of the samples before the clock starts
RECIPE = Recipe(
    trainer=TrainerConfig(
        negatives=NegativesConfig(uniform=1_024),
        frequency=FrequencyConfig(buckets=1 << 20),
        publish_every_s=1.0,
        popularity_half_life=1e15,  # counts are then the numbers of samples
    ),
    trainer_loop=LoopConfig(limit=2, cut_every_s=1e9, background=True),
    group=GroupConfig(ranks=2),
)
PROMISES = {"two_over_one_4096": (1.3, 1e9), "exactly_once": (1.0, 1.0)}
_PROCESSES = multiprocessing.get_context("spawn")


def run(report: Callable[[str], None]) -> dict[str, float]:
    """`one_N` and `two_N` in samples a second at batch N, and `two_over_one_N`."""
    figures: dict[str, float] = {}
    once = []
    for batch in BATCHES:
        with tempfile.TemporaryDirectory() as folder:
            template = Home(Path(folder) / "template")
            counts = _fill(template, batch)
            one, two = [], []
            for number in range(ROUNDS):
                one.append(_learn(template, Path(folder) / f"one-{number}", 1))
                two.append(_learn(template, Path(folder) / f"two-{number}", 2))
                once.append(_counted(Home(Path(folder) / f"two-{number}")) == counts)
                report(f"batch {batch}: one {one[-1]:,.0f}/s, two {two[-1]:,.0f}/s")
        figures |= {
            f"one_{batch}": median(one),
            f"two_{batch}": median(two),
            f"two_over_one_{batch}": median_ratio(two, one),
        }
    return figures | {"exactly_once": float(all(once))}


def _fill(home: Home, batch: int) -> dict[int, int]:
    """Makes the log; how many samples of each item it has."""
    home.make()
    log = open_log(home.log_url, partitions={SAMPLES: 2})
    counts = np.zeros(ITEMS, np.int64)
    for number in range(SAMPLES_IN_ALL[batch] // batch):
        rows = micro_batch(number, batch, IDS, ITEMS, IDS, LIKED)
        counts += np.bincount(rows["item_id"].to_numpy(), minlength=ITEMS)
        log.append([encode_samples(rows, partition=number % 2)])
    log.close()
    return {item: count for item, count in enumerate(counts.tolist()) if count}


def _learn(template: Home, path: Path, ranks: int) -> float:
    """Samples a second of a group of so many, or of one trainer, each on a core of its own."""
    shutil.copytree(template.path, path)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told, said = _PROCESSES.Pipe(duplex=False)
    processes = [
        _PROCESSES.Process(target=_rank, args=(path, rank, ranks, store.port, said))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    said.close()
    rate: float = told.recv()
    for process in processes:
        process.join()
    return rate


def _rank(path: Path, rank: int, ranks: int, port: int, said: Any) -> None:
    """The body of a process; rank 0 says how many samples a second it, or its group, learnt."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    home = Home(path)
    log = open_log(home.log_url)
    told_to_stop = threading.Event()
    told_to_stop.set()
    if ranks == 1:
        loop = trainer_loop(RECIPE, home, log)
        said.send(_rate(loop, log))
        loop.run(told_to_stop)
    else:
        store = TCPStore("127.0.0.1", port, is_master=False)
        part = trainer_rank(RECIPE, home, log, connect(store, "127.0.0.1", rank, ranks, 60.0))
        if isinstance(part, Led):
            said.send(_rate(part.loop, log))
        part.run(told_to_stop)
    log.close()


def _rate(loop: Loop[Any], log: Log) -> float:
    """Samples a second from a quarter of the records on."""
    end = sum(log.ends([SAMPLES]).values())
    begun, learnt = 0.0, 0
    while (done := sum(loop.positions.values())) < end:
        if not begun and done >= end * WARM:
            begun, learnt = time.perf_counter(), _samples(loop)
        loop.turn()
    return (_samples(loop) - learnt) / (time.perf_counter() - begun)


def _samples(loop: Loop[Any]) -> int:
    step = loop.step
    trainer: Trainer = step.trainer if isinstance(step, Leader) else step
    return trainer.samples


def _counted(home: Home) -> dict[int, int]:
    """How many samples of each item a trainer has learnt."""
    state, _ = CutDirectory(home.cuts("trainer")).newest()
    if state is None:
        raise RuntimeError(f"{home.path} has no cut")
    corpus = state.shards["corpus"]
    counts = zip(corpus["id"].to_pylist(), corpus["count"].to_pylist(), strict=True)
    return {item: round(count) for item, count in counts if round(count)}
