"""The trainer's cuts: how long one holds training up, and how soon a killed trainer goes on.

A trainer with a million item rows and a million user rows learns made-up micro-batches of 1,024
samples from a log in memory, in turns of half a minute without cuts and with one every ten seconds,
as it is shipped, written in the background. `cut_stall_share` is the time the loop spends in them,
copying what changed, and `cut_slowdown` how many samples a second fewer it learns in all, disk and
checksums on the same cores: medians over the rounds. Recovery is what a new loop needs until it has
the state again, from a chain of a whole cut and the changes since, checksums verified.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

from benchmarks._samples import micro_batch
from streaming.artefact import Artefact
from streaming.log import SAMPLES, Append
from streaming.loop import Loop, LoopConfig
from streaming.memory_log import MemoryLog
from streaming.samples import encode_samples
from trainers.frequency import FrequencyConfig
from trainers.negatives import NegativesConfig
from trainers.trainer import Clocks, Trainer, TrainerConfig
from trainers.versions import Version

ROWS = 1_000_000
ITEMS = 20_000  # that can be recommended; histories have more
BATCH = 1_024
ROUNDS = 3
TURN_S = 30.0
CUT_EVERY_S = LoopConfig().cut_every_s
PROMISES = {
    "cut_stall_share": (0.0, 0.05),
    "recovery_s": (0.0, 5.0),
}
CONFIG = TrainerConfig(
    negatives=NegativesConfig(uniform=256),
    publish_every_s=1e9,
    frequency=FrequencyConfig(buckets=1 << 20),
)


class Timed(Trainer):
    """Notes how long each copy of its state took: the loop waits for nothing else of a cut."""

    def __init__(self, state: Artefact | None) -> None:
        super().__init__(CONFIG, "benchmark", state)
        self.copies: list[float] = []

    def changes(self, since: Clocks) -> Artefact:
        begun = perf_counter()
        copied = super().changes(since)
        self.copies.append(perf_counter() - begun)
        return copied


class Switch:
    """A clock that can be stopped: then no cut falls due."""

    def __init__(self) -> None:
        self.on = False

    def __call__(self) -> float:
        return perf_counter() if self.on else 0.0


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Shares of time, seconds, bytes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        log, clock = MemoryLog(topics=[SAMPLES]), Switch()
        config = LoopConfig(limit=1, cut_every_s=CUT_EVERY_S, background=True)
        loop = Loop(
            log,
            "trainer",
            [SAMPLES],
            Timed,
            Path(folder),
            execute=_without_versions,
            config=config,
            clock=clock,
        )
        report(f"making {ROWS:,} rows in two tables ...")
        for name in ("user", "item"):
            table, ids = loop.step.model.tables[name], np.arange(ROWS)
            table.upsert(ids, table(ids).numpy())
        _learn(log, loop, 0.1)
        begun = perf_counter()
        loop.cut()
        figures = {"whole_cut_s": perf_counter() - begun, "whole_cut_bytes": _size(Path(folder))}
        report(", ".join(f"{name} {value:,.4g}" for name, value in figures.items()))
        figures |= _rounds(log, loop, clock, report)
        loop.cut()
        return figures | _recovery(log, loop, Path(folder), report)


def _rounds(
    log: MemoryLog, loop: Loop[Timed], clock: Switch, report: Callable[[str], None]
) -> dict[str, float]:
    """Turns without and with cuts, one after the other."""
    shares, slowdowns, pauses = [], [], []
    for number in range(ROUNDS):
        clock.on = False
        plain = _learn(log, loop, TURN_S)
        clock.on = True
        loop.step.copies.clear()
        cutting = _learn(log, loop, TURN_S)
        shares.append(sum(loop.step.copies) / TURN_S)
        slowdowns.append(1 - cutting / plain)
        pauses += loop.step.copies
        report(
            f"round {number + 1}: {plain:,.0f} samples/s without cuts, {cutting:,.0f} with"
            f" {len(loop.step.copies)}, which held it up {shares[-1]:.2%} of the time"
        )
    return {
        "cut_stall_share": median(shares),
        "cut_slowdown": median(slowdowns),
        "cut_pause_ms_longest": max(pauses) * 1e3,
    }


def _learn(log: MemoryLog, loop: Loop[Timed], seconds: float) -> float:
    """Samples learnt a second."""
    steps, begun = 0, perf_counter()
    while perf_counter() - begun < seconds:
        batch = micro_batch(loop.step.steps, BATCH, ROWS, ITEMS, ROWS)
        log.append([encode_samples(batch)])
        loop.turn()
        steps += 1
    return steps * BATCH / (perf_counter() - begun)


def _recovery(
    log: MemoryLog, loop: Loop[Timed], cuts: Path, report: Callable[[str], None]
) -> dict[str, float]:
    """Seconds until a new loop has the state, which must be that of the old one."""
    seconds = []
    for _ in range(ROUNDS):
        begun = perf_counter()
        again = Loop(log, "trainer", [SAMPLES], Timed, cuts, config=LoopConfig(limit=1))
        seconds.append(perf_counter() - begun)
        if again.step.snapshot().shards["table-item"] != loop.step.snapshot().shards["table-item"]:
            raise RuntimeError("what was recovered is not what was learnt")
    figures = {"recovery_s": median(seconds), "cuts_bytes": _size(cuts)}
    report(", ".join(f"{name} {value:,.4g}" for name, value in figures.items()))
    return figures


def _without_versions(outputs: Sequence[Version | Append]) -> list[Append]:
    return [output for output in outputs if isinstance(output, Append)]


def _size(folder: Path) -> float:
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
