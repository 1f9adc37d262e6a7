"""What is the self-supervised two-tower's own: its views of items, its loss, what it counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from features.batch import Ids, Items, Jagged, Users
from streaming.event_columns import field_codes
from streaming.log import Record
from trainers.frequency import FrequencyConfig
from trainers.models import RetrievalStep, create
from trainers.models.parts.chance import generator
from trainers.models.ssl_two_tower import SelfSupervisedTwoTower
from trainers.negatives import NegativesConfig
from trainers.softmax import Sampling
from trainers.trainer import Trainer, TrainerConfig

FIELDS = ("category", "brand", "colour", "size")
OPTIONS: dict[str, Any] = {
    "width": 8,
    "hidden": 16,
    "fields": FIELDS,
    "table": {"birth_scale": 1.0, "optimiser": {"learning_rate": 0.5}},
}


def made(**options: Any) -> SelfSupervisedTwoTower:
    model = create("ssl_two_tower", {**OPTIONS, **options})
    assert isinstance(model, SelfSupervisedTwoTower)
    return model


def shop(ids: Ids) -> Items:
    """Items with a value in each field: the brand tells the category, the others tell nothing."""
    brand, colour, size = ids % 8, ids // 8 % 4, ids // 32 % 4
    values = np.column_stack([100 + brand // 2, 200 + brand, 300 + colour, 400 + size])
    return Items(
        ids,
        Jagged.of(values.reshape(-1), np.full(len(ids), 4)),
        np.tile(field_codes(FIELDS), len(ids)).astype(np.int32),
    )


def step_of(items: Items, drawn: Ids, positive: Ids, seed: int = 3) -> RetrievalStep:
    size = len(positive)
    nothing = Jagged.of(np.empty(0, np.int64), np.zeros(size, np.int64))
    return RetrievalStep(
        Users(np.arange(size), nothing, np.empty(0, np.float32)),
        items,
        torch.empty(0, OPTIONS["width"]),
        Sampling(
            torch.from_numpy(positive),
            torch.full((1, len(items.ids)), -1.0),
            torch.zeros(size, dtype=torch.int64),
            nothing,
        ),
        torch.ones(size),
        items.ids[positive],
        drawn,
        seed,
    )


@pytest.mark.parametrize(("source", "expected"), [("corpus", [1, 3, 4, 9]), ("log", [0, 2, 2, 7])])
def test_the_loss_is_that_of_the_main_task_and_of_telling_items_again(
    source: str, expected: list[int]
) -> None:
    """L_ssl = -1/N sum log softmax(<z_i, z'_j> / t)[i], each view blind to what the other sees."""
    model = made(ssl_items=source, masking="random", dropout=0.0, ssl_weight=0.3)
    model.hidden.data.normal_()
    items = shop(np.arange(10))
    step = step_of(items, np.array([1, 3, 4, 9]), np.array([0, 2, 2, 7]))
    with torch.no_grad():
        found = model.loss(step) - made(ssl_weight=0.0).loss(step)

    drawn_from = generator(0, 3)
    if source == "log":
        torch.randperm(4, generator=drawn_from)
    hidden = torch.randperm(5, generator=drawn_from)[:2].tolist()
    views: list[list[torch.Tensor]] = [[], []]
    for item in expected:
        rows = [model.tables["item"](np.array([item]))[0]]
        for value in shop(np.array([item])).tokens.values:
            rows.append(model.tables["token"](np.array([value]))[0])
        for number, view in enumerate(views):
            seen = [
                model.hidden[k] if (k in hidden) == (number == 0) else row
                for k, row in enumerate(rows)
            ]
            v = model.item_tower(torch.cat(seen)) + seen[0] + sum(seen[1:]) / 4
            view.append(F.normalize(v, dim=0))
    loss = torch.zeros(())
    for i, item in enumerate(expected):
        others = [j for j, other in enumerate(expected) if j == i or other != item]
        logits = torch.stack([views[0][i] @ views[1][j] / 0.1 for j in others])
        loss -= logits.log_softmax(0)[others.index(i)] / len(expected)
    torch.testing.assert_close(found, 0.3 * loss, rtol=1e-4, atol=1e-5)


def test_what_tells_of_each_other_is_hidden_together() -> None:
    model = made(masking="correlated")
    corpus = shop(np.random.default_rng(0).permutation(4_096))
    for start in range(0, 4_096, 64):
        items = corpus.take(np.arange(start, start + 64))
        model.loss(step_of(items, np.arange(64), np.arange(4)))
    assert model.information.most_correlated("category", 1) == ["brand"]
    names = model.information.fields
    seeds = set()
    for seed in range(40):
        order = torch.randperm(5, generator=generator(0, seed))
        hidden = model._split(generator(0, seed))
        chosen = {name for name, one in zip(names, hidden.tolist(), strict=True) if one}
        first = names[int(order[0])]
        seeds.add(first)
        assert first in chosen
        assert len(chosen) == 3  # it, and half of five
        if first in ("category", "brand"):
            assert {"category", "brand"} <= chosen
    assert seeds == set(names)


@pytest.mark.parametrize("masking", ["random", "correlated"])
@pytest.mark.parametrize("fields", [("brand",), ("brand", "size"), FIELDS])
def test_each_view_sees_something(masking: str, fields: tuple[str, ...]) -> None:
    model = made(masking=masking, fields=fields)
    for seed in range(20):
        hidden = model._split(generator(0, seed))
        assert 0 < hidden.sum() < len(hidden)


def test_a_share_of_the_values_of_a_field_is_left_out_of_a_view() -> None:
    many = Items(
        np.arange(500),
        Jagged.of(np.tile(np.arange(10), 500), np.full(500, 10)),
        np.repeat(field_codes(["brand"]), 5_000).astype(np.int32),
    )
    model = made(fields=("brand",), dropout=0.3)
    one = torch.ones(10, 8)
    model.tables["token"].upsert(np.arange(10), (one * torch.arange(10.0)[:, None]).numpy())
    with torch.no_grad():
        whole = model._features(many)[:, 1, 0]
        parts = model._features(many, generator(0, 0))[:, 1, 0]
    torch.testing.assert_close(whole, torch.full((500,), 4.5))
    assert len(set(parts.tolist())) > 50
    # The spread of a mean of 7 of 10 without putting back, for about so many are left.
    expected = np.sqrt(8.25 / 7 * (10 - 7) / 9)
    assert float(parts.std()) == pytest.approx(expected, rel=0.2)


# On a stream


def stream(micro_batch: Callable[..., Record], steps: int) -> Iterator[Record]:
    items = shop(np.arange(128))
    tokens, fields = items.tokens.values.reshape(-1, 4), items.fields.reshape(-1, 4)
    yield micro_batch(
        [
            {
                "user_id": None,
                "item_id": item,
                "item_tokens": tokens[item],
                "item_fields": fields[item],
            }
            for item in range(128)
        ]
    )
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        taken = rng.integers(0, 16, (32, 3)).tolist()  # the others are never taken
        yield micro_batch(
            [
                {
                    "user_id": int(rng.integers(2**62)),
                    "item_id": item,
                    "history": history,
                    "history_rewards": [1.0, 1.0],
                    "reward": 1.0,
                    "label_liked": True,
                }
                for item, *history in taken
            ],
            step,
        )


def trainer_of(state: Any = None, **options: Any) -> Trainer:
    config = TrainerConfig(
        model="ssl_two_tower",
        options={**OPTIONS, **options},
        negatives=NegativesConfig(uniform=32),
        frequency=FrequencyConfig(buckets=1 << 10),
    )
    return Trainer(config, "ssl", state)


def test_the_ids_of_items_that_nobody_takes_learn_what_describes_these(
    micro_batch: Callable[..., Record],
) -> None:
    """What is told by the id alone is near to what is told by the rest of an item of its brand."""

    def told_by_ids(**options: Any) -> float:
        trainer = trainer_of(**options)
        for record in stream(micro_batch, 120):
            trainer.on_batch([record])
        model, never_taken = trainer.model, shop(np.arange(16, 128))
        seen = torch.tensor([True, False, False, False, False])[:, None]
        with torch.no_grad():
            features = model._features(never_taken)
            by_id = model._encode(torch.where(seen, features, model.hidden))
            by_rest = model._encode(torch.where(seen, model.hidden, features))
        found = never_taken.ids[(by_id @ by_rest.T).argmax(1)]
        return float(np.mean(found % 8 == never_taken.ids % 8))

    assert told_by_ids(ssl_weight=0.0) < 0.3  # by chance it is 1 in 8
    assert told_by_ids(ssl_weight=1.0) > 0.6


def test_what_is_counted_is_in_the_cut_and_in_every_version(
    micro_batch: Callable[..., Record],
) -> None:
    trainer = trainer_of()
    for number, record in enumerate(stream(micro_batch, 40)):
        trainer.on_batch([record])
        versions = trainer.on_time(10**6 * number)
    counts = trainer.model.information.counts
    assert counts.sum(axis=(1, 2)).min() > 40 * 20
    again = trainer_of(trainer.snapshot())
    np.testing.assert_array_equal(again.model.information.counts, counts)
    assert not np.shares_memory(again.model.information.counts, counts)
    names = versions[-1].shards["dense"]["name"].to_pylist()
    assert "_extra_state" in names


def test_the_gate_still_sees_how_large_the_weights_are(micro_batch: Callable[..., Record]) -> None:
    trainer = trainer_of()
    records = list(stream(micro_batch, 40))
    for number, record in enumerate(records[:-1]):
        trainer.on_batch([record])
        (version, *_) = trainer.on_time(10**6 * number)
        assert version.info.held is None
    with torch.no_grad():
        for weights in trainer.model.parameters():
            weights.mul_(10.0)
    trainer.on_batch(records[-1:])
    (version, *_) = trainer.on_time(10**8)
    assert "numbers of its dense" in str(version.info.held)
