"""What the aggregator tells: what it pushes, how long that takes, and how soon it is answered."""

from __future__ import annotations

from streaming.loop import Turn
from streaming.loop_metrics import LoopMetrics, observe_age, some
from streaming.metrics import FRESHNESS_S, Metrics

_PUSH_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class AggregatorMetrics(LoopMetrics):
    """The observer of the aggregator's loop, whose outputs are `Push`."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics, "aggregator")
        self._rows = metrics.counter(
            "headrace_features_rows_total", "Rows pushed to the feature store.", ["view"]
        )
        self._push = metrics.histogram(
            "headrace_features_push_seconds", "Time to push what a turn has changed.", _PUSH_S
        ).labels()
        self._age = metrics.histogram(
            "headrace_features_age_seconds",
            "From the oldest event of a push reaching the log to the store answering with it.",
            FRESHNESS_S,
            ["view"],
        )
        self._stored = metrics.freshness("stored")

    def turned(self, turn: Turn) -> None:
        super().turned(turn)
        if not turn.outputs:
            return
        self._push.observe(turn.execute_s)
        answering_s = turn.done_s - turn.commit_s  # before the group is said to have moved
        for push in turn.outputs:
            self._rows.labels(push.view.name).inc(push.rows.num_rows)
            if push.logged_us is not None:
                observe_age(self._age.labels(push.view.name), push.logged_us, answering_s)
        for record in some(turn.records):
            observe_age(self._stored, record.logged_us, answering_s)
