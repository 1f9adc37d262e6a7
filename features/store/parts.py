"""Feast's offline store as directories of Parquet files, one more with every cut."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, RepoConfig
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
from feast.infra.offline_stores.file_source import FileSource as FileDataSource
from feast.infra.offline_stores.offline_store import RetrievalJob

from features.store.point_in_time import PointInTimeJob, Wanted


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
            sequences = json.loads(view.tags.get("sequences", "[]"))
            wanted.append(Wanted(view.name, directory, view.join_keys[0], names, lives, sequences))
        return PointInTimeJob(wanted, entity_df, full_feature_names)


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
