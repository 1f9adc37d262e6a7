"""What `/v1/monitor` answers, as /openapi.json shows it; null is "not known".

Models only describe: what a monitor says is encoded as it is. Times are seconds since 1970.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Floor = Literal["streaming", "features", "trainers", "serving"]


class Alert(BaseModel):
    """What is wrong now. `runbook` is the address or the path of the page that says what to do."""

    name: str
    severity: str = Field(examples=["critical", "warning"])
    since: float
    sentence: str
    runbook: str


class Process(BaseModel):
    """One process; `up` is whether its figures could be read in the last period."""

    process: str
    rank: str | int | None = None
    address: str
    up: bool
    cpu_cores: float | None
    memory_bytes: float | None
    started: float | None


class Hop(BaseModel):
    """How old events were when they came here, in the last five minutes."""

    hop: str
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    count: float | None


class Figure(BaseModel):
    """A figure as it stands; `unit` is `s`, `1/s`, `bytes`, `records`, `ratio`, `cores` or empty
    for a plain number, and anything else is shown as it is.
    """

    name: str
    title: str
    unit: str
    value: float | None


class VersionsNow(BaseModel):
    """Names. `held` is the candidate that the gate holds back, `reason` the sentence why."""

    served: str | None = None
    candidate: str | None = None
    held: str | None = None
    reason: str | None = None
    last_good: str | None = None
    pinned: str | None = None


class Overview(BaseModel):
    """`status` is what `/v1/status` answers; `freshness` is in the order of the hops."""

    at: float
    period_s: float
    history_s: float
    status: dict[str, Any]
    alerts: list[Alert]
    processes: list[Process]
    freshness: list[Hop]
    floors: dict[Floor, list[Figure]]
    versions: VersionsNow


class Declared(BaseModel):
    """A series that can be asked for; its unit as of a figure."""

    name: str
    title: str
    unit: str
    floor: Floor


class Series(BaseModel):
    """Each series has one value for each time in `t`, oldest first."""

    t: list[float]
    series: dict[str, list[float | None]]
    declared: list[Declared]


class StreamStep(BaseModel):
    """One thing that happened on the way of an event to an answer."""

    seq: int
    stage: Literal["event", "sample", "version", "answer"]
    at: float
    request_id: str | None = None
    user_id: str | None = None
    item_id: str | None = None
    title: str | None = None
    version: str | None = None
    text: str | None = None


class Stream(BaseModel):
    """`next` is what to ask `after` the next time."""

    next: int
    steps: list[StreamStep]


class Named(BaseModel):
    item_id: str
    title: str | None = None


class Near(Named):
    """An item and its place in the two principal directions, which both pictures share."""

    score: float | None = None
    x: float | None = None
    y: float | None = None


class Picture(BaseModel):
    """An item's neighbours in one version, nearest first."""

    version: str | None
    at: float | None
    items: list[Near]


class Neighbours(BaseModel):
    """`then` is of the stored snapshot nearest to an hour ago; null while there is none."""

    item: Near
    now: Picture | None
    then: Picture | None


class Interactions(BaseModel):
    """How each item of a user's history (row) bears on each item of the answer (column)."""

    kind: Literal["cosine", "attention"]
    rows: list[Named]
    columns: list[Named]
    values: list[list[float | None]]


class Interval(BaseModel):
    """A figure and its 95 % bounds."""

    value: float | None
    low: float | None
    high: float | None


class QualityRow(BaseModel):
    """What was served in one slice: `of` names the scenario, arm, position or generation."""

    slice: str
    of: str
    label: str
    known: float
    ctr: Interval | None = None
    auc: Interval | None = None
    normalised_entropy: Interval | None = None
    calibration: Interval | None = None
    coec: Interval | None = None


class Quality(BaseModel):
    """`progressive`: figures of the live model, the candidate and popularity, on one stream."""

    rows: list[QualityRow]
    progressive: dict[str, dict[str, float | None]]


class DriftingFeature(BaseModel):
    """Shares of each bin in the long window and in the short one; `edges` name the bins."""

    feature: str
    psi: float | None
    active: bool
    since: float | None = None
    reference: list[float | None] = Field(default_factory=list)
    now: list[float | None] = Field(default_factory=list)
    edges: list[Any] = Field(default_factory=list)


class Drift(BaseModel):
    """`new_ids` a minute by kind; `label_rates` by label."""

    features: list[DriftingFeature]
    new_ids: dict[str, float | None]
    label_rates: dict[str, float | None]


class Verdict(BaseModel):
    at: float
    version: str | None
    verdict: str
    reason: str | None = None


class GateNow(BaseModel):
    """`checks` by name: whether it passed, or the figures that it looked at."""

    mode: str
    holds: bool
    reason: str | None = None
    checks: dict[str, Any]
    history: list[Verdict]


class DeadLetter(BaseModel):
    """An event that was refused; `topic`, `partition` and `offset` are where it lies."""

    topic: str
    partition: int
    offset: int
    at: float
    reason: str
    excerpt: str


class DeadLetters(BaseModel):
    waiting: int
    letters: list[DeadLetter]
