"""The feature store as the rest of the house sees it: push, read, as of; plan and apply.

Rows go to Feast's provider as they are, not through `FeatureStore.push` and
`get_online_features`: those read the registry again for every call, and another process may be
writing it. What they would read and write is the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore, RepoConfig
from feast.diff.property_diff import TransitionType
from feast.repo_config import MaterializationConfig
from feast.repo_contents import RepoContents
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from features.aggregator import Push
from features.definitions import EVENT_TIME, VIEWS, FeatureError, View
from features.freshness import Freshness
from features.store.declared import LAYOUT, declared, versions
from features.store.embedded import sync
from features.store.part_files import merge_parts, part_files, write_part
from features.store.rows import EPOCH, entity_key, from_row, to_rows
from features.store_config import EMBEDDED, StoreConfig

Action = Literal["create", "update", "remove"]
_ACTIONS: dict[TransitionType, Action] = {
    TransitionType.CREATE: "create",
    TransitionType.UPDATE: "update",
    TransitionType.DELETE: "remove",
}
_REGISTRY = "registry.db"
_FEASTS_OWN = "__dummy"  # an entity that Feast adds to every registry


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a plan: what `apply` does to an object of the registry.

    What is no longer declared is to "remove"; `apply` leaves it, for its rows may still be wanted.
    """

    action: Action
    kind: str
    name: str
    detail: str = ""


class FeastStore:
    """Pushes go online at once and are kept back for the offline store until `flush`.

    Threads may read while one pushes. `apply` comes first, in one process at a time.
    """

    def __init__(
        self, root: Path, config: StoreConfig | None = None, views: Sequence[View] = VIEWS
    ) -> None:
        self._root = root
        self._config = config or StoreConfig()
        self._declared = {view.name: view for view in views if view.stored}
        self._store = FeatureStore(config=self._repo_config(root))
        self._contents = self._declare()
        self._views = {view.name: view for view in self._contents.feature_views}
        self._kept_back: dict[str, list[pa.Table]] = {name: [] for name in self._declared}
        self._freshness = Freshness()
        self._merger = ThreadPoolExecutor(1, "offline-parts")
        self._merging: Future[None] | None = None

    def plan(self) -> list[Change]:
        """What `apply` would do, by Feast's own comparison; empty where all is as declared.

        Raises:
            FeatureError: the registry cannot be read, or a feature would change its type.
        """
        if self._registry_path.exists():
            self._read_versions()
            return self._planned(self._store)
        with TemporaryDirectory() as place:  # Feast makes a registry to compare with
            return self._planned(FeatureStore(config=self._repo_config(Path(place))))

    def _planned(self, store: FeatureStore) -> list[Change]:
        changes, _, _ = store.plan(self._declare())  # anew, for Feast completes what it is given
        found = []
        for diff in changes.feast_object_diffs:
            action = _ACTIONS.get(diff.transition_type)
            if action is None or diff.name == _FEASTS_OWN:
                continue
            details = [p.property_name for p in diff.feast_object_property_diffs]
            if action == "update" and diff.name in self._declared:
                details += self._changed_features(diff.current_feast_object)
            kind = diff.feast_object_type.value
            found.append(Change(action, kind, diff.name, ", ".join(details)))
        return sorted(found, key=lambda change: (change.kind, change.name))

    def apply(self, *, take_over: bool = False) -> list[Change]:
        """Makes the store what `features.definitions` declares; returns what it changed.

        `take_over` accepts a registry that another version of Feast wrote.

        Raises:
            FeatureError: as `plan`; another version of Feast or Headrace wrote the registry, or the
                online store cannot be reached.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        self._check_versions(take_over=take_over)
        changes = [change for change in self.plan() if change.action != "remove"]
        for view in self._declared.values():
            self._prepare_offline(view)
        contents = self._declare()
        if changes:
            self._store.apply([one for objects in contents for one in objects])
        self._store.provider.update_infra(
            self._config.project, [], contents.feature_views, [], contents.entities, partial=True
        )
        for view in self._declared.values():
            self.read(view, [0])  # whether it answers
        return changes

    def clear(self) -> None:
        """Forgets what is online; what is offline, and the registry, are files under the root.

        Raises:
            FeatureError: the online store cannot be reached.
        """
        self._store.provider.teardown_infra(
            self._config.project, self._contents.feature_views, self._contents.entities
        )

    def push(self, pushes: Sequence[Push]) -> list[Any]:
        """Carries out pushes: the rows are what the online store answers from now on.

        A row that is older than what is there changes nothing; of two about one moment the last
        counts.

        Raises:
            FeatureError: a column is not what is declared, or the online store cannot be used.
        """
        self.push_again(pushes)
        for push in pushes:
            self._observe(push)
        return []

    def push_again(self, pushes: Sequence[Push]) -> list[Any]:
        """The same for pushes that a process made which ended before its `flush`: how fresh they
        are says nothing.
        """
        for push in pushes:
            rows = to_rows(self._known(push.view), self._checked(push))
            self._store.provider.online_write_batch(
                self._store.config, self._views[push.view.name], rows, None
            )
            kept = push.rows if push.steps is None else push.steps
            self._kept_back[push.view.name].append(kept)
        return []

    def flush(self) -> None:
        """Makes durable what was pushed: what was kept back goes to the offline store, one Parquet
        file for each view, and what is online to the disk.

        When there are 64 small files of a view they become one.
        """
        if self._config.online == EMBEDDED:
            sync(self._online_path)
        for name, tables in self._kept_back.items():
            if tables:
                self._store.provider.ingest_df_to_offline_store(
                    self._views[name], pa.concat_tables(tables)
                )
                tables.clear()
        self._merge_in_the_background()
        self._freshness.save(self._root)

    def _merge_in_the_background(self) -> None:
        """Files are merged while others are pushed; if that failed, the next flush says so."""
        if self._merging is not None and not self._merging.done():
            return
        if self._merging is not None:
            self._merging.result()
        self._merging = self._merger.submit(self._merge)

    def _merge(self) -> None:
        for name in self._declared:
            merge_parts(self._root / "offline" / name)

    @property
    def freshness(self) -> Freshness:
        """How fresh what this process pushed was; `flush` leaves it for other processes."""
        return self._freshness

    @property
    def is_local(self) -> bool:
        """Whether what is online is in a file of this machine."""
        return self._config.online == EMBEDDED

    def read(
        self, view: View, keys: Sequence[int], now: datetime | None = None
    ) -> list[dict[str, Any]]:
        """The newest features of each entity by name, those that serving uses.

        The defaults where nothing is known, or what is known has lived its time at `now`.

        Raises:
            FeatureError: the view is not declared, or the online store cannot be used.
        """
        if not keys:
            return []
        names = [f.name for f in self._known(view).features if "serving" in f.used]
        rows = self._store.provider.online_read(
            self._store.config,
            self._views[view.name],
            [entity_key(view, key) for key in keys],
            names,
        )
        oldest = None if view.ttl is None else (now or datetime.now(UTC)) - view.ttl
        return [
            from_row(view, names, None if oldest and at and at < oldest else found)
            for at, found in rows
        ]

    def as_of(self, view: View, key: int, at: datetime) -> dict[str, Any]:
        """What the offline store knew of an entity at a moment: see `as_of_each`."""
        return self.as_of_each(view, [(key, at)])[0]

    def as_of_each(self, view: View, asked: Sequence[tuple[int, datetime]]) -> list[dict[str, Any]]:
        """What the offline store knew of entities at moments: Feast's point-in-time join.

        The features that training uses; their defaults, as `read` gives them.
        """
        names = [f.name for f in self._known(view).features if "training" in f.used]
        keys, times = zip(*asked, strict=True) if asked else ((), ())
        job = self._store.get_historical_features(
            entity_df=pd.DataFrame({view.key: keys, EVENT_TIME: times}),
            features=[f"{view.name}:{name}" for name in names],
        )
        defaults = view.defaults
        return [
            {n: defaults[n] if row[n] is None else row[n] for n in names}
            for row in job.to_arrow().select(names).to_pylist()
        ]

    def refill(self) -> None:
        """Lets the online store answer what the offline store knows, by Feast's `materialize`: for
        a Redis that has lost its memory, or a file that is gone. What is newer there stays.

        Rows pushed since the aggregator's last cut are not offline yet. Nobody may push meanwhile.

        Raises:
            FeatureError: the online store cannot be used.
        """
        with redirect_stdout(StringIO()):  # it tells terminals of its progress
            self._store.materialize(EPOCH, datetime.now(UTC), list(self._declared))

    def applied(self) -> dict[str, int]:
        """How many versions of each view the registry has seen; empty where nothing was applied."""
        if not self._registry_path.exists():
            return {}
        self._read_versions()
        return {
            view.name: len(self._store.list_feature_view_versions(view.name))
            for view in self._store.list_feature_views()
        }

    # -- the parts -------------------------------------------------------------------------

    @property
    def _registry_path(self) -> Path:
        return self._root / _REGISTRY

    @property
    def _online_path(self) -> Path:
        return self._root / "online.db"

    def _repo_config(self, registry: Path) -> RepoConfig:
        online: dict[str, Any]
        if self._config.online == EMBEDDED:
            online = {
                "type": "features.store.embedded.EmbeddedOnlineStore",
                "path": str(self._online_path),
            }
        else:
            online = {
                "type": "features.store.redis_online.NewestRedisOnlineStore",
                "connection_string": self._config.redis,
                "shown": self._config.shown,
            }
        return RepoConfig(
            project=self._config.project,
            provider="local",
            registry=str(registry / _REGISTRY),
            online_store=online,
            offline_store={"type": "features.store.PartsOfflineStore"},
            materialization=MaterializationConfig(pull_latest_features=True),
            entity_key_serialization_version=3,
        )

    def _declare(self) -> RepoContents:
        views = list(self._declared.values())
        return declared(views, self._config.project, self._root / "offline")

    def _known(self, view: View) -> View:
        declared = self._declared.get(view.name)
        if declared is not view and declared != view:
            raise FeatureError(
                f"the view {view.name} is not declared: add it to VIEWS in features/definitions.py,"
                f" which has {', '.join(self._declared)}"
            )
        return view

    def _checked(self, push: Push) -> pa.Table:
        push.view.check(push.rows.schema)
        return push.rows

    def _observe(self, push: Push) -> None:
        newest = pc.max(push.rows[EVENT_TIME].cast(pa.int64())).as_py()
        self._freshness.observe(
            push.view.name,
            push.rows.num_rows,
            newest or 0,
            arrived_us=push.logged_us,
            now_us=time.time_ns() // 1000,
        )

    def _prepare_offline(self, view: View) -> None:
        """An empty part, if there is none yet with all the columns: reading learns them from it."""
        directory = self._root / "offline" / view.name
        parts = part_files(directory)
        needed = set(view.offline_schema.names)
        if not any(needed <= set(pq.read_schema(p).names) for p in parts):
            write_part(directory, view.offline_schema.empty_table())

    def _read_versions(self) -> dict[str, str] | None:
        """Who wrote the registry; None if it is new.

        Raises:
            FeatureError: it cannot be read.
        """
        try:
            projects = self._store.list_projects()
            tags = next((dict(p.tags) for p in projects if p.name == self._config.project), {})
            return tags if tags or self._store.list_feature_views() else None
        except DecodeError as error:
            raise FeatureError(
                f"the feature registry {self._registry_path} cannot be read ({error}): it is"
                " damaged, or another version of Feast wrote it; start over with `headrace run"
                " --fresh`"
            ) from error

    def _check_versions(self, *, take_over: bool) -> None:
        tags = self._read_versions()
        if tags is None:
            return
        path, written = self._registry_path, tags.get("layout", "1")
        if written != LAYOUT:
            raise FeatureError(
                f"another version of Headrace wrote the feature registry {path} (layout {written},"
                f" this one reads {LAYOUT}): start over with `headrace run --fresh`, or go on with"
                " that version"
            )
        feast = versions()["feast"]
        if not take_over and tags.get("feast") != feast:
            raise FeatureError(
                f"Feast {tags.get('feast')} wrote the feature registry {path}, and this is Feast"
                f" {feast}: read `headrace features plan`, then `headrace features apply` takes it"
                " over"
            )

    def _changed_features(self, current: Any) -> list[str]:
        """What becomes of a view's features.

        Raises:
            FeatureError: one would change its type.
        """
        before = {field.name: field for field in getattr(current, "features", [])}
        after = {field.name: field for field in self._views[current.name].features}
        for name in before.keys() & after.keys():
            if before[name].dtype != after[name].dtype:
                raise FeatureError(
                    f"the feature {current.name}.{name} is {before[name].dtype} in"
                    f" {self._registry_path} and declared as {after[name].dtype}: a feature keeps"
                    " its type, so give the new one another name, or start over with `headrace run"
                    " --fresh`"
                )
        return [f"+{name}" for name in after if name not in before] + [
            f"-{name}" for name in before if name not in after
        ]
