"""What is asked of the recommender, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from features.catalog import CatalogItem
from serving.fusion import FusionConfig
from streaming.errors import HeadraceError
from streaming.event_columns import NONE
from trainers.versions import VersionInfo


class BadQuestion(HeadraceError):
    """What is asked has no answer; the message says what to ask instead."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one user asks for: at most `count` items.

    `scenario` is where they will be shown, as in events. `words` are what the user searches for.
    Each of the `filters` names an attribute of items and the values that will do; an item must pass
    all of them. Items named in `excluded` are not shown, those the user acted upon lately only if
    `seen`. With `explain` the answer says why each item stands where it stands. It becomes
    impressions if it is to be `shown` to the user.
    """

    user_id: str
    count: int = 10
    scenario: str | None = None
    words: str | None = None
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    excluded: Sequence[str] = ()
    seen: bool = False
    explain: bool = False
    shown: bool = True


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an item stands where it stands.

    `shares` is what each source contributes to its share, `tasks` what the ranker predicts of it,
    and `moved` names the rules that moved it, with the place it had before.
    """

    shares: Mapping[str, float]
    tasks: Mapping[str, float]
    moved: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One item of an answer; `source` says who proposed it: the model by its name, or `popular`,
    `hot`, `interests`, `new`, `search` or `content`.

    `score` is the part of the user's actions to come that is expected to fall on the item, or of
    similar items how alike they are; 0 if it is there only to fill the answer. `statistics` of the
    item and `why` it stands there are told only to who asked for an explanation.
    """

    item: CatalogItem
    score: float
    source: str
    statistics: Mapping[str, Any] = field(default_factory=dict)
    why: Explanation | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`version` is None while no model was published yet.

    `features_at_us` is the event time of the user's newest action in the feature store, and `read`
    all that was read there of the `user`, a stable id; nothing of -1, where no user had asked.
    `arms` has the user's arm in each experiment that this answer is part of. `degraded` has a
    sentence for each part that was late or broken, and that the answer does without; `took_ms` is
    how long each part took, and `all` of it. `unknown` are the items that were to be ranked and
    that nobody knows. `ranker` is the version that said what is to be expected of candidates, if
    one did, and `fusion` is how that became scores.
    """

    request_id: str
    items: Sequence[Recommendation]
    version: VersionInfo | None
    known_actions: int = 0
    features_at_us: int | None = None
    user: int = NONE
    user_id: str | None = None
    read: Mapping[str, Any] = field(default_factory=dict)
    scenario: str | None = None
    arms: Mapping[str, str] = field(default_factory=dict)
    degraded: Sequence[str] = ()
    took_ms: Mapping[str, float] = field(default_factory=dict)
    unknown: Sequence[str] = ()
    ranker: VersionInfo | None = None
    fusion: FusionConfig | None = None


@dataclass(frozen=True, slots=True)
class KnownAction:
    """One action of a user's history; what is None is not known."""

    item: CatalogItem
    kind: str | None
    at_us: int | None
    reward: float
    value: float | None


@dataclass(frozen=True, slots=True)
class KnownUser:
    """What is known of a user: what he declared, what he did (newest first), which arms he is in.

    `searched` counts the words of his searches that are kept. `degraded` is as in `Answer`.
    """

    user_id: str
    attributes: Mapping[str, Any]
    interests: Sequence[str]
    actions: Sequence[KnownAction]
    searched: int
    features_at_us: int | None
    arms: Mapping[str, str]
    degraded: Sequence[str] = ()

    @property
    def is_known(self) -> bool:
        """Whether anything at all was heard of him."""
        return bool(self.attributes or self.actions or self.searched)
