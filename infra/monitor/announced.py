"""What was announced of versions: the newest, and when the gate closed and opened."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streaming.log import Log, Record
from trainers.announcements import Announcements
from trainers.versions import VersionInfo

_LOOK_BACK = 5_000  # records, for what was before this process
_KEPT = 200  # verdicts
_FIGURES = "gate_"  # what the metrics of a version that the gate looked at begin with


@dataclass(frozen=True)
class Verdict:
    """The gate changed its mind (Unix time): `held`, `suspect` where it only watches, `freed`."""

    at: float
    version: str
    verdict: str
    reason: str | None


class Announced:
    """Follows the topic `versions`. Of several models the versions of one are told, and what every
    gate said.
    """

    def __init__(self, log: Log, model: str = "") -> None:
        self._announcements = Announcements(log, _LOOK_BACK)
        self._verdicts: deque[Verdict] = deque(maxlen=_KEPT)
        self._model = model
        self._newest: dict[str, VersionInfo] = {}  # by model

    @property
    def newest(self) -> VersionInfo | None:
        """The newest version of the model; where none is named, of the first that had any."""
        if self._model:
            return self._newest.get(self._model)
        return next(iter(self._newest.values()), None)

    def turn(self) -> None:
        """Takes note of what was announced since the last turn."""
        for record, info in self._announcements.read():
            self._note(record, info)

    def gate(self, mode: str) -> dict[str, Any]:
        """`GateNow` of the page."""
        held = next((one for one in self._newest.values() if one.held is not None), None)
        info = held or self.newest
        return {
            "mode": mode,
            "holds": held is not None,
            "reason": None if info is None else info.held or info.suspect,
            "checks": {} if info is None else _checks(info.metrics),
            "history": [
                {"at": one.at, "version": one.version, "verdict": one.verdict, "reason": one.reason}
                for one in reversed(self._verdicts)
            ],
        }

    def versions(self, served: str | None, pinned: str | None) -> dict[str, Any]:
        """`VersionsNow` of the page."""
        info = self.newest
        held = info is not None and info.held is not None
        return {
            "served": served,
            "candidate": None if info is None else info.name,
            "held": info.name if info is not None and held else None,
            "reason": None if info is None else info.held,
            "last_good": None if info is None else info.last_good,
            "pinned": pinned,
        }

    def _note(self, record: Record, info: VersionInfo) -> None:
        before = self._newest.get(info.model)
        self._newest[info.model] = info
        now = _verdict(info)
        was = ("passed", None) if before is None else _verdict(before)
        if now[0] != was[0]:
            verdict = "freed" if now[0] == "passed" else now[0]
            self._verdicts.append(Verdict(record.logged_us / 1e6, info.name, verdict, now[1]))


def _verdict(info: VersionInfo) -> tuple[str, str | None]:
    if info.held is not None:
        return "held", info.held
    return ("passed", None) if info.suspect is None else ("suspect", info.suspect)


def _checks(metrics: Mapping[str, float]) -> dict[str, dict[str, float | bool]]:
    """By check the figures that it looked at, and whether it passed, where that is said."""
    told = {
        name.removeprefix(_FIGURES): value
        for name, value in metrics.items()
        if name.startswith(_FIGURES)
    }
    checks: dict[str, dict[str, float | bool]] = {}
    if "gain" in told:
        names = {
            "gain": "gain",
            "gain_least": "at least",
            "gain_before": "before",
            "users": "users",
        }
        checks["quality"] = {text: told[name] for name, text in names.items() if name in told}
    if "gain_least" in told:
        checks["quality"] = {"ok": told["gain"] >= told["gain_least"], **checks["quality"]}
    if "calibration" in told:
        names = {"calibration": "now", "calibration_before": "before"}
        checks["calibration"] = {text: told[name] for name, text in names.items() if name in told}
    return checks
