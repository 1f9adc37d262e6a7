"""What the monitor shows: each figure with its title, its unit, its floor, and how it comes about.

Those without labels are kept for an hour; of the others, which are many, only what stands now.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from infra.monitor.expressions import Age, Expression, Increase, Last, Quantile, Rate

Floor = Literal["streaming", "features", "trainers", "serving"]
HOPS = ("logged", "stored", "joined", "trained", "published", "served", "answered")
LATELY_S = 10.0  # what is shown as a rate
RECENTLY_S = 60.0  # what is shown as a quantile
ANSWERS = {"route": "/v1/recommend", "status": "200"}


@dataclass(frozen=True)
class Series:
    """`unit` is `s`, `ms`, `1/s`, `bytes`, `records`, `ratio`, `cores`, or empty for a plain
    number; times `factor` what the expression says is in it.
    """

    name: str
    title: str
    unit: str
    floor: Floor
    expression: Expression
    factor: float = 1.0

    @property
    def is_kept(self) -> bool:
        """Whether there is an hour of it."""
        return not self.expression.labels


def _rate(name: str, by: tuple[str, ...] = (), /, **where: str) -> Rate:
    return Rate(f"headrace_{name}", by, where, over_s=LATELY_S)


def _last(name: str, by: tuple[str, ...] = (), /, **where: str) -> Last:
    return Last(f"headrace_{name}", by, where)


def _highest(name: str, by: tuple[str, ...] = (), /, **where: str) -> Last:
    return Last(f"headrace_{name}", by, where, "max")


def _age(name: str, by: tuple[str, ...] = (), /, **where: str) -> Age:
    return Age(f"headrace_{name}", by, where)


def _quantile(q: float, name: str, by: tuple[str, ...] = (), /, **where: str) -> Quantile:
    return Quantile(f"headrace_{name}", by, where, RECENTLY_S, q)


def _mean(name: str, by: tuple[str, ...] = (), /, **where: str) -> Expression:
    return Rate(f"headrace_{name}_sum", by, where, RECENTLY_S) / Rate(
        f"headrace_{name}_count", by, where, RECENTLY_S
    )


def _streaming() -> Iterator[Series]:
    def one(name: str, title: str, unit: str, expression: Expression) -> Series:
        return Series(name, title, unit, "streaming", expression)

    yield one("events_per_s", "Events taken", "1/s", _rate("events_total", outcome="taken"))
    yield one("rejected_per_s", "Events rejected", "1/s", _rate("events_total", outcome="rejected"))
    yield one("repeated_per_s", "Events that came twice", "1/s",
              _rate("events_total", outcome="repeated"))  # fmt: skip
    for group, what in (("joiner", "the joiner"), ("aggregator", "the aggregator"),
                        ("catalog", "the catalog"), ("trainer", "the trainer"),
                        ("archive", "the archiver")):  # fmt: skip
        yield one(f"lag_{group}", f"Waits for {what}", "records",
                  _last("group_lag_records", group=group))  # fmt: skip
    for hop in HOPS:
        for percent in (50, 99):
            floor: Floor = _FLOORS[hop]
            yield Series(
                f"freshness_{hop}_p{percent}",
                f"Event {hop}, {'half' if percent == 50 else '99 %'} within",
                "s", floor, _quantile(percent / 100, "freshness_seconds", hop=hop),
            )  # fmt: skip
    yield one("joined_per_s", "Impressions that met their label", "1/s",
              _rate("joiner_impressions_total", outcome="~positives|negatives"))  # fmt: skip
    yield one("impressions_open", "Impressions that wait for labels", "",
              _last("joiner_impressions_open"))  # fmt: skip
    yield one("late_per_s", "Events that came too late", "1/s", _rate("joiner_late_events_total"))
    yield one("joiner_behind_s", "The joiner's watermark is behind", "s",
              _age("joiner_watermark_timestamp_seconds"))  # fmt: skip
    yield one("dead_letters", "Dead letters that wait", "records", _last("dead_letters_waiting"))
    yield one("end", "Records in partition", "records",
              _highest("partition_end_records", ("topic", "partition")))  # fmt: skip
    yield one("lag", "Records that wait", "records",
              _highest("group_lag_records", ("group", "topic", "partition")))  # fmt: skip
    yield one("rejected", "Rejected lately, for", "1/s",
              _rate("events_rejected_total", ("reason",)))  # fmt: skip
    yield one("impressions", "Impressions lately,", "1/s",
              _rate("joiner_impressions_total", ("outcome",)))  # fmt: skip
    yield one("window", "Wait for a label", "s", _highest("joiner_window_seconds", ("label",)))
    yield one("loop_part", "Of a loop's time, for", "ratio",
              _rate("loop_seconds_total", ("group", "part")))  # fmt: skip


def _features() -> Iterator[Series]:
    def one(name: str, title: str, unit: str, expression: Expression) -> Series:
        return Series(name, title, unit, "features", expression)

    yield one("feature_rows_per_s", "Rows stored", "1/s", _rate("features_rows_total"))
    yield one("features_push_s", "A push into the store takes", "s", _mean("features_push_seconds"))
    yield one("features_age_p99", "From the log to the store, 99 % within", "s",
              _quantile(0.99, "features_age_seconds"))  # fmt: skip
    yield one("features_compared_per_s", "Features compared with training's", "1/s",
              _rate("feature_skew_total"))  # fmt: skip
    yield one("features_skewed", "Features that differ from training's", "ratio",
              _rate("feature_skew_total", outcome="different")
              / _rate("feature_skew_total"))  # fmt: skip
    yield one("rows", "Rows stored of", "1/s", _rate("features_rows_total", ("view",)))
    yield one("features_age", "From the log to the store, 99 % within, of", "s",
              _quantile(0.99, "features_age_seconds", ("view",)))  # fmt: skip
    yield one("refused_values", "Values that the catalog refused of", "",
              _last("catalog_values_refused", ("entity",)))  # fmt: skip
    yield one("psi", "Drift (PSI) of", "", _highest("drift_psi", ("feature",)))
    yield one("new_users_per_min", "New users a minute", "",
              _last("new_ids_per_minute", kind="user"))  # fmt: skip
    yield one("new_items_per_min", "New items a minute", "",
              _last("new_ids_per_minute", kind="item"))  # fmt: skip


def _trainers() -> Iterator[Series]:
    def one(name: str, title: str, unit: str, expression: Expression) -> Series:
        return Series(name, title, unit, "trainers", expression)

    # Of [trainer]'s model, whoever trains it: others may be trained beside it.
    own = {"process": "~trainer|daily"}

    def figure(name: str) -> Last:
        return _highest("trainer_figure", figure=name, **own)

    yield one("samples_per_s", "Samples learnt", "1/s", _rate("trainer_samples_total"))
    yield one("steps_per_s", "Steps made", "1/s", _rate("trainer_steps_total"))
    yield one("refused_batches", "Micro-batches that were not learnt", "",
              Increase("headrace_trainer_refused_total", over_s=3_600))  # fmt: skip
    yield one("recall", "Recall@50 lately, test-then-train", "ratio", figure("recent_recall@50"))
    yield one("recall_popularity", "Recall@50 of what is popular", "ratio",
              figure("recent_popularity_recall@50"))  # fmt: skip
    yield one("loss", "Loss", "", _highest("trainer_loss", **own))
    yield one("gradient_norm", "Norm of the gradient", "",
              _highest("trainer_gradient_norm", **own))  # fmt: skip
    yield one("trainer_behind_s", "The trainer's watermark is behind", "s",
              _age("trainer_watermark_timestamp_seconds"))  # fmt: skip
    yield one("table_rows", "Rows of all tables", "", _last("table_rows"))
    yield one("admitted_per_s", "Rows admitted", "1/s", _rate("table_admitted_rows_total"))
    yield one("evicted_per_s", "Rows evicted", "1/s", _rate("table_evicted_rows_total"))
    yield one("frequency_error", "Error of the frequencies", "ratio", _highest("frequency_error"))
    yield one("published_per_s", "Versions published", "1/s", _rate("versions_published_total"))
    yield one("delta_bytes", "Size of a delta", "bytes", _mean("version_bytes", kind="delta"))
    yield one("snapshot_bytes", "Size of a snapshot", "bytes",
              _mean("version_bytes", kind="snapshot"))  # fmt: skip
    yield one("gate_holds", "The gate holds versions back", "", _highest("gate_holds"))
    yield one("held", "Versions held back lately, for", "1/s",
              _rate("versions_held_total", ("check",)))  # fmt: skip
    yield one("task_loss", "Loss of", "", _highest("trainer_loss", ("task",), **own))
    yield one("recall_of", "Recall@50 lately, by who trains,", "ratio",
              _highest("trainer_figure", ("process",), figure="recent_recall@50"))  # fmt: skip
    yield one("step_part", "Of the trainer's time, for", "ratio",
              _rate("trainer_step_seconds_total", ("part",)))  # fmt: skip
    yield one("table", "Rows of table", "", _last("table_rows", ("table",)))
    yield one("figure", "Test-then-train,", "", _highest("trainer_figure", ("figure",), **own))


def _serving() -> Iterator[Series]:
    def one(name: str, title: str, unit: str, expression: Expression) -> Series:
        return Series(name, title, unit, "serving", expression)

    yield one("answers_per_s", "Answers", "1/s", _rate("request_seconds_count", **ANSWERS))
    for percent in (50, 99):
        yield Series(
            f"answer_p{percent}_ms",
            f"{'Half' if percent == 50 else '99 %'} of the answers within",
            "ms", "serving", _quantile(percent / 100, "request_seconds", **ANSWERS), 1e3,
        )  # fmt: skip
    yield one("degraded_per_s", "Answers without a part", "1/s", _rate("answers_degraded_total"))
    yield one("errors_per_s", "Requests that failed", "1/s",
              _rate("request_seconds_count", status="~5.."))  # fmt: skip
    yield one("shed_per_s", "Requests told to come again", "1/s", _rate("requests_shed_total"))
    yield one("requests_per_s", "Requests of any kind", "1/s", _rate("request_seconds_count"))
    yield one("version_age_s", "The served version was applied", "s",
              _age("version_served_timestamp_seconds"))  # fmt: skip
    yield one("replica_behind_s", "The slowest replica is behind", "s",
              _highest("replica_behind_seconds"))  # fmt: skip
    yield one("applied_per_s", "Versions applied", "1/s", _rate("versions_applied_total"))
    yield one("ctr", "Click rate of what was served", "ratio",
              _highest("served_figure", figure="ctr", label="click", slice="all",
                       bound="value"))  # fmt: skip
    yield one("live_recall", "Recall@50 of what is served", "ratio",
              _highest("progressive_figure", figure="recall@50", of="live"))  # fmt: skip
    yield one("live_popularity", "Recall@50 of what is popular, on the same", "ratio",
              _highest("progressive_figure", figure="recall@50", of="popularity"))  # fmt: skip
    yield one("cpu_cores", "Cores that all processes use", "cores",
              Rate("process_cpu_seconds_total", over_s=LATELY_S))  # fmt: skip
    yield one("memory_bytes", "Memory of all processes", "bytes",
              Last("process_resident_memory_bytes"))  # fmt: skip
    yield one("candidates", "Candidates of", "1/s", _rate("candidates_total", ("source",)))
    yield one("answer_part", "99 % within, part", "s",
              _quantile(0.99, "answer_part_seconds", ("part",)))  # fmt: skip
    yield one("degraded", "Answers lately without", "1/s",
              _rate("answers_degraded_total", ("part",)))  # fmt: skip
    yield one("behind", "Behind, replica at", "s",
              _highest("replica_behind_seconds", ("process", "instance")))  # fmt: skip
    yield one("label_rate", "Rate of label", "ratio", _highest("label_rate", ("label",)))


_FLOORS: dict[str, Floor] = {
    "logged": "streaming",
    "stored": "features",
    "joined": "streaming",
    "trained": "trainers",
    "published": "trainers",
    "served": "serving",
    "answered": "serving",
}
SERIES: tuple[Series, ...] = (*_streaming(), *_features(), *_trainers(), *_serving())
