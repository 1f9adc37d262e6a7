"""The features that Headrace keeps in the feature store, declared once.

Everything else derives from here: what a push must look like, Feast's entities, feature views,
push sources and feature services (`features.store`), and the table in `docs/features.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import pyarrow as pa

from streaming.errors import HeadraceError

EVENT_TIME = "event_timestamp"
Use = Literal["training", "serving"]


class FeatureError(HeadraceError):
    """A feature that is not what was declared, or a feature store that cannot be used."""


@dataclass(frozen=True)
class Feature:
    """One column of a view.

    `default` is what is read where nothing is known of an entity, or only what is older than the
    view's time to live; None says that it is not known. `used` names who reads it: Feast's feature
    services `training` and `serving` are made of these.
    """

    name: str
    type: pa.DataType
    meaning: str
    default: Any = None
    used: tuple[Use, ...] = ("training", "serving")


@dataclass(frozen=True)
class View:
    """Features of one entity, pushed together.

    `key` is the entity's join key, a stable id (int64). `ttl` is how long a row tells the truth
    after its event time; None is for ever.

    Raises:
        FeatureError: two columns have one name, or a default is not of its feature's type.
    """

    name: str
    key: str
    features: tuple[Feature, ...]
    ttl: timedelta | None = None

    def __post_init__(self) -> None:
        names = [self.key, EVENT_TIME, *self.names]
        if len(set(names)) < len(names):
            raise FeatureError(
                f"the view {self.name} declares a name twice among {', '.join(names)}: features,"
                f" the key and {EVENT_TIME} each need one of their own"
            )
        for feature in self.features:
            try:
                pa.scalar(feature.default, feature.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                raise FeatureError(
                    f"{self.name}.{feature.name} is declared as {type_name(feature.type)}, and its"
                    f" default {feature.default!r} is none: change one of the two"
                ) from None

    @property
    def entity(self) -> str:
        """What the features tell of.

        >>> USER_HISTORY.entity
        'user'
        """
        return self.key.removesuffix("_id")

    @property
    def names(self) -> list[str]:
        """The features, in the order of their columns."""
        return [feature.name for feature in self.features]

    @property
    def defaults(self) -> dict[str, Any]:
        """What is read of an entity of which nothing is known."""
        return {
            feature.name: list(feature.default)
            if pa.types.is_list(feature.type) and feature.default is not None
            else feature.default
            for feature in self.features
        }

    @property
    def schema(self) -> pa.Schema:
        """What a push must look like; `event_timestamp` is the newest event it tells of."""
        return pa.schema(
            [
                pa.field(self.key, pa.int64()),
                pa.field(EVENT_TIME, pa.timestamp("us", "UTC")),
                *(pa.field(feature.name, feature.type) for feature in self.features),
            ]
        )

    def check(self, pushed: pa.Schema) -> None:
        """Holds the columns of a push against what is declared.

        Raises:
            FeatureError: one is undeclared, missing, or of another type.
        """
        if pushed.equals(self.schema):
            return
        where = "features/definitions.py declares"
        if strange := sorted(set(pushed.names) - set(self.schema.names)):
            raise FeatureError(
                f"a push to {self.name} has {', '.join(strange)}, which nothing declares: add it to"
                f" the view, for {where} {', '.join(self.names)}"
            )
        if missing := sorted(set(self.schema.names) - set(pushed.names)):
            raise FeatureError(f"a push to {self.name} lacks {', '.join(missing)}, which {where}")
        for name in self.schema.names:
            declared, found = self.schema.field(name).type, pushed.field(name).type
            if found != declared:
                raise FeatureError(
                    f"a push to {self.name} has {name} as {type_name(found)}, and {where} it as"
                    f" {type_name(declared)}: cast it before it is pushed"
                )
        raise FeatureError(f"a push to {self.name} has its columns in another order than {where}")


USER_HISTORY = View(
    "user_history",
    "user_id",
    (
        Feature("items", pa.list_(pa.int64()), "the newest actions, oldest first", ()),
        Feature("rewards", pa.list_(pa.float32()), "one for each of `items`", ()),
        Feature("newest_us", pa.int64(), "event time of the newest action or search, µs"),
    ),
)
ITEM_STATISTICS = View(
    "item_statistics",
    "item_id",
    (
        Feature("actions", pa.int64(), "how many", 0),
        Feature("mean_reward", pa.float64(), "over all of them"),
        Feature(
            "popularity",
            pa.float64(),
            "sum of rewards, each faded by the actions after it, in units of one action now",
            0.0,
        ),
    ),
)
VIEWS = (USER_HISTORY, ITEM_STATISTICS)


def type_name(kind: pa.DataType) -> str:
    """A type as people say it.

    >>> type_name(pa.list_(pa.float32()))
    'list of float32'
    """
    if pa.types.is_list(kind):
        return f"list of {type_name(kind.value_type)}"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def default_text(feature: Feature) -> str:
    """A default as people say it.

    >>> [default_text(feature) for feature in USER_HISTORY.features]
    ['empty', 'empty', 'unknown']
    """
    if feature.default is None:
        return "unknown"
    return "empty" if feature.default in ((), "") else f"{feature.default}"


def lifetime_text(view: View) -> str:
    """A time to live as people say it.

    >>> lifetime_text(USER_HISTORY)
    'for ever'
    """
    return "for ever" if view.ttl is None else f"{view.ttl / timedelta(days=1):g} days"


def as_markdown(views: Sequence[View] = VIEWS) -> str:
    """The table of all features, as it stands in `docs/features.md`."""
    lines = [
        "| view | entity | lives | feature | type | used in | default | meaning |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for view in views:
        lead = f"| `{view.name}` | `{view.key}` | {lifetime_text(view)} |"
        for feature in view.features:
            lines.append(
                f"{lead} `{feature.name}` | {type_name(feature.type)} | {', '.join(feature.used)}"
                f" | {default_text(feature)} | {feature.meaning} |"
            )
            lead = "| | | |"
    return "\n".join(lines)
