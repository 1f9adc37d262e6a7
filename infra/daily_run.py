"""What `headrace daily` does: learns the chosen days one after another, and tells how it goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence

from rich.console import Console

from infra.archive import open_archive
from infra.daily import DailyTraining
from infra.daily_days import Choice, closed_days, waiting_rows
from infra.daily_progress import DailyReporter, quality_text
from infra.home import Home, daily_group
from infra.recipe import Recipe
from infra.signals import stopped_by_signals
from infra.targets import telling
from streaming.archive_records import ArchivedSamples
from streaming.log import Log


def learn_days(
    recipe: Recipe,
    home: Home,
    log: Log,
    choice: Choice,
    console: Console,
    publish_every_s: float | None = None,
) -> None:
    """Learns until the last chosen day is learnt by each model, one model after another, or until
    Ctrl-C or a polite kill asks for a stop.

    Raises:
        HeadraceError: it cannot start, or cannot go on.
    """
    archive = open_archive(home)
    with home.locked_for_training("headrace daily"):
        samples = ArchivedSamples(archive)
        now_us = time.time_ns() // 1000
        days = closed_days(samples, choice, now_us, recipe.archive.closed_after_h)
        stopping = threading.Event()
        for role, config in recipe.trainers.items():
            with telling(recipe.metrics, home, daily_group(role)) as metrics:
                training = DailyTraining(
                    recipe, home, log, role, publish_every_s=publish_every_s, metrics=metrics
                )
                with archive.locked("write"):  # the files of one write are there all or none
                    rows = waiting_rows(samples, log, days, training.positions)
                if training.begun in days:  # perhaps only the version of it is not out
                    rows = {day: rows.get(day, 0) for day in days if day in {*rows, training.begun}}
                name = config.called if len(recipe.trainers) > 1 else ""
                _learn_model(training, days, rows, stopping, console, name)
            if stopping.is_set():
                break


def _learn_model(
    training: DailyTraining,
    days: Sequence[str],
    rows: Mapping[str, int],
    stopping: threading.Event,
    console: Console,
    name: str,
) -> None:
    with DailyReporter(rows, lambda: training.trainer.metrics, console, name) as reporter:
        if rows:
            with stopped_by_signals(stopping):
                _learn(training, rows, stopping, reporter)
        else:
            reporter.say(f"All {len(days):,} days up to {days[-1]} are learnt: nothing to do.")


def _learn(
    training: DailyTraining,
    rows: Mapping[str, int],
    stopping: threading.Event,
    reporter: DailyReporter,
) -> None:
    if training.begun is not None and training.begun in rows:
        left = f"{rows[training.begun]:,} samples are left"
        reporter.say(f"Going on in {training.begun}, of which {left}.")
    learnt = []
    for day in rows:
        reporter.day(day)
        if not training.learn(day, stopping, reporter.update):
            break
        learnt.append(day)
    number = f"{len(learnt):,} day{'s' * (len(learnt) != 1)}"
    rate = reporter.rows / reporter.seconds
    reporter.say(
        f"{number} learnt{f' up to {learnt[-1]}' if learnt else ''}: {reporter.rows:,} samples in"
        f" {reporter.seconds:.1f} s, {rate:,.0f} a second."
    )
    if quality := quality_text(training.trainer.metrics):
        reporter.say(f"{quality} so far, each sample ranked before it was learnt.")
    if training.version is not None:
        reporter.say(f"Version {training.version.name} is published.")
    if training.begun is not None:
        reporter.say(f"Stopped in {training.begun}; the same command goes on from here.")
