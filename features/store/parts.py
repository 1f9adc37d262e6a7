"""Feast's offline store as directories of Parquet files, one more with every cut."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, RepoConfig
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileSource as FileDataSource
from feast.infra.offline_stores.offline_store import RetrievalJob

from features.definitions import EVENT_TIME

_TIME = "datetime64[us, UTC]"


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
        write_part(directory, table.replace_schema_metadata(None))
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
            lives = view.ttl or None  # Feast takes no time for for ever
            wanted.append(_Wanted(view.name, directory, view.join_keys[0], names, lives))
        return PointInTimeJob(wanted, entity_df, full_feature_names)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Some features of one view, whose Parquet files lie in a directory."""

    view: str
    directory: Path
    key: str
    names: list[str]
    lives: timedelta | None


class PointInTimeJob(RetrievalJob):  # type: ignore[misc]
    """For each row of `entities` the features as they were known at its time, or null."""

    def __init__(self, wanted: list[_Wanted], entities: pd.DataFrame, full: bool) -> None:
        self._wanted = wanted
        self._entities = entities
        self._full = full

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        answer = pa.Table.from_pandas(self._entities, preserve_index=False)
        for wanted in self._wanted:
            asked = [(wanted.key, "in", set(self._entities[wanted.key]))]
            parts = [
                pq.read_table(file, filters=asked)
                for file in sorted(wanted.directory.glob("[!.]*.parquet"))
            ]
            rows = pa.concat_tables(parts, promote_options="permissive")
            where = pa.array(self._newest(rows, wanted), pa.int64())
            for name in wanted.names:
                shown = f"{wanted.view}__{name}" if self._full else name
                answer = answer.append_column(shown, rows[name].take(where))
        return answer

    def _newest(self, rows: pa.Table, wanted: _Wanted) -> list[int | None]:
        """For each entity row the last of the rows with its key that is not after its time.

        None as well where that one had lived its time.
        """
        order = [wanted.key, EVENT_TIME]
        known = rows.select(order).to_pandas().astype({EVENT_TIME: _TIME})
        known["row"] = range(len(known))
        asked = self._entities[order].astype({EVENT_TIME: _TIME})
        asked["place"] = range(len(asked))
        found = pd.merge_asof(
            asked.sort_values(EVENT_TIME, kind="stable"),
            known.sort_values(EVENT_TIME, kind="stable"),
            on=EVENT_TIME,
            by=wanted.key,
            tolerance=None if wanted.lives is None else pd.Timedelta(wanted.lives),
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


def write_part(directory: Path, table: pa.Table) -> None:
    """One more Parquet file, there whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}.parquet"
    aside = directory / f".{name}"
    with aside.open("wb") as stream:
        pq.write_table(table, stream)
        stream.flush()
        os.fsync(stream.fileno())
    aside.rename(directory / name)
