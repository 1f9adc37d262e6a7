"""MovieLens latest-small (October 2016): 100,004 ratings of 671 users, 9,125 titled movies.

The files in `data/` are as GroupLens made them, under the terms in `data/LICENSE.movielens.txt`.
F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM
Transactions on Interactive Intelligent Systems 5, 4, Article 19. doi:10.1145/2827872
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from streaming.arrow_record import filled_columns
from streaming.errors import SourceError
from streaming.events import EVENT_SCHEMA

SHIPPED = Path(__file__).parent / "data"
_YEAR = re.compile(r"\((\d{4})\)\s*$")


class MovieLens:
    """All of the data set as events in the order of time: first the movies, then the ratings."""

    name = "ml-latest-small"

    def __init__(self, directory: Path = SHIPPED) -> None:
        ratings = _read(directory / "ratings.csv.gz", {
            "userId": pa.string(), "movieId": pa.string(),
            "rating": pa.float64(), "timestamp": pa.int64(),
        })  # fmt: skip
        movies = _read(directory / "movies.csv.gz", {
            "movieId": pa.string(), "title": pa.string(), "genres": pa.string(),
        })  # fmt: skip
        if ratings.num_rows == 0:
            raise SourceError(f"{directory / 'ratings.csv.gz'} has no ratings")
        start_s = pc.min(ratings["timestamp"]).as_py()
        self.declarations = movies.num_rows
        self._events = pa.concat_tables([_movie_events(movies, start_s), _rating_events(ratings)])

    @property
    def total(self) -> int:
        """How many events there are."""
        return int(self._events.num_rows)

    def batch(self, start: int, size: int) -> pa.RecordBatch:
        """Up to `size` events from number `start` on, with `EVENT_SCHEMA`."""
        return self._events.slice(start, size).combine_chunks().to_batches()[0]


def _movie_events(movies: pa.Table, at_s: int) -> pa.Table:
    attributes = []
    for title, genres in zip(
        movies["title"].to_pylist(), movies["genres"].to_pylist(), strict=True
    ):
        described: dict[str, object] = {"title": title}
        if year := _YEAR.search(title):
            described["year"] = int(year[1])
        if genres != "(no genres listed)":
            described["genres"] = genres.split("|")
        attributes.append(json.dumps(described))
    items = movies["movieId"]
    return _events(
        event_id=pc.binary_join_element_wise("ml-latest-small/movie", items, "/"),
        kind=pa.repeat("item", len(items)),
        at=pa.repeat(at_s * 1_000_000, len(items)),
        item_id=items,
        attributes=pa.array(attributes),
    )


def _rating_events(ratings: pa.Table) -> pa.Table:
    order = np.argsort(ratings["timestamp"].to_numpy(), kind="stable")
    numbered = ratings.append_column("row", pa.array(np.arange(ratings.num_rows)))
    ordered = numbered.take(pa.array(order))
    return _events(
        event_id=pc.binary_join_element_wise(
            "ml-latest-small/rating", ordered["row"].cast(pa.string()), "/"
        ),
        kind=pa.repeat("rate", ordered.num_rows),
        at=pc.multiply(ordered["timestamp"], 1_000_000),
        user_id=ordered["userId"],
        item_id=ordered["movieId"],
        value=ordered["rating"],
    )


def _events(**columns: pa.Array | pa.ChunkedArray) -> pa.Table:
    arrays = filled_columns(EVENT_SCHEMA, len(columns["kind"]), columns)
    return pa.Table.from_arrays(arrays, schema=EVENT_SCHEMA)


def _read(file: Path, types: dict[str, pa.DataType]) -> pa.Table:
    """A CSV file with exactly these columns read, whole or with an error that says where."""
    convert = csv.ConvertOptions(column_types=types, include_columns=list(types))
    try:
        table = csv.read_csv(file, convert_options=convert)
    except FileNotFoundError:
        raise SourceError(f"{file} is not there") from None
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, KeyError) as error:
        raise SourceError(
            f"{file} is truncated or not the file it should be ({error}): fetch it again"
        ) from None
    for name in types:
        if table[name].null_count:
            row = pc.index(table[name].is_null(), True).as_py() + 2  # a header, and from 1
            raise SourceError(f"{file} has no {name} in line {row}: fetch it again")
    return table
