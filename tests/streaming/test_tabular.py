"""Files of rows: what is read from them, on which line, and what is said of a bad one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.errors import ConfigError, EventRejected, SourceError
from streaming.sources.mapping import EventMapping, Mapped, MappingConfig, lenient_event, with_ids
from streaming.sources.tabular import Chunk, Table, TableConfig, open_table

CSV = "kind,user_id,item_id,at\nlike,a,1,2024-01-01\nlike,b,2,2024-01-02\nlike,c,3,2024-01-03\n"
AT = datetime(2024, 1, 1, tzinfo=UTC)


def put(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


_OPEN = ExitStack()


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    yield
    _OPEN.close()


def opened(path: str, **config: Any) -> Table:
    """A table that is closed with the test."""
    return _OPEN.enter_context(open_table(path, TableConfig(**config)))


def read(table: Table, size: int = 2) -> list[Chunk]:
    return list(table.chunks(size, table.columns or []))


def rows(chunks: list[Chunk]) -> list[Any]:
    return [
        row
        for chunk in chunks
        for row in (
            chunk.rows.to_pylist() if isinstance(chunk.rows, pa.RecordBatch) else chunk.rows
        )
    ]


def lines(chunks: list[Chunk]) -> list[int]:
    return [line for chunk in chunks for line in chunk.lines]


def as_parquet(path: Path, table: pa.Table, **options: Any) -> str:
    pq.write_table(table, path, **options)
    return str(path)


@pytest.fixture(params=["csv", "csv.gz", "ndjson", "parquet", "parquet.gz"])
def three_rows(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same rows in every form."""
    path = tmp_path / f"rows.{request.param}"
    if request.param.startswith("parquet"):
        users = pa.table({"kind": ["like"] * 3, "user_id": ["a", "b", "c"]})
        plain = as_parquet(tmp_path / "rows.parquet", users, row_group_size=2)
        packed = request.param.endswith("gz")
        return put(path, gzip.compress(Path(plain).read_bytes())) if packed else plain
    if request.param == "ndjson":
        return put(path, "".join(f'{{"kind": "like", "user_id": "{u}"}}\n' for u in "abc"))
    content = b"kind,user_id\nlike,a\nlike,b\nlike,c\n"
    return put(path, gzip.compress(content) if request.param.endswith("gz") else content)


def users(chunks: list[Chunk]) -> list[str]:
    return [(json.loads(r) if isinstance(r, bytes) else r)["user_id"] for r in rows(chunks)]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_every_row_is_read_once_in_order(three_rows: str, size: int) -> None:
    chunks = read(opened(three_rows), size)
    assert users(chunks) == ["a", "b", "c"]
    assert all(len(chunk.lines) <= size for chunk in chunks)


def test_a_row_has_the_number_of_its_line_in_the_file(three_rows: str) -> None:
    first = 2 if ".csv" in three_rows else 1  # Parquet has no header
    assert lines(read(opened(three_rows))) == [first, first + 1, first + 2]


def test_what_was_dealt_with_is_passed_over_and_recognised(three_rows: str) -> None:
    begun = read(opened(three_rows))[0]
    again = opened(three_rows)
    assert again.skip(begun.done) == begun.fingerprint
    assert users(read(again)) == ["c"]


def test_all_of_a_file_can_be_passed_over(three_rows: str) -> None:
    last = read(opened(three_rows))[-1]
    again = opened(three_rows)
    assert again.skip(last.done) == last.fingerprint
    assert read(again) == []


@pytest.mark.parametrize("name", ["x.csv", "x.ndjson"])
def test_a_file_that_has_grown_is_recognised_and_a_changed_one_is_not(
    tmp_path: Path, name: str
) -> None:
    content = CSV if name == "x.csv" else '{"a": 1}\n{"a": 2}\n{"a": 3}\n'
    path = tmp_path / name
    whole = read(opened(put(path, content.rstrip("\n"))))[-1]
    grown = opened(put(path, content + content.splitlines()[-1]))
    assert grown.head == opened(str(path)).head
    assert grown.skip(whole.done) == whole.fingerprint
    assert len(rows(read(grown))) == 1
    changed = opened(put(path, content.replace("2", "9")))
    assert changed.skip(whole.done) != whole.fingerprint


def test_a_file_that_has_become_shorter_is_not_what_it_was(three_rows: str) -> None:
    assert opened(three_rows).skip(100) != read(opened(three_rows))[-1].fingerprint


# CSV


def test_a_quoted_field_may_go_over_lines_and_rows_keep_their_lines(tmp_path: Path) -> None:
    path = put(tmp_path / "x.csv", 'a,b\n"one\ntwo",1\n\nx,2\n')
    chunks = read(opened(path))
    assert rows(chunks) == [{"a": "one\ntwo", "b": "1"}, {"a": "x", "b": "2"}]
    assert lines(chunks) == [2, 5]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_seen_in_the_header(tmp_path: Path, delimiter: str) -> None:
    path = put(tmp_path / "x.csv", CSV.replace(",", delimiter))
    assert opened(path).columns == ["kind", "user_id", "item_id", "at"]


def test_an_empty_field_is_absent(tmp_path: Path) -> None:
    path = put(tmp_path / "x.csv", "a,b\n1,\n")
    assert rows(read(opened(path))) == [{"a": "1", "b": None}]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    assert opened(put(tmp_path / "x.csv", b"\xef\xbb\xbfa,b\n1,2\n")).columns == ["a", "b"]


def test_a_file_without_a_header_is_told_its_columns(tmp_path: Path) -> None:
    table = opened(put(tmp_path / "x.csv", "1,2\n3,4\n"), columns=("a", "b"))
    chunks = read(table)
    assert rows(chunks) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert lines(chunks) == [1, 2]


def test_a_row_with_too_many_or_too_few_fields_is_broken_and_the_others_are_kept(
    tmp_path: Path,
) -> None:
    (chunk,) = read(opened(put(tmp_path / "x.csv", "a,b\n1\n1,2\n1,2,3\n")), 10)
    assert rows([chunk]) == [{"a": "1", "b": "2"}]
    assert [(b.line, b.raw) for b in chunk.broken] == [(2, b"1"), (4, b"1,2,3")]
    assert "3 fields where the header has 2" in chunk.broken[1].reason


# The end of a file


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("x.csv", "a,b\n1,2\n3", 3),
        ("x.csv", 'a,b\n1,2\n3,"4\n5', 3),
        ("x.ndjson", '{"a": 1}\n{"a"', 2),
        ("x.ndjson", '{"a"', 1),
    ],
)
def test_half_a_row_at_the_end_is_not_taken_until_it_is_whole(
    tmp_path: Path, name: str, content: str, line: int
) -> None:
    path = put(tmp_path / name, content)
    table = opened(path)
    chunks = read(table)
    assert table.unfinished == line
    assert all(number < line for number in lines(chunks))
    rest = '"\n' if content.endswith("5") else ",9\n" if name == "x.csv" else ": 2}\n"
    put(tmp_path / name, content + rest)
    again = opened(path)
    if chunks:
        assert again.skip(chunks[-1].done) == chunks[-1].fingerprint
    assert lines(read(again)) == [line]
    assert again.unfinished is None


def test_a_last_row_without_the_end_of_its_line_is_whole(tmp_path: Path) -> None:
    assert len(rows(read(opened(put(tmp_path / "x.csv", CSV.rstrip()))))) == 3
    assert len(rows(read(opened(put(tmp_path / "x.ndjson", '{"a": 1}\n{"a": 2}'))))) == 2


# What cannot be read


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.csv", b"", "is empty"),
        ("x.csv", b"a,a\n1,2\n", "two columns of one name"),
        ("x.csv", b"a,b\n1,caf\xe9\n", "line 2 of .* is not UTF-8 .*iconv"),
        ("x.csv", "a,b\n".encode("utf-16"), "is UTF-16"),
        ("x.csv", b"PAR1....", "--format parquet"),
        ("x.csv", b'a,b\n1,"2"3\n', "line 2 of .* is no CSV"),
        ("x.ndjson", b"[" * 1_100_000, "line 1 of .* over 1048576 bytes"),
        (
            "x.csv.gz",
            gzip.compress(CSV.encode() * 99, mtime=0)[:60],
            "is cut off or damaged after line",
        ),
        ("x.parquet", b"PAR1 and no more", "is cut off, or is no Parquet file"),
        (
            "x.parquet.gz",
            gzip.compress(b"x" * 999, mtime=0)[:20],
            "is cut off, or is no Parquet file",
        ),
        ("x.parquet", b"", "is cut off, or is no Parquet file"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    path = put(tmp_path / name, content)
    with pytest.raises(SourceError, match=told) as caught:
        read(opened(path))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_that_is_damaged_inside_is_one_sentence(tmp_path: Path) -> None:
    table = pa.table({"kind": [f"k{i}" for i in range(9_000)]})
    path = Path(as_parquet(tmp_path / "x.parquet", table, use_dictionary=False))
    damaged = bytearray(path.read_bytes())
    damaged[4:4_000] = b"\xff" * 3_996
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match="x.parquet is cut off"):
        read(opened(str(path)))


@pytest.mark.parametrize(
    ("path", "told"), [("x.txt", "--format"), ("-", "--format"), ("x.csv", "is not there")]
)
def test_what_cannot_be_opened_is_named(path: str, told: str) -> None:
    with pytest.raises((ConfigError, SourceError), match=told):
        opened(path)


# The mapping


def mapped(
    given: dict[str, list[Any]] | pa.Table, *, by_row: bool = False, **config: Any
) -> Mapped:
    table = given if isinstance(given, pa.Table) else pa.table(given)
    mapping = EventMapping(MappingConfig(**config), "x.csv", table.schema.names)
    batch = table.combine_chunks().to_batches()[0].select(mapping.wanted)
    chunk = Chunk(list(range(1, table.num_rows + 1)), batch, [], table.num_rows, 0)
    if by_row:
        return mapping._each(batch.to_pylist(), chunk.lines)
    return mapping.events(chunk)


def test_columns_become_the_fields_they_are_mapped_to() -> None:
    events = mapped(
        {"customer": ["a"], "sku": ["1"], "price": ["2.5"], "place": ["3"], "when": ["2024-01-01"]},
        columns={"user_id": "customer", "item_id": "sku", "value": "price", "position": "place",
                 "at": "when"},
        constants={"kind": "buy", "scenario": "shop"},
    ).events.to_pylist()  # fmt: skip
    assert {name: value for name, value in events[0].items() if value is not None} == {
        "kind": "buy", "user_id": "a", "item_id": "1", "value": 2.5, "position": 3, "at": AT,
        "scenario": "shop",
    }  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        ["2024-01-01"], ["2024-01-01 00:00:00"], ["2024-01-01T00:00:00Z"],
        ["2024-01-01T02:00:00+02:00"], ["1704067200"], ["1704067200000"], [1704067200],
        [1704067200000], [1704067200000000], [1704067200000000000], [AT],
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("by_row", [False, True])
def test_a_time_may_be_written_in_many_ways(values: list[Any], by_row: bool) -> None:
    found = mapped({"kind": ["like"], "at": values}, by_row=by_row)
    assert found.events["at"].to_pylist() == [AT]


@pytest.mark.parametrize(
    ("form", "value"),
    [("s", 1704067200), ("ms", "1704067200000"), ("%d.%m.%Y", "01.01.2024"),
     ("%d/%m/%Y %H:%M %z", "01/01/2024 01:00 +0100")],
)  # fmt: skip
def test_the_form_of_times_can_be_told(form: str, value: Any) -> None:
    found = mapped({"kind": ["like"], "at": [value]}, at_format=form)
    assert found.events["at"].to_pylist() == [AT]


@pytest.mark.parametrize(
    ("name", "value"),
    [("at", "yesterday"), ("at", "1e400"), ("value", "much"), ("position", "1.5"),
     ("position", "99999999999"), ("attributes", "[1]"), ("attributes", "{"), ("kind", None)],
)  # fmt: skip
def test_a_value_that_is_none_is_refused_by_name_and_the_other_rows_are_kept(
    name: str, value: Any
) -> None:
    good = {"at": "2024-01-01", "value": "1", "position": "1", "attributes": "{}", "kind": "like"}
    table = {"kind": ["like"] * 3, name: [good[name], value, good[name]]}
    found = mapped(table)
    assert found.lines == [1, 3]
    assert found.events.num_rows == 2
    (refused,) = found.refused
    assert (refused.line, refused.error.field) == (2, name)


def test_numbers_are_ids_and_integers_with_gaps_have_no_point() -> None:
    gaps = pa.table({"kind": ["like", "like"], "user_id": [1.0, None], "item_id": [7, 8]})
    events = mapped(gaps).events
    assert events["user_id"].to_pylist() == ["1", None]
    assert events["item_id"].to_pylist() == ["7", "8"]


def test_columns_can_become_attributes_and_lists_of_them() -> None:
    found = mapped(
        {"item_id": ["1", "2"], "title": ["Heat", None], "genres": ["Crime|Drama", None]},
        constants={"kind": "item"},
        attributes=("title", "genres"),
        split={"genres": "|"},
    )
    described, nothing = found.events["attributes"].to_pylist()
    assert json.loads(described) == {"title": "Heat", "genres": ["Crime", "Drama"]}
    assert nothing is None


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"columns": {"user": "a"}}, "'user' is no field"),
        ({"columns": {"user_id": "b"}}, "no column 'b': it has a"),
        ({"columns": {"user_id": "a"}}, "--set kind"),
        ({"columns": {"kind": "a"}, "constants": {"kind": "like"}}, "one of the two"),
        ({"at_format": "days"}, "--at-format 'days'"),
        ({"split": {"a": "|"}}, "not among --attributes"),
        ({"constants": {"kind": "like"}}, "no column of x.csv is a field"),
    ],
)
def test_a_mapping_that_cannot_be_is_told_before_the_first_row(
    config: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        EventMapping(MappingConfig(**config), "x.csv", ["a"])


def of_lines(raw: list[bytes], **config: Any) -> Mapped:
    mapping = EventMapping(MappingConfig(**config), "x.ndjson", None)
    return mapping.events(Chunk(list(range(1, len(raw) + 1)), raw, [], len(raw), 0))


def test_a_line_that_names_fields_alone_is_an_event_and_a_stranger_is_refused() -> None:
    found = of_lines([b'{"kind":"like","user_id":7}', b'{"kind":"like","usr":1}', b"7", b"{"])
    assert found.events["user_id"].to_pylist() == ["7"]
    assert [(r.line, r.error.field) for r in found.refused] == [(2, "usr"), (3, "event"), (4, "event")]  # noqa: E501 # fmt: skip


def test_a_mapped_line_may_hold_what_it_likes_at_any_depth() -> None:
    found = of_lines(
        [b'{"type":"x","user":{"id":7},"at":1704067200,"title":"T"}'],
        columns={"user_id": "user.id"},
        constants={"kind": "user"},
        attributes=("title",),
    )
    (event,) = found.events.to_pylist()
    assert (event["user_id"], event["at"], event["attributes"]) == ("7", AT, '{"title":"T"}')


# Ids


def test_a_row_has_the_same_id_however_the_file_is_cut_into_chunks(tmp_path: Path) -> None:
    content = "kind,user_id,value\nlike,a,\nlike,a,\nrate,b,3\nlike,c,\n"
    path = put(tmp_path / "x.csv", content)
    found = []
    for size in (1, 2, 10):
        table = opened(path)
        mapping = EventMapping(MappingConfig(), path, table.columns)
        parts = [mapping.events(c) for c in table.chunks(size, mapping.wanted)]
        found.append([i for part in parts for i in with_ids(part, "x")["event_id"].to_pylist()])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 4


def test_a_row_has_the_id_that_it_had_before_there_were_sessions_unless_it_has_one() -> None:
    rows: dict[str, list[Any]] = {
        "kind": ["rate", "like"], "user_id": ["a", "b"], "request_id": ["r", None],
        "value": ["3", None],
    }  # fmt: skip
    old = ["x.csv:1:ef5dbcb3f6bd734c", "x.csv:2:b430220a94daf102"]
    assert with_ids(mapped(rows), "x.csv")["event_id"].to_pylist() == old
    found = with_ids(mapped({**rows, "session_id": [None, 7]}), "x.csv")
    assert found["session_id"].to_pylist() == [None, "7"]
    assert found["event_id"].to_pylist()[0] == old[0]
    assert found["event_id"].to_pylist()[1] != old[1]


def test_an_id_that_is_there_is_kept() -> None:
    named = mapped({"kind": ["like", "like"], "event_id": ["mine", None]})
    mine, made = with_ids(named, "x.csv")["event_id"].to_pylist()
    assert mine == "mine"
    assert made.startswith("x.csv:2:")


# The quick way and the thorough one

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "at": st.sampled_from(["2024-01-01", "2024-01-01T00:00:00Z", "1704067200", "1.5", "x", "-5",
                           "2024-01-01T10:00:00.123456789", "99999999999999999999", None]),
    "value": st.sampled_from(["1", "2.5", "-3", "nan", "x", " 1", "1e3", None]),
    "position": st.sampled_from(["1", "0", "-1", "2.0", "x", "3000000000", None]),
    "kind": st.sampled_from(["like", "like", "like", None]),
}  # fmt: skip


@given(st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=4))
def test_whole_columns_are_read_as_each_row_is(table: list[dict[str, Any]]) -> None:
    columns = {name: pa.array([row[name] for row in table], pa.string()) for name in VALUES}
    quick, thorough = mapped(pa.table(columns)), mapped(pa.table(columns), by_row=True)
    assert quick.lines == thorough.lines
    assert str(quick.events.to_pylist()) == str(thorough.events.to_pylist())  # a NaN is itself
    assert [(r.line, str(r.error)) for r in quick.refused] == [
        (r.line, str(r.error)) for r in thorough.refused
    ]


@given(st.dictionaries(st.sampled_from(["kind", "at", "user_id", "value", "position", "attributes",
                                        "query", "x"]),
                       st.recursive(st.none() | st.booleans() | st.integers() | st.floats()
                                    | st.text(max_size=5),
                                    lambda inner: st.lists(inner, max_size=2)
                                    | st.dictionaries(st.text(max_size=2), inner, max_size=2),
                                    max_leaves=4)))  # fmt: skip
def test_no_values_make_the_lenient_reading_fail(values: dict[str, Any]) -> None:
    with suppress(EventRejected):
        assert lenient_event(values).kind == str(values["kind"])
