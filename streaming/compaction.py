"""Compaction: the many files of a day become one for each partition, in one step for any reader.

A new directory is made aside and exchanged with the old one by a single system call, so whoever
lists the day sees all of the old files or all of the new ones: no row twice, none missing. The one
file is named after the first of the many: a reader that looks at what it has listed only after the
exchange finds that file with all the rows, and the others gone. Files that came meanwhile are
linked into the new directory first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from streaming.archive import Archive, Part, conform, unified
from streaming.disk import exchange, make_durable, retire, sweep, translated

_GROUP_ROWS = 131_072
_GROUP_BYTES = 64 << 20


def compact(archive: Archive, topic: str, day: str) -> bool:
    """Makes one file of each partition's files; False if the day had no more to begin with.

    Dying at any moment leaves the day as it was or as it is to be.

    Raises:
        ArtefactError: there is no space for a second copy, or the file system cannot exchange
            directories; the day stays as it was.
    """
    directory = archive.directory(topic, day)
    with archive.locked("compact") as aside, translated(archive.path):
        sweep(aside)
        parts = archive.parts(topic, day)
        by_partition = [list(some) for _, some in groupby(parts, lambda part: part.partition)]
        if len(by_partition) == len(parts):
            return False
        new = aside / f"{time.time_ns()}"
        new.mkdir()
        for some in by_partition:
            _merge(some, new)
        with archive.locked("write"):
            for late in set(archive.parts(topic, day)) - set(parts):
                os.link(late.path, new / late.path.name)
            make_durable([new])
            exchange(new, directory)
            make_durable([directory.parent])
        retire(new, aside)  # it is the old one now
    return True


def _merge(parts: Sequence[Part], directory: Path) -> None:
    """One file with the rows of several, in their order; holds one row group in memory."""
    files = [pq.ParquetFile(part.path) for part in parts]
    schema = unified([file.schema_arrow for file in files], parts[0].path.parent)
    with (directory / parts[0].path.name).open("wb") as stream:
        with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
            held: list[pa.Table] = []
            for file in files:
                for batch in file.iter_batches():
                    held.append(conform(batch, schema))
                    if _enough(held):
                        writer.write_table(pa.concat_tables(held))
                        held.clear()
                file.close()
            if held:
                writer.write_table(pa.concat_tables(held))
        stream.flush()
        os.fsync(stream.fileno())


def _enough(held: Sequence[pa.Table]) -> bool:
    return sum(map(len, held)) >= _GROUP_ROWS or sum(t.nbytes for t in held) >= _GROUP_BYTES
