"""Staleness: what is asked for, and how old the model is that answers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import staleness
from benchmarks._streams import DATA, Learner, ranked, samples_of
from features.batch import Jagged, Samples, Users
from streaming.sources.registry import open_source
from trainers.negatives import NegativesConfig
from trainers.trainer import TrainerConfig

MOVIES = "ml-latest-small"
DAY_US = 86_400_000_000
SMALL = TrainerConfig(
    options={"width": 8, "hidden": 16, "table": {"optimiser": {"learning_rate": 0.5}}},
    negatives=NegativesConfig(uniform=64),
)


def samples_at(at_us: list[int]) -> Samples:
    nobody = Users(
        np.arange(len(at_us)),
        Jagged.of(np.empty(0, np.int64), np.zeros(len(at_us), np.int64)),
        np.empty(0, np.float32),
    )
    ids = np.arange(len(at_us))
    ones = np.ones(len(at_us), np.float32)
    return Samples(nobody, ids, ones, ones > 0, np.array(at_us))


def test_an_old_model_has_the_steps_that_were_over_at_its_last_update() -> None:
    s = 1_000_000
    #                       step 0         step 1          step 2          step 3
    samples = samples_at([1 * s, 9 * s, 11 * s, 19 * s, 21 * s, 39 * s, 41 * s, 45 * s])
    asked = np.arange(8)
    fresh = staleness.before_step(samples, asked, 0, step_size=2)
    assert fresh.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # Updates at 10 s, 20 s, 30 s and 40 s; that at 30 s has not the step that is over at 39 s.
    old = staleness.before_step(samples, asked, 10, step_size=2)
    assert old.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    older = staleness.before_step(samples, asked, 20, step_size=2)
    assert older.tolist() == [0, 0, 0, 0, 2, 2, 3, 3]
    assert staleness.before_step(samples, asked, 60, step_size=2).tolist() == [0] * 8


@pytest.fixture(scope="module")
def movies() -> pa.RecordBatch:
    return samples_of(open_source(MOVIES), DATA[MOVIES], 11_000)


def test_what_is_asked_for_somebody_took_before_and_the_oldest_model_has_learnt_something(
    movies: pa.RecordBatch,
) -> None:
    config = staleness.Config(step_size=32)
    test = staleness.prepare(movies, DATA[MOVIES], config)
    taken, at_us = test.samples.item_ids, test.samples.at_us
    assert len(test.asked) > 100
    midnight = at_us[config.step_size - 1] // DAY_US * DAY_US + DAY_US
    for number in test.asked.tolist():
        assert taken[number] in taken[:number]
        assert at_us[number] >= midnight
    assert min(test.due["1d"]) > 0
    fewer = staleness.prepare(movies, DATA[MOVIES], replace(config, asked=50))
    assert len(fewer.asked) == 50
    assert np.isin(fewer.asked, test.asked).all()


def test_a_delay_of_nothing_is_test_then_train_and_a_longer_one_an_older_model(
    movies: pa.RecordBatch,
) -> None:
    test = staleness.prepare(movies, DATA[MOVIES], staleness.Config(step_size=32))
    found = staleness.recalls(Learner(SMALL), test)
    learner = Learner(SMALL)
    ranks: dict[str, list[int]] = {"0s": [], "1d": []}
    for number, step in enumerate(test.steps):
        for name in ranks:
            rows = test.asked[test.due[name] == number]
            users, items = test.samples.users.take(rows), test.samples.item_ids[rows]
            ranks[name] += ranked(learner, users, items, repeats=False).tolist()
        learner.declare(step)
        learner.learn(step)
    for name, one in ranks.items():
        assert len(one) == len(test.asked)
        assert found[name] == pytest.approx(np.mean(np.array(one) < staleness.K))
    assert np.array_equal(test.due["0s"], test.asked // 32)


def test_every_source_has_its_figures_and_a_slice_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staleness, "PICTURES", tmp_path)
    lines: list[str] = []
    config = staleness.Config(
        sources=(MOVIES,), events=9_600, step_size=32, seeds=(1, 2), trainers={MOVIES: SMALL}
    )
    figures = staleness.run(lines.append, config)
    assert [line.split(":")[0] for line in lines] == [
        MOVIES,
        *(f"{MOVIES}, {who}" for who in ("popular", "seed 1", "seed 2")),
    ]
    for delay in staleness.DELAYS_S:
        assert 0 <= figures[f"{MOVIES}.{delay}"] <= 1
        assert 0 <= figures[f"{MOVIES}.popular.{delay}"] <= 1
    assert figures[f"{MOVIES}.1d_over_1d"] == 1.0
    assert not list(tmp_path.iterdir())


def test_every_delay_is_named_in_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staleness, "PICTURES", tmp_path)
    staleness.draw({"movies": dict.fromkeys(staleness.DELAYS_S, 0.5)})
    drawn = re.findall(">([^<>]+)</text>", (tmp_path / "staleness.svg").read_text())
    assert {"second", "minute", "hour", "day", "movies"} <= set(drawn)
