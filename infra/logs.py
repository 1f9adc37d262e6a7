"""What a process writes about itself: a line of JSON for each event that matters.

    {"at":"2026-11-22T09:30:00.123456Z","level":"warning","event":"replicas are held at version
     two_tower/2f1c/41","process":"serve-8001","pid":4711,"logger":"serving.follower","version":...}

Nothing in a message can end a line. `logger.info(..., extra={"version": name})` gives an event a
field of its own; while a request is answered, `request_id` is there by itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

import msgspec
from pydantic import NonNegativeInt, PositiveInt

from serving.request import REQUEST_ID
from serving.times import time_text

FLOORS = ("streaming", "features", "trainers", "serving", "infra")
LEVELS = ("debug", "info", "warning", "error")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@dataclass(frozen=True)
class LogsConfig:
    """From which `level` on something is written: `debug` has a line for each version, of which
    there are ten a second. A process keeps the file that it writes and `kept` older ones, each of
    `file_bytes` at most.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    file_bytes: PositiveInt = 20_000_000
    kept: NonNegativeInt = 3


class JsonLines(logging.Formatter):
    """Makes a record one line of JSON, whatever is in it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "at": time_text(int(record.created * 1e6)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
        }
        if (request := REQUEST_ID.get()) is not None:
            line["request_id"] = request
        line |= {n: value for n, value in vars(record).items() if n not in _OWN and n[0] != "_"}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encoded(line)


def log_to_file(path: Path, config: LogsConfig | None = None) -> None:
    """Sends what this process logs to a file, under its name; libraries only from warnings on.

    A second call takes the place of the first.
    """
    config = config or LogsConfig()
    logging.raiseExceptions = False  # a full disk must not bury its own error under this one
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _File)]:
        root.removeHandler(handler)
        handler.close()
    root.addHandler(_File(path, config))
    root.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    for floor in FLOORS:
        logging.getLogger(floor).setLevel(config.level.upper())


def _is_news(record: logging.LogRecord) -> bool:
    """Whether the HTTP interface has not logged it itself, with the id of the request."""
    return not record.getMessage().startswith("Exception in ASGI")


class _File(RotatingFileHandler):
    def __init__(self, path: Path, config: LogsConfig) -> None:
        super().__init__(
            path, maxBytes=config.file_bytes, backupCount=config.kept, encoding="utf-8"
        )
        self.setFormatter(JsonLines(path.stem))


def _encoded(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=str).decode()
    except (UnicodeEncodeError, TypeError):  # half a character, or keys that JSON does not have
        sound = {k: str(v).encode(errors="backslashreplace").decode() for k, v in line.items()}
        return msgspec.json.encode(sound).decode()
