"""Headrace's own tables and loss in the same two-tower step, ids looked up and all."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam

from benchmarks._peers.stream import (
    ATTRIBUTES,
    HISTORY,
    ITEMS,
    USERS,
    Batch,
    draw_batches,
    lap_times,
)
from benchmarks._peers.two_tower import BIRTH_SCALE, LEARNING_RATE, TEMPERATURE, WIDTH, Towers
from features.batch import Jagged
from trainers.optimisers import OptimiserConfig
from trainers.softmax import Precision, Sampling, sampled_softmax
from trainers.table import EmbeddingTable, TableConfig


def measure(batch: int, seconds: float, precision: Precision = "auto") -> dict[str, float]:
    """Trains for so long; samples_per_s, steps and the mean loss of the last ten steps.

    The tables hold a row for every id before the clock starts, as those of the others do.
    """
    torch.manual_seed(0)
    towers = Towers()
    dense = Adam(towers.parameters(), fused=True)
    user, item, attribute = tables = [_table(rows) for rows in (USERS, ITEMS, ATTRIBUTES)]
    losses: list[Tensor] = []
    offsets = np.arange(0, batch * HISTORY + 1, HISTORY)
    nothing_hidden = Jagged.of(np.empty(0, np.int64), np.zeros(batch, np.int64))
    positive, level = torch.arange(batch), torch.zeros(batch, dtype=torch.int64)

    def step(b: Batch) -> None:
        dense.zero_grad()
        history = item.mean(b.history.ravel(), offsets)
        queries = towers.user(torch.cat([user(b.users), history], 1))
        candidates = towers.item(torch.cat([item(b.items), attribute(b.attributes)], 1))
        log_q = torch.from_numpy(b.log_q)[None]
        loss = sampled_softmax(
            F.normalize(queries, dim=1),
            F.normalize(candidates, dim=1),
            Sampling(positive, log_q, level, nothing_hidden),
            torch.ones(batch),
            TEMPERATURE,
            precision=precision,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        dense.step()
        for table in tables:
            table.step()
        losses.append(loss.detach())

    laps = lap_times(step, draw_batches(batch), seconds)
    return {
        "samples_per_s": batch * len(laps) / sum(laps),
        "steps": len(laps),
        "loss": fmean(float(loss) for loss in losses[-10:]),
    }


def _table(rows: int) -> EmbeddingTable:
    optimiser = OptimiserConfig(learning_rate=LEARNING_RATE, first_square=0.0)  # as the others
    table = EmbeddingTable(TableConfig(width=WIDTH, birth_scale=BIRTH_SCALE, optimiser=optimiser))
    ids = np.arange(rows)
    for part in np.array_split(ids, max(1, rows // 100_000)):
        table.upsert(part, table(part).numpy())
    table.training = True
    return table
