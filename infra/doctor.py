"""The doctor: looks at a deployment, changes nothing, and says what is wrong and how to mend it."""

from __future__ import annotations

import http.client
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from infra import doctor_machine as machine
from infra.doctor_findings import Finding, fail, ok, warn
from infra.home import Home
from infra.recipe import Recipe
from streaming.cuts import CutDirectory
from streaming.errors import HeadraceError
from streaming.log import EVENTS, SAMPLES, TOPICS, VERSIONS, Log
from streaming.open_log import open_log

_SKEW_S = 1.0  # what clocks may differ by: freshness and sessions are counted in it
_APART = 8  # versions that replicas may differ by
_PATIENCE_S = 5.0
_LATE = 10.0  # a version may be so many times older than it should be, while events come


@dataclass(frozen=True)
class Doctor:
    """Looks at one home, its log, and the replicas at `urls`; `port` is where one would listen."""

    recipe: Recipe
    home: Home
    urls: Sequence[str] = ()
    port: int = 8000
    key: str | None = None  # of the API, where it wants one
    clock: Callable[[], float] = field(default=time.time)

    def findings(self) -> Iterator[Finding]:
        """What was found, check by check. A check that fails does not keep the others from it."""
        yield ok("recipe", f"source {self.recipe.source}, learning {self.recipe.learning}")
        yield from self._guarded("home", self._home)
        yield from self._guarded("disk", lambda: machine.disk(self.home.path))
        yield from self._guarded("memory", machine.memory)
        yield from self._guarded("processors", machine.processors)
        yield from self._guarded("port", lambda: machine.port(self.recipe.serving.host, self.port))
        yield from self._guarded("ray", machine.ray)
        if not self.home.exists:
            return  # nothing has run: there is no log, no cut, no version
        try:
            log = open_log(self.home.log_url)
        except HeadraceError as error:
            yield fail("log", str(error))
        else:
            with closing(log):
                seen = list(self._guarded("log", lambda: self._log(log)))
                yield from seen
                if all(finding.outcome != "fail" for finding in seen):
                    yield from self._guarded("clock", lambda: self._clock(log))
                    yield from self._guarded("versions", lambda: self._versions(log))
        yield from self._guarded("retention", self._retention)
        yield from self._guarded("cuts", self._cuts)
        yield from self._guarded("features", self._features)
        yield from self._guarded("replicas", self._replicas)

    def _guarded(self, check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
        try:
            yield from look()
        except HeadraceError as error:
            yield fail(check, str(error))
        except OSError as error:
            yield fail(check, f"{error}", "see to it that it can be read")

    # -- the home --------------------------------------------------------------------------

    def _home(self) -> Iterator[Finding]:
        path = self.home.path
        if not self.home.exists:
            yield fail("home", f"nothing has run in {path} yet", "start with `headrace run`, or"
                       " name the home with --home or HEADRACE_HOME")  # fmt: skip
        elif not os.access(path, os.W_OK):
            yield fail("home", f"{path} may not be written to", "give it to the user that Headrace"
                       " runs as")  # fmt: skip
        elif (holder := self.home.holder()) is None:
            yield warn("home", f"nobody runs in {path}: nothing is learnt", "start `headrace run`")
        else:
            yield ok("home", f"{holder} runs in {path}")

    def _cuts(self) -> Iterator[Finding]:
        """Whether every step could go on from its newest cut."""
        root = self.home.path / "cuts"
        directories = sorted({cut.parent for cut in root.rglob("cut-*") if cut.is_dir()})
        for directory in directories:
            CutDirectory(directory).newest()  # verifies every checksum
        if not directories:
            yield warn("cuts", f"there are none in {root}", "wait for `headrace run` to make one")
        else:
            names = ", ".join(str(path.relative_to(root)) for path in directories)
            yield ok("cuts", f"{names}: the newest can be read")

    def _features(self) -> Iterator[Finding]:
        from features.definitions import USER_HISTORY
        from features.store import FeastStore

        store = FeastStore(self.home.features, self.recipe.features)
        begun = time.perf_counter()
        store.read(USER_HISTORY, [0])
        took_ms = (time.perf_counter() - begun) * 1e3
        changes = [one for one in store.plan() if one.action != "remove"]
        where = self.recipe.features.shown
        if changes:
            names = ", ".join(f"{one.action} {one.name}" for one in changes)
            yield fail("features", f"the registry is not what is declared: {names}",
                       "stop the run, `headrace features apply`, and start it again")  # fmt: skip
        else:
            yield ok("features", f"all views are in {where}, which answers in {took_ms:.1f} ms")

    # -- the log ---------------------------------------------------------------------------

    def _log(self, log: Log) -> Iterator[Finding]:
        ends = log.ends(TOPICS)
        there = {place.topic for place in ends}
        if missing := [topic for topic in TOPICS if topic not in there]:
            yield fail("log", f"it has no topic {', '.join(missing)}",
                       "`headrace topics` shows the plan, and `headrace topics --apply` makes"
                       " them")  # fmt: skip
            return
        counts = {topic: sum(place.topic == topic for place in ends) for topic in TOPICS}
        records = sum(end for place, end in ends.items() if place.topic == EVENTS)
        yield ok("log", f"all topics are there; {records:,} records of events")
        ranks, samples = self.recipe.group.ranks, counts[SAMPLES]
        if samples < ranks:
            yield warn("partitions", f"samples has {samples}, so {ranks - samples} of the trainer's"
                       f" {ranks} ranks learn nothing", "`headrace topics --samples-partitions"
                       f" {ranks} --apply`, or fewer group.ranks")  # fmt: skip
        else:
            yield ok("partitions", f"events {counts[EVENTS]}, samples {samples}, ranks {ranks}")

    def _retention(self) -> Iterator[Finding]:
        """Events must live until their labels are known: who starts again reads them again."""
        if not self.home.log_url.startswith("kafka:"):
            yield ok("retention", "the embedded log keeps everything")
            return
        from streaming.topics import Topics

        with closing(Topics(self.home.log_url)) as topics:
            kept = topics.retention_s()
        needs_s = max(label.window_s for label in self.recipe.joiner.impressions.labels.values())
        for topic in (EVENTS, SAMPLES):
            kept_s = kept.get(topic, math.inf)
            if kept_s < needs_s:
                yield fail("retention", f"{topic} is kept for {kept_s / 3600:,.1f} h, and a label"
                           f" may come after {needs_s / 3600:,.1f} h", "keep it for longer"
                           " (`headrace topics --events-retention-days`), or shorten the windows"
                           " in joiner.impressions.labels")  # fmt: skip
                return
        yield ok("retention", f"longer than the longest label's window, {needs_s / 3600:,.1f} h")

    def _clock(self, log: Log) -> Iterator[Finding]:
        """A record cannot have come later than now: then this clock is behind the log's."""
        newest_us = 0
        for place, end in log.ends([EVENTS, VERSIONS]).items():
            for record in log.read({place: end - 1}, 1, timeout_s=0) if end else ():
                newest_us = max(newest_us, record.logged_us)
        ahead_s = newest_us / 1e6 - self.clock()
        if ahead_s > _SKEW_S:
            reason = f"the newest record is {ahead_s:,.1f} s in the future of this machine"
            yield fail("clock", reason, "let NTP set the clocks of this machine and of the log's")
        else:
            yield ok("clock", "no record is from the future")

    # -- what is served --------------------------------------------------------------------

    def _versions(self, log: Log) -> Iterator[Finding]:
        for role, trainer in self.recipe.trainers.items():
            yield from self._of_model(log, role, trainer.called)

    def _of_model(self, log: Log, role: str, called: str) -> Iterator[Finding]:
        from infra.status import newest_version
        from infra.wiring import version_store
        from trainers.versions import VersionInfo

        log_file = self.home.log_file(role)
        newest = newest_version(log, called)
        if newest is None:
            yield warn("versions", f"none of {called} has been published yet", "wait for the"
                       f" trainer; if it has events, {log_file} says what keeps it")  # fmt: skip
            return
        store = version_store(self.recipe, self.home)
        known = VersionInfo.__dataclass_fields__.keys() & newest.keys()
        store.read(VersionInfo(**{name: newest[name] for name in known}))  # verifies all checksums
        name, age_s = newest["name"], self.clock() - newest["published_us"] / 1e6
        if (pinned := store.pinned(newest["model"])) is not None:
            yield warn("versions", f"replicas are held at {pinned}; the newest is {name}",
                       "`headrace versions unpin`, if that is over")  # fmt: skip
            return
        late_s = _LATE * self.recipe.trainer.publish_every_s
        if age_s > late_s and self._waiting(log, role):
            yield fail("versions", f"{name} is {age_s:,.0f} s old, and samples wait to be learnt",
                       f"{log_file} says what keeps the trainer")  # fmt: skip
        else:
            yield ok("versions", f"{name} can be read, {age_s:,.0f} s old")

    def _waiting(self, log: Log, role: str) -> bool:
        from infra.status import groups, progress

        return progress(log, groups(self.home)).lag.get(role, 0) > 0

    def _replicas(self) -> Iterator[Finding]:
        served: dict[str, str] = {}
        for url in self.urls:
            finding, version = self._replica(url)
            yield finding
            if version is not None:
                served[url] = version
        apart = _apart(list(served.values()))
        if apart:
            told = ", ".join(f"{url} {version}" for url, version in served.items())
            yield fail("replicas", f"they serve versions that are far apart: {told}",
                       "look at the log of the one that is behind, under logs/")  # fmt: skip
        elif len(served) > 1:
            yield ok("replicas", f"{len(served)} of them are within {_APART} versions")

    def _replica(self, url: str) -> tuple[Finding, str | None]:
        check = f"replica {url}"
        try:
            ready, told, skew_s = self._ask(url, "/readyz")
            status, found, _ = self._ask(url, "/v1/status")
        except (OSError, ValueError, http.client.HTTPException) as error:
            mend = "start it, or mend the URL: http://host:port"
            return fail(check, f"it does not answer ({error})", mend), None
        if status in (401, 403):
            return warn(check, "it wants a key", "set HEADRACE_API_KEY"), None
        version = found.get("served_version")
        if abs(skew_s) > _SKEW_S + 1:  # the header counts whole seconds
            mend = "let NTP set the clocks of both"
            return fail(check, f"its clock is {skew_s:+,.0f} s from this one's", mend), version
        if ready != 200:
            mend = "it answers when that has come about"
            return fail(check, f"not ready: {told.get('reason')}", mend), version
        watermark = found.get("watermark")
        return ok(check, f"ready, serves {version}, watermark {watermark}"), version

    def _ask(self, url: str, path: str) -> tuple[int, dict[str, Any], float]:
        """Status, JSON, and by how many seconds its clock is ahead of ours."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http URL")
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        with closing(kind(parts.hostname, parts.port, timeout=_PATIENCE_S)) as connection:
            headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
            connection.request("GET", parts.path.rstrip("/") + path, headers=headers)
            response = connection.getresponse()
            body = json.loads(response.read())
            return response.status, body, _seconds_of(response.headers["Date"]) - self.clock()


def _seconds_of(date: str | None) -> float:
    from email.utils import parsedate_to_datetime

    return time.time() if date is None else parsedate_to_datetime(date).timestamp()


def _apart(names: Sequence[str]) -> bool:
    """Whether versions, as MODEL/LINEAGE/NUMBER, are of two lineages or far from each other."""
    found = [name.rsplit("/", 1) for name in names]
    numbers = [int(number) for _, number in found]
    return len({lineage for lineage, _ in found}) > 1 or (
        bool(numbers) and max(numbers) - min(numbers) > _APART
    )
