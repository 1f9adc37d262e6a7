"""From a click to the changed answer: 100 clicks while the loop runs.

A visitor rates a movie over HTTP and asks for recommendations until the answer is another one
*and* says that it knows the click (`changed`), and until the served model has learnt it
(`learnt`). Twice: while the replay comes at 2,000 events/s, and while it comes as fast as it
goes, which keeps both cores of a small machine busy.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks._service import Service, service

CLICKS = 100
PROMISES = {
    "paced_changed_ms_p50": (0.0, 300.0),
    "paced_changed_ms_p99": (0.0, 1_000.0),
    "paced_learnt_ms_p50": (0.0, 1_000.0),
}
LIKED = ("318", "858", "50", "296", "593", "260", "1196", "527", "2571", "608")


def run(report: Callable[[str], None]) -> dict[str, float]:
    """Milliseconds: median, p99 and maximum of each kind."""
    figures: dict[str, float] = {}
    for name, events_per_s in (("paced", 2_000.0), ("flat_out", 0.0)):
        changed: list[float] = []
        learnt: list[float] = []
        while len(changed) < CLICKS:  # a replay may end before the last click
            report(f"{name}: {len(changed)} of {CLICKS} clicks")
            _click_through_a_replay(events_per_s, changed, learnt)
        for kind, times in (("changed", changed), ("learnt", learnt)):
            figures |= {
                f"{name}_{kind}_ms_p50": statistics.median(times),
                f"{name}_{kind}_ms_p99": statistics.quantiles(times, n=100)[98],
                f"{name}_{kind}_ms_max": max(times),
            }
    return figures


def _click_through_a_replay(events_per_s: float, changed: list[float], learnt: list[float]) -> None:
    recipe = {"replay.events_per_s": events_per_s}
    with tempfile.TemporaryDirectory() as folder, service(Path(folder) / "home", recipe) as running:
        running.wait_until_ready()
        running.wait_for(lambda: running.get("/v1/status")["replay"]["done"] > 15_000)
        while len(changed) < CLICKS and not running.get("/v1/status")["replay"]["finished"]:
            user = f"visitor-{len(changed) // 10}"
            item = LIKED[len(changed) % 10]
            times = time_click(running, user, item)
            changed.append(times[0])
            learnt.append(times[1])
        running.stop()


def time_click(running: Service, user: str, item: str) -> tuple[float, float]:
    """Milliseconds from posting a rating to the changed answer, and to the learnt one."""
    path = f"/v1/recommend?user_id={user}&k=10&shown=false"
    before = [i["item_id"] for i in running.get(path)["items"]]
    begun = time.perf_counter()
    status, answer = running.post_events(
        {"kind": "rate", "user_id": user, "item_id": item, "value": 5}
    )
    if status != 202:
        raise RuntimeError(f"the click was refused: {answer}")
    at = answer["accepted"][0]["at"]
    changed_ms: float | None = None
    while True:
        answer = running.get(path)
        now_ms = (time.perf_counter() - begun) * 1e3
        knows = (answer["features_at"] or "") >= at
        learnt = (answer["watermark"] or "") >= at
        differs = [i["item_id"] for i in answer["items"]] != before
        if changed_ms is None and (knows or learnt) and differs:
            changed_ms = now_ms
        if changed_ms is not None and learnt:
            return changed_ms, now_ms
        if now_ms > 30_000:
            raise RuntimeError(f"30 s after the click the answer is still {answer}")
        time.sleep(0.005)
