"""What is declared, and everything that derives from it."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from features.definitions import (
    EVENT_TIME,
    VIEWS,
    Feature,
    FeatureError,
    View,
    as_markdown,
    default_text,
    lifetime_text,
    type_name,
)

DOCS = Path(__file__).parents[2] / "docs" / "features.md"
COUNT = Feature("count", pa.int64(), "how many", 0)


def test_the_docs_show_what_is_declared() -> None:
    """When it fails: put what `features.definitions.as_markdown()` returns in the place of it."""
    shown = re.search(r"^\| view \| entity .*?(?=\n\n)", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert shown is not None
    assert shown.group() == as_markdown()


def test_every_feature_is_in_the_table_once() -> None:
    rows = [line for line in as_markdown().splitlines() if line.startswith("| ")][2:]
    assert len(rows) == sum(len(view.features) for view in VIEWS)
    names = [cells[4].strip(" `") for cells in (row.split("|") for row in rows)]
    assert names == [name for view in VIEWS for name in view.names]


def test_views_and_their_names_are_unique() -> None:
    assert len({view.name for view in VIEWS}) == len(VIEWS)


def test_the_schema_is_the_key_the_time_and_the_features() -> None:
    view = View("visits", "user_id", (COUNT, Feature("words", pa.list_(pa.string()), "")))
    assert view.entity == "user"
    assert view.schema == pa.schema(
        {
            "user_id": pa.int64(),
            EVENT_TIME: pa.timestamp("us", "UTC"),
            "count": pa.int64(),
            "words": pa.list_(pa.string()),
        }
    )


def test_defaults_are_fresh_lists() -> None:
    view = View("visits", "user_id", (COUNT, Feature("words", pa.list_(pa.string()), "", ("a",))))
    view.defaults["words"].append("b")
    assert view.defaults == {"count": 0, "words": ["a"]}


@pytest.mark.parametrize(
    "features",
    [(COUNT, COUNT), (Feature("user_id", pa.int64(), ""),), (Feature(EVENT_TIME, pa.int64(), ""),)],
)
def test_a_name_is_declared_once(features: tuple[Feature, ...]) -> None:
    with pytest.raises(FeatureError, match="visits declares a name twice"):
        View("visits", "user_id", features)


@pytest.mark.parametrize(
    ("kind", "default"), [(pa.int64(), "many"), (pa.list_(pa.int64()), 3), (pa.string(), 1.5)]
)
def test_a_default_is_of_its_features_type(kind: pa.DataType, default: object) -> None:
    with pytest.raises(FeatureError, match=r"visits\.count is declared as"):
        View("visits", "user_id", (Feature("count", kind, "", default),))


def test_how_it_is_said() -> None:
    assert type_name(pa.float64()) == "float64"
    assert type_name(pa.list_(pa.string())) == "list of string"
    assert default_text(Feature("word", pa.string(), "", "")) == "empty"
    assert default_text(COUNT) == "0"
    assert lifetime_text(View("v", "user_id", (COUNT,), timedelta(hours=36))) == "1.5 days"


def test_columns_in_another_order_are_no_push() -> None:
    view = View("visits", "user_id", (COUNT,))
    view.check(view.schema)
    with pytest.raises(FeatureError, match="another order"):
        view.check(pa.schema(list(view.schema)[::-1]))
