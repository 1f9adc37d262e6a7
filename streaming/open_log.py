"""From the URL of a log to the log."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from streaming.errors import ConfigError
from streaming.file_log import FileLog
from streaming.log import Log


def open_log(url: str) -> Log:
    """The log that a URL names; `file:///path/log.db` is the embedded one, and is made if absent.

    Raises:
        ConfigError: the scheme is not one that Headrace knows.
        LogError: the file is there but is not a log, or cannot be opened.
    """
    parts = urlsplit(url)
    if (
        parts.scheme == "file"
        and parts.path
        and not (parts.netloc or parts.query or parts.fragment)
    ):
        return FileLog(Path(unquote(parts.path)))
    raise ConfigError(f"log = {url!r}: the known form is file:///absolute/path/log.db")
