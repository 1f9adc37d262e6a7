"""The trainer: one record is one step, every bit of it; what it publishes is what it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from numpy.typing import NDArray

from features.batch import read_samples
from streaming.artefact import Artefact, read_artefact, write_artefact
from streaming.cuts import GONE
from streaming.dead_letters import DeadLetter, decode_letter
from streaming.errors import ArtefactError
from streaming.log import DEAD_LETTERS, Append, Record
from streaming.samples import decode_samples
from trainers.arrays import column_matrix, table_arrays
from trainers.frequency import FrequencyConfig
from trainers.negatives import NegativesConfig
from trainers.trainer import Trainer, TrainerConfig
from trainers.versions import Version

MakeRecord = Callable[..., Record]
SameState = Callable[[Artefact, Artefact], None]
SECOND_US = 1_000_000


def on_disk(path: Path, trainer: Trainer) -> Artefact:
    """The trainer's state after a way through a file, as a restart finds it."""
    state = trainer.snapshot()
    write_artefact(path, state.meta, state.shards)
    return read_artefact(path)


def liked(user: int, item: int, **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "reward": 1.0, "label_liked": True, **more}


def declared(item: int, *tokens: int) -> dict[str, Any]:
    return {"item_id": item, "kind": "item", "item_tokens": list(tokens)}


def publish(trainer: Trainer, now_s: float) -> Version:
    """The next version, as its delta if it has one; `publish_whole` also gives its snapshot."""
    return trainer.on_time(int(now_s * SECOND_US))[0]


def publish_whole(trainer: Trainer, now_s: float) -> tuple[Version, Version]:
    delta, snapshot = trainer.on_time(int(now_s * SECOND_US))
    return delta, snapshot


def ids_of(version: Version, shard: str) -> list[int]:
    ids: list[int] = version.shards[shard]["id"].to_pylist()
    return ids


class Follower:
    """The simplest replica: dictionaries that rows are written into."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, list[float]]] = {}
        self.dense: dict[str, NDArray[Any]] = {}

    def apply(self, version: Version) -> None:
        if version.info.base is None:
            self.rows = {}
        for name, table in version.shards.items():
            if name == "dense":
                self.dense = table_arrays(table)
            elif name.endswith(GONE):
                for gone in table["id"].to_pylist():
                    self.rows[name.removesuffix(GONE)].pop(gone, None)
            else:
                rows = zip(table["id"].to_pylist(), column_matrix(table["row"]), strict=True)
                self.rows.setdefault(name, {}).update({i: row.tolist() for i, row in rows})


def assert_has_all_of(follower: Follower, trainer: Trainer) -> None:
    state = trainer.snapshot()
    for name in ("user", "item", "token"):
        table = state.shards[f"table-{name}"]
        own = zip(table["id"].to_pylist(), column_matrix(table["row"]).tolist(), strict=True)
        assert follower.rows[f"table-{name}"] == dict(own), name
    corpus = state.shards["corpus"]
    vectors = column_matrix(corpus["vector"]).tolist()
    assert follower.rows["vectors"] == dict(zip(corpus["id"].to_pylist(), vectors, strict=True))
    dense = table_arrays(state.shards["dense"])
    assert follower.dense.keys() == dense.keys()
    for name, array in dense.items():
        np.testing.assert_array_equal(follower.dense[name], array)


# The same records, the same bits


def cuts(records: Sequence[Record], sizes: Iterator[int]) -> Iterator[Sequence[Record]]:
    start = 0
    while start < len(records):
        size = next(sizes)
        yield records[start : start + size]
        start += size


@pytest.mark.parametrize("pattern", ["at once", "one by one", "at random"])
def test_neither_batches_nor_publishing_change_a_bit(
    pattern: str,
    stream: list[Record],
    small: TrainerConfig,
    tmp_path: Path,
    assert_same_state: SameState,
) -> None:
    expected = Trainer(small, "a")
    for part in cuts(stream, iter([3] * len(stream))):
        expected.on_batch(part)

    rng = np.random.default_rng(0)
    sizes: Iterator[int] = iter(
        {
            "at once": [len(stream)],
            "one by one": [1] * len(stream),
            "at random": rng.integers(1, 5, len(stream)).tolist(),
        }[pattern]
    )
    trainer = Trainer(small, "b")
    now_us = 0
    for part in cuts(stream, sizes):
        trainer.on_time(now_us)
        trainer.on_batch(part)
        now_us += int(rng.integers(0, SECOND_US))
    assert_same_state(on_disk(tmp_path / "one", trainer), on_disk(tmp_path / "two", expected))


@pytest.mark.parametrize("broken_after", [0, 1, 7, 12])
def test_a_restored_trainer_ends_with_the_bits_of_an_unbroken_one(
    broken_after: int,
    stream: list[Record],
    small: TrainerConfig,
    tmp_path: Path,
    assert_same_state: SameState,
) -> None:
    unbroken = Trainer(small, "a")
    unbroken.on_batch(stream[:broken_after])
    state = on_disk(tmp_path / "cut", unbroken)
    unbroken.on_batch(stream[broken_after:])

    restored = Trainer(small, "b", state)
    assert restored.metrics == Trainer(small, "c", state).metrics
    restored.on_batch(stream[broken_after:])
    assert_same_state(on_disk(tmp_path / "one", restored), on_disk(tmp_path / "two", unbroken))
    assert restored.metrics == unbroken.metrics


def test_one_that_learns_evenly_goes_on_evenly(
    stream: list[Record], small: TrainerConfig, tmp_path: Path, assert_same_state: SameState
) -> None:
    even = replace(small, evenly=True)
    unbroken = Trainer(even, "a")
    unbroken.on_batch(stream[:7])
    restored = Trainer(even, "b", on_disk(tmp_path / "cut", unbroken))
    for trainer in (unbroken, restored):
        trainer.on_batch(stream[7:])
    assert_same_state(on_disk(tmp_path / "one", restored), on_disk(tmp_path / "two", unbroken))
    assert restored.family.weight(1) == unbroken.family.weight(1) < 0.5


def test_a_snapshot_restored_and_taken_again_is_the_same_snapshot(
    stream: list[Record], small: TrainerConfig, tmp_path: Path, assert_same_state: SameState
) -> None:
    trainer = Trainer(small, "a")
    trainer.on_batch(stream)
    state = on_disk(tmp_path / "one", trainer)
    assert_same_state(on_disk(tmp_path / "two", Trainer(small, "b", state)), state)


def test_a_snapshot_stays_as_it_was_taken_while_the_trainer_goes_on(
    stream: list[Record], small: TrainerConfig, tmp_path: Path, assert_same_state: SameState
) -> None:
    trainer = Trainer(small, "a")
    trainer.on_batch(stream[:9])
    taken, written = trainer.snapshot(), on_disk(tmp_path / "cut", trainer)
    trainer.on_batch(stream[9:])
    assert_same_state(taken, written)


def test_another_seed_draws_other_negatives(
    stream: list[Record], small: TrainerConfig, tmp_path: Path
) -> None:
    states = []
    for seed in (0, 1):
        trainer = Trainer(replace(small, seed=seed), "a")
        trainer.on_batch(stream)
        states.append(on_disk(tmp_path / str(seed), trainer))
    assert not states[0].shards["dense"].equals(states[1].shards["dense"])


# A state that does not fit


def test_a_state_of_another_model_is_refused_with_a_sentence(
    small: TrainerConfig, tmp_path: Path
) -> None:
    state = on_disk(tmp_path / "cut", Trainer(small, "a"))
    state.meta["model"] = "one_tower"
    with pytest.raises(ArtefactError, match=r"'one_tower'.*'two_tower'.*--fresh"):
        Trainer(small, "b", state)


@pytest.mark.parametrize(
    "changed",
    [
        {"options": {"width": 16, "hidden": 16}},
        {"options": {"width": 8, "hidden": 4}},
        {"frequency": FrequencyConfig(buckets=1 << 9)},
    ],
    ids=["width", "hidden", "buckets"],
)
def test_a_state_that_does_not_fit_the_recipe_is_refused_with_a_sentence(
    changed: dict[str, Any], stream: list[Record], small: TrainerConfig, tmp_path: Path
) -> None:
    trainer = Trainer(small, "a")
    trainer.on_batch(stream)
    state = on_disk(tmp_path / "cut", trainer)
    with pytest.raises(ArtefactError):
        Trainer(replace(small, **changed), "b", state)


def test_figures_that_were_measured_at_other_ranks_do_not_pass_for_those_asked_for_now(
    stream: list[Record], small: TrainerConfig, tmp_path: Path
) -> None:
    trainer = Trainer(replace(small, recall_at=(10, 50)), "a")
    trainer.on_batch(stream)
    state = on_disk(tmp_path / "cut", trainer)
    restored = Trainer(replace(small, recall_at=(1, 5)), "b", state)
    assert "recall@1" not in restored.metrics
    restored.on_batch(stream[-1:])
    assert restored.metrics["recall@1"] <= restored.metrics["recall@5"] < 1


# Test, then train


def hits(trainer: Trainer, *, popularity: bool = False) -> list[float]:
    """How often a liked item was in the top k so far, for every k."""
    quality = trainer.family._popularity if popularity else trainer.family._ranking
    _, *parts = quality.sums()[0, 0].tolist()
    found: list[float] = parts[: len(trainer._config.recall_at)]
    return found


def hits_to_come(trainer: Trainer, record: Record, ks: Sequence[int]) -> list[int]:
    """How often the trainer as it stands would put a liked item of the record into the top k."""
    samples = read_samples(decode_samples(record))
    with torch.no_grad():
        queries = trainer.model.query(samples.users)
    found = [0] * len(ks)
    for row in np.flatnonzero(samples.liked):
        start, end = samples.users.history.offsets[row : row + 2]
        seen = set(samples.users.history.values[start:end].tolist())
        target = int(trainer.family.corpus.find(samples.item_ids[row : row + 1])[0])
        if target < 0:
            continue
        scores = queries[row, 0] @ trainer.family.corpus.vectors.T
        shown = [
            place
            for place, item in enumerate(
                trainer.family.corpus.items(np.arange(len(scores))).ids.tolist()
            )
            if item not in seen and place != target
        ]
        rank = int((scores[shown] >= scores[target]).sum())
        found = [n + (rank < k) for n, k in zip(found, ks, strict=True)]
    return found


def test_a_micro_batch_is_scored_by_the_model_as_it_stood_before(
    stream: list[Record], small: TrainerConfig
) -> None:
    trainer = Trainer(replace(small, recall_at=(1, 20)), "a")
    compared = 0
    for record in stream:
        before = hits(trainer)
        expected = hits_to_come(trainer, record, (1, 20))
        trainer.on_batch([record])
        if decode_samples(record)["user_id"].null_count == 0:  # declares nothing beside
            assert [a - b for a, b in zip(hits(trainer), before, strict=True)] == expected
            compared += sum(expected)
    assert compared > 20


def test_a_sample_does_not_influence_its_own_score(
    small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    trainer = Trainer(replace(small, recall_at=(1,)), "a")
    trainer.on_batch([micro_batch([declared(item) for item in range(60)])])
    unlikely = micro_batch([liked(7, 41)] * 30)
    assert hits_to_come(trainer, unlikely, [1]) == [0]
    trainer.on_batch([unlikely])
    assert hits(trainer) == [0]
    for _ in range(20):
        trainer.on_batch([unlikely, micro_batch([liked(8, 3)])])
    assert hits_to_come(trainer, unlikely, [1]) == [30]  # it could have been learnt in one look


def test_an_item_that_is_not_in_the_corpus_could_not_have_been_found(
    small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    trainer = Trainer(replace(small, recall_at=(10,)), "a")
    trainer.on_batch([micro_batch([declared(1), declared(2)])])
    trainer.on_batch([micro_batch([liked(1, 77), liked(2, 78)])])
    assert trainer.metrics["recall@10"] == 0
    assert trainer.metrics["popularity_recall@10"] == 0


def test_what_a_user_has_seen_does_not_stand_in_the_way_of_his_next_item(
    small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    trainer = Trainer(replace(small, recall_at=(1,)), "a")
    trainer.on_batch([micro_batch([liked(1, 5), liked(2, 5), liked(1, 6)])])
    seen = {"history": [5], "history_rewards": [1.0]}
    trainer.on_batch([micro_batch([liked(3, 6, **seen)])])
    # 5 is more popular than 6, but it would not be shown to this user again.
    assert hits(trainer, popularity=True) == [1]


def test_the_popularity_it_is_compared_with_follows_the_stream(
    small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    trainer = Trainer(replace(small, recall_at=(1,), popularity_half_life=3.0), "a")
    trainer.on_batch([micro_batch([liked(1, 5)] * 3)])
    trainer.on_batch([micro_batch([liked(2, 6)] * 4)])
    before = hits(trainer, popularity=True)
    trainer.on_batch([micro_batch([liked(3, 6)])])
    assert hits(trainer, popularity=True) == [before[0] + 1]


# Publishing


def test_all_versions_but_the_first_are_deltas_and_some_are_snapshots_too(
    stream: list[Record], small: TrainerConfig
) -> None:
    trainer = Trainer(small, "here")
    infos = [version.info for version in trainer.on_time(0)]
    for number, record in enumerate(stream[:12], start=1):
        trainer.on_batch([record])
        infos += [version.info for version in trainer.on_time(number * SECOND_US)]
    deltas = [info for info in infos if info.base is not None]
    assert [(info.number, info.base) for info in deltas] == [(n + 1, n) for n in range(12)]
    snapshots = [info for info in infos if info.base is None]
    assert [info.artefact for info in snapshots] == [
        f"two_tower/here/{entry}" for entry in ("0", "5.whole", "10.whole")
    ]
    assert [info.number for info in infos] == sorted([*range(13), 5, 10])
    assert [replace(info, base=4) for info in infos if info.number == 5] == [deltas[4]] * 2
    assert [info.step for info in infos] == [info.number for info in infos]
    assert {(info.lineage, info.model) for info in infos} == {("here", "two_tower")}
    assert all(info.options == small.options for info in infos)


def test_a_version_goes_out_when_it_is_due_and_something_was_learnt(
    stream: list[Record], small: TrainerConfig
) -> None:
    trainer = Trainer(replace(small, publish_every_s=0.1), "a")
    assert len(trainer.on_time(0)) == 1
    assert trainer.on_time(10 * SECOND_US) == []  # nothing new
    trainer.on_batch(stream[:1])
    assert len(trainer.on_time(10 * SECOND_US)) == 1
    trainer.on_batch(stream[1:2])
    assert trainer.on_time(10 * SECOND_US + 99_999) == []  # not due
    assert len(trainer.on_time(10 * SECOND_US + 100_000)) == 1
    assert trainer.on_time(20 * SECOND_US) == []


def test_a_restored_trainer_starts_its_lineage_with_a_snapshot_of_everything(
    stream: list[Record], small: TrainerConfig, tmp_path: Path
) -> None:
    trainer = Trainer(small, "a")
    trainer.on_batch(stream[:10])
    before = publish(trainer, 0)
    restored = Trainer(small, "b", on_disk(tmp_path / "cut", trainer))
    version = publish(restored, 0)
    assert (version.info.lineage, version.info.number, version.info.base) == ("b", 0, None)
    assert version.info.watermark_us == before.info.watermark_us
    assert version.info.metrics == before.info.metrics
    assert version.info.learnt_logged_us is None  # it may have learnt it long ago
    follower = Follower()
    follower.apply(version)
    assert_has_all_of(follower, restored)


@pytest.mark.parametrize("per_version", [1, 3])
def test_a_snapshot_and_its_deltas_give_exactly_the_trainers_own_numbers(
    per_version: int, stream: list[Record], small: TrainerConfig
) -> None:
    trainer, follower = Trainer(replace(small, snapshot_every=1000), "a"), Follower()
    follower.apply(publish(trainer, 0))
    for number, part in enumerate(cuts(stream, iter([per_version] * len(stream))), start=1):
        trainer.on_batch(part)
        version = publish(trainer, number)
        assert version.info.base == number - 1
        follower.apply(version)
        assert_has_all_of(follower, trainer)


def test_a_later_snapshot_holds_everything_by_itself_and_the_delta_beside_it_leads_there_too(
    stream: list[Record], small: TrainerConfig
) -> None:
    table = {**small.options["table"], "max_rows": 60}
    config = replace(small, options={**small.options, "table": table}, snapshot_every=len(stream))
    trainer, ahead, starting = Trainer(config, "a"), Follower(), Follower()
    for number, record in enumerate(stream):
        ahead.apply(publish(trainer, number))
        trainer.on_batch([record])
    delta, snapshot = publish_whole(trainer, len(stream))
    assert (delta.info.base, snapshot.info.base) == (len(stream) - 1, None)
    assert not any(name.endswith(GONE) for name in snapshot.shards)
    assert trainer.metrics["item_rows_evicted"] > 0
    ahead.apply(delta)
    starting.apply(snapshot)
    for follower in (ahead, starting):
        assert_has_all_of(follower, trainer)


def test_a_version_does_not_change_after_it_was_handed_out(
    stream: list[Record], small: TrainerConfig
) -> None:
    trainer = Trainer(small, "a")
    trainer.on_batch(stream[:10])
    version, one, other = publish(trainer, 0), Follower(), Follower()
    one.apply(version)
    trainer.on_batch(stream[10:])
    other.apply(version)
    assert one.rows == other.rows
    assert all((array == other.dense[name]).all() for name, array in one.dense.items())


def test_a_delta_holds_the_touched_rows_and_no_others(
    small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    trainer = Trainer(replace(small, negatives=NegativesConfig(uniform=0), refresh=0), "a")
    trainer.on_batch([micro_batch([declared(item, item % 3) for item in range(40)])])
    trainer.on_batch([micro_batch([liked(user, user) for user in range(20)])])
    publish(trainer, 0)
    rows = [liked(3, 30, history=[9], history_rewards=[1.0]), liked(50, 31), liked(3, 32)]
    trainer.on_batch([micro_batch(rows)])
    delta = publish(trainer, 1)
    assert sorted(ids_of(delta, "table-user")) == [3, 50]
    assert sorted(ids_of(delta, "table-item")) == [9, 30, 31, 32]
    assert sorted(ids_of(delta, "table-token")) == [0, 1, 2]
    assert sorted(ids_of(delta, "vectors")) == [30, 31, 32]


def test_a_declaration_alone_sends_the_items_vector(
    small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    trainer = Trainer(small, "a")
    trainer.on_batch([micro_batch([declared(1, 5), declared(2, 6)])])
    publish(trainer, 0)
    trainer.on_batch([micro_batch([declared(2, 7), declared(3, 8), declared(3, 9)])])
    delta = publish(trainer, 1)
    assert sorted(ids_of(delta, "vectors")) == [2, 3]
    assert trainer.family.corpus.items(
        trainer.family.corpus.find(np.array([3]))
    ).tokens.values.tolist() == [9]


def test_the_watermark_never_falls(small: TrainerConfig, micro_batch: MakeRecord) -> None:
    trainer = Trainer(small, "a")
    assert publish(trainer, 0).info.watermark_us is None
    told = []
    for second, at in enumerate([50, 90, 20, 91, 3], start=1):
        rows = [liked(1, 2, at=at, logged_us=1_000 + second), liked(2, 3, at=at - 1, logged_us=7)]
        trainer.on_batch([micro_batch(rows)])
        info = publish(trainer, second).info
        told.append((info.watermark_us, info.learnt_logged_us))
    assert told == [(50, 1_001), (90, 1_002), (90, 1_003), (91, 1_004), (91, 1_005)]


# What cannot be learnt


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_micro_batch_whose_loss_is_no_number_is_refused_whole_and_training_goes_on(
    reward: float,
    stream: list[Record],
    small: TrainerConfig,
    micro_batch: MakeRecord,
    tmp_path: Path,
) -> None:
    trainer = Trainer(small, "a")
    assert trainer.on_batch(stream[:10]) == []
    before = on_disk(tmp_path / "before", trainer)
    known = before.shards["corpus"]["id"].to_pylist()
    later_us = before.meta["watermark_us"] + SECOND_US
    rows = [liked(user, item, at=later_us) for user, item in enumerate(known[:20])]
    rows[7]["reward"] = reward

    (letter,) = trainer.on_batch([micro_batch(rows, offset=4321)])

    assert isinstance(letter, Append)
    assert letter.topic == DEAD_LETTERS
    told = json.loads(letter.value)
    assert (told["topic"], told["partition"], told["offset"]) == ("samples", 0, 4321)
    assert "finite" in told["reason"]
    kept = decode_letter(letter.value)
    assert isinstance(kept, DeadLetter)
    assert kept.record == micro_batch(rows, offset=4321).value
    after = on_disk(tmp_path / "after", trainer)
    assert after.shards["dense"].equals(before.shards["dense"])
    assert after.shards["optimizer"].equals(before.shards["optimizer"])
    for name in ("user", "item", "token"):
        old, new = (state.shards[f"table-{name}"] for state in (before, after))
        kept = new.filter(pc.is_in(new["id"], value_set=old["id"]))
        for column in ("id", "row", "slots"):
            assert kept[column].combine_chunks().equals(old[column].combine_chunks()), name
    assert trainer.refused == trainer.metrics["refused"] == 1
    assert after.meta["samples"] == before.meta["samples"]
    assert after.meta["watermark_us"] == before.meta["watermark_us"]

    assert trainer.on_batch(stream[10:]) == []
    assert trainer.steps == len(stream) + 1
    assert all(math.isfinite(value) for value in trainer.metrics.values())
    learnt = on_disk(tmp_path / "learnt", trainer)
    assert not learnt.shards["dense"].equals(before.shards["dense"])
    assert np.isfinite(column_matrix(learnt.shards["table-item"]["row"])).all()


def test_only_the_bad_records_of_a_batch_are_refused(
    stream: list[Record], small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    bad = micro_batch([liked(1, 2), liked(2, 3, reward=math.nan)], offset=99)
    trainer = Trainer(small, "a")
    letters = trainer.on_batch([*stream[:8], bad, *stream[8:], bad])
    assert [json.loads(letter.value)["offset"] for letter in letters] == [99, 99]
    assert trainer.steps == len(stream) + 2


def test_a_refused_micro_batch_is_refused_again_after_a_restart(
    stream: list[Record],
    small: TrainerConfig,
    micro_batch: MakeRecord,
    tmp_path: Path,
    assert_same_state: SameState,
) -> None:
    bad = micro_batch([liked(1, 2), liked(2, 3, reward=math.nan)])
    records = [*stream[:10], bad, *stream[10:]]
    unbroken = Trainer(small, "a")
    unbroken.on_batch(records)
    broken = Trainer(small, "a")
    broken.on_batch(records[:11])
    restored = Trainer(small, "b", on_disk(tmp_path / "cut", broken))
    restored.on_batch(records[11:])
    assert_same_state(on_disk(tmp_path / "one", restored), on_disk(tmp_path / "two", unbroken))


def test_a_micro_batch_of_declarations_only_is_a_step_that_fills_the_corpus(
    small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    trainer = Trainer(small, "a")
    assert trainer.on_batch([micro_batch([declared(1, 5), declared(2)])]) == []
    assert (trainer.steps, trainer.samples, len(trainer.family.corpus)) == (1, 0, 2)
    told = {"loss": 0, "samples": 0, "items": 2, "refused": 0, "oldest_vector_steps": 2 / 16}
    assert told.items() <= trainer.metrics.items()
    lengths = trainer.family.corpus.vectors.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(2))
    assert publish(trainer, 0).info.watermark_us is None


def test_what_came_to_nothing_is_no_action_and_teaches_nothing_yet(
    small: TrainerConfig, micro_batch: MakeRecord, assert_same_state: SameState
) -> None:
    """The end of a window has labels and no reward: a retrieval loss has no use for it."""
    passed = {"user_id": 1, "item_id": 10, "kind": "impression", "reward": None}
    with_it, without = Trainer(small, "a"), Trainer(small, "a")
    with_it.on_batch([micro_batch([liked(1, 10), passed, liked(2, 11), passed])])
    without.on_batch([micro_batch([liked(1, 10), liked(2, 11)])])
    assert_same_state(with_it.snapshot(), without.snapshot())
    with_it.on_batch([micro_batch([passed], 1)])
    assert (with_it.steps, with_it.samples) == (2, 2)


def test_an_item_that_was_never_declared_is_learnt_and_published(
    small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    trainer = Trainer(small, "a")
    trainer.on_batch([micro_batch([liked(1, 10), liked(2, 11)])])
    version = publish(trainer, 0)
    assert sorted(ids_of(version, "vectors")) == [10, 11]
    torch.testing.assert_close(trainer.family.corpus.vectors.norm(dim=1), torch.ones(2))
    trainer.on_batch([micro_batch([declared(10, 4)])])
    assert len(trainer.family.corpus) == 2


def test_before_anything_was_learnt_there_are_figures_and_a_version(small: TrainerConfig) -> None:
    trainer = Trainer(small, "a")
    assert {"loss": 0, "samples": 0, "items": 0, "refused": 0}.items() <= trainer.metrics.items()
    assert not any(name.startswith("recall") for name in trainer.metrics)
    version = publish(trainer, 0)
    assert version.info.watermark_us is None
    assert version.info.learnt_logged_us is None
    assert all(version.shards[name].num_rows == 0 for name in version.shards if name != "dense")
    assert trainer.on_batch([]) == []
    assert trainer.on_time(SECOND_US) == []


@pytest.mark.parametrize("users", [1, 2])
def test_a_step_without_drawn_negatives_is_no_error(
    users: int, small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    trainer = Trainer(replace(small, negatives=NegativesConfig(uniform=0)), "a")
    trainer.on_batch([micro_batch([liked(n % users, n) for n in range(6)])])
    assert math.isfinite(trainer.metrics["loss"])


def test_without_the_correction_another_model_is_learnt(
    stream: list[Record], small: TrainerConfig
) -> None:
    plain = replace(small, negatives=replace(small.negatives, corrected=False))
    one, other = Trainer(plain, "a"), Trainer(small, "a")
    one.on_batch(stream)
    other.on_batch(stream)
    assert one.refused == 0
    assert math.isfinite(one.metrics["loss"])
    assert not torch.equal(one.family.corpus.vectors, other.family.corpus.vectors)


def test_the_vectors_of_the_whole_corpus_are_renewed_in_turn(
    small: TrainerConfig, micro_batch: MakeRecord
) -> None:
    trainer = Trainer(replace(small, refresh=7), "a")
    trainer.on_batch([micro_batch([declared(item, item) for item in range(30)])])
    before = trainer.family.corpus.clock
    for _ in range(math.ceil(30 / 7)):
        trainer.on_batch([micro_batch([liked(1, 0), liked(2, 1)])])
    assert sorted(trainer.family.corpus.refreshed_since(before).ids.tolist()) == list(range(30))


def test_it_learns_what_is_not_merely_popular(stream: list[Record], small: TrainerConfig) -> None:
    trainer = Trainer(replace(small, recall_at=(10,)), "a")
    for _ in range(4):
        trainer.on_batch(stream)
    figures = trainer.metrics
    assert figures["recent_recall@10"] > figures["recent_popularity_recall@10"]
