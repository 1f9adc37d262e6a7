"""MovieLens: ratings from half a star to five, of movies with titles, years and genres.

`ml-latest-small` (October 2016) lies in `data/` as GroupLens made it, under the terms in
`data/LICENSE.movielens.txt`; `ml-1m` may not be passed on and is read from where the user has it.
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
from numpy.typing import NDArray

from streaming.errors import SourceError
from streaming.sources.source import SHIPPED, SourceInfo
from streaming.sources.table import (
    Part,
    TableSource,
    declared,
    event_ids,
    joined,
    read_csv,
    read_lines,
    read_parquet,
)

_YEAR = re.compile(r"\((\d{4})\)\s*$")


class MovieLens(TableSource):
    """Latest-small as events: first the movies, then the ratings."""

    def __init__(self, directory: Path = SHIPPED) -> None:
        name = "ml-latest-small"
        ratings = read_csv(directory / "ratings.csv.gz", {
            "userId": pa.string(), "movieId": pa.string(),
            "rating": pa.float64(), "timestamp": pa.int64(),
        })  # fmt: skip
        movies = read_csv(directory / "movies.csv.gz", {
            "movieId": pa.string(), "title": pa.string(), "genres": pa.string(),
        })  # fmt: skip
        at_us = ratings["timestamp"].to_numpy() * 1_000_000
        rows = np.arange(ratings.num_rows)
        rates = Part("rate", at_us, rows, {
            "event_id": event_ids(f"{name}/rating", rows),
            "user_id": ratings["userId"],
            "item_id": ratings["movieId"],
            "value": ratings["rating"],
        })  # fmt: skip
        self.declarations = movies.num_rows
        super().__init__(name, [_movies(name, movies, at_us.min()), rates])


class MovieLens1M(TableSource):
    """ml-1m as events: first the movies, then ratings, and each user before the first of theirs.

    Reads `ratings.dat` as GroupLens made it, where it is there. Else `ratings.parquet`, in which
    the order of a user's ratings is exact (`user_seq`), but not every time is: see `exact`.
    """

    def __init__(self, directory: Path) -> None:
        name = "ml-1m"
        if (directory / "ratings.dat").exists():
            ratings = _read_ratings_dat(directory / "ratings.dat")
        else:
            ratings = _read_ratings_parquet(directory / "ratings.parquet")
        movies = pa.table(
            list(zip(*read_lines(directory / "movies.dat", 3, "::"), strict=True)),
            names=["movieId", "title", "genres"],
        )
        users = read_lines(directory / "users.dat", 5, "::")
        at_us = ratings["timestamp"].to_numpy() * 1_000_000
        ids, sequence = ratings["user_id"].to_numpy(), ratings["user_seq"].to_numpy()
        in_time = np.lexsort((sequence, ids, at_us))
        _check_sequence(directory / "ratings.parquet", ids[in_time], sequence[in_time])
        ratings, at_us = ratings.take(pa.array(in_time)), at_us[in_time]
        texts = ratings["user_id"].cast(pa.string())
        rates = Part("rate", at_us, np.arange(len(at_us)), {
            "event_id": event_ids(f"{name}/rating", in_time),
            "user_id": texts,
            "item_id": ratings["movie_id"].cast(pa.string()),
            "value": ratings["rating"].cast(pa.float64()),
        })  # fmt: skip
        described = {"user_id": texts, "attributes": _describe_users(users, texts)}
        parts = [
            _movies(name, movies, at_us.min()),
            declared(name, "user", at_us, described),
            rates,
        ]
        self.declarations = movies.num_rows
        super().__init__(name, parts)
        self._exact = ratings["ts_exact"].to_numpy(zero_copy_only=False)
        self._is_rating = self._events["kind"].to_numpy(zero_copy_only=False) == "rate"

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Whether the time of each event is the true one, shape (total,).

        Elsewhere it is interpolated, off by 17 s in the median, and good for no claim to a second.
        """
        exact = np.ones(self.total, dtype=bool)
        exact[self._is_rating] = self._exact
        return exact


def _movies(name: str, movies: pa.Table, at_us: int) -> Part:
    """All movies at one time, before everything else."""
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
    size = movies.num_rows
    return Part("item", np.full(size, at_us), np.arange(-size, 0), {
        "event_id": joined(f"{name}/movie/", movies["movieId"]),
        "item_id": movies["movieId"],
        "attributes": pa.array(attributes),
    })  # fmt: skip


def _describe_users(users: list[list[str]], ids: pa.ChunkedArray) -> pa.Array:
    """The attributes of each of the users in `ids`, null for one who is not listed."""
    names = ("gender", "age", "occupation", "zip")
    described = [json.dumps(dict(zip(names, user[1:], strict=True))) for user in users]
    where = pc.index_in(ids, pa.array([user[0] for user in users]))
    return pa.array(described).take(where.combine_chunks())


def _read_ratings_dat(file: Path) -> pa.Table:
    # Two colons are a column without a name and a value to a reader that splits at one.
    names = ["user_id", "_1", "movie_id", "_2", "rating", "_3", "timestamp"]
    types = {name: pa.int64() for name in names if not name.startswith("_")}
    ratings = read_csv(file, types, names=names, delimiter=":")
    in_time = np.argsort(ratings["timestamp"].to_numpy(), kind="stable")
    rows = pa.array(np.argsort(in_time))
    exact = pa.repeat(True, ratings.num_rows)
    return ratings.append_column("user_seq", rows).append_column("ts_exact", exact)


def _read_ratings_parquet(file: Path) -> pa.Table:
    names = ("user_id", "movie_id", "rating", "timestamp", "user_seq")
    return read_parquet(file, {**dict.fromkeys(names, pa.int64()), "ts_exact": pa.bool_()})


def _check_sequence(file: Path, ids: NDArray[np.int64], sequence: NDArray[np.int64]) -> None:
    """Holds the order of time against the order that is known of each user."""
    by_user = np.argsort(ids, kind="stable")
    same_user = np.diff(ids[by_user]) == 0
    wrong = np.flatnonzero(same_user & (np.diff(sequence[by_user]) <= 0))
    if len(wrong):
        raise SourceError(
            f"{file} contradicts itself: the times of user {ids[by_user][wrong[0]]} are not in the"
            " order of user_seq: fetch it again"
        )


LATEST_SMALL = SourceInfo(
    name="ml-latest-small",
    about="MovieLens, October 2016: ratings, movies with genres",
    open=MovieLens,
    events=109_129,
    users=671,
    items=9_125,
    span="1995-01-09 to 2016-10-16, to the second",
    terms="non-commercial, may be passed on under the same terms",
    files=("ratings.csv.gz", "movies.csv.gz"),
    shipped=True,
)

ONE_MILLION = SourceInfo(
    name="ml-1m",
    about="MovieLens 1M: ratings, movies with genres, users with age, gender, occupation",
    open=MovieLens1M,
    events=1_010_132,
    users=6_040,
    items=3_883,
    span="2000-04-25 to 2003-02-28, to the second (interpolated where not `exact`)",
    terms="research only, must not be passed on",
    folder="ml-1m",
    files=("movies.dat", "users.dat", "ratings.dat|ratings.parquet"),
)
