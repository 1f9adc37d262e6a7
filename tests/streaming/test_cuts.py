"""Cuts that continue others: whatever changed or was damaged, the newest intact one counts."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from streaming.artefact import Artefact, read_artefact, read_manifest
from streaming.cuts import GONE, KEYED, CutDirectory, merge
from streaming.errors import ArtefactCorrupt, ArtefactError
from streaming.log import TopicPartition

PLACE = TopicPartition("samples", 0)
Rows = dict[int, tuple[str, list[float]]]


def rows_table(rows: Mapping[int, tuple[str, Sequence[float]]], **metadata: str) -> pa.Table:
    """A keyed shard with a column of strings, and one of lists of two numbers."""
    names = [name for name, _ in rows.values()]
    values = [number for _, numbers in rows.values() for number in numbers]
    return pa.table(
        {
            "id": pa.array(list(rows), pa.int64()),
            "name": pa.array(names, pa.string()),
            "row": pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), 2),
        },
        metadata={**KEYED, **metadata},
    )


def ids_table(ids: Sequence[int]) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.int64())})


def rows_of(table: pa.Table) -> Rows:
    columns = (table[name].to_pylist() for name in ("id", "name", "row"))
    return {i: (name, row) for i, name, row in zip(*columns, strict=True)}


def whole(step: int, rows: Rows) -> Artefact:
    dense = pa.table({"weight": [float(step)]})
    return Artefact({"step": step}, {"rows": rows_table(rows, clock=f"{step}"), "dense": dense})


def changes(step: int, rows: Rows, gone: Sequence[int] = ()) -> Artefact:
    state = whole(step, rows)
    return Artefact(state.meta, {**state.shards, f"rows{GONE}": ids_table(gone)})


@pytest.fixture
def cuts(tmp_path: Path) -> CutDirectory:
    return CutDirectory(tmp_path / "cuts")


def names(cuts: CutDirectory) -> list[str]:
    return sorted(path.name for path in cuts.path.iterdir())


def save_chain(cuts: CutDirectory, deltas: int, size: int = 400) -> list[Rows]:
    """A whole cut of many rows and some that change a row each; the rows as of each cut."""
    rows: Rows = {n: (f"{n}", [n, n]) for n in range(size)}
    cuts.save({PLACE: 0}, whole(0, rows))
    history = [dict(rows)]
    for step in range(1, deltas + 1):
        changed: Rows = {step: ("changed", [step, 0.5])}
        rows.update(changed)
        cuts.extend({PLACE: step}, changes(step, changed))
        history.append(dict(rows))
    return history


def newest_rows(cuts: CutDirectory) -> tuple[int, Rows]:
    """The position of the newest intact cut, and its rows; the rest of it must fit."""
    state, positions = CutDirectory(cuts.path).newest()
    assert state is not None
    step = positions[PLACE]
    assert state.meta == {"step": step}
    assert state.shards.keys() == {"rows", "dense"}
    assert state.shards["dense"].to_pylist() == [{"weight": float(step)}]
    assert state.shards["rows"].schema.metadata == {b"key": b"id", b"clock": b"%d" % step}
    ids = state.shards["rows"]["id"].to_pylist()
    assert ids == sorted(set(ids))
    return step, rows_of(state.shards["rows"])


def flip(file: Path, place: float = 0.5) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)


# Merging


def test_a_cut_that_continues_another_is_laid_over_it(cuts: CutDirectory) -> None:
    cuts.save({PLACE: 1}, whole(1, {5: ("a", [1, 2]), -7: ("b", [3, 4]), 2**62: ("c", [5, 6])}))
    cuts.extend({PLACE: 2}, changes(2, {9: ("new", [7, 8]), -7: ("b2", [9, 9])}, gone=[5]))
    assert newest_rows(cuts) == (
        2,
        {-7: ("b2", [9, 9]), 9: ("new", [7, 8]), 2**62: ("c", [5, 6])},
    )


def test_an_id_that_went_and_was_born_again_is_there_as_it_was_born(cuts: CutDirectory) -> None:
    cuts.save({PLACE: 1}, whole(1, {5: ("old", [1, 1]), 6: ("old", [2, 2])}))
    cuts.extend({PLACE: 2}, changes(2, {5: ("again", [3, 3])}, gone=[5, 6]))
    assert newest_rows(cuts) == (2, {5: ("again", [3, 3])})
    cuts.extend({PLACE: 3}, changes(3, {6: ("later", [4, 4])}, gone=[5]))
    assert newest_rows(cuts) == (3, {6: ("later", [4, 4])})


def test_the_shards_that_are_not_keyed_are_those_of_the_newest(cuts: CutDirectory) -> None:
    first = {"dense": pa.table({"x": [1, 2]}), "left": pa.table({"x": [3]})}
    second = {"dense": pa.table({"x": ["now", "strings"]}), "new": pa.table({"y": [0.5]})}
    cuts.save({PLACE: 1}, Artefact({"a": 1}, first))
    cuts.extend({PLACE: 2}, Artefact({"b": 2}, second))
    assert cuts.newest() == (Artefact({"b": 2}, second), {PLACE: 2})


def test_a_keyed_shard_that_was_away_begins_anew() -> None:
    old, new = rows_table({1: ("old", [1, 1])}), rows_table({2: ("new", [2, 2])})
    chain = [Artefact({}, {"rows": old}), Artefact({}, {}), Artefact({}, {"rows": new})]
    assert rows_of(merge(chain).shards["rows"]) == {2: ("new", [2, 2])}
    assert merge(chain[:2]).shards == {}


def of_all_types(ids: Sequence[int], rng: random.Random) -> pa.Table:
    """Columns of numbers and others, with nulls and without."""
    n = len(ids)
    numbers = [rng.randrange(100) for _ in range(n)]
    holes = [None if x % 3 == 0 else x for x in numbers]
    pairs = pa.array([[x, -x] for x in numbers], pa.list_(pa.int16(), 2))
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "small": pa.array(numbers, pa.uint8()),
            "real": pa.array([x / 7 for x in numbers], pa.float64()),
            "half": pa.array(map(float, numbers), pa.float16()),
            "holes": pa.array(holes, pa.int32()),
            "flag": pa.array([x % 2 == 0 for x in numbers], pa.bool_()),
            "at": pa.array(numbers, pa.timestamp("us", tz="UTC")),
            "lists": pa.array([[x] * (x % 4) for x in numbers], pa.list_(pa.int64())),
            "pairs": pairs,
            "pair or none": pa.array([x and [x, 1] for x in holes], pa.list_(pa.int64(), 2)),
            "pair with none": pa.array([[x, 1] for x in holes], pa.list_(pa.int64(), 2)),
        },
        metadata=KEYED,
    )


@pytest.mark.parametrize("first", [0, 1, 30])
def test_columns_of_any_type_are_merged(first: int) -> None:
    rng = random.Random(first)
    tables = [of_all_types(rng.sample(range(40), n), rng) for n in (first, 9, 0, 12)]
    tables[1] = pa.concat_tables([tables[1][:4], tables[1][4:]])
    expected = {row["id"]: row for table in tables for row in table.to_pylist()}
    merged = merge([Artefact({}, {"rows": table}) for table in tables]).shards["rows"]
    assert merged.schema.equals(tables[0].schema, check_metadata=True)
    assert merged.to_pylist() == [expected[i] for i in sorted(expected)]


def test_keyed_shards_without_a_row_are_merged() -> None:
    empty = whole(0, {})
    assert rows_of(merge([empty]).shards["rows"]) == {}
    assert rows_of(merge([empty, changes(1, {})]).shards["rows"]) == {}
    assert rows_of(merge([empty, changes(1, {3: ("a", [1, 2])})]).shards["rows"]) == {
        3: ("a", [1, 2])
    }
    assert rows_of(merge([whole(0, {3: ("a", [1, 2])}), changes(1, {}, [3])]).shards["rows"]) == {}


def test_a_whole_cut_comes_back_in_the_order_of_ids_too(cuts: CutDirectory) -> None:
    rows: Rows = {7: ("a", [1, 1]), -3: ("b", [2, 2]), 5: ("c", [3, 3])}
    cuts.save({PLACE: 4}, whole(4, rows))
    assert newest_rows(cuts) == (4, rows)


def test_a_directory_without_cuts_has_no_newest(cuts: CutDirectory) -> None:
    assert cuts.newest() == (None, {})
    assert cuts.newest_meta() is None
    assert not cuts.continuable
    cuts.compact()
    cuts.tidy()
    assert not cuts.path.exists()


def test_cuts_of_before_there_were_chains_are_whole(cuts: CutDirectory) -> None:
    cuts.save({PLACE: 1}, whole(1, {}))
    assert read_manifest(cuts.path / "cut-00000001").keys() == {"positions", "state"}


def test_the_newest_readable_meta_is_that_of_the_newest_cut(cuts: CutDirectory) -> None:
    cuts.save({PLACE: 1}, Artefact({"number": 1}, {}))
    cuts.extend({PLACE: 2}, Artefact({"number": 2}, {}))
    assert cuts.newest_meta() == {"number": 2}
    (cuts.path / "cut-00000002" / "manifest.json").write_bytes(b"x")
    assert cuts.newest_meta() == {"number": 1}


# Compaction and retention


def test_a_chain_of_too_many_cuts_becomes_one_whole(tmp_path: Path) -> None:
    cuts = CutDirectory(tmp_path / "cuts", deltas=3)
    save_chain(cuts, deltas=3)
    cuts.compact()
    assert names(cuts)[-1] == "cut-00000004"
    history = save_chain(cuts, deltas=4)
    cuts.compact()
    assert names(cuts)[-1] == "cut-00000010"
    assert "base" not in read_manifest(cuts.path / "cut-00000010")
    assert newest_rows(cuts) == (4, history[-1])
    cuts.extend({PLACE: 5}, changes(5, {}, gone=[7]))
    shutil.rmtree(cuts.path / "cut-00000005")
    assert newest_rows(cuts) == (5, {i: row for i, row in history[-1].items() if i != 7})


def test_a_chain_that_is_larger_than_its_whole_becomes_one(cuts: CutDirectory) -> None:
    cuts.save({PLACE: 0}, whole(0, {}))
    large: Rows = {n: (f"{n}", [n, 0]) for n in range(200)}
    cuts.extend({PLACE: 1}, changes(1, large))
    cuts.compact()
    assert newest_rows(cuts) == (1, large)
    assert len(names(cuts)) == 3
    cuts.extend({PLACE: 2}, changes(2, {3: ("three", [3, 3])}))
    cuts.compact()
    assert len(names(cuts)) == 4
    assert newest_rows(cuts) == (2, {**large, 3: ("three", [3, 3])})


def test_whole_cuts_are_never_merged(cuts: CutDirectory) -> None:
    for step in range(3):
        cuts.save({PLACE: step}, whole(step, {}))
        cuts.compact()
    assert len(names(cuts)) == 3


@pytest.mark.parametrize("kept", [1, 2])
def test_the_newest_whole_cuts_stay_with_all_that_continues_them(tmp_path: Path, kept: int) -> None:
    cuts = CutDirectory(tmp_path / "cuts", kept=kept)
    for _ in range(3):
        save_chain(cuts, deltas=2)
        cuts.tidy()
    assert names(cuts) == [f"cut-{n:08d}" for n in range(10 - 3 * kept, 10)]


def test_a_whole_cut_without_a_manifest_does_not_count_as_kept(cuts: CutDirectory) -> None:
    for step in range(3):
        cuts.save({PLACE: step}, whole(step, {}))
    (cuts.path / "cut-00000003" / "manifest.json").unlink()
    cuts.tidy()
    assert names(cuts) == ["cut-00000001", "cut-00000002", "cut-00000003"]


def test_a_chain_stays_as_it_is_when_there_is_no_space_for_one_whole(
    make_disk: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    cuts = CutDirectory(make_disk("256k") / "cuts", deltas=2)
    history = save_chain(cuts, deltas=3, size=6_000)
    cuts.compact()
    assert "4 cuts cannot be made one: cannot write" in caplog.text
    assert "no space is left on the disk" in caplog.text
    assert len(names(cuts)) == 4
    cuts.extend({PLACE: 4}, changes(4, {0: ("more", [1, 1])}))
    assert newest_rows(cuts) == (4, {**history[-1], 0: ("more", [1, 1])})


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda file: file.write_bytes(b"")])
def test_damage_that_is_found_by_merging_is_told_and_not_continued(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], Any]
) -> None:
    cuts = CutDirectory(tmp_path / "cuts", deltas=2)
    history = save_chain(cuts, deltas=3)
    damage(cuts.path / "cut-00000002" / "rows.arrow")
    cuts.compact()
    assert "a cut was damaged, the next one is made whole: " in caplog.text
    assert "cut-00000002/rows.arrow" in caplog.text
    assert not cuts.continuable
    assert newest_rows(cuts) == (0, history[0])


def test_nothing_continues_a_cut_that_somebody_removed(cuts: CutDirectory) -> None:
    save_chain(cuts, deltas=1)
    assert cuts.continuable
    shutil.rmtree(cuts.path / "cut-00000001")
    assert not cuts.continuable


def test_a_cut_that_cannot_be_written_leaves_the_chain_as_it_was(
    cuts: CutDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = save_chain(cuts, deltas=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", mock.Mock(side_effect=OSError(28, "full")))
        with pytest.raises(ArtefactError, match="no space is left on the disk"):
            cuts.extend({PLACE: 2}, changes(2, {}))
        with pytest.raises(ArtefactError, match="no space is left on the disk"):
            cuts.save({PLACE: 2}, whole(2, {}))
    cuts.extend({PLACE: 3}, changes(3, {}))
    assert newest_rows(cuts) == (3, history[-1])
    assert names(cuts) == ["cut-00000001", "cut-00000002", "cut-00000003"]


# Damage


@pytest.mark.parametrize("damage", [flip, Path.unlink])
@pytest.mark.parametrize("name", ["rows.arrow", "manifest.json"])
@pytest.mark.parametrize("damaged", range(1, 8))
def test_damage_takes_a_cut_and_those_that_continue_it(
    cuts: CutDirectory,
    caplog: pytest.LogCaptureFixture,
    damaged: int,
    name: str,
    damage: Callable[[Path], Any],
) -> None:
    older = save_chain(cuts, deltas=2, size=9)  # cuts 1 to 3
    newer = save_chain(cuts, deltas=3, size=8)  # cuts 4 to 7
    file = cuts.path / f"cut-{damaged:08d}" / name
    damage(file)
    if damaged <= 3:
        assert newest_rows(cuts) == (3, newer[3])
        assert caplog.text == ""
    else:
        chain = older if damaged == 4 else newer[: damaged - 4]
        assert newest_rows(cuts) == (len(chain) - 1, chain[-1])
        assert f"passing over a damaged cut: {file}" in caplog.text


def test_a_cut_whose_base_is_missing_is_passed_over(
    cuts: CutDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    history = save_chain(cuts, deltas=3)
    shutil.rmtree(cuts.path / "cut-00000003")
    assert newest_rows(cuts) == (1, history[1])
    assert f"{cuts.path}/cut-00000004 continues cut 3, which cannot be read" in caplog.text
    shutil.rmtree(cuts.path / "cut-00000001")
    with pytest.raises(
        ArtefactCorrupt,
        match=r"no cut in .*/cuts can be read \(.*cut-00000004 continues cut 3, which cannot be"
        r" read\): delete that directory",
    ):
        cuts.newest()


def test_a_cut_of_another_directory_is_not_laid_over_one_of_the_same_number(
    cuts: CutDirectory, tmp_path: Path
) -> None:
    history = save_chain(cuts, deltas=1)
    other = CutDirectory(tmp_path / "other")
    save_chain(other, deltas=2, size=10)
    shutil.copytree(other.path / "cut-00000003", cuts.path / "cut-00000003")
    assert newest_rows(cuts) == (1, history[1])


@pytest.mark.parametrize("mapped", [False, True])
def test_a_flipped_bit_is_found_however_the_file_is_read(cuts: CutDirectory, mapped: bool) -> None:
    save_chain(cuts, deltas=0)
    cut = cuts.path / "cut-00000001"
    assert read_artefact(cut, mapped=mapped).shards == read_artefact(cut).shards
    rng = random.Random(0)
    for _ in range(50):
        place = rng.random()
        flip(cut / "rows.arrow", place)
        with pytest.raises(ArtefactCorrupt, match=r"rows\.arrow is not what was written"):
            read_artefact(cut, mapped=mapped)
        flip(cut / "rows.arrow", place)


# Anything, in any order


IDS = st.integers(-4, 4)
VALUES = st.tuples(st.text("ab", max_size=2), st.lists(st.integers(0, 3), min_size=2, max_size=2))


class AnyCuts(RuleBasedStateMachine):
    """A dict, the changes to it, its cuts and what befalls them, against what each cut held."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.rows: Rows = {}
        self.changed: set[int] = set()  # since the last cut
        self.gone: set[int] = set()
        self.step = 0
        self.begin()
        self.held: dict[str, tuple[int, Rows]] = {}
        self.chain_of: dict[str, list[str]] = {}
        self.last: list[str] = []
        self.damaged: set[str] = set()
        self.syncs = mock.patch("os.fsync")  # nothing here dies, and they take their time
        self.syncs.start()

    def teardown(self) -> None:
        self.syncs.stop()
        shutil.rmtree(self.home)

    @rule()
    def begin(self) -> None:
        """As a process does that has started: its first cut is whole."""
        self.cuts = CutDirectory(self.home, kept=2, deltas=3)

    @rule(rows=st.dictionaries(IDS, VALUES, min_size=1, max_size=4))
    def upsert(self, rows: Rows) -> None:
        self.rows.update(rows)
        self.changed |= rows.keys()

    @rule(ids=st.sets(IDS, min_size=1, max_size=3))
    def remove(self, ids: set[int]) -> None:
        self.gone |= ids & self.rows.keys()
        for i in ids & self.rows.keys():
            del self.rows[i]

    @rule(noted=st.booleans(), compacted=st.booleans(), tidied=st.booleans())
    def cut(self, noted: bool, compacted: bool, tidied: bool) -> None:
        """Unless it is noted, the next cut tells once more what this one told."""
        self.step += 1
        if self.cuts.continuable:
            some = {i: self.rows[i] for i in self.changed & self.rows.keys()}
            path = self.cuts.extend({PLACE: self.step}, changes(self.step, some, list(self.gone)))
            self.hold(path.name, [*self.last, path.name])
        else:
            path = self.cuts.save({PLACE: self.step}, whole(self.step, self.rows))
            self.hold(path.name, [path.name])
        if noted:
            self.changed, self.gone = set(), set()
        if compacted:
            self.compact()
        if tidied:
            self.cuts.tidy()

    def compact(self) -> None:
        before = set(self.there())
        self.cuts.compact()
        for name in set(self.there()) - before:
            assert not self.damaged & set(self.last)
            self.hold(name, [name])

    def hold(self, name: str, chain: list[str]) -> None:
        self.held[name] = (self.step, dict(self.rows))
        self.chain_of[name] = self.last = chain

    def there(self) -> list[str]:
        return sorted(path.name for path in self.home.iterdir())

    @precondition(lambda self: self.there())
    @rule(data=st.data(), how=st.sampled_from(["flip", "cut short", "unlink"]))
    def damage(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(self.there()))
        file = data.draw(st.sampled_from(sorted((self.home / name).iterdir())))
        if name in self.damaged:
            return
        self.damaged.add(name)
        if how == "flip":
            flip(file, data.draw(st.floats(0, 1, exclude_max=True)))
        elif how == "cut short":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            file.unlink()

    @rule()
    def restore(self) -> None:
        there = set(self.there())
        intact = [n for n in there if set(self.chain_of[n]) <= there - self.damaged]
        if intact:
            assert newest_rows(self.cuts) == self.held[max(intact)]
        elif there:
            with pytest.raises(ArtefactCorrupt, match="no cut in .* can be read"):
                CutDirectory(self.home).newest()
        else:
            assert CutDirectory(self.home).newest() == (None, {})


def test_any_changes_cuts_and_damage_in_any_order() -> None:
    run_state_machine_as_test(AnyCuts, settings=settings(max_examples=40, stateful_step_count=40))
