"""The replica against a dictionary, under readers that stay, and with versions that are no good."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.batch import Users, known_user
from features.definitions import USER_HISTORY
from serving.replica import Applied, Replica, ReplicaConfig
from serving.served_model import Asked, ServedModel
from streaming.cuts import GONE
from streaming.errors import ConfigError
from trainers.arrays import arrays_table, column_matrix, matrix_column, table_arrays
from trainers.versions import Version, VersionInfo

MakeVersion = Callable[..., Version]
Contents = dict[str, dict[int, float]]


def contents(served: ServedModel) -> Contents:
    """Every row and vector as the one number it is filled with, and the dense parameters'."""
    ids = served.items
    tables = {name: table.touched_since(0) for name, table in served.model.tables.items()}
    found = {
        "vectors": _numbers(ids, served.vectors(ids)[0]),
        **{f"table-{name}": _numbers(*rows) for name, rows in tables.items()},
    }
    dense = torch.cat([p.detach().flatten() for p in served.model.parameters()])
    found["dense"] = dict(enumerate(sorted(set(dense.tolist()))))
    return found


def _numbers(ids: NDArray[np.int64], rows: NDArray[np.float32]) -> dict[int, float]:
    assert (rows == rows[:, :1]).all()
    return dict(zip(ids.tolist(), rows[:, 0].tolist(), strict=True))


def served_contents(replica: Replica) -> Contents | None:
    with replica.reading() as served:
        return None if served is None else contents(served)


# Against a dictionary


@dataclass
class Oracle:
    """What a replica must do, on dictionaries."""

    info: VersionInfo | None = None
    state: Contents = field(default_factory=dict)

    def take(self, version: Version, *, back: bool = False) -> Applied:
        info, served = version.info, self.info
        back = back and info.base is None
        same = served is not None and info.lineage == served.lineage
        if served and same and info.number < served.number and not back:
            return Applied.DUPLICATE
        if served and same and info.number == served.number:
            return Applied.DUPLICATE
        if info.base is not None:
            if not served or not same or info.base != served.number:
                return Applied.GAP
        elif served and (info.watermark_us or 0) < (served.watermark_us or 0) and not back:
            return Applied.STALE
        else:
            self.state = {}
        for name, table in sorted(version.shards.items(), key=lambda s: not s[0].endswith(GONE)):
            if name.endswith(GONE):
                for gone in table["id"].to_pylist():
                    self.state[name.removesuffix(GONE)].pop(gone, None)
            elif name == "dense":
                self.state[name] = {0: value_of(version)}
            else:
                rows = _numbers(table["id"].to_numpy(), column_matrix(table["row"]))
                self.state.setdefault(name, {}).update(rows)
        self.info = info
        return Applied.APPLIED


def value_of(version: Version) -> float:
    """A number that no other version of the property test is filled with."""
    return version.info.number + 100.0 * (version.info.lineage == "b")


def with_gone(version: Version, gone: Mapping[str, Sequence[int]]) -> Version:
    """The version with tombstones of these shards."""
    told = {f"{shard}{GONE}": pa.table({"id": np.array(ids)}) for shard, ids in gone.items()}
    return replace(version, shards={**version.shards, **told})


# In order mostly, but also again, too far ahead, and back; now and then by order.
MOVES = st.tuples(
    st.sampled_from("aab"),
    st.sampled_from([1, 1, 1, 1, 0, 2, -1, -3]),
    st.sampled_from([False, False, False, True]),
)
GONE_FROM = ("vectors", "table-item", "table-user")


@given(moves=st.lists(MOVES, max_size=30), ahead=st.integers(-3, 3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_agrees_with_a_dictionary_whatever_comes_in_whatever_order(
    constant_version: MakeVersion,
    moves: list[tuple[str, int, bool]],
    ahead: int,
) -> None:
    replica, oracle = Replica(), Oracle()
    at = {"a": -1, "b": -1}
    newest = 0
    for lineage, step, back in moves:
        at[lineage] = max(0, at[lineage] + step)
        number = at[lineage]
        watermark = max(0, 10 * number + (10 * ahead if lineage == "b" else 0))
        version = constant_version(
            number,
            lineage,
            snapshot=number % 4 == 0,
            watermark_us=watermark,
            ids=[i for i in range(6) if (number + i) % 3 or number % 4 == 0],
            value=number + 100.0 * (lineage == "b"),
        )
        if number % 4:  # of some ids one shard is gone and the others are not
            gone = {shard: [(number + n) % 7] for n, shard in enumerate(GONE_FROM)}
            version = with_gone(version, gone)
        assert replica.take(version, back=back) is oracle.take(version, back=back)
        assert replica.info == oracle.info
        assert served_contents(replica) == (oracle.state if oracle.info else None)
        now = replica.info.watermark_us or 0 if replica.info else 0
        assert now >= newest or back
        newest = now


def test_a_version_with_no_watermark_yet_gives_way_to_any_other(
    constant_version: MakeVersion,
) -> None:
    replica = Replica()
    assert replica.info is None
    first = constant_version(0, "a", snapshot=True)
    blank = Version(
        VersionInfo("two_tower", "a", 0, None, None, None, 0, first.info.options, {}), first.shards
    )
    assert replica.take(blank) is Applied.APPLIED
    behind = constant_version(0, "b", snapshot=True, watermark_us=0)
    assert replica.take(behind) is Applied.APPLIED
    assert replica.take(constant_version(0, "c", snapshot=True, watermark_us=7)) is Applied.APPLIED
    assert replica.take(blank) is Applied.STALE
    assert replica.info is not None
    assert replica.info.lineage == "c"


def test_a_snapshot_forgets_what_it_does_not_hold(constant_version: MakeVersion) -> None:
    replica = Replica()
    replica.take(constant_version(0, snapshot=True, ids=[1, 2, 3]))
    replica.take(constant_version(4, snapshot=True, ids=[2]))
    state = served_contents(replica)
    assert state is not None
    assert state["vectors"] == state["table-item"] == {2: 4}


def test_a_version_without_rows_changes_the_dense_parameters_alone(
    constant_version: MakeVersion,
) -> None:
    replica = Replica()
    replica.take(constant_version(0, snapshot=True, ids=[1], value=5))
    assert replica.take(constant_version(1, ids=[], value=6)) is Applied.APPLIED
    state = served_contents(replica)
    assert state is not None
    assert state["vectors"] == {1: 5}
    assert state["dense"] == {0: 6}


def test_a_replica_grows_to_thousands_of_items(constant_version: MakeVersion) -> None:
    replica = Replica()
    replica.take(constant_version(0, snapshot=True, ids=range(10)))
    for number in (1, 2):  # over the room that was made at first, on both copies
        replica.take(constant_version(number, ids=range(number * 1_000, number * 3_000)))
    state = served_contents(replica)
    assert state is not None
    assert len(state["vectors"]) == 10 + 5_000
    assert state["vectors"][0] == 0
    assert state["vectors"][1_999] == 1
    assert state["vectors"][2_000] == state["vectors"][5_999] == 2


# Readers


def test_readers_in_threads_never_see_a_torn_version(constant_version: MakeVersion) -> None:
    ids = range(40)
    versions = [
        constant_version(number, lineage, snapshot=number == 0, ids=ids, watermark_us=0)
        for lineage in "abc"
        for number in range(60)
    ]
    replica, failures, stopping = Replica(), list[object](), threading.Event()
    seen: set[tuple[str, int]] = set()

    def read() -> None:
        asked = np.array(ids)
        while not stopping.is_set():
            with replica.reading() as served:
                if served is None:
                    continue
                values = {float(served.info.number)}
                for table in served.model.tables.values():
                    values |= set(table(asked).flatten().tolist())
                    time.sleep(0)
                for parameter in served.model.parameters():
                    values |= set(parameter.detach().flatten().tolist())
                values |= set(served.vectors(asked)[0].ravel().tolist())
                if len(values) != 1 or len(served) != len(ids):
                    failures.append((served.info.name, values))
                seen.add((served.info.lineage, served.info.number))

    readers = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for version in versions:
            assert replica.take(version) is Applied.APPLIED
    finally:
        stopping.set()
    for reader in readers:
        reader.join(timeout=10)
        assert not reader.is_alive()
    assert failures == []
    assert len(seen) > 5


def test_a_reading_stays_as_it_is_while_newer_ones_see_the_newer_version(
    constant_version: MakeVersion,
) -> None:
    replica = Replica()
    replica.take(constant_version(0, snapshot=True))
    applying = threading.Thread(target=replica.take, args=(constant_version(1),), daemon=True)
    with replica.reading() as old:
        assert old is not None
        applying.start()
        deadline = time.monotonic() + 10
        while replica.info == old.info and time.monotonic() < deadline:
            time.sleep(0.001)
        with replica.reading() as new:
            assert new is not None
            assert new.info.number == 1
            assert set(contents(new)["vectors"].values()) == {1}
        assert old.info.number == 0
        assert set(contents(old)["vectors"].values()) == {0}
        assert applying.is_alive()  # the copy that is being read is not written to
    applying.join(timeout=10)
    assert not applying.is_alive()
    assert replica.take(constant_version(2)) is Applied.APPLIED


def test_a_reading_outlives_the_snapshot_that_replaces_it(constant_version: MakeVersion) -> None:
    replica = Replica()
    replica.take(constant_version(0, snapshot=True))
    with replica.reading() as old:
        assert replica.take(constant_version(4, snapshot=True)) is Applied.APPLIED
        assert replica.take(constant_version(5)) is Applied.APPLIED
        assert old is not None
        assert set(contents(old)["vectors"].values()) == {0}


def test_a_reader_that_fails_does_not_hold_up_the_next_version(
    constant_version: MakeVersion,
) -> None:
    replica = Replica()
    replica.take(constant_version(0, snapshot=True))
    with pytest.raises(ZeroDivisionError), replica.reading():
        _ = 1 / 0
    applying = threading.Thread(target=replica.take, args=(constant_version(1),), daemon=True)
    applying.start()
    applying.join(timeout=10)
    assert not applying.is_alive()


def test_before_the_first_version_a_reading_is_empty(constant_version: MakeVersion) -> None:
    replica = Replica()
    with replica.reading() as nothing:
        assert nothing is None
        replica.take(constant_version(0, snapshot=True))  # and holds nothing up
    with replica.reading() as served:
        assert served is not None


# Room


class Alive:
    """The copies of the model that take room, and the most that there ever were at once."""

    def __init__(self) -> None:
        self.copies = WeakSet[ServedModel]()
        self.most = 0

    def __len__(self) -> int:
        return len(self.copies)

    def add(self, served: ServedModel) -> None:
        self.copies.add(served)
        self.most = max(self.most, len(self))


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    made, begin = Alive(), ServedModel.__init__

    def counted(self: ServedModel, *args: Any, **kwargs: Any) -> None:
        made.add(self)
        begin(self, *args, **kwargs)

    monkeypatch.setattr(ServedModel, "__init__", counted)
    return made


def test_a_snapshot_beside_the_old_version_takes_the_room_of_one_more_copy(
    constant_version: MakeVersion, alive: Alive
) -> None:
    replica = Replica()
    for number in range(0, 24, 4):
        assert replica.take(constant_version(number, snapshot=True)) is Applied.APPLIED
        assert len(alive) == 2
        assert replica.take(constant_version(number + 1)) is Applied.APPLIED
        assert len(alive) == 2
    assert alive.most <= 3


def test_the_old_version_is_freed_when_its_last_reader_leaves(
    constant_version: MakeVersion, alive: Alive
) -> None:
    replica = Replica()
    replica.take(constant_version(0, snapshot=True))
    with replica.reading():
        replica.take(constant_version(4, snapshot=True))
        assert len(alive) == 3
    assert len(alive) == 2
    assert alive.most == 3


def test_a_reader_that_stays_keeps_his_copy_and_holds_nothing_up(
    constant_version: MakeVersion,
    alive: Alive,
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica = Replica(ReplicaConfig(patience_s=0.02))
    replica.take(constant_version(0, snapshot=True))
    with replica.reading() as stuck, caplog.at_level(logging.WARNING):
        for number in range(1, 8):
            assert replica.take(constant_version(number)) is Applied.APPLIED
            with replica.reading() as served:
                assert served is not None
                assert set(contents(served)["vectors"].values()) == {number}
        assert stuck is not None
        assert stuck.info.number == 0
        assert set(contents(stuck)["vectors"].values()) == {0}
        assert len(alive) == 3
        assert caplog.text.count("left to its readers") == 1
        del stuck, served
    assert len(alive) == 2


def test_no_more_than_two_copies_are_left_to_readers(
    constant_version: MakeVersion, alive: Alive
) -> None:
    replica = Replica(ReplicaConfig(patience_s=0.02))
    versions = [constant_version(number, snapshot=number == 0) for number in range(6)]
    taken: list[Applied] = []
    with ExitStack() as readers:
        first = readers.enter_context(ExitStack())
        first.enter_context(replica.reading())
        for version in versions[:2]:
            replica.take(version)
            (first if version.info.number == 0 else readers).enter_context(replica.reading())
        replica.take(versions[2])
        rest = threading.Thread(
            target=lambda: taken.extend(map(replica.take, versions[3:])), daemon=True
        )
        rest.start()
        rest.join(timeout=0.2)
        assert rest.is_alive()
        assert len(alive) <= 4
        first.close()
        rest.join(timeout=10)
        assert taken == [Applied.APPLIED] * 3
    assert alive.most <= 4
    assert len(alive) == 2


# What is no good


def edited(version: Version, shard: str, number: float) -> Version:
    """The version with one number of a shard set."""
    table = version.shards[shard]
    if shard == "dense":
        arrays = table_arrays(table)
        next(iter(arrays.values())).flat[-1] = number
        table = arrays_table(arrays)
    else:
        values = column_matrix(table["row"]).copy()
        values[-1, -1] = number
        table = pa.table({"id": table["id"], "row": matrix_column(values)})
    return replace(version, shards={**version.shards, shard: table})


def without(version: Version, shard: str) -> Version:
    shards = {name: table for name, table in version.shards.items() if name != shard}
    return replace(version, shards=shards)


def with_rows(version: Version, shard: str, ids: Sequence[int], width: int) -> Version:
    rows = matrix_column(np.zeros((len(ids), width), np.float32))
    table = pa.table({"id": np.array(ids), "row": rows})
    return replace(version, shards={**version.shards, shard: table})


def with_info(version: Version, **changes: Any) -> Version:
    return replace(version, info=replace(version.info, **changes))


def with_other_dense(version: Version) -> Version:
    arrays = table_arrays(version.shards["dense"])
    arrays["user_tower.0.weight"] = np.zeros((3, 4), np.float32)
    return replace(version, shards={**version.shards, "dense": arrays_table(arrays)})


NO_GOOD: dict[str, tuple[Callable[[Version], Version], str]] = {
    "nan in vectors": (lambda v: edited(v, "vectors", np.nan), "'vectors' that are not finite"),
    "inf in a table": (lambda v: edited(v, "table-user", np.inf), "'table-user' that are not"),
    "-inf in dense": (lambda v: edited(v, "dense", -np.inf), "'user_tower.0.weight' that are"),
    "no dense": (lambda v: without(v, "dense"), "shard 'dense' is missing"),
    "no vectors": (lambda v: without(v, "vectors"), "shard 'vectors' is missing"),
    "no table": (lambda v: without(v, "table-token"), r"tables are \['item', 'user'\], and"),
    "narrow rows": (lambda v: with_rows(v, "table-item", [1], 3), "a row of 'item' are 3, and"),
    "narrow vectors": (lambda v: with_rows(v, "vectors", [1], 3), "in a vector are 3, and"),
    "shared rows": (lambda v: with_rows(v, "table-item", [-1], 4), "more shared rows of 'item'"),
    "another tower": (with_other_dense, r"'user_tower.0.weight' are \(3, 4\), and"),
}
NEVER_LAID = {
    "another model": (lambda v: with_info(v, model="oracle"), "'oracle': known are .*two_tower"),
    "another option": (lambda v: with_info(v, options={"widht": 4}), "widht"),
}


@pytest.mark.parametrize(("spoil", "why"), NO_GOOD.values(), ids=NO_GOOD)
def test_a_delta_that_is_no_good_is_refused_before_anything_is_laid_over(
    constant_version: MakeVersion, spoil: Callable[[Version], Version], why: str
) -> None:
    replica = Replica()
    replica.take(constant_version(0, snapshot=True))
    before = served_contents(replica)
    assert replica.take(spoil(constant_version(1, value=7))) is Applied.REFUSED
    assert replica.refusal.startswith("version two_tower/a/1 is not served")
    assert re.search(why, replica.refusal)
    assert served_contents(replica) == before
    assert replica.take(constant_version(2)) is Applied.GAP
    for number in (1, 2):  # once for each copy
        assert replica.take(constant_version(number, ids=[9])) is Applied.APPLIED
        state = served_contents(replica)
        assert state is not None
        assert state["vectors"] == {1: 0, 2: 0, 3: 0, 9: number}


@pytest.mark.parametrize(
    ("spoil", "why"), [*NO_GOOD.values(), *NEVER_LAID.values()], ids=[*NO_GOOD, *NEVER_LAID]
)
def test_a_snapshot_that_is_no_good_is_refused_and_the_chain_goes_on(
    constant_version: MakeVersion, spoil: Callable[[Version], Version], why: str
) -> None:
    replica = Replica()
    first = spoil(constant_version(0, snapshot=True))
    assert replica.take(first) is Applied.REFUSED
    assert replica.info is None
    assert replica.take(constant_version(0, snapshot=True)) is Applied.APPLIED
    before = served_contents(replica)
    assert replica.take(spoil(constant_version(4, snapshot=True))) is Applied.REFUSED
    assert re.search(why, replica.refusal)
    assert served_contents(replica) == before
    assert replica.take(constant_version(1)) is Applied.APPLIED


@pytest.mark.parametrize("snapshot", [True, False])
def test_finite_numbers_that_overflow_into_answers_are_refused(
    constant_version: MakeVersion, snapshot: bool, alive: Alive
) -> None:
    replica = Replica()
    replica.take(constant_version(0, snapshot=True))
    before = served_contents(replica)
    huge = constant_version(1, snapshot=snapshot, value=3e38)
    assert replica.take(huge) is Applied.REFUSED
    assert "not finite" in replica.refusal
    assert served_contents(replica) == before
    for number in (1, 2):
        assert replica.take(constant_version(number, ids=[2])) is Applied.APPLIED
    state = served_contents(replica)
    assert state is not None
    assert state["vectors"] == {1: 0, 2: 2, 3: 0}
    assert len(alive) == 2


# Back


def test_back_by_order_and_on_from_there(constant_version: MakeVersion) -> None:
    replica = Replica()
    for number in range(6):
        replica.take(constant_version(number, snapshot=number % 4 == 0))
    old = constant_version(0, snapshot=True)
    assert replica.take(old) is Applied.DUPLICATE
    assert replica.take(constant_version(3), back=True) is Applied.DUPLICATE  # no snapshot
    assert replica.take(old, back=True) is Applied.APPLIED
    assert replica.take(old, back=True) is Applied.DUPLICATE
    assert replica.info == old.info
    assert replica.take(constant_version(1)) is Applied.APPLIED
    elder = constant_version(7, "b", snapshot=True, watermark_us=0)
    assert replica.take(elder) is Applied.STALE
    assert replica.take(elder, back=True) is Applied.APPLIED


# Before it is in front


def test_a_loaded_copy_is_asked_before_anybody_reads_it(
    constant_version: MakeVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, asked = Replica(), list[tuple[int, int | None]]()
    ask, best = ServedModel.ask, ServedModel.best

    def note(served: ServedModel) -> None:
        front = replica.info
        asked.append((served.info.number, None if front is None else front.number))

    def noted_ask(self: ServedModel, users: Users) -> list[Asked]:
        note(self)
        return ask(self, users)

    def noted_best(self: ServedModel, *args: Any) -> Any:
        note(self)
        return best(self, *args)

    monkeypatch.setattr(ServedModel, "ask", noted_ask)
    monkeypatch.setattr(ServedModel, "best", noted_best)
    for number in (0, 4):
        replica.take(constant_version(number, snapshot=True))
    assert len(asked) >= 4
    assert set(asked) == {(0, None), (4, 0)}


def test_versions_from_several_threads_are_taken_one_after_another(
    constant_version: MakeVersion,
) -> None:
    replica, outcomes = Replica(), list[Applied]()
    replica.take(constant_version(0, snapshot=True))
    deltas = [constant_version(number) for number in range(1, 40)]
    threads = [
        threading.Thread(target=lambda: outcomes.extend(map(replica.take, deltas)), daemon=True)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert outcomes.count(Applied.APPLIED) == len(deltas)
    assert outcomes.count(Applied.DUPLICATE) == 2 * len(deltas)
    state = served_contents(replica)
    assert state is not None
    assert set(state["vectors"].values()) == set(state["dense"].values()) == {39}


# Where


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="device = 'cuda:77' cannot be used here"):
        Replica(ReplicaConfig(device="cuda:77"))


ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


# "cpu:0" is kept as any device's memory is, by torch.
@pytest.mark.parametrize("device", ["cpu:0", pytest.param("cuda", marks=ON_CUDA)])
def test_on_a_device_the_same_is_served(constant_version: MakeVersion, device: str) -> None:
    there, here = Replica(ReplicaConfig(device=device)), Replica()
    for number in range(6):
        version = constant_version(number, snapshot=number == 0, ids=range(number, number + 5))
        for replica in (there, here):
            assert replica.take(version) is Applied.APPLIED
        assert served_contents(there) == served_contents(here)


@pytest.mark.parametrize("device", ["cpu:0", pytest.param("cuda", marks=ON_CUDA)])
def test_towers_on_a_device_answer_as_those_here(random_version: MakeVersion, device: str) -> None:
    version = random_version(range(100, 140))
    options = {**version.info.options, "table": {"offload": "rows that no device has"}}
    nobody = known_user(1, USER_HISTORY.defaults)
    answers = []
    for where, info in (("cpu", version.info), (device, replace(version.info, options=options))):
        replica = Replica(ReplicaConfig(device=where))
        replica.take(replace(version, info=info))
        with replica.reading() as served:
            assert served is not None
            assert next(served.model.parameters()).device.type == torch.device(where).type
            answers.append(served.retrieve(nobody, 10, np.empty(0, np.int64)))
    assert answers[0][0].tolist() == answers[1][0].tolist()
    np.testing.assert_allclose(answers[0][1], answers[1][1], rtol=1e-4)
