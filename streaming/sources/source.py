"""What a source of events is, and what can be said of one before it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from streaming.errors import SourceError

SHIPPED = Path(__file__).parent / "data"


class Source(Protocol):
    """A finite, numbered sequence of events in the order of time.

    The same number is the same event, with the same `event_id`, in every process.
    """

    @property
    def name(self) -> str: ...

    @property
    def total(self) -> int: ...

    def batch(self, start: int, size: int) -> pa.RecordBatch:
        """Up to `size` events from number `start` on, with `EVENT_SCHEMA`."""
        ...


@dataclass(frozen=True)
class SourceInfo:
    """A source by its name: what it holds, on what terms, where its files lie, how to read them.

    `events`, `users` and `items` count what the reader makes. `folder` is the name of the directory
    with the files, inside the data directory that the user gives; of a file `a|b` either will do.
    """

    name: str
    about: str
    open: Callable[[Path], Source]
    events: int
    users: int
    items: int
    span: str
    terms: str
    folder: str = ""
    files: tuple[str, ...] = ()
    shipped: bool = False

    @property
    def directory_shipped(self) -> Path:
        """Where the files lie if they come with Headrace."""
        return SHIPPED / self.folder

    def directory(self, data: Path | None) -> Path:
        """Where the files are: in `data`, in the folder of that name in it, or shipped.

        Raises:
            SourceError: a file is not there; the sentence says which files belong where.
        """
        if data is None:
            if self.shipped or not self.files:
                return self.directory_shipped
            raise SourceError(
                f"source {self.name!r} needs data that is not shipped: put {_listed(self.files)}"
                f" into DIR/{self.folder} and give `--data DIR`, or set HEADRACE_DATA to DIR"
            )
        places = [data / self.folder, data]
        for place in places:
            if all(_is_there(place, file) for file in self.files):
                return place
        begun = [place for place in places if any(_is_there(place, file) for file in self.files)]
        if self.shipped and not begun:
            return self.directory_shipped
        place = (begun or places)[0]
        missing = next(file for file in self.files if not _is_there(place, file))
        raise SourceError(
            f"source {self.name!r} needs {_listed(self.files)} in {place}, and {_named(missing)} is"
            " not there: put it there, or name another directory with --data or HEADRACE_DATA"
        )


def _is_there(place: Path, file: str) -> bool:
    return any((place / name).is_file() for name in file.split("|"))


def _named(file: str) -> str:
    return file.replace("|", " or ")


def _listed(files: tuple[str, ...]) -> str:
    names = [_named(file) for file in files]
    if len(names) > 4:
        return f"{names[0]} ... {names[-1]} ({len(names)} files)"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
