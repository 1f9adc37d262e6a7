"""Live fusion: other weights than the recipe's, for every replica at once and without a restart.

They stand in one small file of the version store, so that a replica which starts later finds them,
however long ago that was; a record of the topic `versions` makes the running ones look. It says no
more than that, so that one that is lost or comes twice does no harm.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.fusion import FusionConfig
from serving.recommender import RecommendConfig
from streaming.artefact_store import Artefacts
from streaming.errors import ArtefactError, ConfigError
from streaming.log import VERSIONS, Append, Log, TopicPartition
from streaming.settings import fill

logger = logging.getLogger(__name__)
EVERYWHERE = "everywhere"
_FILE = "fusion.json"
_KEY = b"headrace.fusion"  # no model is called so: followers of models pass over it
_PLACE = TopicPartition(VERSIONS, 0)
_AT_ONCE = 1_000
_LOOK_EVERY_S = 10.0  # should nobody ring
_RETRY_S = 1.0


@dataclass(frozen=True)
class Setting:
    """A fusion that was set by hand or by tuning, and when (UTC, microseconds)."""

    fusion: FusionConfig
    since_us: int


def place_of(scenario: str | None = None, arm: tuple[str, str] | None = None) -> str:
    """Where a fusion is in force: in a scenario, in an arm of an experiment, or everywhere.

    >>> place_of(), place_of("home"), place_of(arm=("weights", "bold"))
    ('everywhere', 'scenario home', 'arm weights/bold')
    """
    if arm is not None:
        return "arm " + "/".join(arm)
    return EVERYWHERE if scenario is None else f"scenario {scenario}"


class FusionSettings:
    """The fusions that are set, by their places, in the store of the versions."""

    def __init__(self, artefacts: Artefacts) -> None:
        self._artefacts = artefacts

    def read(self) -> dict[str, Setting]:
        """All of them.

        Raises:
            ArtefactError: the file cannot be understood.
            StoreAway: it cannot be read now.
        """
        data = self._artefacts.get(_FILE)
        try:
            told: dict[str, Any] = {} if data is None else json.loads(data)
            return {place: fill(Setting, one, place) for place, one in told.items()}
        except (ValueError, TypeError, AttributeError, ConfigError) as error:
            raise ArtefactError(
                f"{self._artefacts.path(_FILE)} does not say which fusions are set ({error}):"
                " `headrace fusion reset --all` writes it anew"
            ) from error

    def change(self, place: str, fusion: FusionConfig | None) -> None:
        """Sets the fusion of a place; None leaves it to the recipe. Replicas act on it when they
        next look: `bell` makes them.
        """
        settings = self.read()
        settings.pop(place, None)
        if fusion is not None:
            settings[place] = Setting(fusion, time.time_ns() // 1_000)
        told = {name: _table(one) for name, one in sorted(settings.items())}
        self._artefacts.put(_FILE, json.dumps(told).encode())

    def clear(self) -> None:
        """Leaves everything to the recipe."""
        self._artefacts.put(_FILE, b"{}")


def bell() -> Append:
    """The record that says: look at which fusions are set."""
    return Append(VERSIONS, json.dumps({"control": True, "fusion": True}).encode(), _KEY)


class LiveFusion:
    """Keeps what is set at hand for answers; `run` is a thread's.

    What is nearest to an answer counts: of an arm before that of a scenario before what is set
    everywhere; in each, what is set before what the recipe says there.
    """

    def __init__(
        self,
        log: Log,
        settings: FusionSettings,
        config: RecommendConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._settings = settings
        self._config = config
        self._clock = clock
        # Before the settings are read: what is set meanwhile rings again.
        self._position = log.ends([VERSIONS])[_PLACE]
        self._look_at = clock()
        self._complained = False
        self._in_force: Mapping[str, Setting] = {}  # replaced as a whole, so that nobody waits
        self.turn(0.0)

    @property
    def in_force(self) -> Mapping[str, Setting]:
        """What is set, by place."""
        return self._in_force

    def current(self, scenario: str | None, arms: Mapping[str, str]) -> FusionConfig | None:
        """What is set for an answer in a scenario, to a user in these arms by their experiments;
        None leaves it to the recipe.
        """
        in_force = self._in_force
        if not in_force:
            return None
        for place, own in self._places(scenario, arms):
            if place in in_force:
                return in_force[place].fusion
            if own:
                return None
        return None

    def run(self, stopping: threading.Event) -> None:
        """Follows until told to stop."""
        while not stopping.is_set():
            self.turn(timeout_s=0.2)

    def turn(self, timeout_s: float) -> None:
        """Looks at what is set if somebody has rung, or nobody for long."""
        records = self._log.read({_PLACE: self._position}, _AT_ONCE, timeout_s)
        if records:
            self._position = records[-1].offset + 1
        if any(record.key == _KEY for record in records) or self._clock() >= self._look_at:
            self._look()

    def _look(self) -> None:
        self._look_at = self._clock() + _LOOK_EVERY_S
        try:
            found = self._settings.read()
        except ArtefactError as error:
            self._complain(error)
            return
        self._complained = False
        if found != self._in_force:
            logger.info("fusions are set: %s", ", ".join(found) or "none, the recipe's count")
            self._in_force = found

    def _complain(self, error: ArtefactError) -> None:
        if not self._complained:
            logger.error("the fusions that were set stay as they are: %s", error)
        self._complained = True
        self._look_at = self._clock() + _RETRY_S

    def _places(self, scenario: str | None, arms: Mapping[str, str]) -> list[tuple[str, bool]]:
        """Where to look, nearest first, and whether the recipe has a fusion of its own there."""
        experiments, scenarios = self._config.experiments, self._config.scenarios
        places = [
            (place_of(arm=(name, arm)), "fusion" in experiments[name].arms[arm].changes)
            for name, arm in reversed([*arms.items()])  # the last is laid over those before
        ]
        if scenario is not None:
            places.append((place_of(scenario), "fusion" in scenarios.get(scenario, {})))
        return [*places, (EVERYWHERE, True)]


def _table(setting: Setting) -> dict[str, Any]:
    fusion = setting.fusion
    numbers = {"weights": dict(fusion.weights), "powers": dict(fusion.powers)}
    return {"fusion": {"how": fusion.how, **numbers}, "since_us": setting.since_us}
