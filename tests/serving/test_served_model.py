"""What one copy of a model answers, against brute force; and what changing it costs."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from features.batch import Ids, Jagged, Users
from serving.index import IndexConfig, ItemIndex, Subset
from serving.served import Changes, RowChanges
from serving.served_model import Asked, ServedModel
from streaming.growing import GrowingArray
from trainers.arrays import table_tensors
from trainers.versions import Version

MakeVersion = Callable[..., Version]
IDS = list(range(1_000, 1_040))
NONE = np.empty(0, np.int64)
EXACT = IndexConfig(exact_below=1 << 40)


def copy_of(version: Version, *deltas: Version) -> ServedModel:
    served = ServedModel(version.info, config=EXACT)
    for one in (version, *deltas):
        served.lay(Changes.of(one))
    return served


@pytest.fixture(scope="module")
def served(random_version: MakeVersion) -> ServedModel:
    return copy_of(random_version(IDS))


def user(*history: int) -> Users:
    offsets = np.array([0, len(history)])
    return Users(
        np.array([7]),
        Jagged(np.array(history, np.int64), offsets),
        np.ones(len(history), np.float32),
    )


def all_vectors(served: ServedModel) -> NDArray[np.float32]:
    return served.vectors(np.array(IDS))[0]


def contents(served: ServedModel) -> dict[str, Any]:
    """All that a copy holds, in an order of its own."""
    tables = {name: table.touched_since(0) for name, table in served.model.tables.items()}
    items = np.sort(served.items)
    return {
        "items": items.tolist(),
        "vectors": served.vectors(items)[0].tolist(),
        "dense": {name: t.tolist() for name, t in served.model.state_dict().items()},
        **{name: dict(zip(i.tolist(), r.tolist(), strict=True)) for name, (i, r) in tables.items()},
    }


def brute_force(
    scores: NDArray[np.float32], count: int, hidden: Sequence[int], allowed: Sequence[int] = IDS
) -> tuple[list[int], list[float]]:
    shown = [place for place, item in enumerate(IDS) if item in allowed and item not in hidden]
    best = sorted(shown, key=lambda place: -scores[place])[:count]
    return [IDS[place] for place in best], [float(scores[place]) for place in best]


# Answers


@pytest.mark.parametrize("allowed", [None, [1_003, 1_004, 1_005, 7]], ids=["all", "some"])
@pytest.mark.parametrize("count", [1, 10, 40, 500])
@pytest.mark.parametrize("hidden", [[], [1_003, 1_039, 77], IDS], ids=["none", "some", "all"])
def test_retrieval_is_the_brute_force_top_of_what_may_be_shown(
    served: ServedModel, count: int, hidden: list[int], allowed: list[int] | None
) -> None:
    asking = user(1_001, 1_002)
    with torch.no_grad():
        query = served.model.query(asking)[0, 0].numpy()
    expected_ids, expected = brute_force(all_vectors(served) @ query, count, hidden, allowed or IDS)
    only = None if allowed is None else Subset.of(np.array(allowed))
    ids, found = served.retrieve(asking, count, np.array(hidden, np.int64), only)
    assert ids.tolist() == expected_ids
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("allowed", [None, [1_003, 1_005, 1_007]], ids=["all", "some"])
def test_similar_items_are_the_brute_force_top_without_the_item_itself(
    served: ServedModel, allowed: list[int] | None
) -> None:
    vectors = all_vectors(served)
    only = None if allowed is None else Subset.of(np.array(allowed))
    ids, found = served.similar(1_005, 12, only)
    expected_ids, expected = brute_force(vectors @ vectors[5], 12, [1_005], allowed or IDS)
    assert ids.tolist() == expected_ids
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_nothing_is_similar_to_an_unknown_item(served: ServedModel) -> None:
    ids, scores = served.similar(5, 10)
    assert ids.shape == scores.shape == (0,)


def test_who_was_asked_for_once_is_set_against_any_items(served: ServedModel) -> None:
    asked = served.ask(user(1_001))[0]
    every, scores = served.best(asked, 40, NONE)
    again, known = served.score(asked, every)
    np.testing.assert_allclose(again, scores, rtol=1e-6)
    assert known.all()
    mixed, known = served.score(asked, np.array([5, every[3], 6]))
    assert known.tolist() == [False, True, False]
    assert mixed == pytest.approx([0.0, scores[3], 0.0])
    np.testing.assert_allclose(asked.scores_of(served.vectors(every)[0]), scores, rtol=1e-6)
    nothing, known = served.score(asked, NONE)
    assert nothing.shape == known.shape == (0,)


@pytest.mark.parametrize("hidden", [0, 100, 450])
def test_hidden_items_take_no_places_however_many_they_are(hidden: int) -> None:
    rng = np.random.default_rng(0)
    index = ItemIndex(8, IndexConfig(exact_below=64))
    index.upsert(np.arange(3_000), rng.normal(size=(3_000, 8)).astype(np.float32))
    index.settle()
    assert not index.exact
    query = rng.normal(size=(1, 8)).astype(np.float32)
    best, _ = index.search(query, 700, NONE)
    asked = Asked(query, index)
    for count in (10, 200):
        found, scores = asked.best(count, best[:hidden], None)
        assert found.tolist() == best[hidden : hidden + count].tolist()
        assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_shares_by_the_log_total_add_up_to_one(served: ServedModel, temperature: float) -> None:
    asked = served.ask(user(1_001))[0]
    _, scores = served.best(asked, 40, NONE)
    for _ in range(2):
        shares = np.exp(scores / temperature - asked.log_total(temperature))
        assert shares.sum() == pytest.approx(1.0, rel=1e-5)


def test_of_several_interests_the_best_one_counts() -> None:
    index = ItemIndex(2, EXACT)
    index.upsert(np.array([1, 2, 3]), np.array([[1, 0], [0, 1], [-1, -1]], np.float32))
    asked = Asked(np.array([[1.0, 0.0], [0.0, 0.5]], np.float32), index)
    assert asked.scores_of(index.vectors(np.array([1, 2, 3]))[0]).tolist() == [1.0, 0.5, -0.5]
    total = np.log(np.exp([1.0, 0.5, -0.5]).sum())
    assert asked.log_total(1.0) == pytest.approx(total, rel=1e-5)


def test_asking_does_not_change_what_is_served(served: ServedModel) -> None:
    before = contents(served)
    first = served.retrieve(user(1_001), 5, np.array([1_002]))
    served.similar(1_003, 5)
    served.warm()
    again = served.retrieve(user(1_001), 5, np.array([1_002]))
    assert contents(served) == before
    assert first[0].tolist() == again[0].tolist()
    assert first[1].tolist() == again[1].tolist()


def test_a_model_without_items_answers_with_nothing(random_version: MakeVersion) -> None:
    empty = copy_of(random_version([]))
    empty.warm()
    assert len(empty) == len(empty.items) == 0
    assert empty.retrieve(user(1), 10, np.array([1]))[0].tolist() == []
    assert empty.similar(1, 10)[0].tolist() == []


# Changing


def test_dense_parameters_are_changed_where_they_lie(constant_version: MakeVersion) -> None:
    served = copy_of(constant_version(0, snapshot=True))
    places = {name: t.data_ptr() for name, t in served.model.state_dict().items()}
    delta = constant_version(1)
    served.lay(Changes.of(delta))
    state = served.model.state_dict()
    assert {name: t.data_ptr() for name, t in state.items()} == places
    assert all(torch.equal(state[n], t) for n, t in table_tensors(delta.shards["dense"]).items())


def test_what_is_gone_is_gone_unless_it_came_back(constant_version: MakeVersion) -> None:
    delta = constant_version(1, ids=[3, 4])
    gone = {"vectors.gone": [1, 3, 9], "table-item.gone": [2, 4], "table-user.gone": [1, 2]}
    tombstones = {name: pa.table({"id": np.array(ids)}) for name, ids in gone.items()}
    delta = replace(delta, shards={**delta.shards, **tombstones})
    served = copy_of(constant_version(0, snapshot=True), delta)
    assert np.sort(served.items).tolist() == [2, 3, 4]  # 2 lost its row, not its vector
    assert served.vectors(np.array([1, 3]))[1].tolist() == [False, True]
    assert {n: set(t.touched_since(0)[0].tolist()) for n, t in served.model.tables.items()} == {
        "item": {1, 3, 4}, "user": {3, 4}, "token": {1, 2, 3, 4},
    }  # fmt: skip
    assert 1 not in served.retrieve(user(), 10, NONE)[0]


def test_tables_keep_rows_and_nothing_else_whatever_they_were_trained_with(
    constant_version: MakeVersion,
) -> None:
    version = constant_version(0, snapshot=True)
    table = {"optimiser": {"kind": "adam"}, "max_rows": 2, "expire_after_s": 1.0, "offload": ""}
    options = {**version.info.options, "table": table}
    served = copy_of(replace(version, info=replace(version.info, options=options)))
    for one in served.model.tables.values():
        assert len(one) == 3  # how many there are is for the trainer to say
        assert one.config.kept.slots(one.config.width) == 0
        assert not one.config.learns


def test_a_twin_is_equal_and_apart(constant_version: MakeVersion) -> None:
    first, delta = constant_version(0, snapshot=True, ids=range(50)), constant_version(1)
    served = copy_of(first)
    before = contents(served)
    twin = served.twin()
    assert contents(twin) == before
    twin.lay(Changes.of(delta))
    assert contents(served) == before
    served.lay(Changes.of(delta))
    assert contents(twin) == contents(served) != before


def test_two_copies_that_take_the_same_changes_answer_alike(random_version: MakeVersion) -> None:
    rng = np.random.default_rng(0)
    ids = np.arange(1_000, 3_000)
    version = random_version(ids.tolist())
    first = Changes.of(version)
    served = ServedModel(version.info, config=IndexConfig(exact_below=500))
    served.lay(first)
    served.warm()
    copies = [served, served.twin()]
    gone, width = NONE, first.vectors_there.values.shape[1]
    for _ in range(10):
        born = np.concatenate([gone[::2], rng.choice(ids, 500, replace=False)])  # again, or moved
        gone = rng.choice(ids, 100, replace=False)
        values = rng.normal(size=(len(born), width)).astype(np.float32)
        changes = replace(first, vectors=RowChanges(gone, born, values))
        for copy in copies:
            copy.lay(changes)
        for item in born[:3].tolist():
            answers = [copy.similar(item, 5_000) for copy in copies]
            assert sorted(answers[0][0]) == sorted(set(served.items.tolist()) - {item})
            np.testing.assert_array_equal(answers[0][0], answers[1][0])
            np.testing.assert_array_equal(answers[0][1], answers[1][1])
    assert served.figures()["lists"] > 1


# What it costs

COUNT, FEW = 100_000, 100


def brings(template: Changes, ids: Ids) -> Changes:
    """A change of these rows in every table, and of their vectors."""
    width = template.vectors_there.values.shape[1]
    rows = RowChanges(ids[:1], ids, np.ones((ids.size, width), np.float32))
    tables = dict.fromkeys(template.tables, rows)
    return replace(template, tables=tables, vectors=rows)


def largest_at_once(served: ServedModel, changes: Changes) -> int:
    """The most bytes that numpy and Python held while it was laid, over what they held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        served.lay(changes)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_laying_costs_by_the_rows_that_are_brought_not_by_those_that_are_there(
    constant_version: MakeVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing as long as the items is made, not even for the growth of what keeps them."""
    copied, mapped = list[int](), GrowingArray._map

    def counted(self: GrowingArray, size: int) -> Any:
        if hasattr(self, "_pages"):  # there are some already, whose bytes must move
            copied.append(size)
        return mapped(self, size)

    monkeypatch.setattr(GrowingArray, "_map", counted)
    rng = np.random.default_rng(0)
    template = Changes.of(constant_version(0, snapshot=True, ids=[0]))
    served = copy_of(constant_version(0, snapshot=True, ids=np.arange(COUNT)))
    known = [brings(template, rng.integers(COUNT, size=FEW)) for _ in range(50)]
    assert max(largest_at_once(served, one) for one in known) < COUNT / 2

    new = [brings(template, COUNT + FEW * n + np.arange(FEW)) for n in range(COUNT // FEW)]
    costs = [largest_at_once(served, one) for one in new]
    assert len(served) == 2 * COUNT
    assert median(costs) < COUNT / 2
    assert sum(cost > COUNT / 2 for cost in costs) <= 8  # for each of the maps the next larger one
    assert copied == []  # the system moved pages
