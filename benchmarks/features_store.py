"""How fast is the feature store: one user read out of a million, and pushes beside Feast's own?

For SQLite and for Redis (Debian's `redis-server`, started here, nothing kept on disk): a million
users with 50 actions each are pushed, then one user at a time is read by `FeastStore.read`, users
drawn at random, first alone and then while another process pushes 64 users' rows every 50 ms, as
the aggregator does. `feast` figures are `FeatureStore.get_online_features` for the same users in
the same store.

Pushes are timed in one run against Feast's own: `FeatureStore.push` into Feast's own SQLite store
and Redis store, with the same rows of the same users, in pushes of 64 and of 1,000 rows. A ratio is
our time over Feast's. Reads are of a warm store: the machine needs some 3 GB of memory for SQLite's
file in the page cache, and as much for Redis.
"""

from __future__ import annotations

import multiprocessing
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from features.aggregator import Push
from features.definitions import USER_HISTORY as VIEW
from features.store_config import StoreConfig
from streaming.errors import ConfigError

USERS = 1_000_000
LENGTH = 50
READS = 20_000
LOAD = 10_000  # rows of a push while loading
PUSHES = (64, 1_000)
ROUNDS = 15
START_US = 1_700_000_000_000_000

PROMISES: dict[str, tuple[float, float]] = {
    **{f"{store}_read_p99_ms": (0.0, 2.0) for store in ("sqlite", "redis")},
    **{f"{store}_read_while_pushed_p99_ms": (0.0, 2.0) for store in ("sqlite", "redis")},
    **{f"{s}_push_{n}_over_feast": (0.0, 1.3) for s in ("sqlite", "redis") for n in PUSHES},
}


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Measure every figure, telling `report` what comes out as it comes."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place, redis() as address:
        for name, online in (("sqlite", "sqlite"), ("redis", f"{address}/0")):
            root = Path(place) / name
            feast_root = Path(place) / f"{name}-feast"
            feast_online = (
                {"type": "sqlite", "path": str(feast_root / "online.db")}
                if name == "sqlite"
                else {"type": "redis", "connection_string": StoreConfig(f"{address}/1").redis}
            )
            figures |= pushes(name, online, root, feast_online, feast_root, report)
            figures |= reads(name, online, root, report)
            shutil.rmtree(root)
    return figures


def histories(users: Any, seed: int) -> Push:
    """A push with 50 actions of each user, of which all is known, and no searches."""
    rng = np.random.default_rng(seed)
    rows = len(users) * LENGTH
    times = pa.array(np.full(len(users), START_US + seed))
    actions = {
        "items": rng.integers(0, 2**62, rows),
        "rewards": rng.random(rows).astype(np.float32),
        "kinds": rng.integers(0, 7, rows).astype(np.int32),
        "at_us": rng.integers(0, START_US, rows),
        "scenarios": rng.integers(0, 2**31, rows).astype(np.int32),
        "sessions": rng.integers(0, 2**31, rows).astype(np.int32),
        "values": rng.random(rows).astype(np.float32),
    }
    offsets = pa.array(np.arange(len(users) + 1) * LENGTH, pa.int32())
    by_name = {
        VIEW.key: pa.array(users, pa.int64()),
        "event_timestamp": times.cast(pa.timestamp("us", "UTC")),
        **{name: pa.ListArray.from_arrays(offsets, pa.array(v)) for name, v in actions.items()},
        **{
            name: pa.array([[]] * len(users), VIEW.schema.field(name).type)
            for name in VIEW.sequences[1]
        },
        "newest_us": times,
    }
    return Push(VIEW, pa.table([by_name[name] for name in VIEW.schema.names], schema=VIEW.schema))


def reads(name: str, online: str, root: Path, report: Callable[[str], None]) -> dict[str, float]:
    """How long one user takes, of a million."""
    from features.store import FeastStore

    store = FeastStore(root, StoreConfig(online))
    store.apply()
    users = user_ids()
    began = time.perf_counter()
    for seed, start in enumerate(range(0, USERS, LOAD)):
        store.push([histories(users[start : start + LOAD], seed)])
        store._kept_back[VIEW.name].clear()  # only what is online is measured
    figures = {f"{name}_load_rows_per_s": USERS / (time.perf_counter() - began)}
    report(f"{name}: {USERS:,} users in {time.perf_counter() - began:,.0f} s")

    asked = np.random.default_rng(1).choice(users, READS).tolist()
    figures |= told(f"{name}_read", timed(asked, lambda user: store.read(VIEW, [user])))
    feast = store._store
    refs = [f"{VIEW.name}:{feature}" for feature in VIEW.names]
    figures |= told(
        f"{name}_feast_read",
        timed(
            asked[: READS // 10],
            lambda user: feast.get_online_features(
                features=refs, entity_rows=[{VIEW.key: user}]
            ).to_dict(),
        ),
    )
    with pushing(root, online, users[:100_000]):
        figures |= told(
            f"{name}_read_while_pushed", timed(asked, lambda user: store.read(VIEW, [user]))
        )
    for figure in ("read", "read_while_pushed", "feast_read"):
        report(f"{name} {figure}: p50 {figures[f'{name}_{figure}_p50_ms']:.3f} ms,"
               f" p99 {figures[f'{name}_{figure}_p99_ms']:.3f} ms")  # fmt: skip
    return figures


def user_ids() -> Any:
    """A million stable ids."""
    return np.unique(np.random.default_rng(2).integers(0, 2**62, USERS + 1_000))[:USERS]


def timed(asked: list[int], read: Callable[[int], object]) -> Any:
    """How long each read took, in ms; the first ones, which open connections, not."""
    for user in asked[:100]:
        read(user)
    took = np.empty(len(asked))
    for n, user in enumerate(asked):
        began = time.perf_counter()
        read(user)
        took[n] = time.perf_counter() - began
    return took * 1e3


def told(name: str, took: Any) -> dict[str, float]:
    p50, p99 = np.percentile(took, (50, 99))
    return {f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99)}


def pushes(
    name: str,
    online: str,
    root: Path,
    feast_online: dict[str, Any],
    feast_root: Path,
    report: Callable[[str], None],
) -> dict[str, float]:
    """How long a push takes, ours and Feast's own in turn."""
    from feast import FeatureStore, RepoConfig

    from features.store import FeastStore
    from features.store.declared import declared

    ours = FeastStore(root, StoreConfig(online, "pushed"))
    ours.apply()
    feast_root.mkdir()
    feast = FeatureStore(
        config=RepoConfig(
            project="raw",
            provider="local",
            registry=str(feast_root / "registry.db"),
            online_store=feast_online,
            offline_store={"type": "features.store.PartsOfflineStore"},
            entity_key_serialization_version=3,
        )
    )
    contents = declared([VIEW], "raw", root / "offline")
    feast.apply([one for objects in contents for one in objects])
    users = user_ids()
    figures = {}
    for size in PUSHES:
        took: dict[str, list[float]] = {"ours": [], "feast": []}
        for n in range(ROUNDS):
            rows = histories(users[n * size // 2 :][:size], 1_000 + n)
            frame = rows.rows.to_pandas()
            began = time.perf_counter()
            ours.push([rows])
            between = time.perf_counter()
            feast.push(f"{VIEW.name}_push", frame)
            took["ours"].append(between - began)
            took["feast"].append(time.perf_counter() - between)
        mine, feasts = median(took["ours"]), median(took["feast"])
        figures[f"{name}_push_{size}_rows_per_s"] = size / mine
        figures[f"{name}_feast_push_{size}_rows_per_s"] = size / feasts
        figures[f"{name}_push_{size}_over_feast"] = mine / feasts
        report(f"{name}: {size} rows in {mine * 1e3:.1f} ms, Feast's own {feasts * 1e3:.1f} ms")
    ours.clear()
    return figures


@contextmanager
def pushing(root: Path, online: str, users: Any) -> Iterator[None]:
    """Another process pushes while the block lasts."""
    spawn = multiprocessing.get_context("spawn")
    started, stop = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_push_until, args=(root, online, users, started, stop))
    process.start()
    if not started.wait(120):
        raise ConfigError("the process that pushes did not start: run the benchmark again")
    try:
        yield
    finally:
        stop.set()
        process.join()


def _push_until(root: Path, online: str, users: Any, started: Any, stop: Any) -> None:
    from features.store import FeastStore

    store = FeastStore(root, StoreConfig(online))
    rng = np.random.default_rng(3)
    turn = 10_000
    while not stop.wait(0.05):
        store.push([histories(rng.choice(users, 64, replace=False), turn)])
        store._kept_back[VIEW.name].clear()
        started.set()
        turn += 1


@contextmanager
def redis() -> Iterator[str]:
    """A Redis of our own, with nothing on disk."""
    if shutil.which("redis-server") is None:
        raise ConfigError(
            "this benchmark needs redis-server: install Debian's package of that name"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()
