"""The replica against a dictionary, under readers, and its answers against brute force."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from features.batch import Jagged, Users
from serving.replica import Applied, Replica, ServedModel
from trainers.arrays import column_matrix
from trainers.versions import Version, VersionInfo

MakeVersion = Callable[..., Version]
Contents = dict[str, dict[int, float]]


def contents(served: ServedModel) -> Contents:
    """Every row and vector as the one number it is filled with, and the dense parameters'."""
    ids, vectors = served._places.ids, served._all_vectors()
    tables = {name: table.touched_since(0) for name, table in served.model.tables.items()}
    found = {
        "vectors": _numbers(ids, vectors.numpy()),
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

    def take(self, version: Version) -> Applied:
        info, served = version.info, self.info
        if served and info.lineage == served.lineage and info.number <= served.number:
            return Applied.DUPLICATE
        if info.base is not None:
            if not served or (info.lineage, info.base) != (served.lineage, served.number):
                return Applied.GAP
        elif served and (info.watermark_us or 0) < (served.watermark_us or 0):
            return Applied.STALE
        else:
            self.state = {}
        for name, table in version.shards.items():
            if name == "dense":
                self.state[name] = {0: value_of(version)}
            else:
                rows = _numbers(table["id"].to_numpy(), column_matrix(table["row"]))
                self.state.setdefault(name, {}).update(rows)
        self.info = info
        return Applied.APPLIED


def value_of(version: Version) -> float:
    """A number that no other version of the property test is filled with."""
    return version.info.number + 100.0 * (version.info.lineage == "b")


# In order mostly, but also again, too far ahead, and back.
MOVES = st.tuples(st.sampled_from("aab"), st.sampled_from([1, 1, 1, 1, 0, 2, -1, -3]))


@given(
    moves=st.lists(MOVES, max_size=30),
    ahead=st.integers(-3, 3),
    none_at_first=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_agrees_with_a_dictionary_whatever_comes_in_whatever_order(
    constant_version: MakeVersion,
    moves: list[tuple[str, int]],
    ahead: int,
    none_at_first: bool,
) -> None:
    replica, oracle = Replica(), Oracle()
    at = {"a": -1, "b": -1}
    newest = 0
    for lineage, step in moves:
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
        assert replica.take(version) is oracle.take(version)
        assert replica.info == oracle.info
        assert served_contents(replica) == (oracle.state if oracle.info else None)
        now = replica.info.watermark_us or 0 if replica.info else 0
        assert now >= newest
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
                values |= set(served._all_vectors().flatten().tolist())
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


# Answers

IDS = list(range(1_000, 1_040))


@pytest.fixture(scope="module")
def served(random_version: MakeVersion) -> ServedModel:
    replica = Replica()
    replica.take(random_version(IDS))
    with replica.reading() as model:
        assert model is not None
        return model


def user(*history: int) -> Users:
    offsets = np.array([0, len(history)])
    return Users(
        np.array([7]),
        Jagged(np.array(history, np.int64), offsets),
        np.ones(len(history), np.float32),
    )


def brute_force(
    scores: NDArray[np.float32], count: int, hidden: list[int]
) -> tuple[list[int], list[float]]:
    shown = [place for place, item in enumerate(IDS) if item not in hidden]
    best = sorted(shown, key=lambda place: -scores[place])[:count]
    return [IDS[place] for place in best], [float(scores[place]) for place in best]


@pytest.mark.parametrize("count", [1, 10, 40, 500])
@pytest.mark.parametrize("hidden", [[], [1_003, 1_039, 77], IDS], ids=["none", "some", "all"])
def test_retrieval_is_the_brute_force_top_of_what_may_be_shown(
    served: ServedModel, count: int, hidden: list[int]
) -> None:
    asking = user(1_001, 1_002)
    with torch.no_grad():
        query = served.model.query(asking)[0, 0].numpy()
    scores = served._all_vectors().numpy() @ query
    ids, found = served.retrieve(asking, count, np.array(hidden, np.int64))
    expected_ids, expected = brute_force(scores, count, hidden)
    assert ids.tolist() == expected_ids
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_similar_items_are_the_brute_force_top_without_the_item_itself(
    served: ServedModel,
) -> None:
    vectors = served._all_vectors().numpy()
    ids, found = served.similar(1_005, 12)
    expected_ids, expected = brute_force(vectors @ vectors[5], 12, [1_005])
    assert ids.tolist() == expected_ids
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_nothing_is_similar_to_an_unknown_item(served: ServedModel) -> None:
    ids, scores = served.similar(5, 10)
    assert ids.shape == scores.shape == (0,)


def test_asking_does_not_change_what_is_served(served: ServedModel) -> None:
    before = served._all_vectors().clone()
    first = served.retrieve(user(1_001), 5, np.array([1_002]))
    served.similar(1_003, 5)
    again = served.retrieve(user(1_001), 5, np.array([1_002]))
    assert torch.equal(served._all_vectors(), before)
    assert first[0].tolist() == again[0].tolist()
    assert first[1].tolist() == again[1].tolist()


def test_a_model_without_items_answers_with_nothing(random_version: MakeVersion) -> None:
    replica = Replica()
    replica.take(random_version([]))
    with replica.reading() as model:
        assert model is not None
        assert len(model) == 0
        assert model.retrieve(user(1), 10, np.array([1]))[0].tolist() == []
        assert model.similar(1, 10)[0].tolist() == []
