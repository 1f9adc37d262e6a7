"""What is MIND's own: how many interests a user has, what they are, and how they learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from features.batch import Items, Jagged, Users
from streaming.log import Record
from trainers.models import RetrievalStep, create
from trainers.negatives import NegativesConfig
from trainers.softmax import Sampling, sampled_softmax
from trainers.trainer import Trainer, TrainerConfig

OPTIONS = {"width": 8, "hidden": 16, "interests": 3}
TASTES, SIZE = 8, 10


def items(ids: list[int], tokens: list[int] | None = None) -> Items:
    each = np.full(len(ids), 1 if tokens else 0)
    return Items(np.array(ids, np.int64), Jagged.of(np.array(tokens or [], np.int64), each))


def users(*histories: list[int], described: Items | None = None) -> Users:
    history = Jagged.of(
        np.array([item for one in histories for item in one], np.int64),
        np.array([len(one) for one in histories]),
    )
    rewards = np.ones(len(history.values), np.float32)
    known = described or items([])
    return Users(np.arange(len(histories)), history, rewards, described=known)


def query(*histories: list[int], described: Items | None = None, **options: Any) -> Tensor:
    model = create("mind", {**OPTIONS, **options})
    with torch.no_grad():
        answer: Tensor = model.query(users(*histories, described=described))
    return answer


@pytest.mark.parametrize(
    ("actions", "interests"), [(0, 1), (1, 1), (3, 1), (4, 2), (8, 3), (40, 3)]
)
def test_who_did_more_has_more_interests_and_those_beyond_repeat_the_first(
    actions: int, interests: int
) -> None:
    found = query(list(range(actions)))[0]
    for number, interest in enumerate(found):
        assert torch.equal(interest, found[0]) == (number == 0 or number >= interests)


def test_the_newest_actions_are_a_set() -> None:
    found = query([5, 6, 7, 8], history=4)
    torch.testing.assert_close(found, query([8, 5, 7, 6], history=4))
    torch.testing.assert_close(found, query([9, 5, 6, 7, 8], history=4))
    assert not torch.allclose(found, query([9, 6, 7, 8], history=4))


def test_new_items_are_known_by_what_describes_them() -> None:
    """Two histories without an item in common are alike if the same tokens describe them."""
    described = items([1, 2, 3, 4, 5, 6], [10, 10, 10, 10, 20, 20])
    options = {"width": 32, "interests": 1, "table": {"birth_scale": 1.0}}
    one, alike, other = query([1, 2], [3, 4], [5, 6], described=described, **options)[:, 0]
    assert torch.cosine_similarity(one, alike, 0) > torch.cosine_similarity(one, other, 0) + 0.1


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_a_label_is_learnt_by_the_interests_that_fit_it(power: float) -> None:
    model = create("mind", {**OPTIONS, "power": power, "precision": "float32"})
    candidates = items(list(range(6)))
    none = Jagged.of(np.empty(0, np.int64), np.zeros(2, np.int64))
    sampling = Sampling(
        torch.tensor([4, 1]), torch.zeros(1, 6), torch.zeros(2, dtype=torch.int64), none
    )
    asked = users(list(range(10, 19)), list(range(20, 24)))
    step = RetrievalStep(
        asked, candidates, torch.empty(0, 8), sampling, torch.ones(2),
        np.array([4, 1]), np.arange(6), seed=0,
    )  # fmt: skip
    with torch.no_grad():
        interests, vectors = model.query(asked), model.items(candidates)
    attended = []
    for user, (label, count) in enumerate(((4, 3), (1, 2))):
        fits = [float(interest @ vectors[label]) / 0.07 for interest in interests[user, :count]]
        shares = torch.tensor([max(fit, 1e-6) ** power for fit in fits]).softmax(0)
        own = zip(shares, interests[user, :count], strict=True)
        attended.append(torch.stack([share * interest for share, interest in own]).sum(0))
    expected = sampled_softmax(
        torch.stack(attended), vectors, sampling, torch.ones(2), 0.07, precision="float32"
    )
    torch.testing.assert_close(model.loss(step).detach(), expected)
    alone = replace(step, users=users([7], [8]))
    assert torch.isfinite(model.loss(alone))


def two_tastes(micro_batch: Callable[..., Record], steps: int) -> Iterator[Record]:
    """Users with two tastes each, who take next one or the other."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        samples = []
        for _ in range(64):
            tastes = rng.choice(TASTES, 2, replace=False)
            *history, item = (rng.choice(tastes, 13) * SIZE + rng.integers(SIZE, size=13)).tolist()
            samples.append(
                {
                    "user_id": int(rng.integers(2**62)),
                    "item_id": item,
                    "history": history,
                    "history_rewards": [1.0] * 12,
                    "reward": 1.0,
                }
            )
        yield micro_batch(samples, step)


def test_the_interests_of_a_user_with_two_tastes_come_apart(
    micro_batch: Callable[..., Record],
) -> None:
    config = TrainerConfig(
        model="mind",
        options={**OPTIONS, "interests": 2, "table": {"optimiser": {"learning_rate": 0.5}}},
        negatives=NegativesConfig(uniform=32),
    )
    trainer = Trainer(config, "mind")
    for record in two_tastes(micro_batch, steps=60):
        trainer.on_batch([record])
    everyone = [
        [one * SIZE + i for i in range(6)] + [other * SIZE + i for i in range(6)]
        for one in range(TASTES)
        for other in range(one)
    ]
    with torch.no_grad():
        centres = trainer.model.items(items(list(range(TASTES * SIZE)))).view(TASTES, SIZE, -1)
        found = trainer.model.query(users(*everyone)) @ centres.mean(1).T  # (users, K, tastes)
    best = found.argmax(-1).tolist()
    pairs = [{one, other} for one in range(TASTES) for other in range(one)]
    apart = [set(tastes) == pair for tastes, pair in zip(best, pairs, strict=True)]
    assert np.mean(apart) > 0.6  # by chance it is 2 in 64
