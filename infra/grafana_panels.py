"""What the dashboards of Grafana show: queries over the figures that every process tells.

`$__rate_interval` is Grafana's own: a range that no scrape falls out of. What is rightly empty in a
healthy system is 0 then, so that an empty panel always means that something is missing.
"""

from __future__ import annotations

from infra.grafana import Dashboard, Panel

_RANGE = "[$__rate_interval]"
_ASKED = 'route="/v1/recommend"'


def _rate(figure: str, by: str = "", only: str = "") -> str:
    """What is added to a counter in a second, of all processes, by some labels."""
    return _summed("sum", f"rate({_selected(figure, only)}{_RANGE})", by)


def _quantile(q: float, figure: str, by: str = "", only: str = "") -> str:
    """A quantile of a histogram of all processes, by some labels."""
    buckets = f"rate({_selected(f'{figure}_bucket', only)}{_RANGE})"
    return f"histogram_quantile({q}, {_summed('sum', buckets, f'{by}, le' if by else 'le')})"


def _most(figure: str, by: str = "", only: str = "") -> str:
    """The largest of all processes, by some labels: what only one of them tells, say."""
    return _summed("max", _selected(figure, only), by)


def _summed(how: str, query: str, by: str) -> str:
    return f"{how} by ({by}) ({query})" if by else f"{how}({query})"


def _selected(figure: str, only: str) -> str:
    return f"{figure}{{{only}}}" if only else figure


def _rare(query: str) -> str:
    """What is rightly empty in a healthy system, and then 0."""
    return f"{query} or on() vector(0)"


def _since(figure: str, by: str = "") -> str:
    return f"time() - {_most(figure, by)}"


_HOPS = "logged, stored, joined, trained, published, served, answered"
_SERVED = 'headrace_served_figure{slice="all",figure="%s",bound="%s"}'


def _bounded(figure: str) -> dict[str, str]:
    return {
        "{{label}}": _SERVED % (figure, "value"),
        "{{label}}, low": _SERVED % (figure, "low"),
        "{{label}}, high": _SERVED % (figure, "high"),
    }


OVERVIEW = Dashboard(
    "overview",
    "overview",
    {
        "Fresh": [
            Panel(
                "Freshness, p99",
                "From an event reaching the log until a version that learnt it answers. The SLO is"
                " one second.",
                "s",
                {"served": _quantile(0.99, "headrace_freshness_seconds", only='hop="served"')},
                kind="stat",
                colours={0.5: "orange", 1.0: "red"},
            ),
            Panel(
                "Age of the served version",
                "How long ago the version that answers was applied, in the replica that is furthest"
                " behind. It grows while there is nothing to learn.",
                "s",
                {"age": "max(time() - headrace_version_served_timestamp_seconds)"},
                kind="stat",
            ),
            Panel(
                "Alerts",
                "What the built-in monitor finds wrong now. Each has a page in docs/runbooks.",
                "none",
                {"active": _rare("sum(headrace_alert_active)")},
                kind="stat",
                colours={1: "red"},
            ),
            Panel(
                "Freshness by hop, p99",
                f"Where time goes on the way from event to answer: {_HOPS}.",
                "s",
                {"{{hop}}": _quantile(0.99, "headrace_freshness_seconds", "hop")},
                width=16,
                limit=1.0,
            ),
            Panel(
                "The gate",
                "Whether the newest version is held back from users.",
                "none",
                {"gate": _most("headrace_gate_holds")},
                kind="stat",
                words={0: "open", 1: "holds"},
                colours={1: "red"},
            ),
        ],
        "Traffic": [
            Panel(
                "Events",
                "Events that the joiner took, by what became of them.",
                "cps",
                {"{{outcome}}": _rate("headrace_events_total", "outcome")},
            ),
            Panel(
                "Samples learnt",
                "Samples in the steps of the trainer.",
                "cps",
                {"samples": _rate("headrace_trainer_samples_total")},
            ),
            Panel(
                "Answers",
                "Requests for recommendations, by status.",
                "reqps",
                {"{{status}}": _rate("headrace_request_seconds_count", "status", _ASKED)},
            ),
            Panel(
                "Time to answer",
                "Of requests for recommendations, in the service.",
                "s",
                {
                    "p50": _quantile(0.5, "headrace_request_seconds", only=_ASKED),
                    "p99": _quantile(0.99, "headrace_request_seconds", only=_ASKED),
                },
            ),
            Panel(
                "Processes",
                "Those that Prometheus reaches. Each trainer rank and each replica is one.",
                "none",
                {"{{process}}": 'sum by (process) (up{process!=""})'},
            ),
            Panel(
                "Processor",
                "Cores that each process keeps busy.",
                "none",
                {"{{process}} {{rank}}": _rate("process_cpu_seconds_total", "process, rank")},
            ),
        ],
        "Right": [
            Panel(
                "Recall while learning",
                "Test-then-train: how often the next item is among 50 of all, found before it is"
                " learnt. Popularity is what must be beaten.",
                "percentunit",
                {
                    "{{process}} {{figure}}": _most(
                        "headrace_trainer_figure",
                        "process, figure",
                        'figure=~"recent_(popularity_)?recall@50"',
                    )
                },
            ),
            Panel(
                "Click-through of what was served",
                "Of impressions whose label is known, with its confidence bounds.",
                "percentunit",
                _bounded("ctr"),
            ),
            Panel(
                "Memory",
                "Resident memory of each process.",
                "bytes",
                {
                    "{{process}} {{rank}}": _most(
                        "process_resident_memory_bytes", "process, rank", 'process!=""'
                    )
                },
            ),
        ],
    },
)

STREAMING = Dashboard(
    "streaming",
    "streaming",
    {
        "The log": [
            Panel(
                "Lag by group",
                "Records that a consumer has still to take.",
                "none",
                {"{{group}}": "sum by (group) (headrace_group_lag_records)"},
            ),
            Panel(
                "Lag by partition",
                "The same, of each partition: one that stays while others fall is stuck.",
                "none",
                {"{{group}} {{topic}}/{{partition}}": "headrace_group_lag_records"},
            ),
            Panel(
                "Written by partition",
                "Records that reach each partition. One that gets none while others do is silent.",
                "cps",
                {
                    "{{topic}}/{{partition}}": _rate(
                        "headrace_partition_end_records", "topic, partition"
                    )
                },
            ),
            Panel(
                "Rejected events",
                "By reason. They wait among the dead letters.",
                "cps",
                {"{{reason}}": _rare(_rate("headrace_events_rejected_total", "reason"))},
            ),
            Panel(
                "Dead letters",
                "Events that wait to be looked at: `headrace dead-letters list`.",
                "none",
                {"waiting": _most("headrace_dead_letters_waiting")},
                kind="stat",
            ),
            Panel(
                "Events over HTTP",
                "What was posted, by what became of it.",
                "cps",
                {"{{outcome}}": _rare(_rate("headrace_http_events_total", "outcome"))},
            ),
        ],
        "The loops": [
            Panel(
                "Records taken",
                "By each consumer's loop.",
                "cps",
                {"{{group}}": _rate("headrace_loop_records_total", "group")},
            ),
            Panel(
                "Where a loop's time goes",
                "Seconds of each second. Of `read`, most is waiting for records.",
                "percentunit",
                {"{{group}} {{part}}": _rate("headrace_loop_seconds_total", "group, part")},
            ),
            Panel(
                "Since the last turn",
                "A loop that is well turns many times a second, also with nothing to do.",
                "s",
                {"{{group}}": _since("headrace_loop_last_turn_timestamp_seconds", "group")},
                limit=10,
            ),
        ],
        "The joiner": [
            Panel(
                "Open impressions",
                "Shown items that wait for what becomes of them.",
                "none",
                {"open": "sum(headrace_joiner_impressions_open)"},
            ),
            Panel(
                "What became of impressions",
                "Unmatched are labels of impressions that nobody knows.",
                "cps",
                {"{{outcome}}": _rate("headrace_joiner_impressions_total", "outcome")},
            ),
            Panel(
                "Watermark",
                "How far event time is behind the clock. A replay of old events is as far behind as"
                " they are old.",
                "s",
                {"behind": _since("headrace_joiner_watermark_timestamp_seconds")},
            ),
            Panel(
                "Late events",
                "Events that came after their window was closed.",
                "cps",
                {"late": _rare(_rate("headrace_joiner_late_events_total"))},
            ),
            Panel(
                "Windows",
                "How long an impression waits for each label.",
                "s",
                {"{{label}}": _most("headrace_joiner_window_seconds", "label")},
                kind="bargauge",
            ),
            Panel(
                "From event to sample, p99",
                "Of events that became samples just now, from the log on.",
                "s",
                {"joined": _quantile(0.99, "headrace_freshness_seconds", only='hop="joined"')},
                limit=1.0,
            ),
        ],
    },
)

FEATURES = Dashboard(
    "features",
    "features",
    {
        "Fresh": [
            Panel(
                "From the log to the store, p50",
                "Until the online store answers with an event, for each view.",
                "s",
                {"{{view}}": _quantile(0.5, "headrace_features_age_seconds", "view")},
            ),
            Panel(
                "From the log to the store, p99",
                "Until the online store answers with an event, for each view.",
                "s",
                {"{{view}}": _quantile(0.99, "headrace_features_age_seconds", "view")},
                limit=1.0,
            ),
            Panel(
                "Writing to the store",
                "Time of one push of rows.",
                "s",
                {
                    "p50": _quantile(0.5, "headrace_features_push_seconds"),
                    "p99": _quantile(0.99, "headrace_features_push_seconds"),
                },
            ),
            Panel(
                "Rows written",
                "Rows of features, for each view.",
                "cps",
                {"{{view}}": _rate("headrace_features_rows_total", "view")},
            ),
        ],
        "Right": [
            Panel(
                "Skew",
                "Features as serving read them for an answer, held against what training got:"
                " same, behind (serving lacked the newest) or different, which is a defect.",
                "cps",
                {"{{outcome}}": _rare(_rate("headrace_feature_skew_total", "outcome"))},
            ),
            Panel(
                "Different features",
                "By feature.",
                "cps",
                {
                    "{{view}} {{feature}}": _rare(
                        _rate("headrace_feature_skew_total", "view, feature", 'outcome="different"')
                    )
                },
            ),
            Panel(
                "Drift",
                "Population stability index of each feature against its reference; above 0.25 it is"
                " another population.",
                "none",
                {"{{feature}}": _rare(_most("headrace_drift_psi", "feature"))},
                limit=0.25,
            ),
            Panel(
                "New ids",
                "Users and items that were never seen before.",
                "none",
                {"{{kind}} a minute": _rare(_most("headrace_new_ids_per_minute", "kind"))},
            ),
            Panel(
                "Label rate",
                "Of samples, how many have a positive label.",
                "percentunit",
                {"{{label}}": _rare(_most("headrace_label_rate", "label"))},
            ),
            Panel(
                "Refused values",
                "Values of attributes that the catalog refused: of a wrong type, or too many.",
                "none",
                {"{{entity}}": _rare(_most("headrace_catalog_values_refused", "entity"))},
            ),
        ],
    },
)

TRAINERS = Dashboard(
    "trainers",
    "trainers",
    {
        "Learning": [
            Panel(
                "Samples",
                "Learnt, of all ranks.",
                "cps",
                {"samples": _rate("headrace_trainer_samples_total")},
            ),
            Panel(
                "Loss",
                "Of each task, lately.",
                "none",
                {"{{process}} {{task}}": _most("headrace_trainer_loss", "process, task")},
            ),
            Panel(
                "Gradient norm",
                "Before clipping. A jump means that what is learnt has changed.",
                "none",
                {"norm": _most("headrace_trainer_gradient_norm")},
            ),
            Panel(
                "Test-then-train",
                "The newest micro-batches, scored by the model as it stood before it learnt them.",
                "none",
                {
                    "{{process}} {{figure}}": _most(
                        "headrace_trainer_figure",
                        "process, figure",
                        'figure=~"recent_(popularity_)?(recall|ndcg)@50"',
                    )
                },
            ),
            Panel(
                "Where a step's time goes",
                "Seconds of each second, by part.",
                "percentunit",
                {"{{part}}": _rate("headrace_trainer_step_seconds_total", "part")},
            ),
            Panel(
                "Refused micro-batches",
                "Not learnt, for they would have made the model not finite; they are dead letters.",
                "cps",
                {"refused": _rare(_rate("headrace_trainer_refused_total"))},
            ),
        ],
        "Tables": [
            Panel(
                "Rows",
                "Of each embedding table, all ranks together.",
                "none",
                {"{{table}}": "sum by (table) (headrace_table_rows)"},
            ),
            Panel(
                "Admitted and evicted",
                "Ids that were seen often enough to get a row, and rows that expired.",
                "cps",
                {
                    "{{table}} admitted": _rate("headrace_table_admitted_rows_total", "table"),
                    "{{table}} evicted": _rare(_rate("headrace_table_evicted_rows_total", "table")),
                },
            ),
            Panel(
                "Error of frequencies",
                "Of the estimator that corrects for how often an item is a negative.",
                "percentunit",
                {"error": _rare(_most("headrace_frequency_error"))},
            ),
        ],
        "Versions": [
            Panel(
                "Published",
                "Deltas and snapshots.",
                "cps",
                {"{{kind}}": _rate("headrace_versions_published_total", "kind")},
            ),
            Panel(
                "Held back",
                "By the check of the gate that failed.",
                "cps",
                {"{{check}}": _rare(_rate("headrace_versions_held_total", "check"))},
            ),
            Panel(
                "Since the last version",
                "It grows while there is nothing to learn.",
                "s",
                {"age": _since("headrace_version_published_timestamp_seconds")},
            ),
            Panel(
                "Size",
                "Bytes of a version, the median.",
                "bytes",
                {"{{kind}}": _quantile(0.5, "headrace_version_bytes", "kind")},
            ),
            Panel(
                "Rows",
                "Rows of a version, the median.",
                "none",
                {"{{kind}}": _quantile(0.5, "headrace_version_rows", "kind")},
            ),
            Panel(
                "What the gate looks at",
                "Figures of the newest candidate.",
                "none",
                {"{{figure}}": _rare(_most("headrace_gate_figure", "figure"))},
            ),
        ],
    },
)

SERVING = Dashboard(
    "serving",
    "serving",
    {
        "Answers": [
            Panel(
                "Requests",
                "By route and status.",
                "reqps",
                {"{{route}} {{status}}": _rate("headrace_request_seconds_count", "route, status")},
            ),
            Panel(
                "Time to answer",
                "Of requests for recommendations, by replica.",
                "s",
                {
                    "{{instance}} p50": _quantile(
                        0.5, "headrace_request_seconds", "instance", _ASKED
                    ),
                    "{{instance}} p99": _quantile(
                        0.99, "headrace_request_seconds", "instance", _ASKED
                    ),
                },
            ),
            Panel(
                "Parts of an answer, p99",
                "Where an answer's time goes.",
                "s",
                {"{{part}}": _quantile(0.99, "headrace_answer_part_seconds", "part")},
            ),
            Panel(
                "Candidates",
                "Who proposed them; one may be proposed by several.",
                "cps",
                {"{{source}}": _rate("headrace_candidates_total", "source")},
            ),
            Panel(
                "Degraded answers",
                "Answers that do without a part that was late or broken.",
                "cps",
                {"{{part}}": _rare(_rate("headrace_answers_degraded_total", "part"))},
            ),
            Panel(
                "Errors and requests turned away",
                "Status 5xx; shed is told to come again, for there is too much to do.",
                "reqps",
                {
                    "{{status}}": _rare(
                        _rate("headrace_request_seconds_count", "status", 'status=~"5.."')
                    ),
                    "shed by {{gate}}": _rare(_rate("headrace_requests_shed_total", "gate")),
                },
            ),
        ],
        "Replicas": [
            Panel(
                "Behind",
                "How long the newest version that is not held has waited to be applied.",
                "s",
                {"{{instance}}": "headrace_replica_behind_seconds"},
                limit=5.0,
            ),
            Panel(
                "Applying a version, p99",
                "To read it and lay it over the replica.",
                "s",
                {"{{instance}}": _quantile(0.99, "headrace_version_apply_seconds", "instance")},
            ),
            Panel(
                "Version",
                "The number of the one being served; replicas of one lineage go together.",
                "none",
                {"{{instance}}": "headrace_version_number"},
            ),
            Panel(
                "Watermark",
                "How far the newest event that the served version has learnt is behind the clock.",
                "s",
                {"{{instance}}": "time() - headrace_version_watermark_seconds"},
            ),
            Panel(
                "Refused versions",
                "A replica refuses what it cannot take, or what would answer with nonsense.",
                "cps",
                {"{{instance}}": _rare(_rate("headrace_versions_refused_total", "instance"))},
            ),
            Panel(
                "Impressions",
                "Of answers; lost ones are not learnt from.",
                "cps",
                {"{{outcome}}": _rate("headrace_impressions_total", "outcome")},
            ),
        ],
    },
)

QUALITY = Dashboard(
    "quality",
    "quality of what was served",
    {
        "All that was served": [
            Panel(
                "Click-through",
                "With bounds of confidence. Score and version travel with the impression, and meet"
                " the label when that is known.",
                "percentunit",
                _bounded("ctr"),
            ),
            Panel(
                "AUC",
                "Whether what was liked had the higher score; 0.5 is chance.",
                "none",
                _bounded("auc"),
            ),
            Panel(
                "Normalised entropy",
                "Log loss over that of who only knows the rate; below 1 the scores say something.",
                "none",
                _bounded("normalised_entropy"),
                limit=1.0,
            ),
            Panel(
                "Calibration",
                "Predicted over happened; 1 is right.",
                "none",
                _bounded("calibration"),
            ),
            Panel(
                "COEC",
                "Clicks over those that the places in the list would have got anyway.",
                "none",
                _bounded("coec"),
            ),
            Panel(
                "Known labels",
                "Impressions that the figures stand on.",
                "cps",
                {"{{label}}": _rate("headrace_served_known_total", "label", 'slice="all"')},
            ),
        ],
        "By scenario, arm and position": [
            Panel(
                f"Click-through by {slice_}",
                f"Of impressions whose label is known, by {slice_}.",
                "percentunit",
                {
                    "{{of}} {{label}}": _rare(
                        f'headrace_served_figure{{slice="{slice_}",figure="ctr",bound="value"}}'
                    )
                },
            )
            for slice_ in ("scenario", "arm", "position")
        ],
        "Against others": [
            Panel(
                "Progressive recall",
                "The model that answers, the newest that may be held, and popularity, each asked"
                " before the answer is known.",
                "percentunit",
                {"{{of}}": 'headrace_progressive_figure{figure="recall@50"}'},
                width=16,
            ),
            Panel(
                "Drifting features",
                "Those that the built-in monitor calls drifted, with hysteresis.",
                "none",
                {"active": _rare("sum(headrace_drift_active)")},
                kind="stat",
                colours={1: "red"},
            ),
        ],
    },
)

DASHBOARDS = (OVERVIEW, STREAMING, FEATURES, TRAINERS, SERVING, QUALITY)
