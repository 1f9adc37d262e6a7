"""Kill -9 a rank of a trainer group at a hundred random moments: every sample is learnt once.

The samples of `kills` lie in two partitions, and a rank learns each. Whichever rank is killed, the
others notice and end, or are ended as `infra.workers` does, and a new group goes on from the last
cut and the log. At the end of a round the group's counts of all items must be those of the log.
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from benchmarks import kills
from benchmarks.kills import PRELOADED, PROCESSES, Live, newest, rounds, undisturbed_life
from features.batch import read_samples
from infra.home import Home
from infra.recipe import Recipe
from infra.wiring import trainer_rank
from streaming.log import SAMPLES, Append
from streaming.open_log import open_log
from streaming.samples import decode_samples
from trainers.exchange import PeerLost, connect
from trainers.group import GroupConfig, Led

KILLS = 100
PROMISES = {"group_exactly_once": (1.0, 1.0)}
HOST = "127.0.0.1"
LOST = 3  # the exit code of a rank that has lost another
NOTICE_S = 1.0  # for the other ranks to notice; then they are killed too
RECIPE = replace(
    kills.RECIPE,
    group=GroupConfig(ranks=2, answer_within_s=20.0),
    trainer=replace(kills.RECIPE.trainer, popularity_half_life=1e15),  # counts are of samples
)
Counts = Counter[int]


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Counts, a share of rounds, and seconds."""
    PROCESSES.set_forkserver_preload([*PRELOADED, "benchmarks.group_kills", "trainers.group"])
    live = life_of_a_group(np.random.default_rng(11))
    with TemporaryDirectory() as folder:
        template = make_template(Path(folder) / "template")
        report("a group that nobody disturbs ...")
        _, seconds = undisturbed_life(template, Path(folder) / "undisturbed", live)
        killed, once = 0, []
        for ended in rounds(template, Path(folder), KILLS, seconds, live):
            killed += ended.kills
            once.append(learnt(ended.home) == logged(ended.home))
            told = "each sample once" if once[-1] else "OTHER COUNTS"
            report(f"round {len(once)}, {killed} of {KILLS} kills: {told}")
            shutil.rmtree(ended.home.path)
    return {
        "group_kills": killed,
        "group_rounds": len(once),
        "group_exactly_once": float(all(once)),
        "group_undisturbed_s": seconds,
    }


def make_template(path: Path) -> Home:
    """A home whose log holds the samples of `kills`, dealt out to a partition for each rank."""
    ranks = RECIPE.group.ranks
    undealt = open_log(kills.make_template(path.with_name(f"{path.name}-undealt")).log_url)
    home = Home(path)
    home.make()
    log = open_log(home.log_url, partitions={SAMPLES: ranks})
    (place,) = ends = undealt.ends([SAMPLES])
    records = undealt.read({place: 0}, ends[place], timeout_s=0)
    log.append([Append(SAMPLES, r.value, None, n % ranks) for n, r in enumerate(records)])
    log.close()
    undealt.close()
    return home


def life_of_a_group(victims: np.random.Generator, recipe: Recipe = RECIPE) -> Live:
    """What trains as a group, and after some seconds kills one of its ranks."""

    def live(home: Home, seconds: float | None) -> bool:
        _store, ranks = start(home, recipe)
        allowed = {0}
        if seconds is not None and not wait([rank.sentinel for rank in ranks], seconds):
            ranks[victims.integers(len(ranks))].kill()
            deadline = time.monotonic() + NOTICE_S
            for rank in ranks:
                rank.join(max(0.0, deadline - time.monotonic()))
                rank.kill()
            allowed |= {LOST, -signal.SIGKILL}
        for rank in ranks:
            rank.join()
        codes = [rank.exitcode for rank in ranks]
        if not allowed.issuperset(codes):
            raise RuntimeError(f"the ranks in {home.path} ended with exit codes {codes}")
        return not any(codes)

    return live


def start(home: Home, recipe: Recipe) -> tuple[TCPStore, list[ForkServerProcess]]:
    """The processes of a group, and the store in which they meet."""
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    ranks = [
        PROCESSES.Process(target=train_to_the_end, args=(home.path, recipe, rank, store.port))
        for rank in range(recipe.group.ranks)
    ]
    for rank in ranks:
        rank.start()
    return store, ranks


def train_to_the_end(path: Path, recipe: Recipe, rank: int, port: int) -> None:
    """The body of a process: learns what there is with the others, or exits as one that is LOST."""
    home, group = Home(path), recipe.group
    log = open_log(home.log_url)
    to_stop = threading.Event()
    to_stop.set()
    try:
        store = TCPStore(HOST, port, is_master=False)
        exchange = connect(store, HOST, rank, group.ranks, group.answer_within_s)
        part = trainer_rank(recipe, home, log, exchange)
        while isinstance(part, Led) and part.loop.positions != log.ends([SAMPLES]):
            part.loop.turn()
        part.run(to_stop)
    except PeerLost:
        sys.exit(LOST)
    finally:
        log.close()


def learnt(home: Home) -> Counts:
    """How many samples of each item the newest cut has."""
    corpus = newest(home).shards["corpus"]
    counts = zip(corpus["id"].to_pylist(), corpus["count"].to_pylist(), strict=True)
    return Counter({item: round(count) for item, count in counts if round(count)})


def logged(home: Home) -> Counts:
    """How many samples of each item the log has."""
    log = open_log(home.log_url)
    ends = log.ends([SAMPLES])
    records = log.read(dict.fromkeys(ends, 0), 2 * sum(ends.values()), timeout_s=0)
    log.close()
    samples = (read_samples(decode_samples(record)) for record in records)
    return Counter(item for s in samples for item in s.item_ids.tolist())
