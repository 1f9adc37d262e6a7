"""Experiments: the same user is always in the same arm, and each arm has its part of the users."""

from __future__ import annotations

import numpy as np
import pytest

from serving.cold_start import ColdStartConfig
from serving.experiments import Arm, Experiment, arm_of
from serving.pipeline import PipelineConfig
from streaming.errors import ConfigError
from streaming.ids import stable_ids
from streaming.settings import changed

USERS = stable_ids(f"u{number}" for number in range(20_000)).tolist()


def test_every_arm_has_its_part_of_the_users() -> None:
    experiment = Experiment({"a": Arm(5), "b": Arm(3), "none": Arm(0), "c": Arm(2)})
    arms = [arm_of("rules", experiment, user) for user in USERS]
    parts = [arms.count(name) / len(arms) for name in ("a", "b", "none", "c")]
    # Three standard deviations of a share of .5 among 20,000.
    assert parts == pytest.approx([0.5, 0.3, 0.0, 0.2], abs=0.011)
    assert parts[2] == 0


def test_arms_of_two_experiments_have_nothing_to_do_with_each_other() -> None:
    experiment = Experiment({"a": Arm(), "b": Arm()})
    first, second = (
        np.array([arm_of(name, experiment, user) == "a" for user in USERS])
        for name in ("rules", "newcomers")
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.022  # three standard deviations
    again = np.array([arm_of("rules", experiment, user) == "a" for user in USERS])
    assert (first == again).all()


def test_a_larger_arm_keeps_the_users_that_it_had() -> None:
    few = Experiment({"new": Arm(1), "old": Arm(9)})
    more = Experiment({"new": Arm(3), "old": Arm(7)})
    for user in USERS[:2_000]:
        if arm_of("ramp", few, user) == "new":
            assert arm_of("ramp", more, user) == "new"


def test_changes_reach_as_deep_as_settings_lie() -> None:
    config = PipelineConfig(cold_start=ColdStartConfig(hot_trust=2.0))
    other = changed(config, {"ranked": 7, "cold_start": {"lists": {"window": 5.0}}}, "arm")
    assert (other.ranked, other.cold_start.lists.window) == (7, 5.0)
    assert other.cold_start.hot_trust == 2.0  # what is not changed is as it was
    assert config.cold_start.lists.window != 5.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cold_start": {"list": 3}}, "arm.cold_start.list is not a setting"),
        ({"ranked": -1}, "arm.ranked = -1"),
        ({"rules": {"varied": 2}}, "arm.rules"),
    ],
)
def test_what_cannot_be_changed_is_named(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        changed(PipelineConfig(), changes, "arm")


def test_an_experiment_needs_somebody_in_it() -> None:
    with pytest.raises(ConfigError, match="weight"):
        Experiment({"a": Arm(0)})
