"""Feast's online store in a SQLite file of the home: one row an entity, the newest event time wins.

Feast's own SQLite store has a row for each feature, keeps times to the second, lets the last write
win, and makes readers wait for the writer. This one is a custom store as Feast documents them; all
that is read and written goes through Feast's interface.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Map, Value
from feast.repo_config import FeastConfigBaseModel

from features.definitions import FeatureError
from features.store.rows import EPOCH, Row, key_of, time_us
from streaming.disk import make_durable

WAIT_S = 30.0  # for another process that writes
# In the log of SQLite until they are carried over: with fewer, the disk is busy with nothing else.
_PAGES = 16_384
_MAPPED = 1 << 28  # bytes of the file that are read without asking the system


class EmbeddedOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """Feast finds an online store by the path of its class; `path` is absolute."""

    type: Literal["features.store.embedded.EmbeddedOnlineStore"] = (
        "features.store.embedded.EmbeddedOnlineStore"
    )
    path: str


class EmbeddedOnlineStore(OnlineStore):  # type: ignore[misc]
    """A table for each view, keyed by the one stable id that each of our entities has.

    Readers see the last commit and never wait. A commit survives the process, and a loss of power
    from the next `sync` on: rows are pushed too often for the disk to be waited for each time.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        rows = (
            (key_of(key), time_us(at), Map(val=values).SerializeToString())
            for key, values, at, _ in data
        )
        name = _quoted(config, table)
        with self._connected(config) as connection, connection:
            connection.executemany(
                f"INSERT INTO {name} VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE"  # noqa: S608
                " SET event_us = excluded.event_us, features = excluded.features"
                " WHERE excluded.event_us >= event_us",
                rows,
            )
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        keys = [key_of(key) for key in entity_keys]
        with self._connected(config) as connection:
            rows = connection.execute(
                f"SELECT key, event_us, features FROM {_quoted(config, table)}"  # noqa: S608
                " WHERE key IN (SELECT value FROM json_each(?))",
                [json.dumps(keys)],
            ).fetchall()
        found = {
            key: (EPOCH + timedelta(microseconds=us), _chosen(features, requested_features))
            for key, us, features in rows
        }
        return [found.get(key, (None, None)) for key in keys]

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],  # noqa: ARG002
        entities_to_keep: Sequence[Entity],  # noqa: ARG002
        partial: bool,  # noqa: ARG002
    ) -> None:
        with self._connected(config, make=True) as connection, connection:
            connection.execute("PRAGMA journal_mode = WAL")
            for table in tables_to_keep:
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {_quoted(config, table)}"
                    " (key INTEGER PRIMARY KEY, event_us INTEGER NOT NULL, features BLOB NOT NULL)"
                )
            for table in tables_to_delete:
                connection.execute(f"DROP TABLE IF EXISTS {_quoted(config, table)}")

    def teardown(
        self,
        config: RepoConfig,
        tables: Sequence[FeatureView],  # noqa: ARG002
        entities: Sequence[Entity],  # noqa: ARG002
    ) -> None:
        self._of_thread = threading.local()
        path = Path(config.online_store.path)
        for end in ("", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)

    @contextmanager
    def _connected(self, config: RepoConfig, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        """This thread's connection.

        Raises:
            FeatureError: there is no such file or table, or it cannot be used.
        """
        path = config.online_store.path
        try:
            connection = getattr(self._of_thread, "connection", None)
            if connection is None:
                url = f"{Path(path).as_uri()}?mode={'rwc' if make else 'rw'}"
                connection = sqlite3.connect(url, WAIT_S, uri=True)
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_PAGES}")
                connection.execute(f"PRAGMA mmap_size = {_MAPPED}")
                self._of_thread.connection = connection
            yield connection
        except sqlite3.Error as error:
            raise FeatureError(
                f"the online store {path} cannot be used ({error}): `headrace features apply` makes"
                " what is missing, and `headrace run --fresh` starts over if it is damaged"
            ) from error


def sync(path: Path) -> None:
    """Makes all that was committed to a store durable."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        make_durable({log})


def _chosen(features: bytes, names: Sequence[str] | None) -> dict[str, Value]:
    found = Map.FromString(features).val
    return {name: found[name] for name in (found if names is None else names) if name in found}


def _quoted(config: RepoConfig, table: FeatureView) -> str:
    """Names come from `features.definitions` and a checked setting: none of them has a quote."""
    return f'"{config.project}_{table.name}"'
