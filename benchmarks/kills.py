"""Kill -9 the trainer at a hundred random moments: it ends with the bits of one never killed.

A small trainer learns ratings of twenty years, as fast as it can, with cuts and versions coming
thick and fast: cuts tell what changed since others and are written in the background, tables admit,
expire and evict. A round starts it over and over, and kills it, until it comes to the end; then the
merged newest cut must be that of a trainer which nobody disturbed, and a new round begins.
`recovery_s` is what a start needed before its first new step: load the cut, replay what follows.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from infra.home import Home
from infra.recipe import Recipe, load_recipe
from infra.wiring import joiner_loop, trainer_loop
from streaming.artefact import Artefact, read_manifest
from streaming.cuts import CutDirectory
from streaming.errors import ArtefactError
from streaming.events import encode_events
from streaming.loop import LoopConfig
from streaming.open_log import open_log
from streaming.sources.movielens import MovieLens
from trainers.frequency import FrequencyConfig
from trainers.negatives import NegativesConfig

KILLS = 100
STEPS = 48
STEP_SIZE = 32
PROMISES = {"bit_identical": (1.0, 1.0)}
# So few rows and such a short memory that every table admits, expires and evicts all the time.
TABLE = {
    "optimiser": {"learning_rate": 0.5},
    "admission": {"after": 2, "shared": 8, "buckets": 1 << 8, "window": 4_000},
    "expire_after_s": 2 * 365 * 86_400,
    "max_rows": 64,
}
_MOVIELENS = load_recipe("movielens")
RECIPE = replace(
    _MOVIELENS,
    joiner=replace(_MOVIELENS.joiner, step_size=STEP_SIZE),
    trainer=replace(
        _MOVIELENS.trainer,
        options={"width": 16, "hidden": 16, "history": 5, "table": TABLE},
        negatives=NegativesConfig(uniform=32),
        frequency=FrequencyConfig(buckets=1 << 8),
        refresh=32,
        publish_every_s=0.05,
        snapshot_every=5,
    ),
    trainer_loop=LoopConfig(limit=2, cut_every_s=0, idle_s=0.01, background=True, deltas=4),
)
# Forked from a process that has imported everything once: a child starts in milliseconds.
PROCESSES = multiprocessing.get_context("forkserver")
# `torch._dynamo` is what the first optimiser of a process would wait for, 1 to 2 s.
PRELOADED = [
    *("__main__", "benchmarks.kills"),
    *("torch._dynamo", "trainers.models.two_tower", "trainers.versions"),
]


@dataclass(frozen=True, slots=True)
class Round:
    """A home whose trainer came to the end after some kills.

    `continued` counts the kills that left a cut as the newest which continues another.
    """

    home: Home
    kills: int
    continued: int


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Counts, a share of rounds, and seconds."""
    PROCESSES.set_forkserver_preload(PRELOADED)
    with TemporaryDirectory() as folder:
        template = make_template(Path(folder) / "template")
        report("a trainer that nobody disturbs ...")
        undisturbed, seconds = undisturbed_life(template, Path(folder) / "undisturbed")
        expected = fingerprint(newest(undisturbed))
        kills, continued, identical, recoveries = 0, 0, [], []
        for ended in rounds(template, Path(folder), KILLS, seconds):
            kills, continued = kills + ended.kills, continued + ended.continued
            identical.append(fingerprint(newest(ended.home)) == expected)
            recoveries += recovery_seconds(ended.home)
            told = "the same bits" if identical[-1] else "OTHER BITS"
            report(f"round {len(identical)}, {kills} of {KILLS} kills: {told}")
            shutil.rmtree(ended.home.path)
    return {
        "kills": kills,
        "kills_that_left_a_chain": continued,
        "rounds": len(identical),
        "bit_identical": float(all(identical)),
        "recovery_s": median(recoveries),
        "undisturbed_s": seconds,
    }


def make_template(path: Path) -> Home:
    """A home whose log holds the samples of some ratings of all years, and their movies."""
    home = Home(path)
    home.make()
    source = MovieLens()
    ratings = source.batch(source.declarations, source.total - source.declarations)
    few = np.linspace(0, len(ratings) - 1, STEPS * STEP_SIZE).astype(np.int64)
    ratings = ratings.take(pa.array(few))
    movies = source.batch(0, source.declarations)
    movies = movies.filter(pc.is_in(movies["item_id"], value_set=ratings["item_id"]))
    log = open_log(home.log_url)
    log.append([encode_events(movies), encode_events(ratings)])
    joiner = joiner_loop(RECIPE, home, log)
    while joiner.turn():
        pass
    log.close()
    return home


def copy_of(template: Home, path: Path) -> Home:
    """The very same records, with the same times."""
    return Home(Path(shutil.copytree(template.path, path)))


def live(home: Home, seconds: float | None = None) -> bool:
    """Trains in a process of its own; whether it came to the end before it was killed."""
    process = start(home)
    process.join(seconds)
    return not kill(process)


def start(home: Home, recipe: Recipe = RECIPE) -> ForkServerProcess:
    """A process of its own that trains to the end."""
    process = PROCESSES.Process(target=train_to_the_end, args=(home.path, recipe))
    process.start()
    return process


def kill(process: ForkServerProcess) -> bool:
    """Ends the process with SIGKILL; False if it had come to its end by itself."""
    process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the trainer ended with exit code {process.exitcode}")
    return process.exitcode != 0


Live = Callable[[Home, float | None], bool]  # as `live`


def undisturbed_life(template: Home, path: Path, live: Live = live) -> tuple[Home, float]:
    """A home whose trainer came to the end, and how many seconds that took."""
    before = copy_of(template, path.with_name(f"{path.name}-before"))
    live(before, None)  # whatever is slow only once
    home = copy_of(template, path)
    begun = time.perf_counter()
    live(home, None)
    return home, time.perf_counter() - begun


def rounds(
    template: Home, folder: Path, kills: int, longest_s: float, live: Live = live
) -> Iterator[Round]:
    """Rounds with so many kills in all, each at most `longest_s` after the start."""
    moments = np.random.default_rng(7)
    left = kills
    for number in count(1):
        home = copy_of(template, folder / f"round-{number}")
        killed = continued = 0
        ended = False
        while not ended:
            begun = time.perf_counter()
            ended = live(home, moments.uniform(0.0, longest_s) if killed < left else None)
            if not ended:
                killed += 1
                continued += newest_continues(home)
            elif not killed:  # the machine is quicker than it was, or another has left it
                longest_s = time.perf_counter() - begun
        yield Round(home, killed, continued)
        left -= killed
        if left == 0:
            return


def train_to_the_end(path: Path, recipe: Recipe) -> None:
    """The body of the process: learns what there is, publishing and cutting as it goes."""
    home = Home(path)
    log = open_log(home.log_url)
    begun = time.perf_counter()
    loop = trainer_loop(recipe, home, log)
    with _recoveries(home).open("a") as told:
        told.write(f"{time.perf_counter() - begun}\n")
    while loop.turn():
        pass
    time.sleep(recipe.trainer.publish_every_s)
    loop.turn()  # what was learnt last is published
    loop.cut()
    log.close()


def newest(home: Home) -> Artefact:
    """The state in the newest cut and in those that it continues."""
    state, _ = CutDirectory(home.cuts("trainer")).newest()
    if state is None:
        raise RuntimeError(f"{home.path} has no cut")
    return state


def fingerprint(state: Artefact) -> dict[str, Any]:
    """What two states share exactly if they are the same to the bit, -0.0 and NaN included."""
    return {"meta": state.meta} | {name: _checksum(t) for name, t in state.shards.items()}


def newest_continues(home: Home) -> bool:
    """Whether the newest cut tells only what changed since another."""
    for path in sorted(home.cuts("trainer").glob("cut-*"), reverse=True):
        try:
            return "base" in read_manifest(path)
        except ArtefactError:
            continue
    return False


def recovery_seconds(home: Home) -> list[float]:
    """How long every start took until it was ready for the next record."""
    return [float(line) for line in _recoveries(home).read_text().splitlines()]


def _recoveries(home: Home) -> Path:
    return home.path / "recoveries"


def _checksum(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return xxhash.xxh3_128_hexdigest(sink.getvalue())
