"""What a trainer tells of its turns."""

from __future__ import annotations

from streaming.log import Record
from streaming.metrics import Metrics, parse
from trainers.trainer import Trainer, TrainerConfig
from trainers.trainer_metrics import TrainerMetrics
from trainers.versions import announcement


def test_a_version_is_published_when_it_is_announced(
    small: TrainerConfig, stream: list[Record]
) -> None:
    metrics = Metrics()
    told, trainer = TrainerMetrics(metrics), Trainer(small, "a")

    def figures(name: str) -> dict[str, float]:
        exposed = parse(metrics.exposition()[0].decode())
        return {"/".join(one.labels.values()): one.value for one in exposed if one.name == name}

    def turn(record: Record, now_us: int, *, announces: bool) -> None:
        trainer.step(record)
        versions = trainer.on_time(now_us)
        appends = [announcement(version.info, 1) for version in versions] if announces else []
        told.told(trainer, [record], versions, now_us / 1e6, appends)

    turn(stream[0], 1_000_000, announces=False)  # as where the store is away
    assert figures("headrace_versions_published_total") == {}
    assert figures("headrace_version_published_timestamp_seconds") == {"": 0.0}
    assert figures("headrace_version_bytes_count") == {"snapshot": 1.0}
    turn(stream[1], 2_000_000, announces=True)
    assert figures("headrace_versions_published_total") == {"delta": 1.0}
    assert figures("headrace_version_published_timestamp_seconds") == {"": 2.0}
    assert figures("headrace_trainer_steps_total") == {"": 2.0}
