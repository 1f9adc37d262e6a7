"""The feature store: Feast, with SQLite or Redis online and Parquet offline."""

from __future__ import annotations

from features.store import own_figures  # first, and before anything imports Feast
from features.store.feast_store import FeastStore
from features.store.parts import PartsOfflineStore, PartsOfflineStoreConfig

__all__ = ["FeastStore", "PartsOfflineStore", "PartsOfflineStoreConfig"]
own_figures.restore()
