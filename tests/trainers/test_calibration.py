"""Calibration on the stream: what its curves keep, what they learn, and what they forget."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trainers.calibration import ALL, CalibrationConfig, Calibrators, Curves

KINDS = ("platt", "isotonic")
HOME, SEARCH, RARE, NEVER_SEEN = 11, 22, 33, 44
Floats = np.ndarray[Any, np.dtype[np.float64]]


def sigmoid(logits: Any) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.asarray(logits))))


def made(how: Any = "isotonic", **config: Any) -> Calibrators:
    return Calibrators(["click", "buy"], CalibrationConfig(how, **config))


def drawn(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(-2.0, 1.2, count)


def feed(
    calibrators: Calibrators, logits: Floats, true: Any, seed: int = 1, **more: Any
) -> Calibrators:
    """What is predicted with these logits comes about with those."""
    came = np.random.default_rng(seed).random(len(logits)) < sigmoid(true)
    calibrators.observe("click", sigmoid(logits), came, **more)
    return calibrators


def distorted(logits: Any) -> Floats:
    return np.asarray(0.6 * np.asarray(logits) - 1.0)


# What every curve keeps


observed = st.integers(0, 60).flatmap(
    lambda n: st.tuples(
        arrays(np.float32, n, elements=st.floats(0, 1, width=32)),
        arrays(np.float32, n, elements=st.sampled_from([0.0, 1.0, 0.5, np.nan])),
        arrays(np.float32, n, elements=st.floats(0, 100, width=32)),
        arrays(np.int32, n, elements=st.sampled_from([ALL, HOME, SEARCH])),
    )
)


@given(
    how=st.sampled_from(KINDS), steps=st.lists(observed, max_size=3), half_life=st.integers(1, 99)
)
@settings(max_examples=80, deadline=None)
def test_whatever_came_it_gives_probabilities_in_the_same_order(
    how: Any, steps: Any, half_life: int
) -> None:
    calibrators = made(how, half_life=half_life)
    for step in steps:
        calibrators.observe("click", *step)
    curves = calibrators.curves()
    asked = np.sort(np.append(sigmoid(np.linspace(-30, 30, 241)), [0.0, 1.0]))
    for scenario in (ALL, HOME, SEARCH, NEVER_SEEN):
        served = curves.calibrated("click", asked, scenario)
        assert np.isfinite(served).all()
        assert served.min() >= 0
        assert served.max() <= 1
        assert (np.diff(served) >= 0).all()
        between = (asked > 1e-6) & (asked < 0.99)
        if served[between].max() < 0.999:  # where numbers are not so dense that some are the same
            assert (np.diff(served[between]) > 0).all()


@pytest.mark.parametrize("how", KINDS)
def test_what_is_served_has_the_type_of_what_was_predicted(how: str) -> None:
    calibrators = feed(made(how), drawn(500), distorted(drawn(500)))
    for dtype in (np.float32, np.float64):
        found = calibrators.curves().calibrated("click", np.array([0.1, 0.2], dtype))
        assert found.dtype == dtype


def test_none_changes_nothing_and_keeps_nothing() -> None:
    calibrators = feed(made("none"), drawn(500), 5.0)
    predicted = np.array([0.1, 0.7])
    assert calibrators.curves().calibrated("click", predicted) is predicted
    assert not list(calibrators.figures())
    assert calibrators.state().keys() == {"codes"}


@pytest.mark.parametrize("how", KINDS)
def test_of_what_was_never_seen_the_prediction_is_believed(how: str) -> None:
    predicted = np.array([0.001, 0.3, 0.9])
    curves = made(how).curves()
    assert curves.calibrated("click", predicted) == pytest.approx(predicted)
    assert curves.calibrated("other", predicted) is predicted
    # A few samples say little, and a prediction that is no number nothing.
    few = made(how)
    few.observe("click", [0.1, np.nan, 2.0], [1.0, 0.0, 0.0])
    assert few.curves().calibrated("click", predicted)[1] == pytest.approx(0.3, abs=0.15)


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("weight", [1e-300, 1e12])
def test_what_is_sure_and_wrong_leaves_it_finite(how: str, weight: float) -> None:
    calibrators = made(how)
    for _ in range(3):
        calibrators.observe("click", [0.0, 1e-7, 1.0, 1.0], [1, 1, 0, 0], weight, HOME)
        calibrators.observe("click", [0.0, 1e-7, 1.0, 1.0], [0, 0, 1, 1], weight, SEARCH)
    for scenario in (ALL, HOME, SEARCH):
        found = calibrators.curves().calibrated("click", np.array([0, 0.3, 1]), scenario)
        assert np.isfinite(found).all()


# What they learn


@pytest.mark.parametrize("how", KINDS)
def test_a_planted_distortion_is_found(how: str) -> None:
    logits = drawn(40_000)
    calibrators = feed(made(how, half_life=100_000), logits, distorted(logits))
    asked = np.array([-4.0, -3, -2, -1, 0])
    found = calibrators.curves().calibrated("click", sigmoid(asked))
    assert found == pytest.approx(sigmoid(distorted(asked)), rel=0.12)


def test_isotonic_finds_any_rising_curve_and_platt_only_a_line() -> None:
    def bent(logits: Any) -> Floats:
        return np.asarray(np.where(np.asarray(logits) < -2, -4.0, -1.0))

    logits = drawn(60_000)
    asked = np.array([-4.0, -3, -1, 0])
    errors = {}
    for how in KINDS:
        calibrators = feed(made(how, half_life=100_000), logits, bent(logits))
        found = calibrators.curves().calibrated("click", sigmoid(asked))
        errors[how] = np.abs(np.log(found / sigmoid(bent(asked)))).max()
    assert errors["isotonic"] < 0.3 < errors["platt"]


@pytest.mark.parametrize("how", KINDS)
def test_weights_stand_for_what_was_left_out(how: str) -> None:
    rng = np.random.default_rng(3)
    came = rng.random(50_000) < 0.05
    kept = came | (rng.random(50_000) < 0.1)
    calibrators = made(how, half_life=100_000)
    calibrators.observe("click", np.full(kept.sum(), 0.3), came[kept], np.where(came, 1, 10)[kept])
    found = calibrators.curves().calibrated("click", np.array([0.3]))
    assert found == pytest.approx([0.05], rel=0.1)


@pytest.mark.parametrize("how", KINDS)
def test_graded_labels_count_by_their_grade(how: str) -> None:
    calibrators = made(how)
    calibrators.observe("click", np.full(4_000, 0.7), np.tile([0.1, 0.3], 2_000))
    found = calibrators.curves().calibrated("click", np.array([0.7]))
    assert found == pytest.approx([0.2], abs=0.01)


@pytest.mark.parametrize("how", KINDS)
def test_a_scenario_is_as_all_are_until_it_shows_otherwise(how: str) -> None:
    logits = drawn(40_000)
    scenarios = np.where(np.arange(40_000) % 2 == 0, HOME, SEARCH)
    level = np.where(scenarios == HOME, 1.0, -1.0)
    calibrators = feed(made(how, half_life=10**6), logits, logits + level, scenarios=scenarios)
    feed(calibrators, drawn(5), drawn(5), scenarios=RARE)
    curves = calibrators.curves()
    asked = sigmoid(np.array([-3.0, -2, -1]))
    together = curves.calibrated("click", asked)
    for scenario, shift in ((HOME, 1.0), (SEARCH, -1.0)):
        found = curves.calibrated("click", asked, scenario)
        assert found == pytest.approx(sigmoid(np.array([-3.0, -2, -1]) + shift), rel=0.12)
    assert curves.calibrated("click", asked, RARE) == pytest.approx(together, rel=0.4)
    assert curves.calibrated("click", asked, NEVER_SEEN).tolist() == together.tolist()
    mixed = curves.calibrated("click", np.repeat(asked, 2), np.tile([HOME, NEVER_SEEN], 3))
    assert mixed[::2].tolist() == curves.calibrated("click", asked, HOME).tolist()
    assert mixed[1::2].tolist() == together.tolist()


def test_scenarios_beyond_the_room_go_with_all() -> None:
    calibrators = made(scenarios=1)
    feed(calibrators, drawn(2_000), drawn(2_000) + 1, scenarios=HOME)
    feed(calibrators, drawn(2_000), drawn(2_000) - 1, scenarios=SEARCH)
    curves, asked = calibrators.curves(), np.array([0.1])
    home, search, together = (curves.calibrated("click", asked, s)[0] for s in (HOME, SEARCH, ALL))
    assert search == together < home


@pytest.mark.parametrize("how", KINDS)
def test_what_is_long_past_is_forgotten(how: str) -> None:
    calibrators = feed(made(how, half_life=100), drawn(10_000), 2.0)
    logits = drawn(10_000, 5)
    feed(calibrators, logits, distorted(logits), seed=6)
    fresh = feed(made(how, half_life=100), logits, distorted(logits), seed=6)
    asked = sigmoid(np.array([-3.0, -2, -1]))
    found, wanted = (c.curves().calibrated("click", asked) for c in (calibrators, fresh))
    assert found == pytest.approx(wanted, rel=0.02)


def test_figures_tell_how_many_were_predicted_and_served_for_each_that_came() -> None:
    calibrators = made(half_life=10**9)
    calibrators.observe(
        "click", [0.5, 0.5, 0.5], [1, 0, 0], [1, 1, 2], [HOME, HOME, SEARCH], [0.2, 0.3, 0.1]
    )
    found = {(task, code): figures for task, code, *figures in calibrators.figures()}
    assert found.keys() == {("click", ALL), ("click", HOME)}  # of SEARCH none came
    assert found["click", ALL] == pytest.approx([2.0, 0.7])
    assert found["click", HOME] == pytest.approx([1.0, 0.5])


# Cuts and versions


@pytest.mark.parametrize("how", KINDS)
def test_a_loaded_state_goes_on_bit_for_bit(how: str) -> None:
    def step(calibrators: Calibrators, seed: int) -> None:
        logits, scenarios = drawn(700, seed), np.arange(700) % 4
        feed(calibrators, logits, distorted(logits), seed=seed, scenarios=scenarios)

    unbroken = made(how, half_life=100)
    for seed in range(20):  # past the point where the weights of a tally are renewed
        step(unbroken, seed)
    loaded = made(how, half_life=100)
    loaded.load(unbroken.state())
    for calibrators in (unbroken, loaded):
        step(calibrators, 99)
    mine, theirs = unbroken.state(), loaded.state()
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert unbroken.curves().table().equals(loaded.curves().table())


def test_a_state_of_other_tasks_and_sizes_keeps_what_still_fits() -> None:
    saved = feed(made(), drawn(1_000), 2.0, scenarios=HOME)
    saved.observe("buy", [0.5] * 1_000, [0.0] * 1_000)
    other = Calibrators(["buy", "like"], CalibrationConfig())
    other.load(saved.state())
    assert other.curves().calibrated("buy", np.array([0.5]))[0] < 0.1
    smaller = made(scenarios=0)
    smaller.load(saved.state())
    together = saved.curves().calibrated("click", np.array([0.5]))
    for scenario in (ALL, HOME):
        assert smaller.curves().calibrated("click", np.array([0.5]), scenario) == together


@pytest.mark.parametrize("how", KINDS)
def test_a_version_serves_the_same(how: str) -> None:
    calibrators = made(how)
    for scenario, shift in ((HOME, 1.0), (SEARCH, -1.0)):
        feed(calibrators, drawn(3_000), drawn(3_000) + shift, scenarios=scenario)
    curves = calibrators.curves()
    served = Curves.from_table(curves.table())
    asked = np.linspace(0.01, 0.99, 50)
    for task, scenario in product(("click", "buy"), (ALL, HOME, SEARCH, NEVER_SEEN)):
        mine, theirs = (c.calibrated(task, asked, scenario) for c in (curves, served))
        assert mine.tolist() == theirs.tolist()
    assert Curves.from_table(made("none").curves().table()).calibrated("click", asked) is asked
