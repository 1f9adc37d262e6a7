"""What `features.definitions` declares, as Feast's objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import get_args

import feast
from feast import Entity, FeatureService, FeatureView, Field, FileSource, Project, PushSource
from feast.repo_contents import RepoContents
from feast.types import Int64
from feast.value_type import ValueType

from features.definitions import EVENT_TIME, Use, View
from features.store.rows import feast_type

LAYOUT = "2"  # of rows in the stores; one that another layout wrote is not read


def versions() -> dict[str, str]:
    """Who writes the registry, as it stands in the tags of the project."""
    return {"layout": LAYOUT, "feast": feast.__version__}


def declared(views: Sequence[View], project: str, offline: Path) -> RepoContents:
    """Everything that is to be in the registry.

    Raises:
        FeatureError: a feature has a type that the store cannot keep.
    """
    entities = {
        view.key: Entity(name=view.entity, join_keys=[view.key], value_type=ValueType.INT64)
        for view in views
    }
    made = [_view(view, entities[view.key], offline / view.name) for view in views]
    services = [
        FeatureService(name=use, features=projections)
        for use in get_args(Use)
        if (projections := [one[names] for view, one in zip(views, made, strict=True)
                            if (names := _used(view, use))])
    ]  # fmt: skip
    return RepoContents(
        projects=[Project(name=project, tags=versions())],
        data_sources=[source for one in made for source in (one.stream_source, one.batch_source)],
        feature_views=made,
        on_demand_feature_views=[],
        stream_feature_views=[],
        label_views=[],
        entities=list(entities.values()),
        feature_services=services,
        permissions=[],
    )


def _used(view: View, use: Use) -> list[str]:
    return [feature.name for feature in view.features if use in feature.used]


def _view(view: View, entity: Entity, offline: Path) -> FeatureView:
    batch = FileSource(
        name=f"{view.name}_parquet",
        path=str(offline),
        timestamp_field=EVENT_TIME,
        tags={"sequences": json.dumps(view.sequences)},
    )
    fields = [
        Field(
            name=feature.name,
            dtype=feast_type(f"{view.name}.{feature.name}", feature.type),
            description=feature.meaning,
            tags={"default": json.dumps(feature.default), "used": ", ".join(feature.used)},
        )
        for feature in view.features
    ]
    return FeatureView(
        name=view.name,
        entities=[entity],
        schema=[Field(name=view.key, dtype=Int64), *fields],
        source=PushSource(name=f"{view.name}_push", batch_source=batch),
        ttl=view.ttl or timedelta(0),
    )
