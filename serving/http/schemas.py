"""What goes in and out over HTTP, as /openapi.json shows it.

Models of answers only describe: what the service says is put together and encoded in
`serving.http.answer_json`, for validating it would cost more than all the rest.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Id = Annotated[str, Field(min_length=1, max_length=256)]
Words = Annotated[str, Field(max_length=1_000)]
Count = Annotated[int, Field(ge=1, le=500)]


def _whole(value: object) -> object:
    """In JSON 2.0 is the integer 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# -- questions -----------------------------------------------------------------------------


class _Asked(BaseModel):
    """What every question for a user may say, in a query or a body."""

    user_id: Id = Field(description="The user's id.")
    scenario: Id | None = Field(None, description="Where the items will be shown.")
    query: Words | None = Field(None, description="What the user searches for.")
    explain: bool = Field(False, description="Say why each item stands where it stands.")
    shown: bool = Field(
        True, description="Whether the user will see it: then it leaves impressions."
    )


class RecommendQuery(_Asked):
    """What one user asks for, in a query."""

    k: Count = Field(10, description="How many items at most.")
    filter: list[Annotated[str, Field(pattern="^[^:]{1,256}:", max_length=1_256)]] = Field(
        default_factory=list,
        description="`field:value`: an attribute that items must have. Of one field any of its"
        " values will do.",
        max_length=100,
        examples=["genres:Drama"],
    )


class _Question(_Asked):
    model_config = ConfigDict(extra="forbid", strict=True)


class RecommendQuestion(_Question):
    """What one user asks for. An item must pass all of the `filters`: one of the values of each."""

    k: Annotated[Count, BeforeValidator(_whole)] = 10
    filters: dict[Id, Words | Annotated[list[Words], Field(min_length=1, max_length=100)]] = Field(
        default_factory=dict, max_length=20, examples=[{"genres": ["Drama", "Comedy"]}]
    )
    exclude: list[Id] = Field(
        default_factory=list, max_length=1_000, description="Items that are not to be shown."
    )
    seen: bool = Field(False, description="Show also what the user acted upon lately.")


class RankQuestion(_Question):
    """Items to put in order for a user."""

    item_ids: list[Id] = Field(min_length=1, max_length=500)


# -- answers -------------------------------------------------------------------------------


class Error(BaseModel):
    """What is wrong, where, and how to mend it, in one sentence."""

    error: str


class Item(BaseModel):
    """An item of the catalog."""

    item_id: str
    title: str | None
    attributes: dict[str, Any]


class Why(BaseModel):
    """`shares`: what each source contributes to the item's share. `tasks`: what the ranker
    predicts. `moved`: the rules that moved it, with the place it had before.
    """

    shares: dict[str, float]
    tasks: dict[str, float]
    moved: dict[str, int]


class ScoredItem(Item):
    """An item of an answer; `source` is the model that proposed it, or `popular`, `hot`,
    `interests`, `new`, `search` or `content`.

    `score` is the part of the user's actions to come that is expected to fall on it, or of similar
    items how alike they are. `statistics` and `why` are there if `explain` was asked for.
    """

    score: float
    source: str
    statistics: dict[str, Any] | None = None
    why: Why | None = None


class ItemsAnswer(BaseModel):
    items: list[Item]


class FusionShown(BaseModel):
    """How tasks become a score: the `sum` of each times its weight, the `product` of each to the
    power of its weight, or a `power` sum, of each to its power times its weight.
    """

    how: Literal["sum", "product", "power"]
    weights: dict[str, float]
    powers: dict[str, float]


class RecommendAnswer(BaseModel):
    """`watermark` is the newest event time that the served version has learnt.

    `features_at` is the event time of the newest of the user's `known_actions`. `arms` are the
    user's in experiments. `degraded` has a sentence for each part that was late or broken, and that
    the answer does without. `logged` says whether its items will be in the log as impressions, so
    that nobody need send any. If `explain` was asked for, `took_ms` says how long each stage took,
    `ranker` which version said what is to be expected of the candidates, and `fusion` how that
    became scores.
    """

    request_id: str
    user_id: str | None
    scenario: str | None
    items: list[ScoredItem]
    version: str | None
    watermark: str | None
    known_actions: int
    features_at: str | None
    arms: dict[str, str]
    degraded: list[str]
    logged: bool
    took_ms: dict[str, float] | None = None
    ranker: str | None = None
    fusion: FusionShown | None = None


class RankAnswer(RecommendAnswer):
    """As of recommendations; `unknown` are the items that nobody knows."""

    unknown: list[str]


class Action(BaseModel):
    """One action of a user's history; what is null is not known."""

    item: Item
    kind: str | None
    at: str | None
    reward: float
    value: float | None


class UserAnswer(BaseModel):
    """What a user declared and did, newest first; `searched` counts the kept words of searches."""

    user_id: str
    attributes: dict[str, Any]
    interests: list[str]
    actions: list[Action]
    searched: int
    features_at: str | None
    arms: dict[str, str]
    degraded: list[str]


class Alive(BaseModel):
    status: Literal["ok"]


class Ready(BaseModel):
    status: Literal["ready"]


class NotReady(BaseModel):
    """`reason` is all of the `reasons` in one line."""

    status: Literal["not ready"]
    reason: str
    reasons: list[str]


class TargetGroup(BaseModel):
    """`targets` are addresses, `host:port`; the `labels` are added to what is read there."""

    targets: list[str]
    labels: dict[str, str]


# -- events --------------------------------------------------------------------------------


class AcceptedEvent(BaseModel):
    event_id: str
    at: str


class RejectedEvent(BaseModel):
    """`index` is the event's place in the list that was sent, 0 for a single event."""

    index: int
    field: str
    value: str
    reason: str


class EventsAnswer(BaseModel):
    accepted: list[AcceptedEvent] = Field(default_factory=list)
    rejected: list[RejectedEvent] = Field(default_factory=list)


class RejectedLine(BaseModel):
    """`line` counts from 1."""

    line: int
    field: str
    value: str
    reason: str


class LinesAnswer(BaseModel):
    """What became of the first `lines` lines: each was accepted, rejected or empty.

    With an `error`, what follows them was not looked at. `rejected` names the first 1,000.
    """

    lines: int = 0
    accepted_count: int = 0
    rejected_count: int = 0
    rejected: list[RejectedLine] = Field(default_factory=list)
    error: str | None = None
