"""What processes write about themselves, and how it is shown."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.cli import app
from infra.logs import FLOORS, JsonLines, LogsConfig, log_to_file
from infra.logs_command import LogFiles, shown
from serving.http.api_config import GateConfig
from serving.http.gate import Gate
from serving.http.refusals import Overloaded
from serving.metrics import ServingMetrics
from serving.request import REQUEST_ID
from streaming.metrics import Metrics

logger = logging.getLogger("infra.test_logs")
Line = dict[str, Any]


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Path]:
    """The directory of logs in a home; what is logged meanwhile goes to its trainer.log."""
    directory = tmp_path / "logs"
    directory.mkdir()
    names = (None, *FLOORS)
    levels = [logging.getLogger(name).level for name in names]
    raised = logging.raiseExceptions
    log_to_file(directory / "trainer.log")
    yield directory
    root = logging.getLogger()
    for handler in [one for one in root.handlers if one.__class__.__module__ == "infra.logs"]:
        root.removeHandler(handler)
        handler.close()
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)
    logging.raiseExceptions = raised


def written(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def show(home: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["logs", "--home", str(home), *arguments])
    assert done.exit_code == 0, done.exception
    return done.output


def test_a_line_is_one_event_with_its_ids(logs: Path) -> None:
    token = REQUEST_ID.set("5e1f")
    logger.warning("version %s is not served", "m/l/1", extra={"version": "m/l/1"})
    REQUEST_ID.reset(token)
    logger.info("after it")
    first, second = written(logs / "trainer.log")
    assert first == {
        "at": first["at"],
        "level": "warning",
        "event": "version m/l/1 is not served",
        "process": "trainer",
        "pid": os.getpid(),
        "logger": "infra.test_logs",
        "request_id": "5e1f",
        "version": "m/l/1",
    }
    assert abs(time.time() - _unix(first["at"])) < 60
    assert "request_id" not in second


def _unix(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


@pytest.mark.parametrize(
    "text",
    ['end\n{"event":"forged"}', "cr\rlf\r\n", "nul\0 esc\x1b[2J", "\u2028"],
    ids=["newline", "carriage return", "escape", "separator"],
)
def test_no_message_ends_its_line(logs: Path, text: str) -> None:
    logger.warning("%s", text, extra={"version": text})
    (line,) = written(logs / "trainer.log")
    assert line["event"] == text.encode(errors="backslashreplace").decode()
    assert "\x1b" not in str(shown(line))
    assert "\n" not in str(shown(line))


def test_half_a_character_is_written_as_its_code() -> None:
    # Past the logger: what pytest captures could not travel between its processes.
    line = JsonLines("trainer").format(logging.makeLogRecord({"msg": "half \ud83d"}))
    assert json.loads(line)["event"] == "half \\ud83d"


def test_an_exception_is_one_field(logs: Path) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("it broke")
    (line,) = written(logs / "trainer.log")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: two\nlines")
    assert "    ValueError: two" in str(shown(line)).split("\n")


def test_what_cannot_be_json_is_written_as_text(logs: Path) -> None:
    logger.warning("odd", extra={"place": Path("x"), "nested": {(1, 2): object}})
    assert written(logs / "trainer.log")[0]["place"] == "x"


def test_libraries_are_heard_from_warnings_on_and_debug_by_recipe(logs: Path) -> None:
    logging.getLogger("kafka").info("connected")
    logger.debug("each version")
    log_to_file(logs / "trainer.log", LogsConfig(level="debug"))
    logging.getLogger("kafka").warning("gone")
    logger.debug("each version, now")
    assert [one["event"] for one in written(logs / "trainer.log")] == ["gone", "each version, now"]


def test_files_are_bounded_and_read_in_the_order_of_time(logs: Path) -> None:
    log_to_file(logs / "trainer.log", LogsConfig(file_bytes=1_000, kept=2))
    for number in range(40):
        logger.info("event %d", number)
    files = sorted(logs.iterdir())
    assert [file.name for file in files] == ["trainer.log", "trainer.log.1", "trainer.log.2"]
    assert all(file.stat().st_size <= 1_000 for file in files)
    with closing(LogFiles(logs)) as reading:
        numbers = [int(line["event"].split()[1]) for line in reading.read()]
    assert numbers == list(range(numbers[0], 40))
    assert len(numbers) > 10


def test_reading_goes_on_across_a_file_that_is_put_aside(logs: Path) -> None:
    log_to_file(logs / "trainer.log", LogsConfig(file_bytes=1_000, kept=2))
    seen = []
    with closing(LogFiles(logs)) as files:
        for number in range(40):
            logger.info("event %d", number)
            if number % 3 == 0:
                seen += [line["event"] for line in files.read()]
        seen += [line["event"] for line in files.read()]
    assert seen == [f"event {number}" for number in range(40)]


def test_a_line_that_is_not_whole_yet_waits(logs: Path) -> None:
    with closing(LogFiles(logs)) as files, (logs / "run.log").open("wb", buffering=0) as file:
        file.write(b'{"at":"2026-01-01T00:00:00Z","event":"be')
        assert list(files.read()) == []
        file.write(b'gun"}\nFatal Python error: abort\n')
        begun, fatal = files.read()
    assert begun["event"] == "begun"
    assert fatal == {
        "at": "2026-01-01T00:00:00Z",
        "level": "error",
        "event": "Fatal Python error: abort",
        "process": "run",
    }


def test_the_command_merges_and_picks(logs: Path) -> None:
    home = logs.parent
    line = {"at": "2026-01-01T00:00:00Z", "level": "error", "event": "old", "process": "joiner"}
    (logs / "joiner.log").write_text(json.dumps(line) + "\n")
    logger.info("published", extra={"version": "m/2f1c/41"})
    token = REQUEST_ID.set("5e1f00")
    logger.warning("broke")
    REQUEST_ID.reset(token)
    assert [one.split()[-1] for one in show(home).splitlines()] == [
        "old", "version=m/2f1c/41", "request_id=5e1f00",
    ]  # fmt: skip
    assert "old" not in show(home, "--process", "trainer")
    assert "published" not in show(home, "--level", "warning")
    assert show(home, "--request", "5e1f").count("\n") == 1
    assert show(home, "--version", "2f1c/41").count("\n") == 1
    assert show(home, "--version", "c/41") == ""
    assert show(home, "--limit", "1").count("\n") == 1
    assert json.loads(show(home, "--json", "--process", "joiner")) == line


def test_the_command_follows(logs: Path) -> None:
    command = [sys.executable, "-m", "infra.cli", "logs", "--follow", "--home", str(logs.parent)]
    logger.info("there before")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert "there before" in process.stdout.readline()
            logger.info("comes later")
            assert "comes later" in process.stdout.readline()
        finally:
            process.send_signal(2)
        assert process.wait(10) == 0


def test_a_home_without_logs_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["logs", "--home", str(tmp_path)])
    assert "there are no logs in" in str(done.exception)


def test_work_that_is_handed_to_a_thread_knows_its_request(logs: Path) -> None:
    gate = Gate("answers", GateConfig(1, 0), ServingMetrics(Metrics()))

    async def ask() -> None:
        REQUEST_ID.set("5e1f")
        await gate.run(lambda: logger.warning("the part is late"))

    asyncio.run(ask())
    assert written(logs / "trainer.log")[0]["request_id"] == "5e1f"


def test_that_requests_are_turned_away_is_said_once(logs: Path) -> None:
    gate = Gate("answers", GateConfig(1, 0), ServingMetrics(Metrics()))

    async def storm() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(gate.run(lambda: time.sleep(0.05)))
            await asyncio.sleep(0)
            for _ in range(3):
                with pytest.raises(Overloaded):
                    gate.check()

    asyncio.run(storm())
    (line,) = written(logs / "trainer.log")
    assert line["event"] == "answers are turned away: too many at once"
