"""The same step of MMoE, by Headrace and by others: four experts, three tasks, twenty fields.

Ma et al., KDD 2018. All read the same ids, Zipf in each field, of which two have a million values
and more; all have a row for every id before the clock starts, and no labels but 0 and 1. What is
dense learns by Adam. Turning ids into a library's input is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adagrad, Adam, Optimizer, SparseAdam

from benchmarks._peers.stream import EXPONENT, SAMPLES, lap_times
from features.batch import Items, Jagged, Users
from features.definitions import SAMPLE_FEATURES
from features.shown import Pairs
from streaming.event_columns import NONE, field_codes
from streaming.log import Record
from streaming.samples import encode_samples, sample_schema
from trainers.models import RankingStep, create
from trainers.softmax import Precision
from trainers.table import EmbeddingTable
from trainers.trainer import Trainer, TrainerConfig

WIDTH, EXPERTS, EXPERT, TOWER = 16, 4, 64, 32
TASKS = ("click", "like", "share")
LEARNING_RATE = 0.05  # of the tables
BIRTH_SCALE = 0.05
USERS, ITEMS = 2_000_000, 1_000_000
DESCRIBED = (
    500_000, 200_000, 100_000, 50_000, 20_000, 10_000, 10_000, 5_000, 2_000,
    1_000, 1_000, 500, 200, 100, 100, 50, 20, 10,
)  # fmt: skip
NAMES = tuple(f"field{number}" for number in range(len(DESCRIBED)))
SIZES = (USERS, ITEMS, *DESCRIBED)


class Batch(NamedTuple):
    """Samples side by side, by the numbers of ids within their fields."""

    ids: NDArray[np.int64]  # (B, 20): user, item, what describes it
    labels: NDArray[np.float32]  # (3, B)


def draw_batches(batch: int, seed: int = 0) -> list[Batch]:
    """The stream in batches, the same for the same arguments; at least `SAMPLES` samples. What
    describes an item is always the same.
    """
    rng = np.random.default_rng(seed)
    shape = (-(-SAMPLES // batch), batch)
    users, items = _drawn(rng, USERS, shape), _drawn(rng, ITEMS, shape)
    known, which = np.unique(items, return_inverse=True)
    fields = [_drawn(rng, size, known.shape)[which].reshape(shape) for size in DESCRIBED]
    ids = np.stack([users, items, *fields], 2)
    count = len(ids)
    labels = (rng.random((count, len(TASKS), batch)) < 0.2).astype(np.float32)
    return [Batch(*each) for each in zip(ids, labels, strict=True)]


def _drawn(rng: np.random.Generator, size: int, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Numbers below `size`, of which few are drawn often; which, is by chance."""
    cumulated = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -EXPONENT)
    ranks = np.searchsorted(cumulated / cumulated[-1], rng.random(shape), side="right")
    drawn: NDArray[np.int64] = rng.permutation(size)[ranks]
    return drawn


# -- others ----------------------------------------------------------------------------------


class PlainMMoE(nn.Module):
    """As one writes it: an embedding for each field, a module for each expert, gate and tower."""

    def __init__(self) -> None:
        super().__init__()
        inputs = len(SIZES) * WIDTH
        self.embeddings = nn.ModuleList(nn.Embedding(size, WIDTH, sparse=True) for size in SIZES)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, EXPERT), nn.ReLU()) for _ in range(EXPERTS)
        )
        self.gates = nn.ModuleList(nn.Linear(inputs, EXPERTS, bias=False) for _ in TASKS)
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(EXPERT, TOWER), nn.LeakyReLU(0.1), nn.Linear(TOWER, 1))
            for _ in TASKS
        )
        for rows in self.embeddings.parameters():
            nn.init.uniform_(rows, -BIRTH_SCALE, BIRTH_SCALE)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """The loss of ids (B, 20) with labels (3, B)."""
        columns = zip(self.embeddings, ids.unbind(1), strict=True)
        read = torch.cat([embedding(column) for embedding, column in columns], 1)
        experts = torch.stack([expert(read) for expert in self.experts], 1)  # (B, 4, h)
        loss = torch.zeros(())
        for gate, tower, label in zip(self.gates, self.towers, labels, strict=True):
            mixed = (gate(read).softmax(1)[:, :, None] * experts).sum(1)
            logits = tower(mixed)[:, 0]
            loss = loss + F.binary_cross_entropy_with_logits(logits, label)
        return loss


def measure_torch(batch: int, seconds: float, adam: bool = False) -> dict[str, float]:
    """nn.Embedding with sparse gradients, learnt by Adagrad or by SparseAdam."""
    torch.manual_seed(0)
    model = PlainMMoE()
    sparse = list(model.embeddings.parameters())
    dense = [p for name, p in model.named_parameters() if not name.startswith("embeddings")]
    tables = SparseAdam(sparse, LEARNING_RATE) if adam else Adagrad(sparse, LEARNING_RATE)
    works = _tensors(batch)
    return _measure(lambda w: model(*w), [tables, Adam(dense, fused=True)], works, seconds)


def measure_rechub(batch: int, seconds: float, sparse: bool = False) -> dict[str, float]:
    """Torch-RecHub's MMOE, its loss and its own optimiser, Adam over all rows of all embeddings; or
    with sparse gradients, for which it has no setting, and Adagrad over these.
    """
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import MMOE

    torch.manual_seed(0)
    names = ["user", "item", *NAMES]
    tower = {"dims": [TOWER]}
    model = MMOE(
        [SparseFeature(n, s, embed_dim=WIDTH) for n, s in zip(names, SIZES, strict=True)],
        ["classification"] * len(TASKS),
        EXPERTS,
        {"dims": [EXPERT]},
        [tower] * len(TASKS),
    )
    embeddings = list(model.embedding.embed_dict.values())
    rows = [embedding.weight for embedding in embeddings]
    optimizers: list[Optimizer] = [Adam(model.parameters())]
    if sparse:
        for embedding in embeddings:
            embedding.sparse = True
        others = [p for p in model.parameters() if all(p is not row for row in rows)]
        optimizers = [Adagrad(rows, LEARNING_RATE), Adam(others, fused=True)]
    works = [
        (dict(zip(names, ids.unbind(1), strict=True)), labels) for ids, labels in _tensors(batch)
    ]

    def loss(work: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        predicted = model(work[0])  # (B, 3)
        losses = [F.binary_cross_entropy(p, y) for p, y in zip(predicted.T, work[1], strict=True)]
        return torch.stack(losses).mean()

    return _measure(loss, optimizers, works, seconds)


def _tensors(batch: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.from_numpy(b.ids), torch.from_numpy(b.labels)) for b in draw_batches(batch)]


def _measure(
    loss: Callable[[Any], Tensor], optimizers: list[Optimizer], works: list[Any], seconds: float
) -> dict[str, float]:
    """samples_per_s, steps and the mean loss of the last ten steps."""
    losses: list[Tensor] = []

    def step(work: Any) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        found = loss(work)
        found.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
        losses.append(found.detach())

    laps = lap_times(step, works, seconds)
    return {
        "samples_per_s": len(works[0][1][0]) * len(laps) / sum(laps),
        "steps": len(laps),
        "loss": fmean(float(each) for each in losses[-10:]),
    }


# -- Headrace --------------------------------------------------------------------------------


OPTIONS: Mapping[str, Any] = {
    "tasks": {name: {} for name in TASKS},
    "fields": ("user_id", "item_id", *NAMES),
    "width": WIDTH,
    "tower": TOWER,
    "experts": EXPERTS,
    "expert": EXPERT,
    "table": {
        "birth_scale": BIRTH_SCALE,
        "optimiser": {"learning_rate": LEARNING_RATE, "first_square": 0.0},
    },
}


def fill(tables: Mapping[str, EmbeddingTable]) -> None:
    """Gives every id a row, as the others have one."""
    for name, ids in (("user", np.arange(USERS)), ("item", np.arange(ITEMS))):
        add_rows(tables[name], ids)
    for tokens in token_ids():
        add_rows(tables["token"], tokens)


def add_rows(table: EmbeddingTable, ids: NDArray[np.int64]) -> None:
    """Gives ids (n,) the rows that they are born with."""
    for part in np.array_split(ids, max(1, len(ids) // 100_000)):
        table.upsert(part, table(part).numpy())


@cache
def token_ids() -> tuple[NDArray[np.int64], ...]:
    """Of each described field the ids of its values: 63 random bits, as ids of tokens are."""
    rng = np.random.default_rng(1)
    return tuple(rng.integers(1 << 63, size=size) for size in DESCRIBED)


def described(ids: NDArray[np.int64]) -> Items:
    """The items of samples (B, 20) with what describes them."""
    numbers = ids[:, 2:]
    tokens = np.stack([of[n] for of, n in zip(token_ids(), numbers.T, strict=True)], 1)
    each = np.full(len(ids), len(NAMES))
    codes = np.tile(field_codes(NAMES), len(ids))
    return Items(np.ascontiguousarray(ids[:, 1]), Jagged.of(tokens.ravel(), each), codes)


def pairs(ids: NDArray[np.int64]) -> Pairs:
    """Samples (B, 20), of a user each."""
    count = len(ids)
    nothing = Jagged.of(np.empty(0, np.int64), np.zeros(count, np.int64))
    users = Users(np.ascontiguousarray(ids[:, 0]), nothing, np.empty(0, np.float32))
    return Pairs(users, np.arange(count), described(ids), np.full(count, NONE, np.int32))


def measure(batch: int, seconds: float, precision: Precision = "auto") -> dict[str, float]:
    """A step of the model alone: samples that were read, loss, gradients, tables and optimiser."""
    model = create("mmoe", {**OPTIONS, "precision": precision})
    fill(model.tables)
    dense = Adam(model.parameters(), fused=True)
    for table in model.tables.values():
        table.training = True
    rates = torch.ones(batch)
    losses: list[Tensor] = []

    def step(step: RankingStep) -> None:
        dense.zero_grad()
        loss = model.loss(step)
        loss.backward()
        dense.step()
        for table in model.tables.values():
            table.step()
        losses.append(loss.detach())

    works = []
    for number, drawn in enumerate(draw_batches(batch)):
        labels = dict(zip(TASKS, torch.from_numpy(drawn.labels), strict=True))
        read = pairs(drawn.ids)
        works.append(RankingStep(read, labels, rates, read.users.ids, number))
    laps = lap_times(step, works, seconds)
    return {
        "samples_per_s": batch * len(laps) / sum(laps),
        "steps": len(laps),
        "loss": fmean(float(loss) for loss in losses[-10:]),
    }


def measure_trainer(batch: int, seconds: float) -> dict[str, float]:
    """All that the trainer does with encoded records: decoding, describing, testing, learning."""
    trainer = Trainer(TrainerConfig(model="mmoe", options=OPTIONS), "benchmark")
    fill(trainer.tables)
    drawn = draw_batches(batch)
    for part in np.array_split(np.concatenate([each.ids for each in drawn]), 8):
        trainer.on_batch([_declaration(part)])
    laps = lap_times(
        lambda one: trainer.on_batch([one]), [_record(each) for each in drawn], seconds
    )
    return {
        "samples_per_s": batch * len(laps) / sum(laps),
        "steps": len(laps),
        "loss": trainer.loss,
    }


def _declaration(ids: NDArray[np.int64]) -> Record:
    """What describes the items of samples (n, 20)."""
    items = described(ids[np.unique(ids[:, 1], return_index=True)[1]])
    codes = Jagged(items.fields.astype(np.int64), items.tokens.offsets)
    columns = {"item_tokens": items.tokens.column(), "item_fields": codes.column()}
    return _encoded({"item_id": items.ids, **columns}, len(items.ids))


def _record(batch: Batch) -> Record:
    labels = {f"label_{task}": of for task, of in zip(TASKS, batch.labels, strict=True)}
    users, items = batch.ids[:, 0], batch.ids[:, 1]
    rates = np.ones(len(users), np.float32)
    columns = {"user_id": users, "item_id": items, "negative_rate": rates, **labels}
    return _encoded(columns, len(users))


def _encoded(columns: Mapping[str, Any], rows: int) -> Record:
    schema = sample_schema(TASKS, SAMPLE_FEATURES)
    given = {
        "kind": pa.array(["impression"] * rows),
        "at": np.full(rows, 1_700_000_000_000_000),
        "logged_us": np.full(rows, 1_700_000_000_000_000),
        **columns,
    }
    arrays = [
        pa.array(given[f.name]).cast(f.type) if f.name in given else pa.nulls(rows, f.type)
        for f in schema
    ]
    made = encode_samples(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return Record(made.topic, 0, 0, made.key, made.value, 0)
