"""Damaged cuts, a full disk, numbers that are none: told by name, and not a bit is lost."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.kills import RECIPE, copy_of, fingerprint, make_template, newest
from infra.home import Home
from infra.wiring import trainer_loop
from streaming.artefact import MANIFEST, read_manifest
from streaming.cuts import GONE
from streaming.dead_letters import DeadLetter, decode_letter
from streaming.errors import ArtefactCorrupt, ArtefactError
from streaming.log import DEAD_LETTERS, SAMPLES, Append, Log, Record, TopicPartition
from streaming.loop import Loop, LoopConfig
from streaming.open_log import open_log
from streaming.samples import decode_samples, encode_samples
from trainers.arrays import column_matrix, table_arrays
from trainers.trainer import Trainer

PLACE = TopicPartition(SAMPLES, 0)
LETTERS = TopicPartition(DEAD_LETTERS, 0)
TABLES = ("user", "item", "token")
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return make_template(tmp_path_factory.mktemp("template") / "home")


@pytest.fixture(scope="module")
def undisturbed(template: Home, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is left of a trainer that nothing happened to."""
    home = copy_of(template, tmp_path_factory.mktemp("undisturbed") / "home")
    return finished(home)


@pytest.fixture(scope="module")
def halfway(template: Home, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, list[int]]:
    """A home whose trainer died halfway, and the position of each of its six cuts."""
    home = copy_of(template, tmp_path_factory.mktemp("halfway") / "home")
    return home, die_halfway(home)


@pytest.fixture
def home(halfway: tuple[Home, list[int]], tmp_path: Path) -> Home:
    return copy_of(halfway[0], tmp_path / "home")


@pytest.fixture
def cuts_at(halfway: tuple[Home, list[int]]) -> list[int]:
    return halfway[1]


@pytest.fixture(params=[False, True], ids=["foreground", "background"])
def background(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Disk:
    """How many more files can be made durable before there is no space; None for any number."""

    def __init__(self) -> None:
        self.room: int | None = None
        self._fsync = os.fsync

    def fsync(self, descriptor: int) -> None:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.room is not None:
            self.room -= 1
        self._fsync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


def loop_of(
    home: Home, log: Log, *, background: bool = False, often: bool = False
) -> Loop[Trainer]:
    """A trainer's loop as `headrace run` wires it, with cuts after every turn or when told."""
    config = LoopConfig(1, idle_s=0, cut_every_s=0 if often else 1e9, background=background)
    # A version would only take time: what is published is tested elsewhere.
    trainer = replace(RECIPE.trainer, publish_every_s=1e9)
    loop: Loop[Trainer] = trainer_loop(
        replace(RECIPE, trainer=trainer, trainer_loop=config), home, log
    )
    return loop


def finished(home: Home) -> dict[str, Any]:
    """Trains to the end, and gives what the newest cut then holds."""
    log = open_log(home.log_url)
    loop = loop_of(home, log)
    while loop.turn():
        pass
    loop.cut()
    log.close()
    return fingerprint(newest(home))


def die_halfway(home: Home) -> list[int]:
    """Two lives of three cuts, and some turns that only the log knows of; where each cut stands."""
    log = open_log(home.log_url)
    positions = []
    for turns in (45, 5):  # the first see all movies: a whole cut is larger than what follows
        loop = loop_of(home, log, background=True)
        for turn in range(turns + 3):
            if turn >= turns:
                loop.cut()
                positions.append(loop.positions[PLACE])
            loop.turn()
    log.close()
    assert [base_of(home, number) for number in range(1, 7)] == [None, 1, 2, None, 4, 5]
    return positions


def base_of(home: Home, number: int) -> int | None:
    base = read_manifest(cut(home, number)).get("base")
    return base and int(base["number"])


def cut(home: Home, number: int) -> Path:
    return home.cuts("trainer") / f"cut-{number:08d}"


def offsets_replayed(home: Home, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a new trainer is given before it is ready: from its cut on to where the log stood."""
    offsets: list[int] = []
    on_batch = Trainer.on_batch

    def note(self: Trainer, records: list[Record]) -> list[Append]:
        offsets.extend(record.offset for record in records)
        return on_batch(self, records)

    log = open_log(home.log_url)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "on_batch", note)
        loop_of(home, log)
    log.close()
    return offsets


# Damaged cuts


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damaged", "name", "damage"),
    [
        (4, "table-item.arrow", flip_a_bit),
        (4, MANIFEST, Path.unlink),
        (5, f"table-user{GONE}.arrow", Path.unlink),
        (5, MANIFEST, cut_short),
        (6, "table-item.arrow", flip_a_bit),
        (6, "frequency.arrow", cut_short),
        (6, MANIFEST, Path.unlink),
    ],
)
def test_a_damaged_cut_is_named_and_the_last_complete_one_is_used(
    home: Home,
    cuts_at: list[int],
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damaged: int,
    name: str,
    damage: Damage,
) -> None:
    file = cut(home, damaged) / name
    damage(file)

    replayed = offsets_replayed(home, monkeypatch)
    assert f"passing over a damaged cut: {file}" in caplog.text
    assert replayed[0] == cuts_at[damaged - 2]
    assert finished(home) == undisturbed
    caplog.clear()
    assert finished(home) == undisturbed
    assert "damaged" not in caplog.text, "an older damaged cut is nobody's concern any more"


def test_a_cut_that_was_being_written_is_not_looked_at(
    home: Home,
    cuts_at: list[int],
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    aside = home.cuts("trainer") / ".cut-00000007.4321"
    shutil.copytree(cut(home, 6), aside)
    (aside / MANIFEST).unlink()
    cut_short(aside / "table-item.arrow")
    assert offsets_replayed(home, monkeypatch)[0] == cuts_at[-1]
    assert caplog.text == ""
    assert finished(home) == undisturbed
    assert not list(home.cuts("trainer").glob(".*"))


def test_when_all_cuts_are_damaged_that_is_one_sentence_and_the_log_has_it_all(
    home: Home, undisturbed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 7):
        flip_a_bit(cut(home, number) / "corpus.arrow")
    told = (
        f"no cut in {home.cuts('trainer')} can be read ({cut(home, 4)}/corpus.arrow is not what was"
        " written: its checksum differs): delete that directory to rebuild the state from the log,"
        " or start over with `headrace run --fresh`"
    )
    with pytest.raises(ArtefactCorrupt, match=f"^{re.escape(told)}$"):
        finished(home)
    for whole in (1, 4):
        assert f"{cut(home, whole)}/corpus.arrow is not what was written" in caplog.text
    shutil.rmtree(home.cuts("trainer"))
    assert finished(home) == undisturbed


# A full disk


def fails_for_want_of_space(path: Path) -> Any:
    told = f"cannot write {path}: no space is left on the disk; mend that and start again"
    return pytest.raises(ArtefactError, match=f"^{re.escape(told)}$")


@pytest.mark.parametrize("room", [0, 9, 16], ids=["first file", "middle", "last file"])
def test_a_cut_without_space_is_told_and_whoever_starts_again_uses_the_one_before(
    home: Home,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    disk: Disk,
    background: bool,
    room: int,
) -> None:
    log = open_log(home.log_url)
    loop = loop_of(home, log, background=background)
    loop.cut()
    last = loop.positions[PLACE]
    loop.turn()
    disk.room = room
    with fails_for_want_of_space(cut(home, 8)):
        loop.cut()
    log.close()
    assert not list(home.cuts("trainer").glob(".*"))
    disk.room = None
    assert offsets_replayed(home, monkeypatch) == [last]
    assert finished(home) == undisturbed


def test_a_trainer_whose_cut_found_no_space_goes_on_and_tells_of_all_in_the_next(
    home: Home, undisturbed: dict[str, Any], disk: Disk, background: bool
) -> None:
    log = open_log(home.log_url)
    loop = loop_of(home, log, background=background)
    loop.cut()
    for _ in range(2):
        loop.turn()
        disk.room = 9
        with fails_for_want_of_space(cut(home, 8)):
            loop.cut()
        disk.room = None
    loop.turn()
    loop.cut()
    assert base_of(home, 8) == 7
    assert fingerprint(newest(home)) == fingerprint(loop.step.snapshot())
    while loop.turn():
        pass
    loop.cut()
    log.close()
    assert fingerprint(newest(home)) == undisturbed


def test_a_full_disk_is_told_by_a_turn_before_anything_is_taken(
    home: Home, undisturbed: dict[str, Any], disk: Disk
) -> None:
    log = open_log(home.log_url)
    loop = loop_of(home, log, background=True, often=True)
    loop.turn()  # publishes, and begins a cut
    loop.cut()
    disk.room = 0
    taken = loop.positions[PLACE]
    with fails_for_want_of_space(cut(home, 8)):
        while loop.turn():
            taken = loop.positions[PLACE]
    assert loop.positions[PLACE] == taken < log.ends([SAMPLES])[PLACE]
    disk.room = None
    while loop.turn():
        pass
    loop.cut()
    log.close()
    assert fingerprint(newest(home)) == undisturbed


# Numbers that are none


BAD = 60  # the offset of the micro-batch that cannot be learnt


def poisoned(template: Home, path: Path, column: str) -> Home:
    """The same samples with one micro-batch more, in which one number is none."""
    home = Home(path)
    home.make()
    there, log = open_log(template.log_url), open_log(home.log_url)
    values = [record.value for record in there.read({PLACE: 0}, 1_000, 0)]
    values.insert(BAD, with_a_nan(decode_samples(record_of(values[BAD])), column))
    log.append([Append(SAMPLES, value) for value in values])
    there.close()
    log.close()
    return home


def record_of(value: bytes) -> Record:
    return Record(SAMPLES, 0, BAD, None, value, 0)


def with_a_nan(batch: pa.RecordBatch, column: str) -> bytes:
    rows = batch.to_pylist()
    row = next(row for row in rows if row["history_rewards"] and row["reward"] is not None)
    row[column] = math.nan if column == "reward" else [*row[column][:-1], math.nan]
    return encode_samples(pa.RecordBatch.from_pylist(rows, schema=batch.schema)).value


def assert_finite(trainer: Trainer) -> None:
    assert all(math.isfinite(value) for value in trainer.metrics.values())
    state = trainer.snapshot()
    for name in ("dense", "optimizer"):
        for array in table_arrays(state.shards[name]).values():
            assert np.isfinite(array).all(), name
    for name, column in (
        *(
            (f"table-{name}", column)
            for name in trainer.model.tables
            for column in ("row", "slots")
        ),
        ("corpus", "vector"),
    ):
        assert np.isfinite(column_matrix(state.shards[name][column])).all(), name


@pytest.mark.parametrize("column", ["reward", "history_rewards"])
def test_a_micro_batch_with_a_number_that_is_none_is_kept_whole_and_not_learnt(
    template: Home, tmp_path: Path, column: str
) -> None:
    home = poisoned(template, tmp_path / "home", column)
    log = open_log(home.log_url)
    loop = loop_of(home, log)
    for _ in range(BAD):
        loop.turn()
    before = fingerprint(loop.step.snapshot())
    (bad,) = log.read({PLACE: BAD}, 1, 0)
    loop.turn()
    after = fingerprint(loop.step.snapshot())
    assert loop.step.refused == 1
    assert (after["dense"], after["optimizer"]) == (before["dense"], before["optimizer"])

    (record,) = log.read({LETTERS: 0}, 10, 0)
    letter = decode_letter(record.value)
    assert isinstance(letter, DeadLetter)
    assert letter.origin == f"samples/0/{BAD}"
    assert "finite" in letter.reason
    assert letter.record == bad.value
    kept = decode_samples(bad._replace(value=letter.record))
    assert str(kept.to_pylist()) == str(decode_samples(bad).to_pylist())  # a NaN equals none
    while loop.turn():
        pass
    assert_finite(loop.step)
    log.close()


@pytest.mark.parametrize("column", ["reward", "history_rewards"])
def test_a_replay_refuses_the_same_micro_batch_and_keeps_no_second_copy(
    template: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    home = poisoned(template, tmp_path / "home", column)
    unbroken = copy_of(home, tmp_path / "unbroken")
    log = open_log(home.log_url)
    loop = loop_of(home, log)
    for turn in range(BAD + 3):
        if turn == BAD - 1:
            loop.cut()
        loop.turn()
    log.close()
    assert offsets_replayed(home, monkeypatch) == [BAD - 1, BAD, BAD + 1, BAD + 2]
    assert finished(home) == finished(unbroken)
    log = open_log(home.log_url)
    assert newest(home).meta["refused"] == log.ends([DEAD_LETTERS])[LETTERS] == 1
    log.close()


def test_a_cut_right_after_a_refused_step_has_all_that_it_changed(
    template: Home, tmp_path: Path
) -> None:
    """Rows that were born in it are there, and still to be told."""
    home = poisoned(template, tmp_path / "home", "reward")
    log = open_log(home.log_url)
    loop = loop_of(home, log)
    for _ in range(BAD):
        loop.turn()
    before = loop.step.metrics
    loop.turn()
    assert any(loop.step.metrics[f"{name}_rows"] > before[f"{name}_rows"] for name in TABLES)
    loop.cut()
    again = loop_of(home, log)
    assert again.step.refused == 1
    assert fingerprint(again.step.snapshot()) == fingerprint(loop.step.snapshot())
    log.close()
