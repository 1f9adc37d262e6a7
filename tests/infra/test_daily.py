"""`headrace daily`: each archived sample once, whatever dies, and by the steps of live learning."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

from infra.cli import app
from infra.daily import DailyTraining
from infra.daily_progress import DailyReporter
from infra.home import DAILY, Home
from infra.recipe import Recipe, load_recipe
from infra.targets import targets
from infra.wiring import archiver, joiner_loop
from serving.follower import Follower
from serving.replica import Replica
from streaming.archive import Archive, day_name
from streaming.archive_writer import split_by_day
from streaming.artefact import Artefact
from streaming.cuts import CutDirectory
from streaming.dead_letters import Letters
from streaming.errors import ArtefactError, ConfigError, LogError
from streaming.events import encode_events
from streaming.log import SAMPLES, VERSIONS, Log, Record, TopicPartition
from streaming.metrics import parse
from streaming.open_log import open_log
from streaming.samples import decode_samples, encode_samples
from streaming.sources.movielens import MovieLens
from trainers import models
from trainers.arrays import column_matrix
from trainers.gate import GateConfig
from trainers.models.two_tower import TwoTower
from trainers.trainer import Trainer
from trainers.version_store import VersionStore
from trainers.versions import VersionInfo, read_announcement

DAYS = ["2025-03-01", "2025-03-02", "2025-03-03"]
RATINGS = 900
RECIPE_TOML = """
[joiner]
step_size = 32
[behaviour.rewards]
rate = { zero = 2.0, one = 4.0 }
[trainer]
recall_at = [10, 50]
[trainer.options]
width = 8
hidden = 16
[trainer.negatives]
uniform = 32
[trainer.frequency]
buckets = 1024
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE_TOML)
    return path


@pytest.fixture(scope="module")
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(str(recipe_file))


def archive_all(recipe: Recipe, home: Home, log: Log) -> None:
    at_work = archiver(recipe, home, log)
    while at_work.turn():
        pass
    at_work.write()


@pytest.fixture(scope="module")
def template(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose archive has MovieLens ratings as if they had come within three days."""
    home = Home(tmp_path_factory.mktemp("template") / "home")
    home.make()
    log = open_log(home.log_url)
    ratings = MovieLens().batch(MovieLens().declarations, RATINGS)
    start = datetime.fromisoformat(DAYS[0]).replace(tzinfo=UTC) + timedelta(hours=2)
    hours = np.linspace(0, 69, RATINGS)
    at = pa.array([start + timedelta(hours=h) for h in hours], pa.timestamp("us", "UTC"))
    ratings = ratings.set_column(ratings.schema.names.index("at"), "at", at)
    log.append([encode_events(ratings)])
    joiner = joiner_loop(recipe, home, log)
    while joiner.turn():
        pass
    archive_all(recipe, home, log)
    log.close()
    return home.path


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(template, tmp_path / "home")))


@pytest.fixture
def log(home: Home) -> Iterator[Log]:
    opened = open_log(home.log_url)
    yield opened
    opened.close()


def learn_all(recipe: Recipe, home: Home, log: Log, **options: Any) -> DailyTraining:
    training = DailyTraining(recipe, home, log, **options)
    for day in DAYS:
        assert training.learn(day, threading.Event())
    return training


def announced(log: Log) -> list[VersionInfo]:
    records = log.read({TopicPartition(VERSIONS, 0): 0}, 10_000, timeout_s=0)
    return [read_announcement(record) for record in records]


def snapshots(log: Log) -> int:
    """How many there are: one a day, be there a delta beside it or not."""
    return sum(info.base is None for info in announced(log))


def state_in(home: Home) -> Artefact:
    """What the newest cut has of the trainer."""
    state, _ = CutDirectory(home.cuts(DAILY)).newest()
    assert state is not None
    return Artefact({n: v for n, v in state.meta.items() if n != DAILY}, state.shards)


def assert_same(one: Artefact, other: Artefact) -> None:
    assert one.meta == other.meta
    assert one.shards.keys() == other.shards.keys()
    for name, table in one.shards.items():
        assert table.equals(other.shards[name]), name


@pytest.fixture(scope="module")
def undisturbed(
    recipe: Recipe, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Artefact:
    """The state of one that learnt the three days without a stop."""
    home = Home(Path(shutil.copytree(template, tmp_path_factory.mktemp("undisturbed") / "home")))
    log = open_log(home.log_url)
    learn_all(recipe, home, log)
    bases = [(info.number, info.base) for info in announced(log)]
    assert bases == [(0, None), (1, 0), (1, None), (2, 1), (2, None)]
    log.close()
    return state_in(home)


def test_its_steps_are_those_of_live_learning(
    recipe: Recipe, home: Home, log: Log, undisturbed: Artefact
) -> None:
    live = Trainer(recipe.trainer, "live")
    by_day: dict[str, list[Record]] = {day: [] for day in DAYS}
    for record in log.read({TopicPartition(SAMPLES, 0): 0}, 10_000, timeout_s=0):
        for number, rows in split_by_day(decode_samples(record)):
            part = record._replace(value=encode_samples(rows).value)
            by_day[day_name(number)].append(part)
    assert sum(map(len, by_day.values())) > RATINGS // 32
    for records in by_day.values():
        live.on_batch(records)
    state = live.snapshot()
    assert state.meta == undisturbed.meta
    assert undisturbed.meta["samples"] == RATINGS
    for name in ("dense", "optimizer", "frequency", "ranking"):
        assert state.shards[name].equals(undisturbed.shards[name]), name


def test_replicas_take_the_version_of_each_day(recipe: Recipe, home: Home, log: Log) -> None:
    replica = Replica()
    follower = Follower(log, VersionStore(home.versions), replica, look_back=10)
    training = DailyTraining(recipe, home, log)
    for number, day in enumerate(DAYS):
        assert training.learn(day, threading.Event())
        follower.turn(timeout_s=0)
        assert replica.info is not None
        assert training.version is not None
        assert replica.info.name == training.version.name
        # Only the first is loaded; then the delta is enough.
        assert (replica.info.number, replica.info.base) == (number, number - 1 if number else None)
        assert day_name((replica.info.watermark_us or 0) // 86_400_000_000) == day
    state = state_in(home)
    with replica.reading() as served:
        assert served is not None
        for name, table in served.model.tables.items():
            rows = state.shards[f"table-{name}"]
            assert (table(rows["id"].to_numpy()).numpy() == column_matrix(rows["row"])).all()


def test_the_next_process_goes_on_where_the_last_one_ended(
    recipe: Recipe, home: Home, log: Log, undisturbed: Artefact
) -> None:
    for day in DAYS:
        assert DailyTraining(recipe, home, log).learn(day, threading.Event())
    assert_same(state_in(home), undisturbed)
    infos = announced(log)
    assert [info.number for info in infos] == [0, 0, 0]
    there = {path.name for path in (home.versions / recipe.trainer.model).iterdir()}
    assert there == {info.lineage for info in infos[-2:]}


def test_where_a_night_publishes_nothing_good_the_version_of_the_night_before_stays(
    recipe: Recipe, home: Home, log: Log
) -> None:
    assert DailyTraining(recipe, home, log).learn(DAYS[0], threading.Event())
    (good,) = announced(log)
    wary = replace(recipe.trainer, gate=GateConfig(min_samples=1_000_000, check_every=1))
    training = DailyTraining(replace(recipe, trainer=wary), home, log)
    assert training.learn(DAYS[1], threading.Event())
    held = announced(log)[-1]
    assert held.held is not None
    assert held.last_good == good.name


def often(recipe: Recipe) -> Recipe:
    """A cut after every step."""
    return replace(recipe, trainer_loop=replace(recipe.trainer_loop, cut_every_s=1e-6))


class Died(BaseException):
    """What is in memory is lost, what is on the disk stays."""


def learn_or_die(recipe: Recipe, home: Home, log: Log, point: int = -1, times: int = 1) -> None:
    """Learns what is not learnt yet; dies when it gets to `point` for the `times`th time."""
    met = 0

    def die(number: int) -> None:
        nonlocal met
        met += number == point
        if met == times:
            raise Died

    training = DailyTraining(recipe, home, log, reached=die)
    for day in DAYS:
        if training.begun == day or training.samples.rows(day, training.positions):
            assert training.learn(day, threading.Event())


@pytest.mark.parametrize("point", [1, 2, 3, 4])
def test_dying_at_any_number_changes_no_bit_and_tells_of_each_day_once(
    recipe: Recipe, home: Home, log: Log, undisturbed: Artefact, point: int
) -> None:
    deaths = ((recipe, 1), (often(recipe), 7), (often(recipe), 2), (recipe, 9 if point == 1 else 1))
    for how, times in deaths:
        with pytest.raises(Died):
            learn_or_die(how, home, log, point, times)
    learn_or_die(recipe, home, log)
    assert_same(state_in(home), undisturbed)
    infos = announced(log)
    assert len({info.artefact for info in infos}) == len(infos)
    whole = [info for info in infos if info.base is None]
    assert [day_name((info.watermark_us or 0) // 86_400_000_000) for info in whole] == DAYS
    learn_or_die(recipe, home, log)
    assert announced(log) == infos


def test_a_damaged_cut_costs_no_more_than_learning_again(
    recipe: Recipe, home: Home, log: Log, undisturbed: Artefact
) -> None:
    learn_all(recipe, home, log)
    newest = sorted(home.cuts(DAILY).glob("cut-*"))[-1]
    shutil.rmtree(newest)
    training = DailyTraining(recipe, home, log)
    assert training.learn(DAYS[-1], threading.Event())
    assert_same(state_in(home), undisturbed)


@pytest.mark.parametrize("after", [1, 5, -1])
def test_a_stop_is_after_a_step_and_the_day_is_published_when_it_is_whole(
    recipe: Recipe, home: Home, log: Log, undisturbed: Artefact, after: int
) -> None:
    training = DailyTraining(recipe, home, log)
    rows = training.samples.rows(DAYS[0], {})
    last = list(training.samples.records(DAYS[0], {}))[after - (after > 0)].place
    stopping = threading.Event()
    steps = 0

    def report(done: int) -> None:
        nonlocal steps
        steps += 1
        if steps == after or done == rows:
            stopping.set()

    assert not training.learn(DAYS[0], stopping, report)
    assert announced(log) == []
    again = DailyTraining(recipe, home, log)
    assert again.begun == DAYS[0]
    assert again.positions[last] == training.positions[last]
    for day in DAYS:
        assert again.learn(day, threading.Event())
    assert_same(state_in(home), undisturbed)
    assert snapshots(log) == 3


def test_rows_that_come_late_for_a_day_are_learnt_by_the_next_run(
    recipe: Recipe, home: Home, log: Log
) -> None:
    training = learn_all(recipe, home, log)
    steps = training.trainer.steps
    record = log.read({TopicPartition(SAMPLES, 0): 0}, 1, timeout_s=0)[0]
    log.append([encode_samples(decode_samples(record).slice(0, 7))])
    archive_all(recipe, home, log)
    again = DailyTraining(recipe, home, log)
    assert [again.samples.rows(day, again.positions) for day in DAYS] == [7, 0, 0]
    assert again.learn(DAYS[0], threading.Event())
    assert again.trainer.steps == steps + 1
    assert again.trainer.samples == RATINGS + 7
    assert again.samples.rows(DAYS[0], again.positions) == 0


def test_a_micro_batch_that_cannot_be_learnt_is_one_dead_letter(
    recipe: Recipe, home: Home, log: Log
) -> None:
    record = log.read({TopicPartition(SAMPLES, 0): 0}, 1, timeout_s=0)[0]
    rows = decode_samples(record).to_pylist()
    batch = pa.RecordBatch.from_pylist(
        [{**row, "reward": math.nan} for row in rows], schema=decode_samples(record).schema
    )
    log.append([encode_samples(batch)])
    archive_all(recipe, home, log)
    with pytest.raises(Died):
        learn_or_die(recipe, home, log, 3)
    assert list(Letters(log).waiting()) == []  # it is in the cut, and not in the log
    learn_or_die(recipe, home, log)
    (filed,) = Letters(log).waiting()
    end = log.ends([SAMPLES])[TopicPartition(SAMPLES, 0)]
    assert (filed.letter.topic, filed.letter.offset) == (SAMPLES, end - 1)


def test_versions_go_out_within_a_day_if_that_is_asked_for(
    recipe: Recipe, home: Home, log: Log, undisturbed: Artefact
) -> None:
    learn_all(recipe, home, log, publish_every_s=1e-6)
    assert len(announced(log)) > 20
    assert_same(state_in(home), undisturbed)


def test_a_state_that_cannot_be_used_says_how_to_start_over_and_keep_the_archive(
    recipe: Recipe, home: Home, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DailyTraining(recipe, home, log).learn(DAYS[0], threading.Event())
    cuts = home.cuts(DAILY)
    wider = replace(recipe.trainer, options={**recipe.trainer.options, "width": 4})
    over = f"or delete {cuts} to learn all that is archived again$"
    with pytest.raises(ArtefactError, match=f"undo the change, {over}"):
        DailyTraining(replace(recipe, trainer=wider), home, log)
    monkeypatch.setitem(models._REGISTRY, "other", TwoTower)
    other = replace(recipe.trainer, model="other")
    with pytest.raises(ArtefactError, match=f"name the old one, {over}"):
        DailyTraining(replace(recipe, trainer=other), home, log)
    for manifest in cuts.glob("cut-*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(ArtefactError, match=f"no cut in {cuts} can be read .*, {over}"):
        DailyTraining(recipe, home, log)


def test_a_log_without_versions_says_so(recipe: Recipe, home: Home, log: Log) -> None:
    class Bare:
        def positions(self, group: str, topics: list[str]) -> dict[TopicPartition, int]:
            return {}

    with pytest.raises(LogError, match="no topic versions"):
        DailyTraining(recipe, home, Bare())  # type: ignore[arg-type]


# -- the command ---------------------------------------------------------------------------


@pytest.fixture
def ask(home: Home, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(
            app, ["daily", str(recipe_file), "--home", str(home.path), *arguments]
        )
        if isinstance(result.exception, Exception):
            raise result.exception
        return result.output

    return run


def test_all_days_that_are_over_are_learnt_and_once_is_enough(
    ask: Any, home: Home, log: Log, undisturbed: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.daily_progress._LOOK_EVERY_S", 0)
    monkeypatch.setattr("infra.daily_progress._LINE_EVERY_S", 0)
    text = ask()
    assert_same(state_in(home), undisturbed)
    lines = text.splitlines()
    assert lines[0].startswith(f"daily {DAYS[0]} ")
    assert any(
        line.startswith(f"daily {DAYS[2]} ")
        and "samples/s  recall@50 0." in line
        and "(popularity 0." in line
        for line in lines
    )
    assert f"3 days learnt up to {DAYS[2]}: 900 samples in" in text
    assert f"Version {announced(log)[-1].name} is published." in text
    assert ask() == f"All 3 days up to {DAYS[2]} are learnt: nothing to do.\n"
    assert snapshots(log) == 3


def test_chosen_days_are_learnt_and_no_others(ask: Any, log: Log) -> None:
    assert "1 day learnt up to 2025-03-02" in ask("--day", "2025-03-02")
    assert "All 1 days up to 2025-03-02 are learnt" in ask("--day", "2025-03-02")
    assert "1 day learnt up to 2025-03-03" in ask("--from", "2025-03-02")
    assert "1 day learnt up to 2025-03-01" in ask("--until", "2025-03-02")
    assert "All 3 days" in ask()


def test_on_a_terminal_a_bar_tells_how_far_the_day_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.daily_progress._LOOK_EVERY_S", 0)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=150)
    metrics = {"recall@10": 0.5, "recall@50": 0.25, "popularity_recall@50": 0.125}
    with DailyReporter(dict.fromkeys(DAYS, 4_000), lambda: metrics, console) as reporter:
        reporter.day(DAYS[0])
        reporter.update(4_000)
        reporter.day(DAYS[1])
        reporter.update(1_234)
        assert reporter.rows == 5_234
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue())
    assert f"daily {DAYS[1]} (2 of 3)" in text
    assert "1,234/4,000" in text
    assert "samples/s  recall@50 0.250 (popularity 0.125)" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--day", "2025-02-30"), "day = '2025-02-30': write it as 2026-11-22"),
        (("--day", "20250301"), "day = '20250301': write it as"),
        (("--from", "2025-03-02", "--until", "2025-03-01"), "give the earlier day first"),
        (("--day", "2025-03-01", "--until", "2025-03-01"), "leave out --from and --until"),
        (("--day", "2025-03-09"), "no samples of 2025-03-09 are archived in .*: `headrace archive"),
        (("--until", "2025-02-27"), "no samples until 2025-02-27 are archived"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    ask: Any, arguments: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ask(*arguments)


def test_a_day_that_goes_on_is_left_alone(
    ask: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour must have passed since its end, for what is on its way to the archive."""
    end = datetime(2025, 3, 3, tzinfo=UTC).timestamp()
    monkeypatch.setattr(time, "time_ns", lambda: int((end + 3_599) * 1e9))
    assert "1 day learnt up to 2025-03-01" in ask()
    with pytest.raises(
        ConfigError, match="2025-03-02 is not over: it can be learnt from 2025-03-03 01:00 UTC on"
    ):
        ask("--day", "2025-03-02")
    monkeypatch.setattr(time, "time_ns", lambda: int((end + 3_600) * 1e9))
    assert "1 day learnt up to 2025-03-02" in ask()


@pytest.mark.parametrize("command", ["headrace run", "headrace daily"])
def test_beside_another_trainer_it_does_not_start(ask: Any, home: Home, command: str) -> None:
    with home.locked_for_training(command), pytest.raises(ConfigError, match=f"^{command} .* stop"):
        ask()


def test_it_learns_beside_a_run_that_has_no_trainer(ask: Any, home: Home) -> None:
    with home.locked():
        assert "3 days learnt" in ask()


def test_others_find_it_and_its_figures_while_it_works(
    ask: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, told = Trainer.on_batch, []

    def looked_at(trainer: Trainer, records: Any) -> Any:
        (found,) = targets(home)
        with urllib.request.urlopen(f"http://{found.address}/metrics", timeout=10) as answer:
            figures = parse(answer.read().decode())
        told.append((found.process, {(s.name, *s.labels.values()): s.value for s in figures}))
        return learn(trainer, records)

    monkeypatch.setattr(Trainer, "on_batch", looked_at)
    ask()
    assert {process for process, _ in told} == {"daily"}
    (_, second), (_, last) = told[1], told[-1]
    assert second["headrace_trainer_samples_total",] == 32
    assert second["headrace_trainer_loss", "retrieval"] > 0
    assert last["headrace_versions_published_total", "snapshot"] == 2  # the third day goes on
    assert last["headrace_trainer_figure", "samples"] > 32
    assert last["headrace_freshness_seconds_count", "trained"] == 0  # those were the days
    assert targets(home) == []


def test_a_write_of_the_archive_is_waited_for(
    ask: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of one write come one by one: that one of them is not there yet is no loss."""
    archive = Archive(home.archive)
    (part,) = archive.parts(SAMPLES, DAYS[1])
    aside = part.path.rename(home.path / "on-its-way.parquet")
    locked, held, asked = Archive.locked, threading.Event(), threading.Event()

    def write() -> None:
        with locked(archive, "write"):
            held.set()
            asked.wait()
            aside.rename(part.path)

    def seen(archive: Archive, what: str, **options: Any) -> Any:
        asked.set()
        return locked(archive, what, **options)

    monkeypatch.setattr(Archive, "locked", seen)
    writer = threading.Thread(target=write)
    writer.start()
    held.wait()
    try:
        assert f"learnt up to {DAYS[2]}" in ask()
    finally:
        asked.set()
        writer.join()


def test_without_an_archive_it_does_not_start(ask: Any, home: Home) -> None:
    shutil.rmtree(home.archive / SAMPLES)
    with pytest.raises(ConfigError, match="no samples of any day are archived"):
        ask()
    shutil.rmtree(home.archive)
    with pytest.raises(ConfigError, match="leave \\[archive\\] enabled"):
        ask()


def test_a_damaged_file_or_a_lost_day_is_named_and_not_learnt(
    ask: Any, home: Home, log: Log
) -> None:
    (part,) = Archive(home.archive).parts(SAMPLES, DAYS[1])
    assert "1 day learnt" in ask("--until", DAYS[0])
    data = part.path.read_bytes()
    part.path.write_bytes(data[:-20])
    with pytest.raises(ArtefactError, match=f"{part.path} is damaged"):
        ask()
    part.path.unlink()
    with pytest.raises(ConfigError, match="no samples of 2025-03-02"):
        ask("--day", DAYS[1])
    with pytest.raises(ArtefactError, match=f"has lost samples of {DAYS[1]}: samples/0 at "):
        ask()
    assert len(announced(log)) == 1
    part.path.write_bytes(data)
    assert "2 days learnt" in ask()


def test_after_a_stop_the_same_command_goes_on(
    ask: Any, home: Home, log: Log, undisturbed: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Trainer.on_batch

    def interrupted(trainer: Trainer, records: Any) -> Any:
        if trainer.steps == 3:
            signal.raise_signal(signal.SIGINT)
        return learn(trainer, records)

    monkeypatch.setattr(Trainer, "on_batch", interrupted)
    text = ask()
    assert "0 days learnt: 128 samples in" in text
    assert f"Stopped in {DAYS[0]}; the same command goes on from here." in text
    assert announced(log) == []
    text = ask()
    assert f"Going on in {DAYS[0]}, of which " in text
    assert f"3 days learnt up to {DAYS[2]}: 772 samples in" in text
    assert_same(state_in(home), undisturbed)


def test_after_a_kill_the_same_command_goes_on(
    ask: Any, home: Home, log: Log, recipe_file: Path, undisturbed: Artefact, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.toml"
    slow.write_text(recipe_file.read_text() + "[trainer_loop]\ncut_every_s = 0.000001\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "daily", str(slow), "--home", str(home.path)],
        env=environment,
        stderr=subprocess.PIPE,
    )
    while not list(home.cuts(DAILY).glob("cut-*3")):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "days learnt" in ask()
    assert_same(state_in(home), undisturbed)
    assert snapshots(log) == len(DAYS)
