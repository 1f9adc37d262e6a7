"""The gate: whether replicas may serve what the trainer has come to.

Each micro-batch is tested before it is learnt, so the newest tests say how the candidate does on
what nobody had learnt yet. They are compared with those before them: a fall that is larger than
chance explains, or predictions that no longer fit, close the gate. It opens by itself after so many
good checks in a row.

What is compared is the *gain*: by how many bits the rank of a liked item is better than the rank
that it has by popularity, `log2((2 + popularity's) / (2 + the model's))`. Some days, users and
items are harder than others, for both alike, and recall falls by half without anybody's fault. And
samples of one user are no independent evidence, for some come in hundreds: what counts is how many
*users* have been heard, and each says one thing, his mean gain.

Beside that a version is held whose numbers cannot be right: one is not finite, or those of a table
have become many times as large, or as small, as those of the versions before.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from streaming.kernels import EMPTY

_MANY = 1024.0  # numbers: a few rows may well be other than most
_LOOKS = 16  # versions before anybody knows what is usual: a young model's numbers grow quickly
_ENOUGH_FOUND = 32.0  # items, before a calibration says anything
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class GateConfig:
    """When a version is held back, so that replicas go on serving the last good one.

    Every `check_every` steps the gain for the newest `users` is compared with that for those before
    them, which fade with a half-life of `memory` users. It is held from a fall by the share `fall`
    and `deviations` standard errors on, or if the hits that the model predicts over those it has
    become `miscalibrated` times what it was, or a part of that. `enough` users must have been heard
    on both sides. It is free again after `good_to_free` checks in a row that find no fall by the
    share `fall`; after `hold_at_most_s` by the log's clock what came to be is taken for the way
    the world is now.

    Tests count from `warm_up` samples on: before that nobody knows what is popular. A version's
    numbers may be `growth` times those of the versions before. Before `min_samples` were learnt no
    version is served at all. In the mode "shadow" all is said and nothing is held.
    """

    mode: Literal["hold", "shadow", "off"] = "hold"
    check_every: PositiveInt = 8
    users: PositiveInt = 256
    memory: PositiveInt = 512
    enough: PositiveInt = 128
    fall: NonNegativeFloat = 0.15
    deviations: PositiveFloat = 3.0
    miscalibrated: PositiveFloat = 2.0
    warm_up: NonNegativeInt = 10_000
    growth: PositiveFloat = 4.0
    good_to_free: PositiveInt = 5
    hold_at_most_s: PositiveFloat = 3_600.0
    min_samples: NonNegativeInt = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What tests say of one side: sums that are additive over users, and so over ranks.

    Of users their weights, gains, squares of these, squared weights; then the hits that the model
    predicted and those that there were, of the tests in which it was asked to predict.
    """

    sums: Sums

    @property
    def gain(self) -> float:
        """The mean over users, in bits."""
        return float(self.sums[1] / self.sums[0]) if self.sums[0] else math.nan

    @property
    def users(self) -> float:
        """How many equally weighted users know as much."""
        return float(self.sums[0] ** 2 / self.sums[3]) if self.sums[3] else 0.0

    @property
    def variance(self) -> float:
        """Of `gain`."""
        spread = self.sums[2] / self.sums[0] - self.gain**2
        return float(max(spread, 0.0) / self.users)

    @property
    def calibration(self) -> float | None:
        """Predicted hits over hits; None while there are too few."""
        predicted, found = self.sums[4:].tolist()
        return predicted / found if found >= _ENOUGH_FOUND else None


_SUMS = 6
_User = list[float]  # tests, gains, predicted hits, hits where they were predicted


class Gate:
    """Compares the newest tests with those before, and says why a version is to be held, if so.

    Its state is a function of the records learnt: a replay comes to the same verdicts.
    """

    def __init__(self, config: GateConfig) -> None:
        self._config = config
        self._newest: OrderedDict[int, _User] = OrderedDict()
        self._steps: OrderedDict[int, int] = OrderedDict()  # in which each was heard first
        self._before: Sums = np.zeros(_SUMS)
        fade = 2.0 ** (-1.0 / config.memory)
        self._fade = np.array([fade, fade, fade, fade**2, fade, fade])
        self._checked = 0
        self._good = 0
        self._held_since_us: int | None = None
        self.reason: str | None = None
        self.trusted_step = 0  # while it holds: what was learnt before was not found fault with
        self.check_name = ""
        self._judged: Sums = np.zeros((2, _SUMS))

    @property
    def figures(self) -> dict[str, float]:
        """What the last check compared."""
        return _figures(Evidence(self._judged[0]), Evidence(self._judged[1]))

    @property
    def holds(self) -> bool:
        """Whether it is closed."""
        return self.reason is not None

    def observe(
        self,
        step: int,
        users: NDArray[np.int64],
        gains: NDArray[np.float64],
        hits: NDArray[np.bool_],
        predicted: NDArray[np.float64],
    ) -> None:
        """Takes what was tested in a step: of each item (n,) who liked it, its gain in bits, if
        it was found, and the chance that the model gave to that, NaN where it was not asked.
        """
        columns = (users, gains, hits, predicted, ~np.isnan(predicted))
        for user, gain, hit, chance, asked in zip(*(c.tolist() for c in columns), strict=True):
            tally = self._newest.get(user)
            if tally is None:
                tally = self._newest[user] = [0.0, 0.0, 0.0, 0.0]
                self._steps[user] = step
            tally[0] += 1.0
            tally[1] += gain
            if asked:
                tally[2] += chance
                tally[3] += hit
        while len(self._newest) > self._config.users:
            user, tally = self._newest.popitem(last=False)
            del self._steps[user]
            if not self.holds:
                self._before = self._fade * self._before + _of_user(tally)

    def is_due(self, steps: int) -> bool:
        """Whether to check after so many steps; all ranks of a group agree."""
        return self._config.mode != "off" and steps - self._checked >= self._config.check_every

    def sums(self) -> Sums:
        """What this rank knows, (2, 6): of the newest users, and of those before."""
        newest = sum((_of_user(tally) for tally in self._newest.values()), np.zeros(_SUMS))
        return np.stack([newest, self._before])

    def check(self, steps: int, samples: int, logged_us: int, sums: Sums) -> None:
        """Comes to a verdict from the `sums` of all ranks; `logged_us` is the log's clock."""
        self._checked, self._judged = steps, sums
        found = self._complaint(Evidence(sums[0]), Evidence(sums[1]), samples)
        if found is not None:
            if not self.holds:
                self.trusted_step = next(iter(self._steps.values()), 0)
            self._good = 0
            self.check_name, self.reason = found
            self._held_since_us = self._held_since_us or logged_us
        elif self.holds:
            self._good += 1
            if self._good >= self._config.good_to_free:
                self._free()
        held_us = logged_us - (self._held_since_us or logged_us)
        if held_us > self._config.hold_at_most_s * 1e6:
            self._before = self.sums()[0]  # the way the world is now
            self._free()

    def _free(self) -> None:
        self.reason, self.check_name, self._held_since_us, self._good = None, "", None, 0

    def _complaint(
        self, newest: Evidence, before: Evidence, samples: int
    ) -> tuple[str, str] | None:
        """The name of the check that fails, and what it says."""
        config = self._config
        if samples < config.min_samples:
            return "enough", f"{samples:,} samples are learnt, of {config.min_samples:,} at least"
        if min(newest.users, before.users) < config.enough:
            return None
        fall = before.gain - newest.gain
        chance = config.deviations * math.sqrt(newest.variance + before.variance)
        if fall > config.fall * before.gain + (0.0 if self.holds else chance):
            return "quality", (
                f"liked items rank {newest.gain:.2f} bits better than by popularity for the newest"
                f" {newest.users:.0f} users, and did by {before.gain:.2f} for those before"
            )
        if newest.calibration is None or before.calibration is None:
            return None
        times = newest.calibration / before.calibration
        by_chance = config.deviations * math.sqrt(1 / newest.sums[5] + 1 / before.sums[5])
        if abs(math.log(times)) > math.log(config.miscalibrated) + by_chance:
            return "calibration", (
                f"it predicts {newest.calibration:.2f} times the hits that there are, and did"
                f" {before.calibration:.2f} times"
            )
        return None

    def state(self) -> dict[str, NDArray[Any]]:
        """What this rank knows and the verdict: it belongs into the checkpoint's one cut."""
        verdict = f"{self.check_name}\n{self.reason or ''}".encode()
        return {
            "users": np.fromiter(self._newest, np.int64, len(self._newest)),
            "steps": np.fromiter(self._steps.values(), np.int64, len(self._steps)),
            "tallies": np.array(list(self._newest.values()), np.float64).reshape(-1, 4),
            "before": self._before.copy(),
            "judged": self._judged.copy(),
            "verdict": np.frombuffer(verdict, np.uint8).copy(),
            "counts": np.array(
                [self._checked, self._good, self.trusted_step, self._held_since_us or EMPTY]
            ),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on where `state()` was taken."""
        users = state["users"].tolist()
        self._newest = OrderedDict(zip(users, state["tallies"].tolist(), strict=True))
        self._steps = OrderedDict(zip(users, state["steps"].tolist(), strict=True))
        self._before = state["before"].copy()
        self.load_verdict(state)

    def load_verdict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes the verdict alone, of a rank that knew other users."""
        self.check_name, _, reason = state["verdict"].tobytes().decode().partition("\n")
        self.reason = reason or None
        self._judged = state["judged"].copy()
        checked, good, self.trusted_step, since_us = state["counts"].tolist()
        self._checked, self._good = checked, good
        self._held_since_us = None if since_us == EMPTY else since_us


def _of_user(tally: _User) -> Sums:
    gain = tally[1] / tally[0]
    return np.array([1.0, gain, gain**2, 1.0, tally[2], tally[3]])


def _figures(newest: Evidence, before: Evidence) -> dict[str, float]:
    told = {
        "gate_users": newest.users,
        "gate_gain": newest.gain,
        "gate_gain_before": before.gain,
        "gate_calibration": newest.calibration,
        "gate_calibration_before": before.calibration,
    }
    return {name: v for name, v in told.items() if v is not None and not math.isnan(v)}


# -- the numbers of a version --------------------------------------------------------------


class Soundness:
    """Whether the numbers of versions are finite, and of the size of those before.

    It has no part in a cut: the first version of a trainer is a snapshot, and looked at whole. What
    is not sound stays in the tables, so no version is until a snapshot is.
    """

    def __init__(self, growth: float) -> None:
        self._growth = growth
        # By shard and whether whole: how many were looked at, and the usual mean of their squares.
        self._usual: dict[tuple[str, bool], tuple[int, float]] = {}
        self.reason: str | None = None
        self.check_name = ""

    def look(self, sizes: Mapping[str, Sums], whole: bool) -> None:
        """Judges a version by the `size_of` each of its shards, of all ranks."""
        found = self._complaint(sizes, whole)
        if found is not None:
            self.check_name, self.reason = found
        elif whole:
            self.check_name, self.reason = "", None
        if found is not None or self.reason is not None:
            return
        for name, (count, squares) in sizes.items():
            if count and squares:
                mean = squares / count
                looks, usual = self._usual.get((name, whole), (0, mean))
                self._usual[name, whole] = looks + 1, usual**0.9 * mean**0.1

    def _complaint(self, sizes: Mapping[str, Sums], whole: bool) -> tuple[str, str] | None:
        for name, (count, squares) in sizes.items():
            if not math.isfinite(squares):
                return "finite", f"a number of its {name} is not finite"
            looks, usual = self._usual.get((name, whole), (0, 0.0))
            if looks < _LOOKS or not squares or count < _MANY:
                continue
            times = math.sqrt(squares / count / usual)
            if not 1 / self._growth < times < self._growth:
                return "norms", f"the numbers of its {name} are {times:.3g} times those before"
        return None


def size_of(arrays: Iterable[NDArray[np.float32]]) -> Sums:
    """How many numbers there are, and the sum of their squares."""
    found = np.zeros(2)
    for array in arrays:
        flat = array.reshape(-1)
        found += [flat.size, float(np.vdot(flat, flat))]
    return found
