"""The home: the one directory that holds all state of a running system."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

from streaming.errors import ConfigError

# From the stream by an actor of `headrace run`, or from the archive by `headrace daily`.
Learning = Literal["realtime", "daily"]
TRAINER = "trainer"  # the role of who trains [trainer]'s model; of others it begins so
DAILY = "daily"


def daily_group(role: str) -> str:
    """What learning by day of a role's model goes by, in the log, in metrics and among the cuts.

    >>> daily_group("trainer"), daily_group("trainer-mmoe")
    ('daily', 'daily-mmoe')
    """
    return DAILY + role.removeprefix(TRAINER)


# What `clear` removes: not the locks, for one that is removed no longer keeps anybody out.
_STATE = (
    *("log.db", "log.db-wal", "log.db-shm"),
    *("cuts", "versions", "features", "archive", "logs", "learning"),
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

    @property
    def learning(self) -> Learning:
        """How the last `headrace run` here was to learn."""
        return "daily" if self._noted()[:1] == ["daily"] else "realtime"

    @property
    def models(self) -> dict[str, str]:
        """The models that it trains, by the role of who does; that of [trainer] first."""
        pairs = (line.partition(" ") for line in self._noted()[1:])
        return {role: model for role, _, model in pairs}

    def note_learning(self, learning: Learning, models: Mapping[str, str]) -> None:
        """Says it to commands that know no recipe, such as `headrace status`."""
        lines = [learning, *(f"{role} {model}" for role, model in models.items())]
        (self.path / "learning").write_text("\n".join(lines))

    def _noted(self) -> list[str]:
        try:
            return (self.path / "learning").read_text().splitlines()
        except FileNotFoundError:
            return []

    def clear(self) -> None:
        """Removes the state, and nothing that is not Headrace's.

        Raises:
            ConfigError: a trainer is at work on it.
        """
        with self.locked_for_training("headrace run"):
            for name in _STATE:
                path = self.path / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def locked(self) -> AbstractContextManager[None]:
        """Keeps a second run out for as long as the block lasts; the kernel lets go for the dead.

        Raises:
            ConfigError: another process runs in this home.
        """
        return _locked(
            self.path / "lock",
            "headrace run",
            f"runs in {self.path}: stop it, or set HEADRACE_HOME to another directory",
        )

    def holder(self) -> str | None:
        """Who runs in the home, as the lock tells; None if nobody does."""
        try:
            with (self.path / "lock").open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return lock.read() or "another headrace"
        except FileNotFoundError:
            pass
        return None

    def locked_for_training(self, command: str) -> AbstractContextManager[None]:
        """Keeps a second trainer out, as `locked` does a run; `command` is what this one is.

        Raises:
            ConfigError: another process learns in this home.
        """
        return _locked(
            self.path / "trainer.lock",
            command,
            f"learns in {self.path}, and a home has one trainer at a time: stop it, or wait for its"
            " end; beside `headrace daily` only `headrace run --learning daily` can work",
        )


@contextmanager
def _locked(path: Path, command: str, refusal: str) -> Iterator[None]:
    """Holds a lock file, which tells others who has it; `refusal` goes on after that."""
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(f"{lock.read() or 'another headrace'} {refusal}") from None
        lock.truncate(0)
        lock.write(f"{command} (process {os.getpid()})")
        lock.flush()
        yield
