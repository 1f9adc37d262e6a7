"""id -> row maps: torchrec's, and what one writes without a library.

All are filled with `ITEMS` ids before the clock starts; the stream then looks up ids that are
there, as a table does that has met its catalogue, by code that would add one that is not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._peers.stream import ITEMS, draw_ids, lap_times

EVICTION_INTERVAL = 5  # steps; until it has passed, a new id shares the row of all new ids


def measure_mch(batch: int, seconds: float) -> dict[str, float]:
    """torchrec's MCHManagedCollisionModule, with the least of its eviction policies.

    `lookups_per_s` counts all steps, `steady_lookups_per_s` those that do not look for ids to
    evict. There is a row for every id, so that none is in fact evicted: the stream with the least
    work for it.
    """
    from torchrec import JaggedTensor
    from torchrec.modules.mc_modules import LFU_EvictionPolicy, MCHManagedCollisionModule

    module = MCHManagedCollisionModule(
        zch_size=ITEMS + 1,  # its last row is the one that new ids share
        device=torch.device("cpu"),
        eviction_policy=LFU_EvictionPolicy(),
        eviction_interval=EVICTION_INTERVAL,
    )
    ids, stream = draw_ids(batch)

    def features(values: NDArray[np.int64]) -> dict[str, Any]:
        lengths = torch.ones(values.size, dtype=torch.int64)
        return {"id": JaggedTensor(torch.from_numpy(values), lengths=lengths)}

    for values in [ids, *stream[: EVICTION_INTERVAL - 1]]:
        module(features(values))
    laps = lap_times(module, [features(values) for values in stream], seconds)
    steady = [lap for i, lap in enumerate(laps, start=3) if i % EVICTION_INTERVAL]
    return {**_figures(batch, laps), "steady_lookups_per_s": batch * len(steady) / sum(steady)}


def measure_dict(batch: int, seconds: float) -> dict[str, float]:
    """A dict that numbers what is missing in it: the fastest loop that is plain Python."""
    rows: defaultdict[int, int] = defaultdict()
    rows.default_factory = rows.__len__

    def find(ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.fromiter(map(rows.__getitem__, ids.tolist()), np.int64, ids.size)

    return _measure(find, batch, seconds)


def measure_typed_dict(batch: int, seconds: float) -> dict[str, float]:
    """numba's typed.Dict, in a compiled loop."""
    rows = numba.typed.Dict.empty(numba.int64, numba.int64)

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def loop(rows: Any, ids: NDArray[np.int64], found: NDArray[np.int64]) -> None:
        for i in range(ids.size):
            row = rows.get(ids[i], -1)
            if row < 0:
                row = len(rows)
                rows[ids[i]] = row
            found[i] = row

    def find(ids: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.empty_like(ids)
        loop(rows, ids, found)
        return found

    return _measure(find, batch, seconds)


def _measure(
    find: Callable[[NDArray[np.int64]], object], batch: int, seconds: float
) -> dict[str, float]:
    ids, stream = draw_ids(batch)
    find(ids)
    return _figures(batch, lap_times(find, list(stream), seconds))


def _figures(batch: int, laps: list[float]) -> dict[str, float]:
    return {"lookups_per_s": batch * len(laps) / sum(laps), "steps": len(laps)}
