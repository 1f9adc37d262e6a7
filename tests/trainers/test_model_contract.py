"""What every registered retriever must keep, before learning and after.

A model that cannot keep one of these rules says so on its class, with the reason:
`skips: ClassVar[dict[str, str]] = {"test_...": "why"}`. The test runs all the same, and must fail.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
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
from trainers import models
from trainers.arrays import table_tensors, tensors_table
from trainers.frequency import FrequencyConfig
from trainers.models import RetrievalStep, about, create
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
NOW_US = 1_700_000_000_000_000
DAY_US = 86_400_000_000
FIELDS = ("title", "genres", "category", "brand", "shop")  # what describes the items here
SCENARIOS = ("home", "search", "detail")
KINDS = 4
ITEMS = 90


def registered() -> list[str]:
    """The house's own and those of installed packages, not what other tests have registered."""
    installed = entry_points(group="headrace.models").names
    return [
        name
        for name in models.names()
        if about(name).family == "retrieval"
        and (name in installed or about(name).origin.startswith("trainers.models."))
    ]


@pytest.fixture(params=registered(), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def skips(name: str, request: pytest.FixtureRequest) -> None:
    """A rule that the model says it cannot keep: if it does, that fails."""
    reason = skips_of(name).get(request.node.originalname)
    if reason is not None:
        request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def skips_of(name: str) -> dict[str, str]:
    return dict(getattr(models._REGISTRY[name], "skips", {}))


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


# Users and items of whom everything is known that there is


def jagged(lists: Sequence[Sequence[int]]) -> Jagged:
    values = np.array([value for one in lists for value in one], np.int64)
    return Jagged.of(values, np.array([len(one) for one in lists], np.int64))


def lists(rng: np.random.Generator, count: int, longest: int, ids: int) -> Jagged:
    lengths = rng.integers(0, longest + 1, count)
    lengths[1::6] = 0  # of these nothing is known
    return Jagged.of(rng.integers(0, ids, lengths.sum()), lengths)


def times(rng: np.random.Generator, owners: Jagged) -> Ids:
    """For each value when it was, the oldest of a list first: from a second to a month ago."""
    ages = np.exp(rng.uniform(np.log(1e6), np.log(30 * DAY_US), len(owners.values)))
    order = np.lexsort((-ages, owners.owners()))
    return NOW_US - ages[order].astype(np.int64)


def some_users(count: int, seed: int = 0, longest: int = 7) -> Users:
    rng = np.random.default_rng(seed)
    history = lists(rng, count, longest, ITEMS)
    size = len(history.values)
    rewards = rng.random(size).astype(np.float32)
    here = scenario_codes(SCENARIOS)
    details = Details(
        rng.integers(-1, KINDS, size).astype(np.int32),
        times(rng, history),
        np.append(here, -1)[rng.integers(0, 4, size)].astype(np.int32),
        rng.integers(0, 3, size).astype(np.int32),
        rng.choice([np.nan, 1.0, 4.5], size).astype(np.float32),
    )
    words, passed = lists(rng, count, 4, 20), lists(rng, count, 3, ITEMS)
    said_at = times(rng, words)
    said_at -= said_at % DAY_US  # the words of one day are one search
    return Users(
        rng.integers(0, 2**62, count),
        history,
        rewards,
        details,
        Moments(words, said_at, said_at // DAY_US % 3 == 0),
        Moments(passed, times(rng, passed)),
        np.full(count, NOW_US),
        here[rng.integers(0, 3, count)],
        described_items(np.arange(0, ITEMS, 2)),
    )


def known_by_history(count: int, seed: int = 0) -> Users:
    """Users as samples of older releases tell of them."""
    users = some_users(count, seed)
    nothing = described_items(np.empty(0, np.int64))
    return Users(users.ids, users.history, users.rewards, described=nothing)


def strangers(count: int) -> Users:
    """Users of whom nothing is known."""
    nothing = described_items(np.empty(0, np.int64))
    return Users(np.arange(count), jagged([[]] * count), np.empty(0, np.float32), described=nothing)


def described_items(ids: Ids) -> Items:
    """Of each item some values in each field, the same whenever it is asked for."""
    codes = field_codes(FIELDS)
    tokens, fields = [], []
    for item in ids.tolist():
        rng = np.random.default_rng(item)
        of_field = [(100 * f + rng.permutation(9)[: rng.integers(4)]).tolist() for f in range(5)]
        tokens.append([token for one in of_field for token in one])
        fields += [codes[f] for f, one in enumerate(of_field) for _ in one]
    return Items(np.asarray(ids, np.int64), jagged(tokens), np.array(fields, np.int32))


def some_items(count: int, seed: int = 0) -> Items:
    return described_items(np.random.default_rng(seed).permutation(count))


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


def rows(model: Any) -> int:
    return sum(len(table) for table in model.tables.values())


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


def arrays(thing: Any) -> list[Any]:
    """All arrays and tensors in it, however deep."""
    if isinstance(thing, np.ndarray | Tensor):
        return [thing]
    if not dataclasses.is_dataclass(thing):
        return []
    return [a for f in dataclasses.fields(thing) for a in arrays(getattr(thing, f.name))]


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


def held_beside_tables(model: Any) -> int:
    """Bytes of all that the model keeps but for its rows."""
    return len(pickle.dumps({k: v for k, v in vars(model).items() if k != "tables"}))


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


def other_columns(users: Users, items: Items) -> dict[str, tuple[Users, Items]]:
    """By column of the samples: the same users and items, but for what stands in this column."""
    change = dataclasses.replace
    details, searched, passed = users.details, users.searched, users.passed_over
    assert users.described is not None

    def with_tokens(one: Items) -> Items:
        return change(one, tokens=change(one.tokens, values=one.tokens.values + 1))

    def without_fields(one: Items) -> Items:
        return Items(one.ids, one.tokens)

    def with_details(**columns: Any) -> tuple[Users, Items]:
        return change(users, details=change(details, **columns)), items

    def of_items(changed: Callable[[Items], Items]) -> tuple[Users, Items]:
        return change(users, described=changed(users.described)), changed(items)  # type: ignore[arg-type]

    def other_ids(moments: Moments) -> Moments:
        return change(moments, ids=change(moments.ids, values=moments.ids.values[::-1].copy()))

    def at_once(moments: Moments) -> Moments:
        return change(moments, at_us=np.full_like(moments.at_us, NOW_US - DAY_US))

    def suggested(moments: Moments) -> Moments:
        return change(moments, suggested=~moments.suggested)

    history = change(users.history, values=users.history.values[::-1].copy())
    return {
        "user_id": (change(users, ids=users.ids[::-1].copy()), items),
        "item_id": (users, Items(items.ids[::-1].copy(), items.tokens, items.fields)),
        "at": (change(users, at_us=users.at_us + 9 * DAY_US), items),
        "scenario": (change(users, scenarios=np.roll(users.scenarios, 1)), items),
        "item_tokens": of_items(with_tokens),
        "item_fields": of_items(without_fields),
        "history": (change(users, history=history), items),
        "history_rewards": (change(users, rewards=1 - users.rewards), items),
        "history_kinds": with_details(kinds=(details.kinds + 1) % KINDS),
        "history_at_us": with_details(at_us=NOW_US - 5 * (NOW_US - details.at_us)),
        "history_scenarios": with_details(scenarios=details.scenarios[::-1].copy()),
        "history_sessions": with_details(sessions=np.arange(len(details.sessions), dtype=np.int32)),
        "history_values": with_details(values=5 - np.nan_to_num(details.values)),
        "searched": (change(users, searched=other_ids(searched)), items),
        "searched_at_us": (change(users, searched=at_once(searched)), items),
        "searched_suggested": (change(users, searched=suggested(searched)), items),
        "passed_over": (change(users, passed_over=other_ids(passed)), items),
        "passed_over_at_us": (change(users, passed_over=at_once(passed)), items),
    }


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
