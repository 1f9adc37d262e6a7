"""How a system does: positions, lag, versions, watermark, freshness; read from log and cuts."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.home import DAILY, Home, daily_group
from serving.times import time_text
from streaming.cuts import CutDirectory
from streaming.log import EVENTS, NOBODY, SAMPLES, TOPICS, VERSIONS, Log, TopicPartition
from trainers.versions import is_about, is_doorbell, read_announcement

# By day one learns what is archived, so there it is the archive that something may wait for.
_ALWAYS = {"joiner": (EVENTS,), "aggregator": (EVENTS,), "catalog": (EVENTS,)}
_PLACE = TopicPartition(VERSIONS, 0)
_LOOK_BACK = 4_096  # records of `versions`


def groups(home: Home) -> dict[str, tuple[str, ...]]:
    """The topics that each consumer group of a run reads."""
    if home.learning == "daily":
        return {**_ALWAYS, "archive": (EVENTS, SAMPLES)}
    return {**_ALWAYS, **dict.fromkeys(home.models or ("trainer",), (SAMPLES,))}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where every group stands: `ends` of the topics, `positions` and `lag` of the groups."""

    ends: dict[str, int]
    positions: dict[str, int]
    lag: dict[str, int]


def progress(log: Log, read: Mapping[str, Sequence[str]]) -> Progress:
    """Reads where every group stands, in records, by the topics that each reads."""
    # Positions first: what is appended in between makes a lag too large, never negative.
    positions = {
        group: sum(log.positions(group, topics).values()) for group, topics in read.items()
    }
    ends = dict.fromkeys(TOPICS, 0)
    for place, end in log.ends(TOPICS).items():
        ends[place.topic] += end
    # What fell out of retention is not waiting for anybody.
    lag = {
        group: max(0, sum(ends[topic] for topic in topics) - positions[group])
        for group, topics in read.items()
    }
    return Progress(ends, positions, lag)


def newest_version(log: Log, model: str | None = None) -> dict[str, Any] | None:
    """The newest announcement of a model, or of any; None if it was none of the last thousands."""
    end, first = log.ends([VERSIONS])[_PLACE], log.positions(NOBODY, [VERSIONS])[_PLACE]
    first = max(first, end - _LOOK_BACK)
    position, count = end, 1
    while position > first:  # there may be doorbells behind it, or versions of others
        position, count = max(first, position - count), min(count, position - first)
        for record in reversed(log.read({_PLACE: position}, count, timeout_s=0)):
            if is_about(record, model) and not is_doorbell(record):
                announced: dict[str, Any] = json.loads(record.value)
                name = read_announcement(record).name
                return {**announced, "name": name, "published_us": record.logged_us}
        count *= 2
    return None


def joiner_counts(cuts: Path) -> dict[str, int]:
    """What became of the events, as of the newest cut of each partition's joiner."""
    total: Counter[str] = Counter()
    for partition in sorted(cuts.iterdir()) if cuts.is_dir() else ():
        meta = CutDirectory(partition).newest_meta()
        total.update({} if meta is None else meta["counts"])
    return dict(total)


def daily_counts(cuts: Path) -> dict[str, Any] | None:
    """What `headrace daily` has learnt, as of its newest cut; None if it has learnt nothing.

    `begun` is the day that is not learnt to its end.
    """
    meta = CutDirectory(cuts).newest_meta()
    if meta is None:
        return None
    return {
        "steps": meta["steps"],
        "samples": meta["samples"],
        "begun": meta["daily"]["begun"],
        "watermark": time_text(meta["watermark_us"]),
    }


def status(log: Log, home: Home) -> dict[str, Any]:
    """What `headrace status` shows and `/v1/status` answers, in plain values.

    What the joiner and `headrace daily` counted is that of their newest cuts, some seconds ago.
    """
    read = groups(home)
    where = progress(log, read)
    models = list(home.models.values())
    version = newest_version(log, next(iter(models), None))
    shown = None if version is None else _shown(version)
    beside = {model: newest_version(log, model) for model in models[1:]}
    return {
        "learning": home.learning,
        "groups": read,
        "records": where.ends,
        "positions": where.positions,
        "lag": where.lag,
        "joiner": joiner_counts(home.cuts("joiner")),
        "daily": daily_counts(home.cuts(DAILY)),
        "daily_beside": {
            model: daily_counts(home.cuts(daily_group(role)))
            for role, model in list(home.models.items())[1:]
        },
        "version": None if shown is None else shown["name"],
        "newest_version": shown,
        "watermark": None if version is None else time_text(version["watermark_us"]),
        "metrics": None if version is None else version["metrics"],
        # Of models that are trained beside that of [trainer] the same.
        "beside": {
            model: None if one is None else {**_shown(one), "metrics": one["metrics"]}
            for model, one in beside.items()
        },
    }


def _shown(version: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a version that was announced."""
    learnt = version["learnt_logged_us"]
    return {
        "name": version["name"],
        "step": version["step"],
        "age_s": (time.time_ns() // 1000 - version["published_us"]) / 1e6,
        "bytes": version["bytes"],
        # From the newest event's arrival in the log to the version that has learnt it.
        "freshness_s": None if learnt is None else (version["published_us"] - learnt) / 1e6,
        # Why the gate holds it back, and the version at which replicas stay then.
        "held": version.get("held"),
        "last_good": version.get("last_good"),
    }


def show_status(found: dict[str, Any], console: Console) -> None:
    """Prints a status for people."""
    table = Table("group", "reads", "position", "lag", title="Where every step stands")
    for group, topics in found["groups"].items():
        position, lag = found["positions"][group], found["lag"][group]
        table.add_row(group, ", ".join(topics), f"{position:,}", f"{lag:,} records")
    console.print(table)
    if found["joiner"].get("opened"):
        console.print(f"impressions   {_counted(found['joiner'])}", highlight=False)
    console.print(f"dead letters  {found['dead_letters']:,} waiting", highlight=False)
    if found["daily"] is not None:
        console.print(f"daily         {_learnt_by_day(found['daily'])}", highlight=False)
    for model, counts in found["daily_beside"].items():
        if counts is not None:
            console.print(f"daily         {model}: {_learnt_by_day(counts)}", highlight=False)
    version = found["newest_version"]
    if version is None:
        console.print("version       none yet")
        return
    console.print(f"version       {version['name']}, step {version['step']:,}", highlight=False)
    console.print(f"published     {version['age_s']:,.1f} s ago", highlight=False)
    if version["held"] is not None:
        stay = version["last_good"] or "nothing yet"
        console.print(f"held back     {version['held']}; served is {stay}", highlight=False)
    console.print(f"watermark     {found['watermark']}", highlight=False)
    if version["freshness_s"] is not None:
        console.print(
            f"freshness     {version['freshness_s']:.3f} s from the log to the version",
            highlight=False,
        )
    for figure, value in sorted(found["metrics"].items()):
        console.print(f"{figure:<32}{value:,.4g}", highlight=False)
    for model, one in found["beside"].items():
        told = _told_beside(model, one)
        console.print(f"beside        {told}", highlight=False, soft_wrap=True)


def _counted(joiner: Mapping[str, int]) -> str:
    told = ("opened", "open", "positives", "negatives", "late", "repeated", "unmatched")
    return ", ".join(f"{joiner[name]:,} {name}" for name in told)


def _told_beside(model: str, version: Mapping[str, Any] | None) -> str:
    if version is None:
        return f"{model}: no version yet"
    held = "" if version["held"] is None else f", held back: {version['held']}"
    quality = "".join(
        f", {shown} {version['metrics'][figure]:.3f}"
        for figure, shown in _quality_of(version["metrics"])
    )
    return (
        f"{version['name']}, step {version['step']:,}, {version['age_s']:,.1f} s ago{quality}{held}"
    )


def _quality_of(metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """The figures that tell most of a model, and what they are called for people."""
    for figure in metrics:
        if figure == "recent_recall@50":
            yield figure, "recall@50"
        elif figure.startswith("recent_auc["):
            yield figure, figure.removeprefix("recent_").replace("[", " of ").removesuffix("]")


def _learnt_by_day(daily: Mapping[str, Any]) -> str:
    begun = "" if daily["begun"] is None else f"; {daily['begun']} is begun"
    return (
        f"{daily['samples']:,} samples learnt in {daily['steps']:,} steps, the newest of"
        f" {daily['watermark'] or 'no time'}{begun}"
    )
