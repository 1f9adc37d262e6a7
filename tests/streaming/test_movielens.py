"""MovieLens as events: all of it, in the order of time, with ids that never change."""

from __future__ import annotations

import gzip
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from streaming.decode import decode_events
from streaming.errors import SourceError
from streaming.events import EVENT_SCHEMA, EventRules, encode_events
from streaming.log import EVENTS, Record
from streaming.sources.movielens import MovieLens, MovieLens1M
from streaming.sources.source import SHIPPED

DECLARATIONS = 9_125
RATINGS = 100_004


@pytest.fixture(scope="module")
def source() -> MovieLens:
    return MovieLens()


@pytest.fixture(scope="module")
def events(source: MovieLens) -> pa.RecordBatch:
    return source.batch(0, source.total)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A copy of the data that a test may spoil."""
    for name in ("ratings.csv.gz", "movies.csv.gz"):
        shutil.copy(SHIPPED / name, tmp_path / name)
    return tmp_path


def write(directory: Path, ratings: str, movies: str) -> Path:
    for name, text in (("ratings", ratings), ("movies", movies)):
        (directory / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    return directory


# All of it


def test_every_movie_and_every_rating_is_there(source: MovieLens, events: pa.RecordBatch) -> None:
    assert source.name == "ml-latest-small"
    assert source.declarations == DECLARATIONS
    assert source.total == events.num_rows == DECLARATIONS + RATINGS
    assert events.schema == EVENT_SCHEMA
    kinds = events["kind"].to_pylist()
    assert kinds == ["item"] * DECLARATIONS + ["rate"] * RATINGS
    ratings = events.slice(DECLARATIONS)
    assert pc.count_distinct(ratings["user_id"]).as_py() == 671
    assert pc.count_distinct(ratings["item_id"]).as_py() == 9_066
    assert sorted(pc.unique(ratings["value"]).to_pylist()) == [n / 2 for n in range(1, 11)]


def test_events_come_in_the_order_of_time(events: pa.RecordBatch) -> None:
    times = events["at"].cast(pa.int64()).to_numpy()
    assert np.all(np.diff(times) >= 0)
    assert events["at"][0].as_py() == datetime(1995, 1, 9, 11, 46, 49, tzinfo=UTC)
    assert events["at"][DECLARATIONS].as_py() == datetime(1995, 1, 9, 11, 46, 49, tzinfo=UTC)
    assert events["at"][events.num_rows - 1].as_py() == datetime(
        2016, 10, 16, 17, 57, 24, tzinfo=UTC
    )


def test_ratings_of_one_second_keep_the_order_of_the_file(events: pa.RecordBatch) -> None:
    ratings = events.slice(DECLARATIONS)
    times = ratings["at"].cast(pa.int64()).to_numpy()
    rows = np.array([int(name.rsplit("/", 1)[1]) for name in ratings["event_id"].to_pylist()])
    assert np.array_equal(np.lexsort((rows, times)), np.arange(RATINGS))
    assert sorted(rows.tolist()) == list(range(RATINGS))


def test_a_rating_is_the_line_of_the_file_that_its_id_names(events: pa.RecordBatch) -> None:
    with gzip.open(SHIPPED / "ratings.csv.gz", "rt") as file:
        lines = file.read().splitlines()[1:]
    for n in (0, 1, RATINGS // 2, RATINGS - 1):
        row = events.slice(DECLARATIONS + n, 1).to_pylist()[0]
        user, movie, rating, at = lines[int(row["event_id"].rsplit("/", 1)[1])].split(",")
        assert row["event_id"].startswith("ml-latest-small/rating/")
        assert (row["user_id"], row["item_id"], row["value"]) == (user, movie, float(rating))
        assert row["at"].timestamp() == int(at)


def test_a_movie_is_declared_with_title_year_and_genres(events: pa.RecordBatch) -> None:
    row = events.slice(0, 1).to_pylist()[0]
    assert (row["event_id"], row["item_id"]) == ("ml-latest-small/movie/1", "1")
    assert json.loads(row["attributes"]) == {
        "title": "Toy Story (1995)",
        "year": 1995,
        "genres": ["Adventure", "Animation", "Children", "Comedy", "Fantasy"],
    }


def test_a_movie_without_genres_has_none(events: pa.RecordBatch) -> None:
    described = [json.loads(text) for text in events["attributes"].to_pylist()[:DECLARATIONS]]
    bare = [d for d in described if "genres" not in d]
    assert len(bare) == 18
    assert not any("no genres" in genre for d in described for genre in d.get("genres", []))
    assert all(1902 <= d["year"] <= 2016 for d in described if "year" in d)
    assert sum("year" not in d for d in described) < 15


def test_ids_of_events_are_distinct_and_the_same_in_every_reading(events: pa.RecordBatch) -> None:
    assert pc.count_distinct(events["event_id"]).as_py() == events.num_rows
    assert MovieLens().batch(0, events.num_rows).equals(events)


def test_every_event_keeps_the_rules(events: pa.RecordBatch) -> None:
    record = Record(EVENTS, 0, 0, None, encode_events(events).value, 1_700_000_000_000_000)
    decoded = decode_events([record], EventRules())
    assert decoded.rejected == []
    assert decoded.events.equals(events)


def test_batches_laid_end_to_end_are_the_whole(source: MovieLens, events: pa.RecordBatch) -> None:
    parts = [source.batch(start, 10_000) for start in range(0, source.total, 10_000)]
    assert [part.num_rows for part in parts] == [10_000] * 10 + [9_129]
    assert pa.concat_batches(parts).equals(events)


# Files that are not as they should be


@pytest.mark.parametrize("name", ["ratings.csv.gz", "movies.csv.gz"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_named(directory: Path, name: str, part: float) -> None:
    whole = (directory / name).read_bytes()
    (directory / name).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(SourceError, match=rf"{name} is truncated or not the file .*fetch it again"):
        MovieLens(directory)


@pytest.mark.parametrize("name", ["ratings.csv.gz", "movies.csv.gz"])
def test_a_missing_file_is_named(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(SourceError, match=rf"{name} is not there"):
        MovieLens(directory)


RATINGS_CSV = "userId,movieId,rating,timestamp\n1,2,3.5,1000\n"
MOVIES_CSV = "movieId,title,genres\n2,Heat (1995),Action\n"


def test_a_small_file_of_the_same_form_is_read(tmp_path: Path) -> None:
    source = MovieLens(write(tmp_path, RATINGS_CSV, MOVIES_CSV))
    assert [row["kind"] for row in source.batch(0, 9).to_pylist()] == ["item", "rate"]


@pytest.mark.parametrize(
    ("ratings", "movies", "name"),
    [
        (RATINGS_CSV.replace("rating,", "stars,"), MOVIES_CSV, "ratings.csv.gz"),
        (RATINGS_CSV.replace("3.5", "good"), MOVIES_CSV, "ratings.csv.gz"),
        (RATINGS_CSV.replace("1000", "1000.5"), MOVIES_CSV, "ratings.csv.gz"),
        (RATINGS_CSV + "1,2\n", MOVIES_CSV, "ratings.csv.gz"),
        (MOVIES_CSV, MOVIES_CSV, "ratings.csv.gz"),
        (RATINGS_CSV, MOVIES_CSV.replace("title", "name"), "movies.csv.gz"),
        (RATINGS_CSV, "", "movies.csv.gz"),
    ],
)
def test_a_file_with_other_columns_or_values_is_named(
    tmp_path: Path, ratings: str, movies: str, name: str
) -> None:
    with pytest.raises(SourceError, match=rf"{name} is truncated or not the file it should be"):
        MovieLens(write(tmp_path, ratings, movies))


def test_a_file_without_a_single_rating_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"ratings\.csv\.gz has no rows"):
        MovieLens(write(tmp_path, RATINGS_CSV.splitlines()[0] + "\n", MOVIES_CSV))


def test_a_rating_without_a_value_is_an_error_and_not_an_event(tmp_path: Path) -> None:
    ratings = RATINGS_CSV + "1,2,,1001\n1,2,4.0,\n"
    with pytest.raises(SourceError, match=r"ratings\.csv\.gz"):
        MovieLens(write(tmp_path, ratings, MOVIES_CSV))


# The large one, from files made here


MOVIES_DAT = "1::Café (1995)::Drama\n2::Heat: Part Two (1996)::Action|Crime\n"
USERS_DAT = "1::F::25::10::48067\n2::M::56::16::70072\n"
RATED = [  # user, movie, rating, timestamp, whether that is exact, number within the user
    (1, 2, 5, 3_000, True, 1),
    (1, 1, 3, 1_000, False, 0),
    (2, 1, 4, 2_000, True, 0),
    (2, 2, 2, 2_000, False, 1),
]


def write_1m(directory: Path, ratings: list[tuple[int, int, int, int, bool, int]]) -> Path:
    (directory / "movies.dat").write_text(MOVIES_DAT, encoding="latin-1")
    (directory / "users.dat").write_text(USERS_DAT, encoding="latin-1")
    names = ["user_id", "movie_id", "rating", "timestamp", "ts_exact", "user_seq"]
    pq.write_table(
        pa.table(list(zip(*ratings, strict=True)), names=names), directory / "ratings.parquet"
    )
    return directory


def test_users_come_before_their_first_rating(tmp_path: Path) -> None:
    source = MovieLens1M(write_1m(tmp_path, RATED))
    rows = source.batch(0, source.total).to_pylist()
    assert [(r["kind"], r["user_id"], r["item_id"], r["value"]) for r in rows] == [
        ("item", None, "1", None),
        ("item", None, "2", None),
        ("user", "1", None, None),
        ("rate", "1", "1", 3.0),
        ("user", "2", None, None),
        ("rate", "2", "1", 4.0),
        ("rate", "2", "2", 2.0),
        ("rate", "1", "2", 5.0),
    ]
    assert json.loads(rows[0]["attributes"]) == {
        "title": "Café (1995)", "year": 1995, "genres": ["Drama"],
    }  # fmt: skip
    assert json.loads(rows[2]["attributes"]) == {
        "gender": "F", "age": "25", "occupation": "10", "zip": "48067",
    }  # fmt: skip


def test_times_that_are_not_exact_can_be_told(tmp_path: Path) -> None:
    source = MovieLens1M(write_1m(tmp_path, RATED))
    assert source.exact.tolist() == [True, True, True, False, True, True, False, True]


def test_ratings_as_grouplens_made_them_are_read_too(tmp_path: Path) -> None:
    expected = MovieLens1M(write_1m(tmp_path, RATED))
    lines = [f"{user}::{movie}::{rating}::{at}\n" for user, movie, rating, at, _, _ in RATED]
    (tmp_path / "ratings.dat").write_text("".join(lines))
    (tmp_path / "ratings.parquet").unlink()
    found = MovieLens1M(tmp_path)
    assert found.batch(0, 99).equals(expected.batch(0, 99))
    assert found.exact.all()


def test_times_against_the_known_order_of_a_user_are_an_error(tmp_path: Path) -> None:
    turned = [(*RATED[0][:5], 0), (*RATED[1][:5], 1), *RATED[2:]]
    with pytest.raises(SourceError, match=r"contradicts itself: the times of user 1"):
        MovieLens1M(write_1m(tmp_path, turned))


@pytest.mark.parametrize("name", ["movies.dat", "users.dat"])
def test_a_line_that_is_cut_short_is_named(tmp_path: Path, name: str) -> None:
    write_1m(tmp_path, RATED)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"3::Up")
    with pytest.raises(SourceError, match=rf"{name} .*line 3 has 2 fields"):
        MovieLens1M(tmp_path)
