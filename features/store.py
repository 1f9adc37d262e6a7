"""The feature store: Feast, with SQLite online and Parquet offline, through its public API."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig
from feast.data_source import PushMode
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileSource as FileDataSource
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.types import Array, Float32, Float64, Int64
from feast.value_type import ValueType

from features.aggregator import Push
from features.definitions import EVENT_TIME, VIEWS, View

_TIME = "datetime64[us, UTC]"
_TYPES = {
    pa.int64(): Int64,
    pa.float64(): Float64,
    pa.list_(pa.int64()): Array(Int64),
    pa.list_(pa.float32()): Array(Float32),
}


class PartsOfflineStoreConfig(DaskOfflineStoreConfig):  # type: ignore[misc]
    """Feast finds an offline store by the path of its class."""

    type: Literal["features.store.PartsOfflineStore"] = "features.store.PartsOfflineStore"


class PartsOfflineStore(DaskOfflineStore):  # type: ignore[misc]
    """Feast's file store, but a push adds one Parquet file to a directory.

    Feast's own rewrites the whole file in place: the cost of a push grows with everything that
    was ever pushed, and a process that dies meanwhile leaves half a file.
    """

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        uri = feature_view.batch_source.file_options.uri
        directory = Path(FileDataSource.get_uri_for_file_path(config.repo_path, uri))
        _write_part(directory, table.replace_schema_metadata(None))
        if progress:
            progress(table.num_rows)

    @staticmethod
    def get_historical_features(  # noqa: PLR0913 - Feast's signature
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame,
        registry: Any,  # noqa: ARG004
        project: str,  # noqa: ARG004
        full_feature_names: bool = False,
    ) -> RetrievalJob:
        """Feast's own join fails for an entity of which nothing is known, and among pushes about
        the same moment it takes any; here the last push wins.
        """
        wanted = []
        for view in feature_views:
            uri = view.batch_source.file_options.uri
            directory = Path(FileDataSource.get_uri_for_file_path(config.repo_path, uri))
            names = [n for v, n in (r.split(":") for r in feature_refs) if v == view.name]
            wanted.append(_Wanted(view.name, directory, view.join_keys[0], names))
        return PointInTimeJob(wanted, entity_df, full_feature_names)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Some features of one view, whose Parquet files lie in a directory."""

    view: str
    directory: Path
    key: str
    names: list[str]


class PointInTimeJob(RetrievalJob):  # type: ignore[misc]
    """For each row of `entities` the features as they were known at its time, or null."""

    def __init__(self, wanted: list[_Wanted], entities: pd.DataFrame, full: bool) -> None:
        self._wanted = wanted
        self._entities = entities
        self._full = full

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        answer = pa.Table.from_pandas(self._entities, preserve_index=False)
        for wanted in self._wanted:
            parts = [pq.read_table(file) for file in sorted(wanted.directory.glob("[!.]*.parquet"))]
            rows = pa.concat_tables(parts, promote_options="permissive")
            where = pa.array(self._newest(rows, wanted.key), pa.int64())
            for name in wanted.names:
                shown = f"{wanted.view}__{name}" if self._full else name
                answer = answer.append_column(shown, rows[name].take(where))
        return answer

    def _newest(self, rows: pa.Table, key: str) -> list[int | None]:
        """For each entity row the last of the rows with its key that is not after its time."""
        order = [key, EVENT_TIME]
        known = rows.select(order).to_pandas().astype({EVENT_TIME: _TIME})
        known["row"] = range(len(known))
        asked = self._entities[order].astype({EVENT_TIME: _TIME})
        asked["place"] = range(len(asked))
        found = pd.merge_asof(
            asked.sort_values(EVENT_TIME, kind="stable"),
            known.sort_values(EVENT_TIME, kind="stable"),
            on=EVENT_TIME,
            by=key,
        ).sort_values("place")
        return [None if pd.isna(row) else int(row) for row in found["row"]]

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    @property
    def full_feature_names(self) -> bool:
        return self._full

    @property
    def on_demand_feature_views(self) -> list[Any]:
        return []

    @property
    def metadata(self) -> None:
        return None

    def persist(self, storage: Any, allow_overwrite: bool | None = False,
                timeout: int | None = None) -> None:  # fmt: skip
        raise NotImplementedError


class FeastStore:
    """Pushes go online at once and are kept back for the offline store until `flush`."""

    def __init__(self, root: Path) -> None:
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        self._store = FeatureStore(
            config=RepoConfig(
                project="headrace",
                provider="local",
                registry=str(root / "registry.db"),
                online_store={"type": "sqlite", "path": str(root / "online.db")},
                offline_store={"type": "features.store.PartsOfflineStore"},
                entity_key_serialization_version=3,
            )
        )
        self._offline = root / "offline"
        self._kept_back: dict[str, list[pa.Table]] = {view.name: [] for view in VIEWS}

    def apply(self) -> None:
        """Makes the store what `features.definitions` declares; does nothing if it is."""
        objects: list[Any] = []
        for view in VIEWS:
            directory = self._offline / view.name
            if not directory.exists():
                _write_part(directory, view.schema.empty_table())
            objects += _declare(view, directory)
        self._store.apply(objects)

    def push(self, pushes: Sequence[Push]) -> list[Any]:
        """Carries out pushes: the rows are what the online store answers from now on."""
        for push in pushes:
            name = push.view.name
            with self._lock:
                self._store.push(f"{name}_push", push.rows.to_pandas(), to=PushMode.ONLINE)
        return self.keep_back(pushes)

    def keep_back(self, pushes: Sequence[Push]) -> list[Any]:
        """Keeps rows for the next `flush` without pushing them online."""
        for push in pushes:
            self._kept_back[push.view.name].append(push.rows)
        return []

    def flush(self) -> None:
        """Hands what was kept back to the offline store, one Parquet file for each view."""
        for name, tables in self._kept_back.items():
            if tables:
                rows = pa.concat_tables(tables).to_pandas()
                with self._lock:
                    self._store.push(f"{name}_push", rows, to=PushMode.OFFLINE)
                tables.clear()

    def read(self, view: View, keys: Sequence[int]) -> list[dict[str, Any]]:
        """The newest features of each entity by name; None in all of them if it has none."""
        if not keys:
            return []
        with self._lock:
            answer = self._store.get_online_features(
                features=[f"{view.name}:{feature}" for feature in view.features],
                entity_rows=[{view.key: key} for key in keys],
            ).to_dict()
        return [{name: answer[name][i] for name in view.features} for i in range(len(keys))]

    def as_of(self, view: View, key: int, at: datetime) -> dict[str, Any]:
        """What the offline store knew of an entity at a moment: Feast's point-in-time join.

        None in all features if it knew nothing yet.
        """
        entities = pd.DataFrame({view.key: [key], EVENT_TIME: [at]})
        with self._lock:
            job = self._store.get_historical_features(
                entity_df=entities,
                features=[f"{view.name}:{feature}" for feature in view.features],
            )
            known = job.to_arrow()
        return {name: known[name][0].as_py() for name in view.features}


def _declare(view: View, directory: Path) -> list[Any]:
    """The Feast objects of a view."""
    entity = Entity(name=view.key.removesuffix("_id"), join_keys=[view.key],
                    value_type=ValueType.INT64)  # fmt: skip
    batch = FileSource(
        name=f"{view.name}_parquet",
        path=str(directory),
        timestamp_field=EVENT_TIME,
    )
    return [
        entity,
        FeatureView(
            name=view.name,
            entities=[entity],
            schema=[Field(name=view.key, dtype=Int64)]
            + [Field(name=n, dtype=_TYPES[kind]) for n, kind in view.features.items()],
            source=PushSource(name=f"{view.name}_push", batch_source=batch),
            ttl=None,
        ),
    ]


def _write_part(directory: Path, table: pa.Table) -> None:
    """One more Parquet file, there whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}.parquet"
    aside = directory / f".{name}"
    with aside.open("wb") as stream:
        pq.write_table(table, stream)
        stream.flush()
        os.fsync(stream.fileno())
    aside.rename(directory / name)
