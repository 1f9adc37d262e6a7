"""The skew watch: counts where serving and training saw other things of the same user."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

from features.skew import Compared, Outcome, Skew
from serving.answers import Answer
from serving.metrics import ServingMetrics
from serving.sample_watch import PATIENCE_S, Joined
from streaming.ids import stable_id

logger = logging.getLogger(__name__)


class SkewWatch:
    """Notes what answers to users were made of, and compares it with the samples that follow."""

    def __init__(self, skew: Skew, metrics: ServingMetrics) -> None:
        self._skew = skew
        self._metrics = metrics
        self._counts: Counter[tuple[str, Outcome]] = Counter()

    def note(self, answer: Answer) -> None:
        """Remembers what was read of the user for this answer."""
        self._skew.note(stable_id(answer.request_id), answer.user, answer.read, _now_us())

    def figures(self) -> dict[str, Any]:
        """`waiting` answers, and for each feature how many comparisons had which outcome."""
        return {
            "waiting": self._skew.waiting(_now_us()),
            "features": {
                name: {str(outcome): self._counts[name, outcome] for outcome in Outcome}
                for name in self._skew.names
            },
        }

    def patience_s(self) -> float | None:
        return PATIENCE_S if self._skew.waiting(_now_us()) else None

    def take(self, joined: Joined) -> None:
        if not self._skew.waiting(_now_us()):
            return
        for compared in self._skew.compare(joined.rows):
            self._count(compared)

    def _count(self, compared: Compared) -> None:
        view = self._skew.view.name
        for name, outcome in compared.outcomes.items():
            self._counts[name, outcome] += 1
            self._metrics.skew.labels(view, name, outcome).inc()
            if outcome is Outcome.DIFFERENT and self._counts[name, outcome] == 1:
                logger.warning(
                    "training got another %s.%s than serving had read, first for the user with the"
                    " stable id %d", view, name, compared.user,
                )  # fmt: skip
        if compared.behind_s is not None:
            self._metrics.behind.labels(view).observe(compared.behind_s)


def _now_us() -> int:
    return time.time_ns() // 1000
