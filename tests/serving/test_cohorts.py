"""When labels count: a positive with the negatives of its time, and each impression once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.cohorts import Cohort
from serving.quality import impressions_of


def rows(*of: tuple[int, int, float]) -> NDArray[np.void]:
    """Impressions as (key, when, label)."""
    made = np.zeros(len(of), impressions_of(1))
    for i, (key, at, label) in enumerate(of):
        made[i]["key"], made[i]["at_us"], made[i]["label"] = key, at, label
    return made


def admit(cohort: Cohort, *of: tuple[int, int, float]) -> list[int]:
    taken = rows(*of)
    return sorted(cohort.admit(taken, taken["label"] == 0)["key"].tolist())


def test_positives_wait_for_negatives_of_their_time() -> None:
    cohort = Cohort(most=100, remembered=100)
    assert admit(cohort, (1, 10, 1.0), (2, 30, 1.0), (3, 20, 1.0)) == []
    assert len(cohort) == 3
    assert admit(cohort, (4, 5, 0.0)) == [4]
    assert admit(cohort, (5, 20, 0.0)) == [1, 3, 5]
    assert admit(cohort, (6, 15, 1.0)) == [6]  # of another partition, which is behind
    assert admit(cohort, (7, 40, 0.0)) == [2, 7]
    assert len(cohort) == 0


def test_a_late_positive_stays_the_negative_that_it_was() -> None:
    cohort = Cohort(most=100, remembered=100)
    assert admit(cohort, (1, 10, 0.0)) == [1]
    assert admit(cohort, (1, 10, 1.0), (2, 10, 1.0)) == [2]
    assert admit(cohort, (3, 20, 0.0), (3, 20, 1.0)) == [3]  # told together
    assert len(cohort) == 0


def test_beyond_the_bound_the_oldest_count_at_once() -> None:
    cohort = Cohort(most=3, remembered=100)
    assert admit(cohort, (1, 40, 1.0), (2, 20, 1.0), (3, 30, 1.0)) == []
    assert admit(cohort, (4, 50, 1.0), (5, 10, 1.0)) == [2, 5]
    assert len(cohort) == 3


def test_rates_are_right_from_the_start_and_while_traffic_grows() -> None:
    """A stream in which one impression in four is clicked, a little after it was shown; the window
    is a hundred long, and there are more impressions all the time.
    """
    cohort, window = Cohort(most=100_000, remembered=100_000), 100
    rng = np.random.default_rng(0)
    told: list[tuple[int, int, float, int]] = []
    key = 0
    for at in range(600):
        for _ in range(1 + at // 20):
            clicked = rng.random() < 0.25
            key += 1
            after = int(rng.integers(window)) if clicked else window
            told.append((at + after, key, float(clicked), at))
    told.sort()
    plain, held = [], []
    for start in range(0, len(told), 20):
        some = told[start : start + 20]
        if some[-1][0] > 599:
            break
        plain += [label for _, _, label, _ in some]
        taken = rows(*((key, at, label) for _, key, label, at in some))
        held += cohort.admit(taken, taken["label"] == 0)["label"].tolist()
    assert np.mean(held) == pytest.approx(0.25, abs=0.02)
    assert np.mean(plain) > 0.28  # what it would be otherwise
