"""The Parquet files of a view: one more with every flush, merged when they are many."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streaming.disk import make_durable


def write_part(directory: Path, table: pa.Table) -> None:
    """One more Parquet file, there whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:8]}.parquet", table)


def part_files(directory: Path) -> list[Path]:
    """The files of a view in the order in which they were pushed."""
    return sorted(directory.glob("[!.]*.parquet"))


def read_parts(directory: Path, chosen: list[Any] | None = None) -> pa.Table:
    """All rows in the order in which they were pushed, or those that a filter chooses."""
    while True:
        try:
            tables = [pq.read_table(file, filters=chosen) for file in part_files(directory)]
        except FileNotFoundError:  # they are being merged
            continue
        return pa.concat_tables(tables, promote_options="permissive")


def merge_parts(directory: Path, most: int = 64, small: int = 32 << 20) -> None:
    """Makes one file of the newest ones that are smaller than `small` bytes, if there are `most`.

    It takes the place of the first of them; a process that dies meanwhile leaves rows twice, which
    changes nothing that is read.
    """
    files = part_files(directory)
    large = [n for n, file in enumerate(files) if file.stat().st_size >= small]
    files = files[large[-1] + 1 if large else 0 :]
    if len(files) < most:
        return
    tables = [pq.read_table(file) for file in files]
    _write(files[0], pa.concat_tables(tables, promote_options="permissive"))
    for file in files[1:]:
        file.unlink()


def _write(path: Path, table: pa.Table) -> None:
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as stream:
        pq.write_table(table, stream)
        stream.flush()
        os.fsync(stream.fileno())
    aside.rename(path)
    make_durable({path.parent})
