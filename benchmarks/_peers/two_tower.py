"""The same two-tower step over each library's tables, written as that library's users write it.

User id and the mean of the history against item id and attribute; two MLPs 128-64, normalised
outputs, in-batch softmax over the whole (B, B) matrix with the correction for the items' share of
the stream (Yi et al., RecSys 2019). The towers learn by Adam; the tables by what is the library's
own. Turning ids into a library's input is not timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adagrad, Adam, Optimizer

from benchmarks._peers.stream import (
    ATTRIBUTES,
    HISTORY,
    ITEMS,
    USERS,
    Batch,
    draw_batches,
    lap_times,
)

WIDTH = 64
HIDDEN = 128
TEMPERATURE = 0.07
LEARNING_RATE = 0.05  # of the tables
BIRTH_SCALE = 0.05


@dataclass(frozen=True)
class Tables:
    """A library's tables: `look_up(prepare(batch))` is user | history | item | attribute."""

    prepare: Callable[[Batch], Any]
    look_up: Callable[[Any], Tensor]  # (B, 4 * WIDTH)
    optimizers: list[Optimizer] = field(default_factory=list)  # none: learnt in the backward pass


class Towers(nn.Module):
    """Both towers over looked-up rows, and their loss."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = (
            nn.Sequential(nn.Linear(2 * WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))
            for _ in range(2)
        )

    def forward(self, rows: Tensor, log_q: Tensor) -> Tensor:
        """The mean loss of rows (B, 4 * WIDTH) with log_q (B,)."""
        users = F.normalize(self.user(rows[:, : 2 * WIDTH]), dim=1)  # (B, WIDTH)
        items = F.normalize(self.item(rows[:, 2 * WIDTH :]), dim=1)
        logits = users @ items.T / TEMPERATURE - log_q  # (B, B)
        return F.cross_entropy(logits, torch.arange(len(logits)))


def measure(tables: Callable[[], Tables], batch: int, seconds: float) -> dict[str, float]:
    """Trains for so long; samples_per_s, steps and the mean loss of the last ten steps."""
    torch.manual_seed(0)
    peer, towers = tables(), Towers()
    optimizers: list[Optimizer] = [*peer.optimizers, Adam(towers.parameters())]
    losses: list[Tensor] = []

    def step(work: tuple[Any, Tensor]) -> None:
        prepared, log_q = work
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = towers(peer.look_up(prepared), log_q)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.detach())

    works = [(peer.prepare(b), torch.from_numpy(b.log_q)) for b in draw_batches(batch)]
    laps = lap_times(step, works, seconds)
    return {
        "samples_per_s": batch * len(laps) / sum(laps),
        "steps": len(laps),
        "loss": fmean(float(loss) for loss in losses[-10:]),
    }


def torch_tables() -> Tables:
    """nn.EmbeddingBag with sparse gradients, and Adagrad over them."""
    user, item, attribute = (
        nn.EmbeddingBag(rows, WIDTH, mode="mean", sparse=True)
        for rows in (USERS, ITEMS, ATTRIBUTES)
    )
    tables = nn.ModuleList([user, item, attribute])
    for weight in tables.parameters():
        nn.init.uniform_(weight, -BIRTH_SCALE, BIRTH_SCALE)

    def prepare(batch: Batch) -> list[Tensor]:
        ids = (batch.users[:, None], batch.history, batch.items[:, None], batch.attributes[:, None])
        return [torch.from_numpy(each) for each in ids]

    def look_up(ids: list[Tensor]) -> Tensor:
        bags = (user, item, item, attribute)
        return torch.cat([bag(each) for bag, each in zip(bags, ids, strict=True)], dim=1)

    return Tables(prepare, look_up, [Adagrad(tables.parameters(), LEARNING_RATE)])


def torchrec_tables() -> Tables:
    """torchrec's EmbeddingBagCollection, not sharded, and Adagrad over its dense gradients."""
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

    features = {"user": ["user"], "item": ["history", "item"], "attribute": ["attribute"]}
    keys = [key for of_table in features.values() for key in of_table]
    rows = {"user": USERS, "item": ITEMS, "attribute": ATTRIBUTES}
    collection = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name,
                embedding_dim=WIDTH,
                num_embeddings=rows[name],
                feature_names=features[name],
                pooling=PoolingType.MEAN,
                init_fn=lambda weight: nn.init.uniform_(weight, -BIRTH_SCALE, BIRTH_SCALE),
            )
            for name in features
        ]
    )

    def prepare(batch: Batch) -> Any:
        values, lengths = _jagged(batch)
        return KeyedJaggedTensor(keys, values, lengths=lengths)

    def look_up(ids: Any) -> Tensor:
        pooled: Tensor = collection(ids).values()
        return pooled

    return Tables(prepare, look_up, [Adagrad(collection.parameters(), LEARNING_RATE)])


def fbgemm_tables() -> Tables:
    """fbgemm's table-batched embedding on the CPU, row-wise Adagrad fused into the backward."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    where = (EmbeddingLocation.HOST, ComputeDevice.CPU)
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, WIDTH, *where) for rows in (USERS, ITEMS, ATTRIBUTES)],
        feature_table_map=[0, 1, 1, 2],
        pooling_mode=PoolingMode.MEAN,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=LEARNING_RATE,
    )
    tables.init_embedding_weights_uniform(-BIRTH_SCALE, BIRTH_SCALE)

    def prepare(batch: Batch) -> tuple[Tensor, Tensor]:
        values, lengths = _jagged(batch)
        return values, F.pad(lengths.cumsum(0), (1, 0))

    def look_up(ids: tuple[Tensor, Tensor]) -> Tensor:
        rows: Tensor = tables(*ids)
        return rows

    return Tables(prepare, look_up)


def _jagged(batch: Batch) -> tuple[Tensor, Tensor]:
    """All ids, feature after feature, and the number of them in each bag, (4 * B,)."""
    ids = (batch.users, batch.history.ravel(), batch.items, batch.attributes)
    count = len(batch.users)
    lengths = np.repeat(np.array([1, HISTORY, 1, 1]), count)
    return torch.from_numpy(np.concatenate(ids)), torch.from_numpy(lengths)
