"""Impressions that a ranker of the serving tests learns from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from features.definitions import SAMPLE_FEATURES
from streaming.event_columns import field_codes
from streaming.ids import stable_id
from streaming.log import SAMPLES, Record
from streaming.samples import encode_samples, sample_schema
from streaming.settings import fill
from trainers.calibration import CalibrationConfig
from trainers.trainer import Trainer, TrainerConfig
from trainers.versions import Version

NOW_US = 1_700_000_000_000_000
TASKS = {"click": {}, "like": {"after": "click"}}
GENRES = field_codes(["genres"]).tolist()[0]
OPTIONS = {
    "tasks": TASKS,
    "fields": ("user_id", "history", "item_id", "genres"),
    "width": 4,
    "expert": 8,
    "table": {"optimiser": {"learning_rate": 0.3}},
}


def taught(
    clicked: Sequence[int], others: Sequence[int], rounds: int = 5, calibrated: str = "none"
) -> Trainer:
    """A trainer that was shown that some items are clicked and liked, and others are not."""
    calibration = fill(CalibrationConfig, {"how": calibrated}, "")
    config = TrainerConfig(
        model="mmoe", options=OPTIONS, publish_every_s=1.0, calibration=calibration
    )
    trainer = Trainer(config, "a")
    told = [_declared(item, 1) for item in clicked] + [_declared(item, 0) for item in others]
    trainer.on_batch([_samples(told)])
    teach(trainer, clicked, others, rounds)
    return trainer


def teach(trainer: Trainer, clicked: Sequence[int], others: Sequence[int], rounds: int) -> None:
    for number in range(rounds):
        rows = [
            row
            for user in (11, 12)
            for row in (
                *(_shown(user, item, click=1.0, like=1.0) for item in clicked),
                *(_shown(user, item, click=0.0, like=0.0) for item in others),
            )
        ]
        trainer.on_batch([_samples(rows[number % 2 :])])


def versions(trainer: Trainer, at_s: float) -> list[Version]:
    """Those that are out at a time, each later than the one before."""
    return trainer.on_time(round(at_s * 1e6))


def _declared(item: int, genre: int) -> dict[str, Any]:
    tokens = [stable_id(f"genres={genre}")]
    return {"item_id": item, "kind": "item", "item_tokens": tokens, "item_fields": [GENRES]}


def _shown(user: int, item: int, **labels: float) -> dict[str, Any]:
    told = {f"label_{name}": value for name, value in labels.items()}
    return {"user_id": user, "item_id": item, "kind": "impression", "negative_rate": 1.0, **told}


def _samples(rows: Iterable[dict[str, Any]]) -> Record:
    schema = sample_schema(TASKS, SAMPLE_FEATURES)
    whole = [{"at": NOW_US, "logged_us": NOW_US, **row} for row in rows]
    made = encode_samples(pa.RecordBatch.from_pylist(whole, schema))
    return Record(SAMPLES, 0, 0, None, made.value, NOW_US)
