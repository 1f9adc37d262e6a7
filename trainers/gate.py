"""The gate: whether replicas may serve what the trainer has come to.

Each micro-batch is tested before it is learnt, so the newest tests say how the candidate does on
what nobody had learnt yet. They are compared with those before them: a fall that is larger than
chance explains, or predictions that no longer fit, close the gate. It opens by itself after so many
good checks in a row.

What is compared is the *gain*: by how many bits the rank of a liked item is better than the rank
that it has by popularity, `log2((2 + popularity's) / (2 + the model's))`; of a ranker, by how many
bits it told better than the mean rate what came of an impression. Some days, users and
items are harder than others, for both alike, and recall falls by half without anybody's fault. New
users are harder for the model alone, so users are compared with those of about as many actions
(direct standardisation). And what is served becomes popular by it: where popularity alone has got
better the gain falls too, so the model's own ranks, `-log2(2 + the model's)`, must have fallen
beside it. And samples of one user are no independent evidence, for some come in
hundreds: what counts is how many *users* have been heard, and each says one thing, his mean gain.

Beside that a version is held whose numbers cannot be right: one is not finite, or those of a table
have become many times as large, or as small, as those of the versions before.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from streaming.kernels import EMPTY

_MANY = 1024.0  # numbers: a few rows may well be other than most
_LOOKS = 16  # versions before anybody knows what is usual: a young model's numbers grow quickly
_SOME = 32.0  # users of a kind, before others can be compared with them
_ENOUGH_FOUND = 32.0  # items, before a calibration says anything
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class GateConfig:
    """When a version is held back, so that replicas go on serving the last good one.

    Every `check_every` steps the gains of the newest users are compared with those of the users
    before them, wherever between `enough` and `users` of the newest the fall is the surest: a large
    one shows after few, a small one after many. Older users fade with a half-life of `memory`. It
    is held from a fall by the share `fall` and `deviations` standard errors on, or if the hits that
    the model predicts over those it has become `miscalibrated` times what it was, or a part of
    that. It is free again after `good_to_free` checks in a row in which the newest users show no
    fall by the share `fall`; after `hold_at_most_s` by the log's clock what came to be is taken for
    the way the world is now.

    Tests count from `warm_up` samples on: before that nobody knows what is popular. A version's
    numbers may be `growth` times those of the versions before. Before `min_samples` were learnt no
    version is served at all. In the mode "shadow" all is said and nothing is held.
    """

    mode: Literal["hold", "shadow", "off"] = "hold"
    check_every: PositiveInt = 8
    enough: PositiveInt = 128
    users: PositiveInt = 1024
    memory: PositiveInt = 1024
    fall: NonNegativeFloat = 0.2
    deviations: PositiveFloat = 3.0
    miscalibrated: PositiveFloat = 2.0
    warm_up: NonNegativeInt = 10_000
    growth: PositiveFloat = 4.0
    good_to_free: PositiveInt = 5
    hold_at_most_s: PositiveFloat = 900.0
    min_samples: NonNegativeInt = 0


class Comparison:
    """The newest users against those before, each with those who had acted about as often.

    `newest` and `before` (4, 8) are sums by how often: of users their weights, gains, squares of
    these, squared weights; then the hits that the model predicted and those that there were, of the
    tests in which it was asked to predict; then the model's own ranks and squares of these. They
    are additive over users, and so over ranks.

    `gain` and `gain_before` are means over users, in bits, the latter as if as many of each kind
    had come before as come now; `error` is the standard error of their difference. `own_fall` is by
    how many bits the model's own ranks are worse now, `own_error` its standard error.
    """

    def __init__(self, newest: Sums, before: Sums) -> None:
        self.newest, self.before = newest, before
        self.users_before = _effective(before)
        known = (self.users_before >= _SOME) & (newest[:, 0] > 0)
        self.users = float(newest[known, 0].sum())
        share = newest[known, 0] / max(self.users, 1.0)
        now, then = newest[known], before[known]
        self.gain = float(share @ _means(now)) if self.users else math.nan
        self.gain_before = float(share @ _means(then)) if self.users else math.nan
        self.error = math.sqrt(float(share**2 @ (_variances(now) + _variances(then))))
        now, then = now[:, _OWN], then[:, _OWN]
        self.own_fall = float(share @ (_means(then) - _means(now)))
        self.own_error = math.sqrt(float(share**2 @ (_variances(now) + _variances(then))))

    def least(self, share: float, chances: float) -> float:
        """The least gain, in bits: it may fall by a share of what it was and so many errors."""
        return self.gain_before - share * abs(self.gain_before) - chances * self.error

    def is_enough(self, users: int) -> bool:
        """Whether so many have been heard on both sides, and most of the newest can be compared."""
        heard = float(self.newest[:, 0].sum())
        return min(self.users, self.users_before.sum()) >= users and self.users > heard / 2

    @property
    def calibrations(self) -> tuple[float, float] | None:
        """Predicted hits over hits, of both sides; None while there are too few."""
        sides = (self.newest.sum(0), self.before.sum(0))
        if min(side[5] for side in sides) < _ENOUGH_FOUND:
            return None
        now, before = (float(side[4] / side[5]) for side in sides)
        return now, before

    @property
    def figures(self) -> dict[str, float]:
        """What is compared, for metrics."""
        told = {"users": self.users, "gain": self.gain, "gain_before": self.gain_before}
        if (found := self.calibrations) is not None:
            told |= {"calibration": found[0], "calibration_before": found[1]}
        return {f"gate_{name}": value for name, value in told.items() if not math.isnan(value)}


def _means(sums: Sums) -> Sums:
    means: Sums = sums[:, 1] / sums[:, 0]
    return means


def _effective(sums: Sums) -> Sums:
    """How many equally weighted users know as much (Kish)."""
    effective: Sums = sums[:, 0] ** 2 / np.maximum(sums[:, 3], 1e-12)
    return effective


def _variances(sums: Sums) -> Sums:
    """Of the means."""
    spread = np.maximum(sums[:, 2] / sums[:, 0] - _means(sums) ** 2, 0.0)
    variances: Sums = spread / _effective(sums)
    return variances


_KINDS = np.array([1, 5, 20])  # of users, by how many actions of theirs were known
_SUMS = (len(_KINDS) + 1, 8)
_OWN = [0, 6, 7, 3]  # of these the weights, own ranks, their squares, and squared weights
_BLOCK = 64  # users: one who comes again later is another witness
_RECENT = 4  # blocks that must be good for it to open
# Kind, tests, gains, predicted hits, hits where they were predicted, and own ranks.
_User = list[float]


@dataclass(slots=True)
class _Block:
    """Some users, one after another, and the step in which the first of them was heard."""

    step: int
    sums: Sums = field(default_factory=lambda: np.zeros(_SUMS))


class _Fault(NamedTuple):
    """A check that fails, what it says, and in how many of the newest blocks (0: in none)."""

    check: str
    sentence: str
    blocks: int = 0


def bits_of_ranks(ranks: NDArray[Any]) -> NDArray[np.float64]:
    """How well items were found by their ranks (0 = first): `-log2(2 + rank)`."""
    bits: NDArray[np.float64] = -np.log2(2.0 + ranks)
    return bits


class Gate:
    """Compares the newest tests with those before, and says why a version is to be held, if so.

    Its state is a function of the records learnt: a replay comes to the same verdicts.
    """

    def __init__(self, config: GateConfig) -> None:
        self._config = config
        self.says = "liked items rank {:.2f} bits better than by popularity"  # what a gain is
        self._users: dict[int, _User] = {}  # of the newest block, which is not full
        self._begun = 0  # the step in which the first of them was heard
        self._blocks: deque[_Block] = deque()
        self._before: Sums = np.zeros(_SUMS)
        fade = 2.0 ** (-_BLOCK / config.memory)
        self._fade = np.array([fade, fade, fade, fade**2, fade, fade, fade, fade])
        self._checked = 0
        self._good = 0
        self._held_since_us: int | None = None
        self._judged: Sums = np.zeros((2, *_SUMS))
        self.reason: str | None = None
        self.check_name = ""
        self.trusted_step = 0  # while it holds: what was learnt before was not found fault with

    @property
    def figures(self) -> dict[str, float]:
        """What the last check compared, and the least gain that it lets pass."""
        compared = Comparison(*self._judged)
        figures = compared.figures
        if compared.is_enough(self._config.enough):
            chances = 0.0 if self.holds else self._config.deviations
            figures["gate_gain_least"] = compared.least(self._config.fall, chances)
        return figures

    @property
    def holds(self) -> bool:
        """Whether it is closed."""
        return self.reason is not None

    def wants(self, samples: int) -> bool:
        """Whether tests are of interest after so many samples."""
        return self._config.mode != "off" and samples >= self._config.warm_up

    def observe(
        self,
        step: int,
        users: NDArray[np.int64],
        actions: NDArray[np.int64],
        bits: NDArray[np.float64],
        hits: NDArray[np.bool_],
        predicted: NDArray[np.float64],
    ) -> None:
        """Takes what was tested in a step: of each test (n,) whose it was and how many actions of
        his were known, how well the model and popularity did in `bits` (2, n), the more the better,
        if it was a hit, and the chance that the model gave to that, NaN where it was not asked.
        """
        kinds = np.searchsorted(_KINDS, actions, side="right")
        own, by_popularity = bits
        gains = own - by_popularity
        columns = (users, kinds, gains, own, hits, predicted, ~np.isnan(predicted))
        for user, kind, gain, told, hit, chance, asked in zip(
            *(c.tolist() for c in columns), strict=True
        ):
            tally = self._users.get(user)
            if tally is None:
                if len(self._users) == _BLOCK:
                    self._close_block()
                if not self._users:
                    self._begun = step
                tally = self._users[user] = [kind, 0.0, 0.0, 0.0, 0.0, 0.0]
            tally[1] += 1.0
            tally[2] += gain
            tally[5] += told
            if asked:
                tally[3] += chance
                tally[4] += hit

    def _close_block(self) -> None:
        self._blocks.append(_Block(self._begun, self._sums_of_users()))
        self._users = {}
        while len(self._blocks) > self._most_blocks:
            self._retire(self._blocks.popleft())

    def _retire(self, block: _Block) -> None:
        if not self.holds:
            self._before = self._fade * self._before + block.sums

    @property
    def _most_blocks(self) -> int:
        return -(-self._config.users // _BLOCK)

    def is_due(self, steps: int) -> bool:
        """Whether to check after so many steps; all ranks of a group agree."""
        return self._config.mode != "off" and steps - self._checked >= self._config.check_every

    def sums(self) -> Sums:
        """What this rank knows, (n, 4, 8): of the users before, of each of as many blocks as there
        can be, and of the block that is not full.
        """
        sums = np.zeros((self._most_blocks + 2, *_SUMS))
        sums[0], sums[-1] = self._before, self._sums_of_users()
        for row, block in enumerate(reversed(self._blocks), 2):
            sums[-row] = block.sums
        return sums

    def check(self, steps: int, samples: int, logged_us: int, sums: Sums) -> None:
        """Comes to a verdict from the `sums` of all ranks; `logged_us` is the log's clock."""
        self._checked = steps
        found = self._fault(sums, samples)
        if found is not None:
            if not self.holds:
                self._hold(found.blocks, logged_us)
            self._good, self.check_name, self.reason = 0, found.check, found.sentence
        elif self.holds:
            self._good += 1
            if self._good >= self._config.good_to_free:
                self._free()
        held_us = logged_us - (self._held_since_us or logged_us)
        if held_us > self._config.hold_at_most_s * 1e6:
            self._before = np.zeros(_SUMS)  # the way the world is now is what the newest say
            self._free()

    def _hold(self, blocks: int, logged_us: int) -> None:
        """What the newest blocks are compared with stays as it is from now on."""
        self._held_since_us = logged_us
        while len(self._blocks) > blocks:
            self._retire(self._blocks.popleft())
        self.trusted_step = self._blocks[0].step if self._blocks else self._begun

    def _free(self) -> None:
        self.reason, self.check_name, self._held_since_us, self._good = None, "", None, 0
        while len(self._blocks) > _RECENT:
            self._blocks.popleft()

    def _fault(self, sums: Sums, samples: int) -> _Fault | None:
        config = self._config
        if samples < config.min_samples:
            says = f"{samples:,} samples are learnt, of {config.min_samples:,} at least"
            return _Fault("enough", says)
        recent = self._compare(sums, _RECENT)
        if self.holds:
            return self._quality(recent, 0.0) or self._calibration(recent)
        splits = [self._compare(sums, blocks) for blocks in range(1, self._most_blocks + 1)]
        surest = max(range(len(splits)), key=lambda split: self._sureness(splits[split]))
        if fault := self._quality(splits[surest], config.deviations):
            return fault._replace(blocks=surest + 1)
        if fault := self._calibration(recent):
            return fault._replace(blocks=_RECENT)
        return None

    def _compare(self, sums: Sums, blocks: int) -> Comparison:
        """The newest blocks with all before them."""
        return Comparison(sums[-1 - blocks :].sum(0), sums[: -1 - blocks].sum(0))

    def _sureness(self, compared: Comparison) -> float:
        """By how many standard errors the fall is larger than the share that is let pass, and the
        model's own ranks are worse.
        """
        if not compared.is_enough(self._config.enough):
            return -math.inf
        below = compared.least(self._config.fall, 0.0) - compared.gain
        of_gain, of_own = (
            below / max(compared.error, 1e-9),
            compared.own_fall / max(compared.own_error, 1e-9),
        )
        return min(of_gain, of_own)

    def _quality(self, compared: Comparison, chances: float) -> _Fault | None:
        self._judged = np.stack([compared.newest, compared.before])
        if self._sureness(compared) <= chances:
            return None
        return _Fault(
            "quality",
            f"{self.says.format(compared.gain)} for the newest {compared.users:.0f} users, and did"
            f" by {compared.gain_before:.2f} for others like them before",
        )

    def _calibration(self, compared: Comparison) -> _Fault | None:
        if compared.calibrations is None:
            return None
        now, before = compared.calibrations
        found = [side.sum(0)[5] for side in (compared.newest, compared.before)]
        by_chance = self._config.deviations * math.sqrt(1 / found[0] + 1 / found[1])
        if abs(math.log(now / before)) <= math.log(self._config.miscalibrated) + by_chance:
            return None
        return _Fault(
            "calibration",
            f"it predicts {now:.2f} times the hits that there are, and did {before:.2f} times",
        )

    def _sums_of_users(self) -> Sums:
        sums = np.zeros(_SUMS)
        for kind, tests, gains, predicted, found, own in self._users.values():
            gain, bits = gains / tests, own / tests
            sums[int(kind)] += [1.0, gain, gain**2, 1.0, predicted, found, bits, bits**2]
        return sums

    def state(self) -> dict[str, NDArray[Any]]:
        """What this rank knows and the verdict: it belongs into the checkpoint's one cut."""
        verdict = f"{self.check_name}\n{self.reason or ''}".encode()
        held_us = EMPTY if self._held_since_us is None else self._held_since_us
        return {
            "users": np.fromiter(self._users, np.int64, len(self._users)),
            "tallies": np.array(list(self._users.values()), np.float64).reshape(-1, 6),
            "steps": np.array([*(block.step for block in self._blocks), self._begun]),
            "blocks": np.array([b.sums for b in self._blocks]).reshape(-1, *_SUMS),
            "before": self._before.copy(),
            "judged": self._judged.copy(),
            "verdict": np.frombuffer(verdict, np.uint8).copy(),
            "counts": np.array([self._checked, self._good, self.trusted_step, held_us]),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on where `state()` was taken."""
        self._users = dict(zip(state["users"].tolist(), state["tallies"].tolist(), strict=True))
        *steps, self._begun = state["steps"].tolist()
        self._blocks = deque(map(_Block, steps, state["blocks"].copy()))
        self._before = state["before"].copy()
        self.load_verdict(state)

    def load_verdict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes the verdict alone, of a rank that knew other users."""
        self.check_name, _, reason = state["verdict"].tobytes().decode().partition("\n")
        self.reason = reason or None
        self._judged = state["judged"].copy()
        checked, good, self.trusted_step, held_us = state["counts"].tolist()
        self._checked, self._good = checked, good
        self._held_since_us = None if held_us == EMPTY else held_us


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
