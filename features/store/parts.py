"""Feast's offline store as directories of Parquet files, one more with every cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from feast import FeatureView, RepoConfig
from feast.data_source import DataSource
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileSource as FileDataSource
from feast.infra.offline_stores.offline_store import RetrievalJob

from features.store.part_files import write_part
from features.store.point_in_time import LatestJob, PointInTimeJob, Wanted


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
        directory = _directory(config, feature_view.batch_source)
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
            names = [n for v, n in (r.split(":") for r in feature_refs) if v == view.name]
            found = _wanted(config, view.batch_source, view.join_keys[0], names)
            lives = view.ttl or None  # Feast takes no time for for ever
            wanted.append(replace(found, view=view.name, lives=lives))
        return PointInTimeJob(wanted, entity_df, full_feature_names)

    @staticmethod
    def pull_latest_from_table_or_query(  # noqa: PLR0913 - Feast's signature
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,  # noqa: ARG004
        created_timestamp_column: str | None,  # noqa: ARG004
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """What `materialize` takes to the online store: Feast's own would take a step for a row."""
        wanted = _wanted(config, data_source, join_key_columns[0], feature_name_columns)
        return LatestJob(wanted, start_date, end_date)


def _wanted(config: RepoConfig, source: DataSource, key: str, names: list[str]) -> Wanted:
    return Wanted(
        directory=_directory(config, source),
        key=key,
        names=names,
        sequences=json.loads(source.tags.get("sequences", "[]")),
    )


def _directory(config: RepoConfig, source: DataSource) -> Path:
    uri = source.file_options.uri
    return Path(FileDataSource.get_uri_for_file_path(config.repo_path, uri))
