"""What the serving process tells Prometheus."""

from __future__ import annotations

from functools import cache

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_PART_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
_BEHIND_S = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0)
_FRESHNESS_S = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 60.0)


class ServingMetrics:
    """Declared once; a registry of its own, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "headrace_request_seconds",
            "Time to answer an HTTP request.",
            ["route", "status"],
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.events = Counter(
            "headrace_http_events_total",
            "Events posted to this process, by what became of them.",
            ["outcome"],
            registry=self.registry,
        )
        self.answers = Counter(
            "headrace_answer_items_total",
            "Items in answers, by who proposed them.",
            ["source"],
            registry=self.registry,
        )
        self.versions = Counter(
            "headrace_versions_applied_total",
            "Model versions applied by this replica.",
            registry=self.registry,
        )
        self.versions_refused = Counter(
            "headrace_versions_refused_total",
            "Model versions that this replica could not take, or that would answer with nonsense.",
            registry=self.registry,
        )
        self.apply_seconds = Histogram(
            "headrace_version_apply_seconds",
            "Time to read a version and lay it over the replica.",
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.freshness = Histogram(
            "headrace_logged_to_served_seconds",
            "From an event reaching the log to the version that learnt it answering requests.",
            buckets=_FRESHNESS_S,
            registry=self.registry,
        )
        self.version_number = Gauge(
            "headrace_version_number", "Number of the version being served.", registry=self.registry
        )
        self.watermark = Gauge(
            "headrace_version_watermark_seconds",
            "Newest event time that the served version has learnt, as a Unix time.",
            registry=self.registry,
        )
        self.quality = Gauge(
            "headrace_model_figure",
            "Test-then-train figures of the served version.",
            ["figure"],
            registry=self.registry,
        )
        self.lag = Gauge(
            "headrace_group_lag_records",
            "Records that a consumer group has still to take.",
            ["group"],
            registry=self.registry,
        )
        self.features_age = Gauge(
            "headrace_features_age_seconds",
            "From an event reaching the log to the feature store answering with it, lately.",
            ["view", "quantile"],
            registry=self.registry,
        )
        self.skew = Counter(
            "headrace_feature_skew_total",
            "Features that serving read for an answer, by how training got them: same, behind"
            " (serving lacked the newest entries) or different.",
            ["view", "feature", "outcome"],
            registry=self.registry,
        )
        self.behind = Histogram(
            "headrace_feature_behind_seconds",
            "Of answers whose features were behind: from the oldest entry that they lacked to the"
            " reading; 0 if it came after.",
            ["view"],
            buckets=_BEHIND_S,
            registry=self.registry,
        )
        self.refused = Gauge(
            "headrace_catalog_values_refused",
            "Values of attributes that the catalog refused, for their type or beyond its fields.",
            ["entity"],
            registry=self.registry,
        )

        self.shed = Counter(
            "headrace_requests_shed_total",
            "Requests that were told to come again because there was too much to do.",
            ["gate"],
            registry=self.registry,
        )
        self.waiting = Gauge(
            "headrace_requests_waiting",
            "Requests that wait for their turn.",
            ["gate"],
            registry=self.registry,
        )

        self.parts = Histogram(
            "headrace_answer_part_seconds",
            "Time that a part of an answer took, by what became of it.",
            ["part", "outcome"],
            buckets=_PART_S,
            registry=self.registry,
        )
        self.arms = Histogram(
            "headrace_arm_answer_seconds",
            "Time to make an answer to a user, by the arm that he is in.",
            ["experiment", "arm"],
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.arm_known = Counter(
            "headrace_arm_label_known_total",
            "Impressions of answers whose label is known, by the arm of their user.",
            ["experiment", "arm", "label"],
            registry=self.registry,
        )
        self.arm_total = Counter(
            "headrace_arm_label_total",
            "What these labels add up to: over the number of the known ones, the rate.",
            ["experiment", "arm", "label"],
            registry=self.registry,
        )
        self.degraded = Counter(
            "headrace_answers_degraded_total",
            "Answers that do without a part that was late or broken.",
            ["part"],
            registry=self.registry,
        )
        self.impressions = Counter(
            "headrace_impressions_total",
            "Impressions of answers, by whether they were logged or lost.",
            ["outcome"],
            registry=self.registry,
        )

        # To look a labelled figure up takes longer than to count.
        self._part = cache(self.parts.labels)
        self._proposed = cache(self.answers.labels)

    def proposed(self, source: str) -> None:
        """Counts an item of an answer."""
        self._proposed(source).inc()

    def told(self, part: str, outcome: str, seconds: float) -> None:
        """Takes down what became of a part of an answer."""
        self._part(part, outcome).observe(seconds)
        if outcome != "done":
            self.degraded.labels(part).inc()

    def exposition(self) -> tuple[bytes, str]:
        """Everything in the text form of Prometheus, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
