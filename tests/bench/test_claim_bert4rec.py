"""BERT4Rec's offline protocol: what is held back, what it is compared with, and that one learns."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.claims import bert4rec
from trainers.models import create

MOVIES = 12


def circle(users: int) -> list[NDArray[np.int64]]:
    """Everyone takes one movie after the other, and begins again after the last."""
    return [np.arange(user, user + 9) % MOVIES for user in range(users)]


def quiet(_line: str) -> None:
    pass


def test_ties_count_against_what_is_to_be_found() -> None:
    scores = np.zeros((3, 101))
    scores[0, 0] = 2.0  # the first of all
    scores[1, 0], scores[1, 1:10] = 1.0, 2.0  # the tenth
    found = bert4rec._figures("any", scores)
    assert found["any HR@10"] == pytest.approx(2 / 3)
    assert found["any NDCG@10"] == pytest.approx((1 + 1 / np.log2(11)) / 3)


def test_who_is_drawn_was_not_rated_and_is_popular(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bert4rec, "_NEGATIVES", 2)
    rare, often = np.array([0, 1]), np.array([2, 3])
    movies = [rare, *[often] * 500, np.array([4, 5, 6, 7])]
    drawn = bert4rec._drawn(movies, 1)
    assert all(not set(one) & set(some) for one, some in zip(movies, drawn, strict=True))
    assert set(drawn[-1].tolist()) == {2, 3}


@pytest.mark.parametrize("name", ["bert4rec", "sasrec"])
def test_what_comes_next_is_learnt_and_the_last_two_are_not_shown(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting, value in {"_EPOCHS": 25, "_USERS": 8, "_DRAWN": 8}.items():
        monkeypatch.setattr(bert4rec, setting, value)
    movies = circle(48)
    shown: list[int] = []

    def step(some: list[NDArray[np.int64]], cuts: list[int], *rest: object) -> object:
        shown.extend(cuts)
        return made(some, cuts, *rest)  # type: ignore[arg-type]

    made = bert4rec._step
    monkeypatch.setattr(bert4rec, "_step", step)
    table = {"optimiser": {"kind": "adam", "learning_rate": 0.01}}
    options = {"width": 64, "table": table, **bert4rec._OPTIONS[name], "dropout": 0.0}
    model = create(name, {**options, "seed": 1})
    bert4rec._learn(model, movies, 1, quiet)
    assert max(shown) == len(movies[0]) - 3  # the number of the movie that came next
    others = [np.setdiff1d(np.arange(MOVIES), one[-1]) for one in movies]
    pairs = zip(movies, others, strict=True)
    candidates = np.stack([np.append(one[-1], some) for one, some in pairs])
    scores = bert4rec._scores(model, movies, candidates)
    assert (scores.argmax(1) == 0).mean() > 0.9
