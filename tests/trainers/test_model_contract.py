"""What every registered retriever must keep, before learning and after.

A model that cannot keep one of these rules says so on its class, with the reason:
`skips: ClassVar[dict[str, str]] = {"test_...": "why"}`. The test runs all the same, and must fail.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from features.batch import Details, Ids, Items, Jagged, Moments, Users
from serving.replica import Applied, Replica
from streaming.artefact import Artefact
from streaming.event_columns import field_codes, scenario_codes
from streaming.log import Record
from tests.trainers.contract import (
    ITEMS,
    NOW_US,
    arrays,
    described_items,
    held_beside_tables,
    jagged,
    known_by_history,
    mark_skipped,
    other_columns,
    registered,
    rows,
    skips_of,
    some_items,
    some_users,
    strangers,
)
from trainers.arrays import table_tensors, tensors_table
from trainers.frequency import FrequencyConfig
from trainers.models import RETRIEVAL, RetrievalStep, about, create
from trainers.negatives import NegativesConfig
from trainers.softmax import Sampling
from trainers.trainer import Trainer, TrainerConfig

# What makes a model small enough for a test, and quick to learn a small world.
OPTIONS: dict[str, dict[str, Any]] = {
    "atrank": {
        "width": 32,
        "sharpness": 20.0,
        "heads": 2,
        "hidden": 32,
        "table": {"optimiser": {"learning_rate": 0.5}},
    },
    "bert4rec": {"width": 16, "hidden": 32, "table": {"optimiser": {"learning_rate": 0.5}}},
    "mgdspr": {
        "width": 16,
        "heads": 2,
        "hidden": 32,
        "present_s": 1e7,
        "table": {"optimiser": {"learning_rate": 0.5}},
    },
    "mind": {"width": 16, "hidden": 32, "table": {"optimiser": {"learning_rate": 0.5}}},
    "sasrec": {"width": 16, "hidden": 32, "table": {"optimiser": {"learning_rate": 0.5}}},
    "sdm": {
        "width": 16,
        "heads": 2,
        "fields": ("category", "brand"),
        "table": {"optimiser": {"learning_rate": 0.5}},
    },
    "ssl_two_tower": {
        "width": 16,
        "hidden": 32,
        "fields": ("category", "brand"),
        "table": {"optimiser": {"learning_rate": 0.5}},
    },
    "stamp": {
        "width": 16,
        "hidden": 32,
        "code": 8,
        "table": {"optimiser": {"learning_rate": 0.5}},
    },
    "transrec": {"width": 16, "table": {"optimiser": {"learning_rate": 0.5}}},
    "two_tower": {"width": 16, "hidden": 32, "table": {"optimiser": {"learning_rate": 0.5}}},
    "zeus": {
        "width": 16,
        "heads": 2,
        "hidden": 32,
        "table": {"optimiser": {"learning_rate": 0.5}},
    },
}


@pytest.fixture(params=registered(RETRIEVAL), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def skips(name: str, request: pytest.FixtureRequest) -> None:
    mark_skipped(name, request)


@pytest.fixture
def model(name: str) -> Any:
    return made(name)


def made(name: str, **options: Any) -> Any:
    """A small one, with some options set beside those above."""
    small = OPTIONS.get(name, {})
    table = {**small.get("table", {}), **options.pop("table", {})}
    return create(name, {**small, **options, "table": table})


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)


def some_step(model: Any, users: int = 12, candidates: int = 30, **asked: Any) -> RetrievalStep:
    """A step of some users, or of `asked["of"]`."""
    rng = np.random.default_rng(1)
    device = next(iter(model.tables.values())).config.device
    positive = rng.integers(0, candidates, users)
    items = some_items(candidates)
    return RetrievalStep(
        asked.get("of") or some_users(users),
        items,
        torch.empty(0, model.width, device=device),
        Sampling(
            torch.from_numpy(positive),
            torch.full((1, candidates), -1.0),
            torch.zeros(users, dtype=torch.int64),
            Jagged.of(np.empty(0, np.int64), np.zeros(users, np.int64)),
        ),
        torch.ones(users),
        items.ids[positive],
        np.arange(0, candidates, 3),
        seed=1,
    )


def assert_sound(model: Any, vectors: Tensor) -> None:
    """Finite, and of unit length if that is what the model says of its vectors."""
    assert torch.isfinite(vectors).all()
    if model.unit:
        torch.testing.assert_close(vectors.norm(dim=-1).cpu(), torch.ones(vectors.shape[:-1]))


# Before it has learnt anything


@pytest.mark.parametrize("count", [1, 5, 5_000])
def test_predicts_before_learning_for_ids_it_has_never_seen(model: Any, count: int) -> None:
    with torch.no_grad():
        queries, vectors = model.query(some_users(count)), model.items(some_items(count))
    assert queries.ndim == 3
    assert (queries.shape[0], queries.shape[2]) == (count, model.width)
    assert vectors.shape == (count, model.width)
    assert_sound(model, queries)
    assert_sound(model, vectors)


@pytest.mark.parametrize("learnt", [False, True])
def test_users_without_a_history_and_items_without_a_description_are_answered(
    model: Any, learnt: bool
) -> None:
    if learnt:
        train(model, some_step(model))
    bare = Items(np.array([3, 10**9]), jagged([[], []]))
    with torch.no_grad():
        assert_sound(model, model.query(strangers(2)))
        assert_sound(model, model.query(known_by_history(9)))
        assert_sound(model, model.items(bare))


def test_predicting_gives_no_row_to_any_id(model: Any) -> None:
    model.query(some_users(50))
    model.items(some_items(50))
    assert rows(model) == 0


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name: str) -> None:
    vectors = []
    for process_seed, seed in enumerate((0, 0, 1)):
        torch.manual_seed(process_seed)  # must not matter
        one = made(name, seed=seed)
        with torch.no_grad():
            vectors.append((one.query(some_users(9)), one.items(some_items(9))))
    assert torch.equal(vectors[0][0], vectors[1][0])
    assert torch.equal(vectors[0][1], vectors[1][1])
    assert not torch.isclose(vectors[0][0], vectors[2][0]).all(-1).any()
    assert not torch.isclose(vectors[0][1], vectors[2][1]).all(-1).any()


# Pure in its inputs


def test_the_arrays_it_is_given_are_not_touched(model: Any) -> None:
    step = some_step(model)
    before = copy.deepcopy(arrays(step))
    assert len(before) > 25
    model.query(step.users)
    model.items(step.candidates)
    train(model, step)
    for one, kept in zip(arrays(step), before, strict=True):
        np.testing.assert_array_equal(one, kept)


@pytest.mark.parametrize("learnt", [False, True])
def test_a_batch_gives_what_each_alone_gives(model: Any, learnt: bool) -> None:
    if learnt:
        train(model, some_step(model))
    users, items = some_users(40, longest=70), some_items(40)
    with torch.no_grad():
        queries, vectors = model.query(users), model.items(items)
        for i in range(40):
            one = np.array([i])
            assert_same_vectors(model.query(users.take(one))[0], queries[i])
            assert_same_vectors(model.items(items.take(one))[0], vectors[i])


def assert_same_vectors(one: Tensor, other: Tensor) -> None:
    """Up to rounding, which grows with their length where that is more than 1."""
    length = other.norm(dim=-1, keepdim=True).clamp(min=1.0)
    torch.testing.assert_close(one / length, other / length, rtol=0, atol=1e-6)


# Learning


def train(model: Any, step: RetrievalStep) -> Tensor:
    for table in model.tables.values():
        table.training = True
    loss: Tensor = model.loss(step)
    loss.backward()  # type: ignore[no-untyped-call]
    for table in model.tables.values():
        table.step()
        table.training = False
    return loss.detach()


def test_the_loss_is_a_finite_scalar_and_reaches_every_dense_parameter(model: Any) -> None:
    loss = train(model, some_step(model))
    assert loss.shape == ()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    "users",
    [some_users(1), strangers(1), strangers(8), known_by_history(8), some_users(3_000)],
    ids=["one", "one stranger", "strangers", "histories only", "many"],
)
def test_learns_from_a_step_of_any_users(model: Any, users: Users) -> None:
    loss = train(model, some_step(model, len(users.ids), of=users))
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        assert_sound(model, model.query(users))


def test_learning_gives_rows_and_lowers_the_loss_of_what_was_learnt(model: Any) -> None:
    step = some_step(model)
    before = train(model, step)
    assert rows(model) > 0
    born = rows(model)
    for _ in range(10):
        after = train(model, step)
    assert after < before
    assert rows(model) == born


def test_the_loss_is_nearly_the_same_with_products_of_lower_precision(name: str) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        one = made(name, precision=precision)
        losses[precision] = [float(train(one, some_step(one))) for _ in range(3)]
        assert all(torch.isfinite(p.grad).all() for p in one.parameters() if p.grad is not None)
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_computes_the_same(name: str) -> None:
    losses, vectors = [], []
    for device in ("cpu", "cuda"):
        one = made(name, precision="float32", table={"device": device}).to(device)
        losses.append([float(train(one, some_step(one))) for _ in range(3)])
        with torch.no_grad():
            vectors.append((one.query(some_users(9)).cpu(), one.items(some_items(9)).cpu()))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    for one, other in zip(*vectors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_what_it_is_made_of_makes_it_again(name: str, model: Any) -> None:
    for _ in range(3):
        train(model, some_step(model))
    again = made(name)
    for table_name, table in model.tables.items():
        again.tables[table_name].upsert(*table.touched_since(0))
    again.load_state_dict(table_tensors(tensors_table(model.state_dict())))
    users, items = some_users(30), some_items(30)
    with torch.no_grad():
        assert torch.equal(again.query(users), model.query(users))
        assert torch.equal(again.items(items), model.items(items))


def test_endless_new_ids_take_no_more_than_the_room_there_is(name: str) -> None:
    model = made(name, table={"max_rows": 64})
    kept = 0
    for number in range(12):
        step = some_step(model)
        shifted = some_users(12, seed=number)
        history = dataclasses.replace(
            shifted.history, values=shifted.history.values + number * ITEMS
        )
        fresh = described_items(np.arange(number * 30, number * 30 + 30))
        users = dataclasses.replace(shifted, history=history)
        train(model, dataclasses.replace(step, users=users, candidates=fresh, seed=number))
        assert max(len(table) for table in model.tables.values()) <= 64
        kept = kept or held_beside_tables(model)
    assert held_beside_tables(model) == kept


# A world with something to learn: six tastes of 15 items, users keep to one of them.

TASTES, SIZE = 6, 15
WORDS = 1_000  # of taste t one is searched for by the word with this number and t


def world_items() -> Items:
    """Of each item its taste as `category`, and as `brand` what says nothing of it."""
    category, brand = field_codes(["category", "brand"])
    tokens = [[500 + item // SIZE, 600 + item % 7] for item in range(TASTES * SIZE)]
    fields = np.tile(np.array([category, brand], np.int32), TASTES * SIZE)
    return Items(np.arange(TASTES * SIZE), jagged(tokens), fields)


def world(micro_batch: Callable[..., Record], steps: int, per_step: int = 64) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    items = world_items()
    declared = [
        {"user_id": None, "item_id": item, "item_tokens": tokens, "item_fields": fields}
        for item, tokens, fields in zip(
            items.ids.tolist(),
            items.tokens.values.reshape(-1, 2).tolist(),
            items.fields.reshape(-1, 2).tolist(),
            strict=True,
        )
    ]
    yield micro_batch(declared)
    home = int(scenario_codes(["home"])[0])
    for step in range(1, steps + 1):
        samples = []
        for taste in rng.integers(TASTES, size=per_step).tolist():
            *history, item = (taste * SIZE + rng.permutation(SIZE)[:6]).tolist()
            size = len(history)
            samples.append(
                {
                    "user_id": int(rng.integers(2**62)),
                    "item_id": item,
                    "scenario": "home",
                    "history": history,
                    "history_rewards": [1.0] * size,
                    "history_kinds": [0] * size,
                    "history_at_us": [NOW_US - 60_000_000 * (size - i) for i in range(size)],
                    "history_scenarios": [home] * size,
                    "history_sessions": [1] * size,
                    "history_values": [5.0] * size,
                    "searched": [WORDS + taste],
                    "searched_at_us": [NOW_US - 1_000_000],
                    "searched_suggested": [False],
                    "reward": 1.0,
                    "label_liked": True,
                }
            )
        yield micro_batch(samples, step)


def someone(taste: int, history: Ids) -> Users:
    """Who has never been seen, with a history of one taste."""
    size = len(history)
    return Users(
        np.array([10**9 + taste]),
        Jagged.of(history, np.array([size])),
        np.ones(size, np.float32),
        Details(
            np.zeros(size, np.int32),
            NOW_US - 60_000_000 * np.arange(size, 0, -1),
            np.repeat(scenario_codes(["home"]), size),
            np.ones(size, np.int32),
            np.full(size, 5.0, np.float32),
        ),
        Moments(jagged([[WORDS + taste]]), np.array([NOW_US - 1_000_000])),
        at_us=np.array([NOW_US]),
        scenarios=scenario_codes(["home"]),
        described=world_items(),
    )


def in_own_taste(model: Any) -> float:
    """Which share of the best ten items, history aside, is of the user's own taste."""
    rng = np.random.default_rng(9)
    shares = []
    with torch.no_grad():
        vectors = model.items(world_items())
        for taste in range(TASTES):
            history = taste * SIZE + rng.permutation(SIZE)[:5]
            scores = (model.query(someone(taste, history))[0] @ vectors.T).amax(0)
            scores[torch.from_numpy(history)] = -torch.inf
            best = scores.topk(10).indices.numpy()
            shares.append(np.mean(best // SIZE == taste))
    return float(np.mean(shares))


def trainer_of(name: str, seed: int = 0, state: Artefact | None = None) -> Trainer:
    config = TrainerConfig(
        model=name,
        options=OPTIONS.get(name, {}),
        negatives=NegativesConfig(uniform=32),
        frequency=FrequencyConfig(buckets=1 << 10),
        seed=seed,
    )
    return Trainer(config, "contract", state)


def learnt(name: str, records: Iterator[Record], seed: int = 0) -> Trainer:
    trainer = trainer_of(name, seed)
    for record in records:
        trainer.on_batch([record])
    assert trainer.refused == 0
    return trainer


def test_learns_the_tastes_of_users_it_has_never_seen(
    name: str, model: Any, micro_batch: Callable[..., Record]
) -> None:
    untrained = in_own_taste(model)
    taught = in_own_taste(learnt(name, world(micro_batch, steps=40)).model)
    assert untrained < 0.5
    assert taught > 0.9  # by chance it is 1 in 6


def test_learning_is_the_same_to_the_bit_and_depends_on_the_seed(
    name: str, micro_batch: Callable[..., Record]
) -> None:
    vectors = []
    for process_seed, seed in enumerate((0, 0, 1)):
        torch.manual_seed(process_seed)  # must not matter
        trainer = learnt(name, world(micro_batch, steps=3), seed)
        vectors.append(trainer.family.corpus.vectors.clone())
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def test_a_cut_in_the_middle_of_the_stream_changes_nothing(
    name: str,
    micro_batch: Callable[..., Record],
    assert_same_state: Callable[[Artefact, Artefact], None],
) -> None:
    stream = list(world(micro_batch, steps=6))
    undisturbed = trainer_of(name)
    undisturbed.on_batch(stream[:4])
    again = trainer_of(name, state=copy.deepcopy(undisturbed.snapshot()))
    for trainer in (undisturbed, again):
        trainer.on_batch(stream[4:])
    assert_same_state(again.snapshot(), undisturbed.snapshot())


def test_a_replica_scores_as_the_trainer_does_after_every_version(
    name: str, micro_batch: Callable[..., Record]
) -> None:
    trainer, replica = trainer_of(name), Replica()
    asked = someone(2, np.arange(30, 36))
    asked = dataclasses.replace(asked, described=None)
    for number, record in enumerate(world(micro_batch, steps=5)):
        trainer.on_batch([record])
        for version in trainer.on_time(10**6 * number):
            if number == 0 or version.info.base is not None:
                assert replica.take(version) is Applied.APPLIED
        known = trainer.family.describe(asked)
        with torch.no_grad():
            expected = trainer.model.query(known)[0]
        scores = (expected @ trainer.family.corpus.vectors.T).amax(0)
        with replica.reading() as served:
            assert served is not None
            answer = served.ask(asked)[0]
            found, there = served.score(answer, trainer.family.corpus.ids)
        assert there.all()
        np.testing.assert_array_equal(answer.queries, expected)
        np.testing.assert_allclose(found, scores, rtol=1e-5, atol=1e-6)


# What it says of itself


def test_its_file_says_what_it_is_and_of_which_paper(name: str) -> None:
    told = about(name)
    assert len(told.summary) > 10
    assert told.paper[-4:].isdigit(), "write who, *what*, where and when into the docstring"


def test_it_says_which_columns_it_reads(name: str, model: Any) -> None:
    """What it answers, and its loss, depend on these and on no others."""
    step = some_step(model, users=40)
    dense = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):  # of what is born zero nothing can be seen
        train(model, step)
        dense.step()
        dense.zero_grad()

    def told(users: Users, items: Items) -> list[Tensor]:
        with torch.no_grad():
            asked = dataclasses.replace(step, users=users, candidates=items)
            return [model.query(users), model.items(items), model.loss(asked)]

    expected = told(step.users, step.candidates)
    reads = [
        column
        for column, changed in other_columns(step.users, step.candidates).items()
        if not all(map(torch.equal, told(*changed), expected))
    ]
    assert sorted(about(name).reads) == sorted(reads), f"declare them: `reads = {tuple(reads)}`"


def test_what_it_skips_are_tests_of_this_file(name: str) -> None:
    assert [test for test in skips_of(name) if test not in globals()] == []
    assert all(skips_of(name).values())
