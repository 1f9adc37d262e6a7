"""The features that Headrace keeps in the feature store, declared once.

Everything else derives from here: what a push must look like, Feast's entities, feature views,
push sources and feature services (`features.store`), the columns in which features travel in
samples, and the table in `docs/features.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import pyarrow as pa

from streaming.errors import HeadraceError

EVENT_TIME = "event_timestamp"
# What the offline store has beside a view with sequences: the number of each step, and how many
# steps of its sequence make the lists.
STEP, KEPT = "step", "kept"
Use = Literal["training", "serving"]


class FeatureError(HeadraceError):
    """A feature that is not what was declared, or a feature store that cannot be used."""


@dataclass(frozen=True)
class Feature:
    """One column of a view.

    `default` is what is read where nothing is known of an entity, or only what is older than the
    view's time to live; None says that it is not known. `used` names who reads it: Feast's feature
    services `training` and `serving` are made of these. `sample` is the column of samples in which
    it travels to training.
    """

    name: str
    type: pa.DataType
    meaning: str
    default: Any = None
    used: tuple[Use, ...] = ("training", "serving")
    sample: str | None = None


@dataclass(frozen=True)
class View:
    """Features of one entity, pushed together.

    `key` is the entity's join key, a stable id (int64). `ttl` is how long a row tells the truth
    after its event time; None is for ever. Each of `sequences` names list features that grow
    together, an entry of each with every step: the offline store keeps the steps alone, so that
    the lists of any moment can be told. What is not `stored` is known to the joiner only, and
    travels in samples.

    Raises:
        FeatureError: two columns have one name, a default is not of its feature's type, or a
            feature travels in samples and training does not use it.
    """

    name: str
    key: str
    features: tuple[Feature, ...]
    ttl: timedelta | None = None
    sequences: tuple[tuple[str, ...], ...] = ()
    stored: bool = True

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
            if feature.sample is not None and "training" not in feature.used:
                raise FeatureError(
                    f"{self.name}.{feature.name} travels in the column {feature.sample} of samples,"
                    " and training does not use it: add training to `used`, or drop `sample`"
                )

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

    @property
    def offline_schema(self) -> pa.Schema:
        """What the offline store keeps: pushes, or steps where the view has sequences.

        A step is a row with lists of one entry for the sequence it belongs to, and empty ones for
        the others. Its time is that of the entity's newest event by then.
        """
        numbers = [pa.field(name, pa.int64()) for name in (STEP, KEPT) if self.sequences]
        return pa.schema([*self.schema, *numbers])

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


_ACTION = ("items", "rewards", "kinds", "at_us", "scenarios", "sessions", "values")
_WORD = ("searched", "searched_at_us", "searched_suggested")
USER_HISTORY = View(
    "user_history",
    "user_id",
    (
        Feature("items", pa.list_(pa.int64()), "the newest actions, oldest first", (),
                sample="history"),
        Feature("rewards", pa.list_(pa.float32()), "of each of `items`, 0 to 1", (),
                sample="history_rewards"),
        Feature("kinds", pa.list_(pa.int32()), "of each: its place in `behaviour.rewards`", (),
                sample="history_kinds"),
        Feature("at_us", pa.list_(pa.int64()), "of each: when it happened, µs", (),
                sample="history_at_us"),
        Feature("scenarios", pa.list_(pa.int32()), "of each: its scenario's code, -1 for none", (),
                sample="history_scenarios"),
        Feature("sessions", pa.list_(pa.int32()), "of each: its session id's code, -1 for none", (),
                sample="history_sessions"),
        Feature("values", pa.list_(pa.float32()), "of each: its event's value, or not a number", (),
                sample="history_values"),
        Feature("searched", pa.list_(pa.int64()), "words searched for, oldest first", (),
                sample="searched"),
        Feature("searched_at_us", pa.list_(pa.int64()), "of each word: when, µs; of one search they"
                " have the same", (), sample="searched_at_us"),
        Feature("searched_suggested", pa.list_(pa.bool_()), "of each word: whether its search was"
                " suggested, and not typed by the user", (), sample="searched_suggested"),
        Feature("newest_us", pa.int64(), "event time of the newest action or search, µs"),
    ),
    sequences=(_ACTION, _WORD),
)  # fmt: skip
USER_PASSED_OVER = View(
    "user_passed_over",
    "user_id",
    (
        Feature("items", pa.list_(pa.int64()), "shown, and nothing came of it; oldest first", (),
                ("training",), "passed_over"),
        Feature("at_us", pa.list_(pa.int64()), "of each: when it was shown, µs", (),
                ("training",), "passed_over_at_us"),
    ),
    stored=False,
)  # fmt: skip
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
        Feature("ctr", pa.float64(), "clicks of impressions, drawn towards those of all items"),
        Feature(
            "coec", pa.float64(), "clicks over what the positions it was shown at promise", 1.0
        ),
    ),
)
VIEWS = (USER_HISTORY, USER_PASSED_OVER, ITEM_STATISTICS)


def sample_features(views: Sequence[View] = VIEWS) -> pa.Schema:
    """The columns of samples that are features.

    Raises:
        FeatureError: two features travel in one column.
    """
    fields = [pa.field(f.sample, f.type) for view in views for f in view.features if f.sample]
    names = [field.name for field in fields]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FeatureError(f"two features travel in the column {', '.join(twice)} of samples: give"
                           " each a column of its own")  # fmt: skip
    return pa.schema(fields)


SAMPLE_FEATURES = sample_features()


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

    >>> [default_text(feature) for feature in ITEM_STATISTICS.features]
    ['0', 'unknown', '0.0', 'unknown', '1.0']
    """
    if feature.default is None:
        return "unknown"
    return "empty" if feature.default in ((), "") else f"{feature.default}"


def lifetime_text(view: View) -> str:
    """A time to live as people say it.

    >>> lifetime_text(USER_HISTORY), lifetime_text(USER_PASSED_OVER)
    ('for ever', 'in samples only')
    """
    if not view.stored:
        return "in samples only"
    return "for ever" if view.ttl is None else f"{view.ttl / timedelta(days=1):g} days"


def as_markdown(views: Sequence[View] = VIEWS) -> str:
    """The table of all features, as it stands in `docs/features.md`."""
    lines = [
        "| view | entity | lives | feature | type | used in | in samples | default | meaning |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for view in views:
        lead = f"| `{view.name}` | `{view.key}` | {lifetime_text(view)} |"
        for feature in view.features:
            sample = "" if feature.sample is None else f"`{feature.sample}`"
            lines.append(
                f"{lead} `{feature.name}` | {type_name(feature.type)} | {', '.join(feature.used)}"
                f" | {sample} | {default_text(feature)} | {feature.meaning} |"
            )
            lead = "| | | |"
    return "\n".join(lines)
