"""What models draw: another draw for every seed and every step, and the same one again."""

from __future__ import annotations

import torch

from trainers.models.parts.chance import dropout, generator


def test_every_seed_and_every_step_draws_something_else_and_the_same_again() -> None:
    asked = [(seed, step) for seed in (-1, 0, 1, 2, 2**40) for step in (0, 1, 2, 2**33)]
    drawn = [tuple(torch.rand(3, generator=generator(*one)).tolist()) for one in asked]
    assert len(set(drawn)) == len(asked)
    assert drawn == [tuple(torch.rand(3, generator=generator(*one)).tolist()) for one in asked]


def test_dropout_keeps_the_mean_and_drops_nothing_where_nothing_is_drawn() -> None:
    x = torch.ones(200, 100)
    dropped = dropout(x, 0.25, generator(0, 1))
    assert set(dropped.flatten().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    torch.testing.assert_close(dropped.mean(), torch.tensor(1.0), rtol=0, atol=0.02)
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, generator(0, 1)) is x
