"""What a process that answers tells Prometheus of its answers, and of what they are made of."""

from __future__ import annotations

from streaming.metrics import Metrics

_LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_PART_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
_BEHIND_S = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 600.0)


class ServingMetrics:
    """The figures of serving among `process`, all that this process tells.

    Answers take few milliseconds: what has no labels is held here as the one figure that it is.
    """

    def __init__(self, process: Metrics) -> None:
        self.process = process
        self.registry = process.registry
        self._declare_requests(process)
        self._declare_answers(process)
        self._declare_versions(process)
        self._declare_features(process)

    def _declare_requests(self, process: Metrics) -> None:
        self.requests = process.histogram(
            "headrace_request_seconds",
            "Time to answer an HTTP request.",
            _LATENCY_S,
            ["route", "status"],
            most=256,
        )
        self.events = process.counter(
            "headrace_http_events_total",
            "Events posted to this process, by what became of them.",
            ["outcome"],
        )
        self.shed = process.counter(
            "headrace_requests_shed_total",
            "Requests that were told to come again because there was too much to do.",
            ["gate"],
        )
        self.waiting = process.gauge(
            "headrace_requests_waiting", "Requests that wait for their turn.", ["gate"]
        )

    def _declare_answers(self, process: Metrics) -> None:
        self.answers = process.counter(
            "headrace_answer_items_total", "Items in answers, by who proposed them.", ["source"]
        )
        self.candidates = process.counter(
            "headrace_candidates_total",
            "Candidates for answers, by who proposed them; one may be proposed by several.",
            ["source"],
        )
        self.parts = process.histogram(
            "headrace_answer_part_seconds",
            "Time that a part of an answer took, by what became of it.",
            _PART_S,
            ["part", "outcome"],
            most=256,
        )
        self.degraded = process.counter(
            "headrace_answers_degraded_total",
            "Answers that do without a part that was late or broken.",
            ["part"],
        )
        self.arms = process.histogram(
            "headrace_arm_answer_seconds",
            "Time to make an answer to a user, by the arm that he is in.",
            _LATENCY_S,
            ["experiment", "arm"],
        )
        self.impressions = process.counter(
            "headrace_impressions_total",
            "Impressions of answers, by whether they were logged or lost.",
            ["outcome"],
        )

    def _declare_versions(self, process: Metrics) -> None:
        self.versions = process.counter(
            "headrace_versions_applied_total", "Model versions applied by this replica."
        ).labels()
        self.versions_refused = process.counter(
            "headrace_versions_refused_total",
            "Model versions that this replica could not take, or that would answer with nonsense.",
        ).labels()
        self.apply_seconds = process.histogram(
            "headrace_version_apply_seconds",
            "Time to read a version and lay it over the replica.",
            _LATENCY_S,
        ).labels()
        self.version_number = process.gauge(
            "headrace_version_number", "Number of the version being served."
        ).labels()
        self.served_at = process.gauge(
            "headrace_version_served_timestamp_seconds",
            "When the version being served was applied, as a Unix time.",
        ).labels()
        self.replica_behind = process.gauge(
            "headrace_replica_behind_seconds",
            "How long this replica has been waiting for a version that it could serve; 0 if it"
            " serves the newest.",
        ).labels()
        self.watermark = process.gauge(
            "headrace_version_watermark_seconds",
            "Newest event time that the served version has learnt, as a Unix time.",
        ).labels()
        self.quality = process.gauge(
            "headrace_model_figure", "Test-then-train figures of the served version.", ["figure"]
        )
        self.served = process.freshness("served")
        self.answered = process.freshness("answered")

    def _declare_features(self, process: Metrics) -> None:
        self.skew = process.counter(
            "headrace_feature_skew_total",
            "Features that serving read for an answer, by how training got them: same, behind"
            " (serving lacked the newest entries) or different.",
            ["view", "feature", "outcome"],
            most=256,
        )
        self.behind = process.histogram(
            "headrace_feature_behind_seconds",
            "Of answers whose features were behind: from the oldest entry that they lacked to the"
            " reading; 0 if it came after.",
            _BEHIND_S,
            ["view"],
        )
        self.refused = process.gauge(
            "headrace_catalog_values_refused",
            "Values of attributes that the catalog refused, for their type or beyond its fields.",
            ["entity"],
        )

    def proposed(self, source: str, candidates: int) -> None:
        """Counts what a source proposes for an answer."""
        self.candidates.labels(source).inc(candidates)

    def told(self, part: str, outcome: str, seconds: float) -> None:
        """Takes down what became of a part of an answer."""
        self.parts.labels(part, outcome).observe(seconds)
        if outcome != "done":
            self.degraded.labels(part).inc()

    def exposition(self) -> tuple[bytes, str]:
        """Everything that this process tells: see `Metrics.exposition`."""
        return self.process.exposition()
