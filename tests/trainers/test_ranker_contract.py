"""What every registered ranker must keep, before learning and after.

A model that cannot keep one of these rules says so on its class, with the reason:
`skips: ClassVar[dict[str, str]] = {"test_...": "why"}`. The test runs all the same, and must fail.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from features.batch import Details, Ids, Items, Users
from features.shown import Pairs
from streaming.artefact import Artefact
from streaming.event_columns import NONE, field_codes, scenario_codes
from streaming.log import Record
from tests.trainers.contract import (
    FIELDS,
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
    some_users,
    strangers,
)
from trainers.arrays import table_tensors, tensors_table
from trainers.item_response import OUTCOME, ItemResponseConfig, ItemResponses
from trainers.models import RANKING, RankingStep, about, create, find
from trainers.models.parts.balance import BalanceConfig
from trainers.models.parts.position_bias import PositionConfig
from trainers.tasks import labels_read, task_losses
from trainers.trainer import Trainer, TrainerConfig

TASKS: dict[str, dict[str, Any]] = {
    "click": {},
    "watch": {"after": "click", "loss": "squared"},
    "cart": {"after": "click"},
    "buy": {"after": "click"},
}
LABELS = tuple(TASKS)
# All that a pair can be told by, and what makes a model small enough for a test.
ALL: dict[str, Any] = {
    "tasks": TASKS,
    "fields": ("user_id", "history", "disliked", "scenario", "hour", "item_id", *FIELDS),
    "width": 8,
    "tower": 16,
    "table": {"optimiser": {"learning_rate": 0.1}},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "dupn": {"state": 8, "attention": 8, "hidden": 16, "described": FIELDS, "present_s": 1e7},
    "esm2": {"hidden": 16},
    "esmm": {"hidden": 16},
    "mmoe": {"expert": 16},
    "mmoe_esmm": {"expert": 16},
    "omoe": {"expert": 16},
    "shared_bottom": {"bottom": 32},
    "youtube_multitask": {"expert": 16},
}
HOWS = get_args(get_type_hints(PositionConfig)["how"])
BALANCES = get_args(get_type_hints(BalanceConfig)["how"])


@pytest.fixture(params=registered(RANKING), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def skips(name: str, request: pytest.FixtureRequest) -> None:
    mark_skipped(name, request)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model(name: str) -> Any:
    return made(name)


def options_of(name: str, **changed: Any) -> dict[str, Any]:
    table = {**ALL["table"], **changed.pop("table", {})}
    return {**ALL, **OPTIONS.get(name, {}), **changed, "table": table}


def made(name: str, **changed: Any) -> Any:
    """A small one, with some options set beside those above."""
    return create(name, options_of(name, **changed))


def spaces(name: str) -> tuple[str, ...]:
    """Those that the model can be learnt in."""
    cls, _ = find(name, options_of(name))
    return get_args(get_type_hints(cls.Config)["space"])


# Pairs of which everything is known


def some_pairs(users: Users | None = None, each: int = 3, seed: int = 0) -> Pairs:
    """Of each user so many items, one user after the other."""
    rng = np.random.default_rng(seed)
    users = some_users(12, seed) if users is None else users
    count = len(users.ids) * each
    return Pairs(
        users,
        np.repeat(np.arange(len(users.ids)), each),
        described_items(rng.integers(0, ITEMS, count)),
        rng.integers(NONE, 9, count).astype(np.int32),
    )


def apart(pairs: Pairs) -> Pairs:
    """The same pairs, each with a user of its own."""
    count = np.arange(len(pairs))
    return dataclasses.replace(pairs, users=pairs.users.take(pairs.user_of), user_of=count)


def some_step(model: Any, pairs: Pairs | None = None, seed: int = 1) -> RankingStep:
    """What came of pairs, told as the stream does: a row tells each label once."""
    rng = np.random.default_rng(seed)
    pairs = some_pairs() if pairs is None else pairs
    count = len(pairs)
    labels = {name: np.full(count, np.nan, np.float32) for name in labels_read(model.tasks)}
    kind = rng.integers(0, 3 + len(labels), count)
    for number, (name, label) in enumerate(labels.items()):
        label[kind < 2] = 0.0  # nothing came of it
        positive = 1.0 if name not in model.tasks or model.tasks[name].is_binary else 0.7
        label[kind == 3 + number] = positive
        if name != "click":
            label[kind == 2] = 0.0  # a click, and nothing after it
    told = {name: torch.from_numpy(label) for name, label in labels.items()}
    return RankingStep(pairs, told, torch.full((count,), 0.5), pairs.user_of, seed)


def predicted(model: Any, pairs: Pairs) -> Tensor:
    """(n, K)."""
    with torch.no_grad():
        return torch.stack([*model.predict(pairs).values()], 1)


def assert_sound(model: Any, predictions: Mapping[str, Tensor], count: int) -> None:
    assert list(predictions) == list(model.tasks)
    for name, task in model.tasks.items():
        values = predictions[name]
        assert values.shape == (count,)
        assert torch.isfinite(values).all(), name
        if task.is_binary:
            assert ((values >= 0) & (values <= 1)).all(), name


def train(model: Any, step: RankingStep) -> Tensor:
    for table in model.tables.values():
        table.training = True
    loss: Tensor = model.loss(step)
    loss.backward()  # type: ignore[no-untyped-call]
    for table in model.tables.values():
        table.step()
        table.training = False
    return loss.detach()


def taught(model: Any, steps: int = 3) -> Any:
    """Of what is born zero, or nearly so, little can be seen."""
    dense = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(steps):
        dense.zero_grad()
        train(model, some_step(model, seed=number))
        dense.step()
    return model


# Before it has learnt anything


@pytest.mark.parametrize("users", [1, 5, 2_000])
def test_predicts_before_learning_for_ids_it_has_never_seen(model: Any, users: int) -> None:
    pairs = some_pairs(some_users(users), each=2)
    with torch.no_grad():
        assert_sound(model, model.predict(pairs), 2 * users)


@pytest.mark.parametrize("learnt", [False, True])
def test_users_without_a_history_and_items_without_a_description_are_answered(
    model: Any, learnt: bool
) -> None:
    if learnt:
        taught(model)
    bare = Items(np.array([3, 10**9, 3, 5]), jagged([[], [], [], []]))
    nowhere = np.full(4, NONE, np.int32)
    with torch.no_grad():
        for users in (strangers(2), known_by_history(2)):
            pairs = Pairs(users, np.array([0, 0, 1, 1]), bare, nowhere)
            assert_sound(model, model.predict(pairs), 4)


def test_predicting_gives_no_row_to_any_id(model: Any) -> None:
    model.predict(some_pairs())
    assert rows(model) == 0


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(name: str) -> None:
    found = []
    for process_seed, seed in enumerate((0, 0, 1)):
        torch.manual_seed(process_seed)  # must not matter
        found.append(predicted(made(name, seed=seed), some_pairs()))
    assert torch.equal(found[0], found[1])
    assert not torch.isclose(found[0], found[2]).all(1).any()


def test_what_it_draws_it_draws_from_the_seed_of_the_step(name: str) -> None:
    for how in HOWS:
        model, losses = made(name, position={"how": how}), []
        for process_seed in range(2):
            torch.manual_seed(process_seed)  # must not matter
            losses.append(model.loss(some_step(model)).detach())
        assert torch.equal(*losses)


# Pure in its inputs


def test_the_arrays_it_is_given_are_not_touched(model: Any) -> None:
    step = some_step(model)
    given = [*arrays(step), *step.labels.values()]
    before = copy.deepcopy(given)
    assert len(before) > 25
    model.predict(step.pairs)
    train(model, step)
    for one, kept in zip(given, before, strict=True):
        np.testing.assert_array_equal(one, kept)


@pytest.mark.parametrize("learnt", [False, True])
def test_a_batch_gives_what_each_pair_alone_gives(model: Any, learnt: bool) -> None:
    if learnt:
        taught(model)
    pairs = some_pairs(some_users(10, longest=70))
    together = predicted(model, pairs)
    for i in range(len(pairs)):
        one = np.array([i])
        alone = Pairs(
            pairs.users.take(pairs.user_of[one]),
            np.array([0]),
            pairs.items.take(one),
            pairs.positions[one],
        )
        torch.testing.assert_close(predicted(model, alone)[0], together[i], rtol=1e-5, atol=1e-6)


def test_a_user_read_once_is_as_if_he_were_read_for_each_item(name: str) -> None:
    """Split serving: what depends on the user alone is computed once for him."""
    for how in HOWS:
        model = taught(made(name, position={"how": how}))
        pairs = some_pairs(some_users(4), each=8)
        whole = predicted(model, apart(pairs))
        torch.testing.assert_close(predicted(model, pairs), whole, rtol=1e-5, atol=1e-6)
        losses = [model.loss(some_step(model, of)).detach() for of in (pairs, apart(pairs))]
        torch.testing.assert_close(*losses, rtol=2e-2, atol=1e-3)  # products may be of bfloat16


def test_pairs_may_come_in_any_order(model: Any) -> None:
    taught(model)
    pairs = some_pairs(some_users(9), each=1)
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = Pairs(
        pairs.users, pairs.user_of[order], pairs.items.take(order), pairs.positions[order]
    )
    found = predicted(model, shuffled)
    torch.testing.assert_close(found, predicted(model, pairs)[order], rtol=1e-5, atol=1e-6)


def test_what_is_ranked_has_no_place_yet(name: str) -> None:
    for how in HOWS:
        model = taught(made(name, position={"how": how}))
        pairs = some_pairs()
        elsewhere = dataclasses.replace(pairs, positions=pairs.positions[::-1].copy())
        assert torch.equal(predicted(model, elsewhere), predicted(model, pairs))


# Learning


def test_the_loss_is_a_finite_scalar_and_reaches_every_dense_parameter(model: Any) -> None:
    loss = train(taught(model, 1), some_step(model))
    assert loss.shape == ()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    "users",
    [some_users(1), strangers(1), strangers(8), known_by_history(8), some_users(1_000)],
    ids=["one", "one stranger", "strangers", "histories only", "many"],
)
def test_learns_from_a_step_of_any_users(model: Any, users: Users) -> None:
    pairs = some_pairs(users, each=1)
    assert torch.isfinite(train(model, some_step(model, pairs)))
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        assert_sound(model, model.predict(pairs), len(pairs))


@pytest.mark.parametrize("told", ["nothing", *LABELS])
def test_learns_from_a_step_in_which_all_rows_tell_the_same(model: Any, told: str) -> None:
    step = some_step(model)
    labels = {name: torch.full((len(step.pairs),), torch.nan) for name in step.labels}
    if told == "nothing":
        labels = {name: torch.zeros(len(step.pairs)) for name in labels}
    else:
        labels[told] = torch.ones(len(step.pairs))
    assert torch.isfinite(train(model, dataclasses.replace(step, labels=labels)))
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("how", HOWS)
def test_wears_every_correction_of_positions_and_balance_in_every_space(
    name: str, how: str, balance: str
) -> None:
    for space in spaces(name):
        model = made(name, position={"how": how}, balance={"how": balance}, space=space)
        dense = torch.optim.Adam(model.parameters(), lr=0.01)
        step = some_step(model)
        before = off_by(model, step)
        for _ in range(8):
            dense.zero_grad()
            assert torch.isfinite(train(model, step))
            for parameter_name, parameter in model.named_parameters():
                assert torch.isfinite(parameter.grad).all(), parameter_name
            dense.step()
        assert off_by(model, step) < before, space
        with torch.no_grad():
            found = model.predict(step.pairs)
        assert_sound(model, found, len(step.pairs))
        if space != "shown":
            assert (found["buy"] <= found["click"]).all()


def test_reads_how_items_do_where_they_are_shown(name: str) -> None:
    model = made(name, fields=(*ALL["fields"], "coec"))
    assert model.reads_coec
    assert not made(name).reads_coec
    responses = ItemResponses(ItemResponseConfig())
    counted = np.zeros(ITEMS, OUTCOME)
    counted["item_id"], counted["stands_for"] = np.arange(ITEMS), 1.0
    counted["clicked"] = np.arange(ITEMS) % 2
    responses.update(counted)
    plain = some_pairs()
    told = dataclasses.replace(plain, items=responses.on(plain.items))
    dense = torch.optim.SGD(model.parameters(), lr=0.1)
    for number in range(3):
        dense.zero_grad()
        train(model, some_step(model, told, number))
        dense.step()
    assert not torch.allclose(predicted(model, told), predicted(model, plain), atol=1e-6)


def off_by(model: Any, step: RankingStep) -> float:
    """The losses of all tasks together, by what is predicted."""
    with torch.no_grad():
        predictions = model.predict(step.pairs)
        losses = task_losses(model.tasks, predictions, step.labels, step.rates, model.space)
    return sum(float(loss) for loss in losses.values())


def test_learning_gives_rows_and_no_more_for_what_was_learnt(model: Any) -> None:
    step = some_step(model)
    train(model, step)
    born = rows(model)
    assert born > 0
    train(model, step)
    assert rows(model) == born


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_computes_the_same(name: str) -> None:
    losses, found = [], []
    for device in ("cpu", "cuda"):
        one = made(name, precision="float32", table={"device": device}).to(device)
        losses.append([float(train(one, some_step(one))) for _ in range(3)])
        found.append(predicted(one, some_pairs()).cpu())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)


def test_what_it_is_made_of_makes_it_again(name: str, model: Any) -> None:
    taught(model)
    again = made(name)
    for table_name, table in model.tables.items():
        again.tables[table_name].upsert(*table.touched_since(0))
    again.load_state_dict(table_tensors(tensors_table(model.state_dict())))
    assert torch.equal(predicted(again, some_pairs()), predicted(model, some_pairs()))


def test_endless_new_ids_take_no_more_than_the_room_there_is(name: str) -> None:
    model = made(name, table={"max_rows": 64})
    kept = 0
    for number in range(8):
        users = some_users(12, seed=number)
        history = dataclasses.replace(users.history, values=users.history.values + number * ITEMS)
        pairs = some_pairs(dataclasses.replace(users, history=history))
        items = described_items(np.arange(len(pairs)) + number * ITEMS)
        train(model, some_step(model, dataclasses.replace(pairs, items=items)))
        assert max(len(table) for table in model.tables.values()) <= 64
        kept = kept or held_beside_tables(model)
    assert held_beside_tables(model) == kept


# A world with something to learn: people click on what is of their taste, and of what they click
# on buy what is of the good brand.

TASTES, SIZE = 4, 10
GOOD = 600


def world_items() -> Items:
    """Of each item its taste as `category`, and `brand`: the good one or another."""
    category, brand = field_codes(["category", "brand"])
    tokens = [[500 + item // SIZE, GOOD + item % 2] for item in range(TASTES * SIZE)]
    fields = np.tile(np.array([category, brand], np.int32), TASTES * SIZE)
    return Items(np.arange(TASTES * SIZE), jagged(tokens), fields)


def chances(tastes: Ids, items: Ids) -> tuple[Any, Any]:
    """Of a click, and of buying after it."""
    return np.where(items // SIZE == tastes, 0.8, 0.1), np.where(items % 2 == 0, 0.7, 0.1)


@pytest.fixture(scope="module")
def world(micro_batch: Callable[..., Record]) -> list[Record]:
    return [*declared(micro_batch), *shown(micro_batch, steps=80, per_step=192)]


def declared(micro_batch: Callable[..., Record]) -> Iterator[Record]:
    items = world_items()
    yield micro_batch(
        [
            {"user_id": None, "item_id": item, "item_tokens": tokens, "item_fields": fields}
            for item, tokens, fields in zip(
                items.ids.tolist(),
                items.tokens.values.reshape(-1, 2).tolist(),
                items.fields.reshape(-1, 2).tolist(),
                strict=True,
            )
        ],
        labels=LABELS,
    )


def shown(micro_batch: Callable[..., Record], steps: int, per_step: int) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    home = int(scenario_codes(["home"])[0])
    for step in range(1, steps + 1):
        samples = []
        tastes = rng.integers(TASTES, size=per_step)
        items = rng.integers(TASTES * SIZE, size=per_step)
        clicks, buys = (rng.random(per_step) < chance for chance in chances(tastes, items))
        for row, (taste, item) in enumerate(zip(tastes.tolist(), items.tolist(), strict=True)):
            seen = {
                "user_id": taste,
                "item_id": item,
                "scenario": "home",
                "position": row % 5,
                "negative_rate": 1.0,
                **history_of(taste, home, rng),
            }
            if not clicks[row]:
                samples.append({**seen, **{f"label_{label}": 0.0 for label in LABELS}})
                continue
            bought = float(buys[row])
            later = {"label_watch": 0.5, "label_cart": bought, "label_buy": bought}
            samples += [{**seen, "label_click": 1.0}, {**seen, **later}]
        yield micro_batch(samples, step, LABELS)


def history_of(taste: int, home: int, rng: np.random.Generator) -> dict[str, Any]:
    size = 3
    return {
        "history": (taste * SIZE + rng.permutation(SIZE)[:size]).tolist(),
        "history_rewards": [1.0] * size,
        "history_kinds": [0] * size,
        "history_at_us": [NOW_US - 60_000_000 * (size - i) for i in range(size)],
        "history_scenarios": [home] * size,
        "history_sessions": [1] * size,
        "history_values": [5.0] * size,
    }


def everyone() -> tuple[Pairs, Ids]:
    """Of each taste someone who is shown all items; and the taste of each pair."""
    size = 4
    actions = TASTES * size
    users = Users(
        np.arange(TASTES),
        jagged([(taste * SIZE + np.arange(size)).tolist() for taste in range(TASTES)]),
        np.ones(actions, np.float32),
        Details(
            np.zeros(actions, np.int32),
            np.tile(NOW_US - 60_000_000 * np.arange(size, 0, -1), TASTES),
            np.repeat(scenario_codes(["home"]), actions),
            np.ones(actions, np.int32),
            np.full(actions, 5.0, np.float32),
        ),
        at_us=np.full(TASTES, NOW_US),
        scenarios=np.repeat(scenario_codes(["home"]), TASTES),
        described=world_items(),
    )
    user_of = np.repeat(np.arange(TASTES), TASTES * SIZE)
    items = world_items().take(np.tile(np.arange(TASTES * SIZE), TASTES))
    return Pairs(users, user_of, items, np.full(len(user_of), NONE, np.int32)), user_of


def trainer_of(name: str, state: Artefact | None = None) -> Trainer:
    # Who likes what is nothing of users or of items alone: rows that are born larger learn it soon.
    options = options_of(name, table={"optimiser": {"learning_rate": 0.3}, "birth_scale": 0.5})
    config = TrainerConfig(model=name, options=options, dense_learning_rate=0.02)
    return Trainer(config, "contract", state)


def learnt(name: str, records: list[Record]) -> Trainer:
    trainer = trainer_of(name)
    trainer.on_batch(records)
    assert trainer.refused == 0
    return trainer


def auc(scores: Any, labels: Any) -> float:
    """How often a positive is before a negative."""
    return float(np.mean(scores[labels][:, None] > scores[~labels]))


def test_learns_who_clicks_on_what_and_who_buys_it(name: str, world: list[Record]) -> None:
    model = learnt(name, world).model
    pairs, tastes = everyone()
    clicks, buys = chances(tastes, pairs.items.ids)
    with torch.no_grad():
        found = {task: values.numpy() for task, values in model.predict(pairs).items()}
    assert auc(found["click"], clicks > 0.5) > 0.95
    of_taste = clicks > 0.5
    assert auc(found["buy"][of_taste], buys[of_taste] > 0.5) > 0.95
    # Whatever the space, it is that of what is shown: after a click it is four times as likely.
    assert 0.5 < found["buy"].mean() / (clicks * buys).mean() < 2


def test_learning_is_the_same_to_the_bit(name: str, world: list[Record]) -> None:
    found = []
    for process_seed in range(2):
        torch.manual_seed(process_seed)  # must not matter
        model = learnt(name, world[:4]).model
        found.append(predicted(model, everyone()[0]))
    assert torch.equal(*found)


def test_a_cut_in_the_middle_of_the_stream_changes_nothing(
    name: str,
    world: list[Record],
    assert_same_state: Callable[[Artefact, Artefact], None],
) -> None:
    undisturbed = trainer_of(name)
    undisturbed.on_batch(world[:4])
    again = trainer_of(name, state=copy.deepcopy(undisturbed.snapshot()))
    for trainer in (undisturbed, again):
        trainer.on_batch(world[4:7])
    assert_same_state(again.snapshot(), undisturbed.snapshot())


# What it says of itself


def test_its_file_says_what_it_is_and_of_which_paper(name: str) -> None:
    told = about(name)
    assert len(told.summary) > 10
    assert told.paper[-4:].isdigit(), "write who, *what*, where and when into the docstring"


def test_it_says_which_columns_it_reads(name: str) -> None:
    """With all fields and positions, what it answers and its loss depend on these and no others."""
    model = taught(made(name, position={"how": "feature"}))
    step = some_step(model, some_pairs(some_users(40), each=1))
    pairs = step.pairs

    def told(users: Users, items: Items, **changed: Any) -> list[Tensor]:
        asked = dataclasses.replace(pairs, users=users, items=items)
        with torch.no_grad():
            losses = dataclasses.replace(step, pairs=asked)
            if "position" in changed:
                positions = (pairs.positions + 3).astype(np.int32)
                losses = dataclasses.replace(
                    losses, pairs=dataclasses.replace(asked, positions=positions)
                )
            if "negative_rate" in changed:
                losses = dataclasses.replace(losses, rates=step.rates / 2)
            return [*model.predict(asked).values(), model.loss(losses)]

    expected = told(pairs.users, pairs.items)
    columns = {
        **{c: told(*changed) for c, changed in other_columns(pairs.users, pairs.items).items()},
        "position": told(pairs.users, pairs.items, position=True),
        "negative_rate": told(pairs.users, pairs.items, negative_rate=True),
    }
    reads = [c for c, found in columns.items() if not all(map(torch.equal, found, expected))]
    assert sorted(about(name).reads) == sorted(reads), f"declare them: `reads = {tuple(reads)}`"


def test_what_it_skips_are_tests_of_this_file(name: str) -> None:
    assert [test for test in skips_of(name) if test not in globals()] == []
    assert all(skips_of(name).values())
