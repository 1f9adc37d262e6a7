"""Feast's online store in Redis, with one rule more: of two pushes about one moment the last wins.

Feast's own drops a push that is about the same moment as the one before it. A replay is full of
such pushes, and each tells of an action more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from redis.exceptions import RedisError

from features.definitions import FeatureError
from features.store.rows import Row, key_of, time_us

_NO_FEATURE = [""]  # Redis answers with the time of the row alone


class NewestRedisOnlineStoreConfig(RedisOnlineStoreConfig):  # type: ignore[misc]
    """Feast finds an online store by the path of its class; `shown` names it in errors.

    `skip_dedup`: Feast need not look for what is older, for that is done here.
    """

    type: Literal["features.store.redis_online.NewestRedisOnlineStore"] = (
        "features.store.redis_online.NewestRedisOnlineStore"
    )
    skip_dedup: bool = True
    shown: str


class NewestRedisOnlineStore(RedisOnlineStore):  # type: ignore[misc]
    """The newest event time wins, as long as one process pushes: Redis looks, then writes."""

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        keys = [key for key, *_ in data]
        stored = self.online_read(config, table, keys, _NO_FEATURE)
        newest = {key_of(key): time_us(at) for key, (at, _) in zip(keys, stored, strict=True) if at}
        rows: dict[int, Row] = {}
        for row in data:
            key, at = key_of(row[0]), time_us(row[2])
            if at >= newest.get(key, at):
                newest[key], rows[key] = at, row
        with _answering(config):
            super().online_write_batch(config, table, list(rows.values()), progress)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        # A copy, for Feast's adds a name of its own to the list.
        names = None if requested_features is None else list(requested_features)
        with _answering(config):
            found: list[tuple[datetime | None, dict[str, Value] | None]]
            found = super().online_read(config, table, entity_keys, names)
        return found


@contextmanager
def _answering(config: RepoConfig) -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise FeatureError(
            f"the online store {config.online_store.shown} cannot be used ({error}): start Redis"
            ' there, or set online in the recipe\'s [features] to another, or to "sqlite"'
        ) from error
