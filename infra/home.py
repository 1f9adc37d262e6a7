"""The home: the one directory that holds all state of a running system."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streaming.errors import ConfigError

_OWNED = (
    *("log.db", "log.db-wal", "log.db-shm"),
    *("cuts", "versions", "features", "archive", "logs", "lock"),
)


class Home:
    """Names of everything under `HEADRACE_HOME` (`.headrace` by default).

    `log` is the URL of the log that its state belongs to; by default the one inside.
    """

    def __init__(self, path: Path, log: str | None = None) -> None:
        self.path = path.resolve()
        self._log = log

    @property
    def embedded_log_url(self) -> str:
        return (self.path / "log.db").as_uri()

    @property
    def log_url(self) -> str:
        return self._log or self.embedded_log_url

    @property
    def log_is_embedded(self) -> bool:
        return self.log_url == self.embedded_log_url

    @property
    def features(self) -> Path:
        return self.path / "features"

    @property
    def archive(self) -> Path:
        return self.path / "archive"

    @property
    def versions(self) -> Path:
        return self.path / "versions"

    def cuts(self, group: str) -> Path:
        return self.path / "cuts" / group

    def log_file(self, role: str) -> Path:
        return self.path / "logs" / f"{role}.log"

    @property
    def exists(self) -> bool:
        """Whether there is state to go on from."""
        return (self.path / ("log.db" if self.log_is_embedded else "logs")).exists()

    def make(self) -> None:
        """Makes the directories.

        Raises:
            ConfigError: the place is a file, or may not be written to.
        """
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"HEADRACE_HOME = {self.path} cannot be made: {error.strerror}; name a directory"
                " that may be written to"
            ) from None

    def clear(self) -> None:
        """Removes the state, and nothing that is not Headrace's."""
        for name in _OWNED:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            elif name != "lock":
                path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second run out for as long as the block lasts; the kernel lets go for the dead.

        Raises:
            ConfigError: another process runs in this home.
        """
        with (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise ConfigError(
                    f"another headrace (process {lock.read().strip()}) runs in {self.path}: stop"
                    " it, or set HEADRACE_HOME to another directory"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield
