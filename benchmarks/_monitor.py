"""A monitor with an hour of figures that never move; for tests of the page that shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = dict[str, Any]
AT = 1_763_800_000.0
PERIOD_S, HISTORY_S = 2.0, 3_600.0
LINEAGE = "two_tower/20261122T154322-2240"
MOVIES = {
    "318": "Shawshank Redemption, The (1994)", "858": "Godfather, The (1972)",
    "296": "Pulp Fiction (1994)", "50": "Usual Suspects, The (1995)",
    "527": "Schindler's List (1993)", "593": "Silence of the Lambs, The (1991)",
    "356": "Forrest Gump (1994)", "110": "Braveheart (1995)",
    "2571": "Matrix, The (1999)", "2959": "Fight Club (1999)", "1": "Toy Story (1995)",
}  # fmt: skip
# name: title, unit, floor, level, how far it swings
SERIES: dict[str, tuple[str, str, str, float, float]] = {
    "events_per_s": ("Events", "1/s", "streaming", 812, 120),
    "rejected_per_s": ("Rejected events", "1/s", "streaming", 0.4, 0.4),
    "lag_joiner": ("Lag of the joiner", "records", "streaming", 12, 9),
    "lag_aggregator": ("Lag of the aggregator", "records", "streaming", 20, 12),
    "lag_trainer": ("Lag of the trainer", "records", "streaming", 3, 3),
    "impressions_open": ("Open impressions", "", "streaming", 5_210, 300),
    "features_age_p50": ("Age of features, p50", "s", "features", 0.021, 0.004),
    "features_age_p99": ("Age of features, p99", "s", "features", 0.19, 0.05),
    "rows_per_s": ("Rows written", "1/s", "features", 640, 90),
    "samples_per_s": ("Samples learnt", "1/s", "trainers", 3_150, 400),
    "recall": ("Recall@50, model", "ratio", "trainers", 0.236, 0.012),
    "recall_popularity": ("Recall@50, popularity", "ratio", "trainers", 0.153, 0.006),
    "loss": ("Loss", "", "trainers", 5.81, 0.2),
    "gradient_norm": ("Norm of the gradient", "", "trainers", 1.9, 0.5),
    "freshness_served_p50": ("Freshness, p50", "s", "serving", 0.31, 0.05),
    "freshness_served_p99": ("Freshness, p99", "s", "serving", 0.72, 0.12),
    "answers_per_s": ("Answers", "1/s", "serving", 94, 20),
    "answer_p50_ms": ("Answer time, p50", "ms", "serving", 2.4, 0.3),
    "answer_p99_ms": ("Answer time, p99", "ms", "serving", 8.7, 2),
    "degraded_per_s": ("Degraded answers", "1/s", "serving", 0, 0),
    "ctr": ("Click rate", "ratio", "serving", 0.121, 0.01),
}
HELD = {
    "name": "HeadraceVersionHeld", "severity": "critical", "since": AT - 754.0,
    "sentence": "The gate holds #1041 back: its calibration is 2.31, and 1.25 is the most that is"
    " let through; replicas stay at #1032.",
    "runbook": "docs/runbooks/version-held.md",
}  # fmt: skip
DRIFTS = {
    "name": "HeadraceDrift", "severity": "warning", "since": AT - 610.0,
    "sentence": "The feature scenario drifts: its PSI is 0.412, above 0.25.",
    "runbook": "https://example.org/runbooks/drift",
}  # fmt: skip


@dataclass
class StillMonitor:
    """Every answer is the same each time; a test may change what it says of alerts, titles, ids.

    One value is NaN, and the newest of one series is not known, as they may be.
    """

    alerts: list[Shape] = field(default_factory=list)
    title: str = "Shawshank Redemption, The (1994)"
    reason: str = HELD["sentence"]  # type: ignore[assignment]
    empty: bool = False  # a system that has just begun
    steps: int = 60  # of the stream, so far
    asked: list[str] = field(default_factory=list)  # which answers were asked for

    def overview(self) -> Shape:
        self.asked.append("overview")
        floors: dict[str, list[Shape]] = {
            floor: [] for floor in ("streaming", "features", "trainers", "serving")
        }
        for name, (title, unit, floor, *_) in SERIES.items():
            value = None if self.empty else self._values(name)[-1]
            floors[floor].append({"name": name, "title": title, "unit": unit, "value": value})
        floors["streaming"] += [] if self.empty else PARTS
        held = bool(self.alerts)
        version = None if self.empty else f"{LINEAGE}/1041"
        return {
            "at": AT, "period_s": PERIOD_S, "history_s": HISTORY_S,
            "status": {"ready": True, "newest_version": None if self.empty else {"age_s": 0.42}},
            "alerts": self.alerts,
            "processes": [] if self.empty else PROCESSES,
            "freshness": [
                {"hop": hop, "p50_s": p50, "p90_s": p90, "p99_s": p99, "count": count}
                if not self.empty
                else {"hop": hop, "p50_s": math.nan, "p90_s": None, "p99_s": None, "count": 0}
                for hop, p50, p90, p99, count in HOPS
            ],
            "floors": floors,
            "versions": {
                "served": f"{LINEAGE}/1032" if held else version, "candidate": version,
                "held": f"{LINEAGE}/1041" if held else None,
                "reason": self.reason if held else None,
                "last_good": None if self.empty else f"{LINEAGE}/1032", "pinned": None,
            },
        }  # fmt: skip

    def series(self, names: Sequence[str], window_s: float) -> Shape:
        count = int(min(window_s, HISTORY_S) / PERIOD_S)
        t = [AT - PERIOD_S * (count - 1 - n) for n in range(count)]
        declared = [
            {"name": name, "title": title, "unit": unit, "floor": floor}
            for name, (title, unit, floor, *_) in SERIES.items()
        ]
        found = {name: self._values(name)[-count:] for name in names if name in SERIES}
        if self.empty:
            return {"t": [], "series": {name: [] for name in found}, "declared": declared}
        return {"t": t, "series": found, "declared": declared}

    def stream(self, after: int) -> Shape:
        self.asked.append("stream")
        steps = [] if self.empty else [self._step(seq) for seq in range(1, self.steps + 1)]
        return {"next": self.steps, "steps": [step for step in steps if step["seq"] > after]}

    def neighbours(self, item_id: str) -> Shape | None:
        if item_id not in MOVIES:
            return None
        others = [item for item in MOVIES if item != item_id]
        new, old = others[:8], [*others[2:5], others[0], others[1], *others[8:10], others[6]]
        return {
            "item": {**self._named(item_id), "x": 0.05, "y": -0.02},
            "now": {"version": f"{LINEAGE}/1041", "at": AT, "items": self._near(new, 0.0)},
            "then": {
                "version": f"{LINEAGE}/640",
                "at": AT - 3_600,
                "items": self._near(old, 0.14),
            },
        }

    def interactions(self, user_id: str) -> Shape | None:
        if user_id == "nobody":
            return None
        rows, columns = list(MOVIES)[:7], list(MOVIES)[3:11]
        values = np.random.default_rng(3).uniform(-0.1, 0.9, (len(rows), len(columns)))
        return {
            "kind": "cosine",
            "rows": [self._named(item) for item in rows],
            "columns": [self._named(item) for item in columns],
            "values": values.tolist(),
        }

    def quality(self) -> Shape:
        rows = [] if self.empty else [_row(*one) for one in SLICES]
        known: Shape = {"recall@50": None}
        if not self.empty:
            known = {"recall@50": 0.2361, "low": 0.221, "high": 0.252, "tested": 6_414.0}
        return {
            "rows": rows,
            "progressive": {
                "live": known,
                "candidate": known,
                "popularity": {"recall@50": None if self.empty else 0.1534},
            },
        }

    def drift(self) -> Shape:
        if self.empty:
            return {"features": [], "new_ids": {}, "label_rates": {}}
        bins = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
        return {
            "features": [
                {
                    "feature": feature, "psi": psi, "active": psi is not None and psi > 0.25,
                    "since": AT - 610 if psi is not None and psi > 0.25 else None,
                    "reference": bins.tolist(),
                    "now": np.roll(bins, turn).tolist(), "edges": edges,
                }
                for feature, psi, turn, edges in (
                    ("history_length", 0.018, 0, [1, 4, 9, 20]),
                    ("scenario", 0.4123, 2, ["home", "search", "detail", "mail", "others"]),
                    ("served_score", 0.121, 1, [0.001, 0.004, 0.01, 0.03]),
                    ("position", None, 0, [1, 2, 4, 8]),
                )
            ],
            "new_ids": {"user": 42.1, "item": 1.25},
            "label_rates": {"label_click": 0.1207},
        }  # fmt: skip

    def gate(self) -> Shape:
        if self.empty:
            return {"mode": "hold", "holds": False, "reason": None, "checks": {}, "history": []}
        held = bool(self.alerts)
        return {
            "mode": "hold", "holds": held, "reason": self.reason if held else None,
            "checks": {
                "finite": True,
                "norms": {"ok": True, "value": 1.93, "most": 40.0},
                "calibration": {"ok": not held, "value": 2.31 if held else 1.04, "most": 1.25},
                "quality": {"ok": True, "value": 0.2361, "least": 0.1889},
                "enough": {"ok": True, "value": 40_200, "least": 2_000},
            },
            "history": [
                {"at": AT - 754, "version": f"{LINEAGE}/1033", "verdict": "held",
                 "reason": self.reason},
                {"at": AT - 2_000, "version": f"{LINEAGE}/871", "verdict": "freed",
                 "reason": "three good versions in a row"},
            ],
        }  # fmt: skip

    def dead_letters(self, limit: int) -> Shape:
        reasons = ("kind = 'liek': unknown", "user_id: missing", "value = 9: above 5")
        letters = [
            {
                "topic": "dead-letters", "partition": n % 2, "offset": 40 - n, "at": AT - 31 * n,
                "reason": reasons[n % 3],
                "excerpt": f'{{"kind": "liek", "user_id": "user-{n}", "item_id": "318"}}',
            }
            for n in range(0 if self.empty else 7)
        ]  # fmt: skip
        return {"waiting": len(letters) and 41, "letters": letters[:limit]}

    def _values(self, name: str) -> list[float | None]:
        *_, level, swing = SERIES[name]
        count = int(HISTORY_S / PERIOD_S)
        chance = np.random.default_rng(sum(name.encode()))
        slow = np.sin(np.arange(count) / 140 + len(name))
        values: list[float | None] = list(level + swing * (slow + 0.35 * chance.normal(size=count)))
        values = [max(0.0, value) if value is not None else None for value in values]
        if name == "gradient_norm":
            values[-1] = None
        if name == "loss":
            values[40] = math.nan
        return values

    def _named(self, item_id: str) -> Shape:
        return {"item_id": item_id, "title": self.title if item_id == "318" else MOVIES[item_id]}

    def _near(self, items: Sequence[str], turn: float) -> list[Shape]:
        places = np.random.default_rng(7).uniform(-1, 1, (len(MOVIES), 2))
        order = list(MOVIES)
        return [
            {
                **self._named(item),
                "score": 0.91 - 0.053 * rank - turn / 10,
                "x": float(places[order.index(item)][0] + turn),
                "y": float(places[order.index(item)][1] - turn / 2),
            }
            for rank, item in enumerate(items)
        ]

    def _step(self, seq: int) -> Shape:
        turn, place = divmod(seq - 1, 4)
        item = list(MOVIES)[turn % len(MOVIES)]
        stage = ("answer", "event", "sample", "version")[place]
        own = stage != "version"
        return {
            "seq": seq, "stage": stage, "at": AT - 60 + seq + 0.13 * place,
            "request_id": f"{turn:08x}9de48f2" if own else None,
            "user_id": f"user-{turn % 5}" if own else None,
            "item_id": item if stage in ("event", "sample") else None,
            "title": self._named(item)["title"] if stage in ("event", "sample") else None,
            "version": f"{LINEAGE}/{1_000 + turn - (stage == 'answer')}"
            if stage in ("answer", "version")
            else None,
            "text": {"answer": "Toy Story (1995), Fight Club (1999)", "event": "click",
                     "sample": "click 1", "version": "delta after step 40"}[stage],
        }  # fmt: skip


HOPS = (
    ("logged", 0.0021, 0.004, 0.011, 241_000.0), ("stored", 0.061, 0.09, 0.21, 240_800.0),
    ("joined", 0.048, 0.08, 0.19, 240_900.0), ("trained", 0.17, 0.26, 0.41, 9_300.0),
    ("published", 0.24, 0.37, 0.58, 2_900.0), ("served", 0.31, 0.46, 0.72, 2_890.0),
    ("answered", 0.36, 0.55, 0.93, 2_610.0),
)  # fmt: skip
PARTS: list[Shape] = [
    {"name": f"lag.{group}.events.{place}", "title": f"Records that wait {group} events {place}",
     "unit": "records", "value": 3.0 * place + len(group)}
    for group in ("joiner", "aggregator", "catalog") for place in range(2)
]  # fmt: skip
PROCESSES: list[Shape] = [
    {"process": process, "rank": rank, "address": f"127.0.0.1:{port}", "up": up,
     "cpu_cores": cores, "memory_bytes": memory, "started": AT - 5_400}
    for process, rank, port, up, cores, memory in (
        ("run", None, 8_000, True, 0.34, 612e6), ("joiner", "0", 41_231, True, 0.21, 401e6),
        ("trainer", "0", 41_233, True, 0.78, 1_204e6), ("serve", None, 8_001, False, None, None),
    )
]  # fmt: skip
SLICES = (
    ("all", "all", 24_113.0, 0.121, 0.004), ("scenario", "home", 18_020.0, 0.133, 0.005),
    ("scenario", "search", 6_093.0, 0.087, 0.008), ("arm", "ranker/on", 12_090.0, 0.128, 0.006),
    ("arm", "ranker/off", 12_023.0, 0.114, 0.006), ("position", "0", 2_411.0, 0.243, 0.018),
    ("position", "1", 2_402.0, 0.181, 0.016), ("position", "10+", 1_207.0, 0.043, 0.012),
    ("version", f"{LINEAGE}/10", 9_404.0, 0.124, 0.007),
)  # fmt: skip


def _row(which: str, of: str, known: float, rate: float, half: float) -> Shape:
    def around(value: float, width: float) -> Shape:
        return {"value": value, "low": value - width, "high": value + width}

    return {
        "slice": which, "of": of, "label": "label_click", "known": known,
        "ctr": around(rate, half), "auc": around(0.71 + rate / 5, half),
        "normalised_entropy": around(0.93, half), "calibration": around(1.04, 4 * half),
        "coec": None if which == "position" else around(1.12, 5 * half),
    }  # fmt: skip
