"""The gate: quiet while nothing is wrong, closed by what is, and open again by itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streaming.log import Record
from trainers.gate import Gate, GateConfig, Soundness, bits_of_ranks, size_of
from trainers.trainer import Trainer, TrainerConfig

MINUTE_US = 60_000_000
CONFIG = GateConfig(check_every=1)
MakeRecord = Callable[..., Record]


class Stream:
    """Tests of ever new users, some at a step, as a world would bring them."""

    def __init__(self, gate: Gate, seed: int = 0, per_step: int = 16) -> None:
        self.gate = gate
        self.step = 0
        self.samples = 100_000
        self._rng = np.random.default_rng(seed)
        self._per_step = per_step

    def hear(
        self,
        users: int,
        gain: float,
        *,
        hit_rate: float = 0.5,
        predicted: float = 0.5,
        spread: float = 2.3,
        popularity: float = 20.0,
        actions: int = 50,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """So many users, whose gains spread as those of the planted world do; by `popularity` their
        items rank so many bits from the top.
        """
        for _ in range(users // self._per_step):
            n = self._per_step
            self.step += 1
            self.gate.observe(
                self.step,
                np.arange(n) + self.step * n,
                np.full(n, actions),
                bits_of_ranks(
                    _ranks(popularity - np.stack([self._rng.normal(gain, spread, n), np.zeros(n)]))
                ),
                self._rng.random(n) < hit_rate,
                np.full(n, predicted),
            )
            self.check()
            watch()

    def check(self, at_us: int | None = None) -> None:
        logged_us = self.step * 100_000 if at_us is None else at_us
        if self.gate.is_due(self.step):
            self.gate.check(self.step, self.samples, logged_us, self.gate.sums())


def _ranks(bits: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.maximum(np.rint(2.0**bits - 2.0), 0.0).astype(np.int64)


def heard(gate: Gate, gain: float = 1.8, users: int = 2_048, seed: int = 0) -> Stream:
    stream = Stream(gate, seed)
    stream.hear(users, gain)
    assert not gate.holds
    return stream


def test_a_stream_that_does_not_change_never_closes_it() -> None:
    held = 0
    for seed in range(40):
        gate = Gate(CONFIG)
        Stream(gate, seed).hear(4_096, 1.8, watch=partial(held_by, gate))
        held += gate.trusted_step > 0
    assert held == 0  # of 160,000 users and 10,000 checks


def held_by(gate: Gate) -> None:
    assert not gate.holds, gate.reason


@pytest.mark.parametrize("seed", range(8))
def test_a_fall_closes_it_before_twice_its_window_has_gone_by(seed: int) -> None:
    gate = Gate(CONFIG)
    stream = heard(gate, seed=seed)
    stream.hear(512, 0.8)
    assert gate.check_name == "quality"
    assert gate.reason is not None
    assert "bits better than by popularity for the newest" in gate.reason


def test_popularity_that_gets_better_is_not_the_models_fault() -> None:
    gate = Gate(CONFIG)
    stream = heard(gate, gain=2.7)
    # What is served becomes popular: the model finds it even better than before.
    stream.hear(4_096, 1.4, popularity=18.5, watch=partial(held_by, gate))
    stream.hear(512, 0.0, popularity=18.5)  # and now it does not
    assert gate.check_name == "quality"


def test_what_the_newest_tests_speak_of_is_not_trusted() -> None:
    gate = Gate(CONFIG)
    stream = heard(gate)
    begun = stream.step
    stream.hear(512, 0.0)
    assert begun - 12 <= gate.trusted_step <= begun + 4  # by blocks of 64 users, 16 a step
    trusted = gate.trusted_step
    stream.hear(512, 0.0)  # the window goes on; what is trusted does not
    assert gate.trusted_step == trusted


def test_it_stays_closed_while_what_is_wrong_is_learnt_and_frees_itself_when_it_is_over() -> None:
    gate = Gate(CONFIG)
    stream = heard(gate)
    stream.hear(512, 0.5)
    assert gate.holds
    stream.hear(20_000, 0.6, watch=partial(must_hold, gate))  # what is planted is learnt by and by
    stream.hear(512, 1.9)
    assert not gate.holds
    assert gate.figures["gate_gain"] == pytest.approx(1.9, abs=0.5)


def must_hold(gate: Gate) -> None:
    assert gate.holds


def test_it_is_freed_only_after_so_many_good_checks_in_a_row() -> None:
    gate = Gate(replace(CONFIG, good_to_free=5))
    stream = heard(gate)
    stream.hear(512, 0.0)
    good = 0
    while gate.holds:
        stream.hear(16, 1.9, spread=0.0)
        fine = gate.figures["gate_gain"] >= 0.85 * gate.figures["gate_gain_before"]
        good = good + 1 if fine else 0
        assert gate.holds == (good < 5)
    assert good == 5


def test_a_quarter_of_an_hour_of_it_is_the_way_the_world_is_now() -> None:
    gate = Gate(CONFIG)
    stream = heard(gate)
    stream.hear(512, 0.5)
    assert gate.holds
    since = stream.step * 100_000
    stream.step += 1
    stream.check(since + 10 * MINUTE_US)
    assert gate.holds
    stream.step += 1
    stream.check(since + 16 * MINUTE_US)
    assert not gate.holds
    stream.hear(512, 0.5, watch=partial(held_by, gate))


def test_one_user_is_one_witness_however_much_he_says() -> None:
    gate = Gate(CONFIG)
    stream = heard(gate)
    for step in range(1, 21):
        user = np.full(256, 7)
        bits = bits_of_ranks(_ranks(np.repeat([[20.0], [11.0]], 256, axis=1)))
        gate.observe(stream.step + step, user, user, bits, user > 7, np.full(256, np.nan))
        gate.check(stream.step + step, 100_000, 0, gate.sums())
    assert not gate.holds


def test_it_says_nothing_before_it_has_heard_enough() -> None:
    gate = Gate(CONFIG)
    stream = heard(gate, users=112)
    stream.hear(128, -9.0, watch=partial(held_by, gate))
    stream.hear(64, -9.0)
    assert gate.holds


def test_nothing_is_served_before_enough_is_learnt() -> None:
    gate = Gate(replace(CONFIG, min_samples=1_000))
    gate.check(1, 10, 0, gate.sums())
    assert (gate.check_name, gate.reason) == (
        "enough",
        "10 samples are learnt, of 1,000 at least",
    )
    for step in range(2, 7):
        gate.check(step, 1_000, 0, gate.sums())
    assert not gate.holds


def test_a_model_that_no_longer_knows_how_much_it_knows_is_held() -> None:
    gate = Gate(CONFIG)
    stream = heard(gate)
    stream.hear(512, 1.8, hit_rate=0.5, predicted=0.65, watch=partial(held_by, gate))  # a little
    stream.hear(512, 1.8, hit_rate=0.2, predicted=0.9)
    assert gate.check_name == "calibration"
    assert gate.reason is not None
    assert "times the hits that there are" in gate.reason


def test_in_mode_off_it_never_looks() -> None:
    gate = Gate(replace(CONFIG, mode="off"))
    assert not gate.is_due(1_000)


@pytest.mark.parametrize("cut_after", [100, 600, 1_100])
def test_a_restored_gate_comes_to_the_same_verdicts(cut_after: int) -> None:
    verdicts: list[list[str | None]] = []
    for restores in (False, True):
        gate = Gate(CONFIG)
        stream, found = Stream(gate), list[str | None]()
        for gain, users in ((1.8, 1_024), (0.5, 512), (1.9, 1_024)):
            for _ in range(users // 16):
                stream.hear(16, gain)
                found.append(stream.gate.reason)
                if restores and stream.step == cut_after // 16:
                    state = stream.gate.state()
                    stream.gate = Gate(CONFIG)
                    stream.gate.load(state)
                    assert stream.gate.figures == pytest.approx(gate.figures)
        verdicts.append(found)
    assert verdicts[0] == verdicts[1]
    assert any(verdicts[0])
    assert verdicts[0][-1] is None


def test_many_new_users_are_no_fault_of_the_model() -> None:
    gate = Gate(CONFIG)
    stream = Stream(gate)
    for _ in range(40):  # of five users one is new, and the model knows little of him
        stream.hear(64, 1.8)
        stream.hear(16, 0.4, actions=0)
    stream.hear(2_048, 0.4, actions=0, watch=partial(held_by, gate))
    assert gate.figures["gate_gain_before"] == pytest.approx(0.4, abs=0.3)


def test_users_unlike_any_before_can_be_compared_with_nobody() -> None:
    gate = Gate(CONFIG)
    stream = heard(gate)
    stream.hear(512, -5.0, actions=0, watch=partial(held_by, gate))


def test_what_two_ranks_know_adds_up_to_what_one_would() -> None:
    whole, halves = Gate(CONFIG), [Gate(CONFIG), Gate(CONFIG)]
    rng = np.random.default_rng(0)
    for step in range(8):
        users = np.arange(16) + 16 * step
        bits = bits_of_ranks(rng.integers(0, 900, (2, 16)))
        hits, predicted = rng.random(16) < 0.5, np.full(16, 0.5)
        whole.observe(step, users, users, bits, hits, predicted)
        for gate, mine in zip(halves, (slice(0, 8), slice(8, 16)), strict=True):
            some = users[mine]
            gate.observe(step, some, some, bits[:, mine], hits[mine], predicted[mine])
    added = halves[0].sums() + halves[1].sums()
    np.testing.assert_allclose(added.sum(0), whole.sums().sum(0))  # each by blocks of its own


# -- the numbers of a version --------------------------------------------------------------


def sizes(rms: float, rows: int = 64) -> dict[str, NDArray[np.float64]]:
    return {"table-item": size_of([np.full((rows, 64), rms, np.float32)])}


def test_numbers_of_the_usual_size_pass_and_those_many_times_as_large_do_not() -> None:
    sound = Soundness(growth=4.0)
    for rms in np.geomspace(0.02, 0.3, 32):  # it may grow by and by
        sound.look(sizes(rms), whole=False)
        assert sound.reason is None
    sound.look(sizes(1.6), whole=False)
    assert sound.check_name == "norms"
    assert sound.reason is not None
    assert sound.reason.startswith("the numbers of its table-item are")


def test_a_few_rows_may_be_other_than_most() -> None:
    sound = Soundness(growth=4.0)
    for _ in range(32):
        sound.look(sizes(0.1), whole=False)
    sound.look(sizes(9.0, rows=1), whole=False)
    assert sound.reason is None


def test_a_young_model_may_grow_quickly() -> None:
    sound = Soundness(growth=4.0)
    for rms in (0.01, 0.1, 1.0, 2.0):
        sound.look(sizes(rms), whole=False)
        assert sound.reason is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_held_until_a_whole_version_is(bad: float) -> None:
    sound = Soundness(growth=4.0)
    sound.look(sizes(0.1), whole=True)
    sound.look(sizes(bad), whole=False)
    assert sound.check_name == "finite"
    sound.look(sizes(0.1), whole=False)  # these rows are sound; the others are still there
    assert sound.reason is not None
    sound.look(sizes(0.1), whole=True)
    assert sound.reason is None


# -- in the trainer ------------------------------------------------------------------------


def liked(user: int, item: int) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "reward": 1.0, "label_liked": True}


def published(trainer: Trainer, second: int) -> list[tuple[str | None, str | None, str | None]]:
    versions = trainer.on_time(second * 1_000_000)
    return [(v.info.held, v.info.last_good, v.info.suspect) for v in versions]


@pytest.mark.parametrize("mode", ["hold", "shadow", "off"])
def test_a_version_with_numbers_that_are_not_finite(
    micro_batch: MakeRecord, small: TrainerConfig, mode: Any
) -> None:
    trainer = Trainer(replace(small, gate=GateConfig(mode=mode)), "a")
    assert published(trainer, 1) == [(None, None, None)]
    trainer.on_batch([micro_batch([liked(1, 2), liked(2, 3)])])
    assert published(trainer, 2) == [(None, None, None)]
    trainer.tables["item"].upsert(np.array([2]), np.full((1, 8), np.inf, np.float32))
    trainer.on_batch([micro_batch([liked(1, 2), liked(2, 3)], 1)])
    says = "a number of its vectors is not finite"
    assert (
        published(trainer, 3)[0]
        == {
            "hold": (says, "two_tower/a/1", None),
            "shadow": (None, None, says),
            "off": (None, None, None),
        }[mode]
    )


def test_the_log_says_once_when_it_closes_and_when_it_opens(
    micro_batch: MakeRecord, small: TrainerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(replace(small, gate=GateConfig(min_samples=4, check_every=1)), "a")
    with caplog.at_level(logging.INFO, "trainers"):
        for step in range(12):
            trainer.on_batch([micro_batch([liked(1, 2)], step)])
            trainer.on_time(step * 1_000_000)
    said = [(one.levelname, one.getMessage()) for one in caplog.records]
    assert said == [
        ("ERROR", "version two_tower/a/0 is held back: 1 samples are learnt, of 4 at least"),
        ("WARNING", "version two_tower/a/7 passes the gate again"),
    ]


def test_before_the_first_good_version_there_is_that_of_the_incarnation_before(
    micro_batch: MakeRecord, small: TrainerConfig
) -> None:
    config = replace(small, gate=GateConfig(min_samples=100, check_every=1))
    trainer = Trainer(config, "b", last_good="two_tower/a/7")
    trainer.on_batch([micro_batch([liked(1, 2)])])
    held, last_good, _ = published(trainer, 1)[0]
    assert held == "1 samples are learnt, of 100 at least"
    assert last_good == "two_tower/a/7"
