"""What a trainer tells of what it has learnt, and of the versions that it hands out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streaming.log import VERSIONS, Append, Record
from streaming.loop_metrics import observe_age, some
from streaming.metrics import Metrics
from trainers.trainer import Trainer
from trainers.versions import Version, VersionInfo, read_announcement

_EVERY_S = 1.0  # at most, for what takes time to tell
_BYTES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10)
_ROWS = (10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
_MOST_FIGURES = 256


class TrainerMetrics:
    """The figures of the trainer of this process."""

    def __init__(self, metrics: Metrics) -> None:
        self._told_s = self._figures_s = 0.0
        self._trained = metrics.freshness("trained")
        self._published = metrics.freshness("published")
        self._samples = metrics.totals(
            "headrace_trainer_samples_total", "Samples learnt, by all ranks of a group."
        )
        self._steps = metrics.totals("headrace_trainer_steps_total", "Micro-batches learnt.")
        self._refused = metrics.totals(
            "headrace_trainer_refused_total",
            "Micro-batches that were not learnt, for a number of them or a gradient is not finite.",
        )
        self._loss = metrics.gauge(
            "headrace_trainer_loss", "Loss of a sample, a mean of the last steps.", ["task"]
        )
        self._norm = metrics.gauge(
            "headrace_trainer_gradient_norm", "Norm of the dense gradients of the last step."
        ).labels()
        self._watermark = metrics.gauge(
            "headrace_trainer_watermark_timestamp_seconds",
            "Newest event time that was learnt, as a Unix time.",
        ).labels()
        self._figures = metrics.gauge(
            "headrace_trainer_figure",
            "Test-then-train figures of the newest version, served or held back.",
            ["figure"],
            most=_MOST_FIGURES,
        )
        self._seconds = metrics.totals(
            "headrace_trainer_step_seconds_total", "Where the time of steps went.", ["part"]
        )
        self._rows = metrics.gauge("headrace_table_rows", "Rows of a table.", ["table"])
        self._admitted = metrics.totals(
            "headrace_table_admitted_rows_total",
            "Rows that a table has given to ids since its model began.",
            ["table"],
        )
        self._evicted = metrics.totals(
            "headrace_table_evicted_rows_total",
            "Rows that a table has taken from ids since its model began.",
            ["table"],
        )
        self._error = metrics.gauge(
            "headrace_frequency_error",
            "How far the estimated frequencies of popular items are from counted ones, a mean of"
            " relative differences.",
        ).labels()
        self._versions = _Versions(metrics)

    def told(
        self,
        trainer: Trainer,
        records: Sequence[Record],
        outputs: Sequence[Any],
        now_s: float,
        appends: Sequence[Append] = (),
    ) -> None:
        """Tells of a turn that is committed, in the thread of the loop.

        A version is published when it is announced: where the store is away it waits till then.
        """
        for record in some(records):
            observe_age(self._trained, record.logged_us, now_s)
        versions = [one for one in outputs if isinstance(one, Version)]
        if versions:
            self._versions.made(versions, trainer)
        if announced := [read_announcement(one) for one in appends if one.topic == VERSIONS]:
            learnt_us = announced[0].learnt_logged_us
            if learnt_us is not None:
                observe_age(self._published, learnt_us, now_s)
            self._versions.published(announced, now_s)
        if now_s - self._told_s >= _EVERY_S:
            self._told_s = now_s
            self._tell(trainer)
        if versions and now_s - self._figures_s >= _EVERY_S:
            self._figures_s = now_s
            for figure, value in versions[0].info.metrics.items():
                self._figures.labels(figure).set(value)

    def _tell(self, trainer: Trainer) -> None:
        self._samples.set(trainer.samples)
        self._steps.set(trainer.steps)
        self._refused.set(trainer.refused)
        self._loss.labels("retrieval").set(trainer.loss)
        self._norm.set(trainer.gradient_norm)
        if trainer.watermark_us is not None:
            self._watermark.set(trainer.watermark_us / 1e6)
        for part, seconds in trainer.seconds.items():
            self._seconds.set(seconds, part)
        for name, table in trainer.tables.items():
            self._rows.labels(name).set(len(table))
            self._admitted.set(len(table) + table.evicted, name)
            self._evicted.set(table.evicted, name)
        if (error := trainer.family.gauges().get("frequency_error")) is not None:
            self._error.set(error)


class _Versions:
    def __init__(self, metrics: Metrics) -> None:
        self._published = metrics.counter(
            "headrace_versions_published_total", "Versions that were published.", ["kind"]
        )
        self._held = metrics.counter(
            "headrace_versions_held_total",
            "Versions that the gate holds back, by the check that they fail.",
            ["check"],
        )
        self._suspect = metrics.counter(
            "headrace_versions_suspect_total",
            "Versions that the gate would hold back, were it not in shadow mode.",
            ["check"],
        )
        self._bytes = metrics.histogram(
            "headrace_version_bytes", "Size of a version in memory.", _BYTES, ["kind"]
        )
        self._rows = metrics.histogram(
            "headrace_version_rows", "Rows of a version.", _ROWS, ["kind"]
        )
        self._at = metrics.gauge(
            "headrace_version_published_timestamp_seconds",
            "When the newest version was published, as a Unix time.",
        ).labels()
        self._holds = metrics.gauge(
            "headrace_gate_holds", "Whether the newest version is held back: 1 or 0."
        ).labels()

    def made(self, versions: Sequence[Version], trainer: Trainer) -> None:
        info = versions[0].info
        for version in versions:
            kind, shards = _kind(version.info), version.shards
            self._bytes.labels(kind).observe(sum(t.nbytes for t in shards.values()))
            rows = sum(t.num_rows for name, t in shards.items() if name != "dense")
            self._rows.labels(kind).observe(rows)
        self._holds.set(info.held is not None)
        if info.held is not None:
            self._held.labels(trainer.failed_check).inc()
        elif info.suspect is not None:
            self._suspect.labels(trainer.failed_check).inc()

    def published(self, announced: Sequence[VersionInfo], now_s: float) -> None:
        for info in announced:
            self._published.labels(_kind(info)).inc()
        self._at.set(now_s)


def _kind(info: VersionInfo) -> str:
    return "snapshot" if info.base is None else "delta"
