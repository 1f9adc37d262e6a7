"""Events posted as lines: taken as they come, told line by line, durable when they are counted."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from starlette.types import ASGIApp

from features.aggregator import AggregatorConfig
from features.behaviour import BehaviourConfig
from features.catalog import Catalog
from infra.ingest import IngestConfig, ingest, url_sink
from serving.http.api import ApiConfig, Service, create_app
from serving.http.bodies import Unpacker
from serving.http.ingestion import Lines
from serving.http.refusals import BadBody, BodyTooLarge
from serving.metrics import ServingMetrics
from serving.recommender import OnlineFeatures, Recommender
from serving.replica import Replica
from streaming.errors import LogError, LogFull
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.log import EVENTS, Append, TopicPartition
from streaming.metrics import Metrics

Connect = Callable[[ASGIApp], httpx.Client]
LINES = {"Content-Type": "application/x-ndjson"}
PLACE = TopicPartition(EVENTS, 0)
EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True)


def like(item: object) -> bytes:
    return json.dumps({"kind": "like", "user_id": "u", "item_id": str(item)}).encode()


@dataclass
class Stage:
    """A client, and the log behind it."""

    service: Service
    connect: Connect
    log: FileLog

    def __post_init__(self) -> None:
        self.app = create_app(self.service, ApiConfig())

    def post(self, body: bytes | Iterator[bytes], config: ApiConfig | None = None, **headers: str) -> httpx.Response:  # noqa: E501 # fmt: skip
        with self.connect(
            self.app if config is None else create_app(self.service, config)
        ) as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return client.post("/v1/events", content=body, headers={**LINES, **named})

    def items(self) -> list[str]:
        """Of the events in the log."""
        return [json.loads(r.value)["item_id"] for r in self.log.read({PLACE: 0}, 100_000, 0)]


@pytest.fixture
def stage(log: FileLog, online_features: OnlineFeatures, connect: Connect) -> Stage:
    catalog = Catalog(EventRules(), BehaviourConfig(), AggregatorConfig())
    recommender = Recommender(Replica(), catalog, online_features)
    service = Service(
        log, EventRules(), recommender, catalog, ServingMetrics(Metrics()), dict, lambda: None
    )
    return Stage(service, connect, log)


def test_every_line_is_an_event(stage: Stage) -> None:
    response = stage.post(b"\n".join(map(like, range(2_500))) + b"\n")
    assert response.status_code == 202
    assert response.json() == {
        "lines": 2_500, "accepted_count": 2_500, "rejected_count": 0, "rejected": [],
    }  # fmt: skip
    assert stage.items() == [str(i) for i in range(2_500)]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n\n"])
def test_lines_may_end_as_they_like_and_be_empty(stage: Stage, end: bytes) -> None:
    response = stage.post(like(1) + b"\r\n\n" + like(2) + end)
    assert response.json()["accepted_count"] == 2
    assert stage.items() == ["1", "2"]


def test_a_good_line_beside_a_bad_one_is_kept_and_the_bad_one_is_named(stage: Stage) -> None:
    response = stage.post(b"\n".join([like(1), b'{"kind": "lik', b"\xff", like(2), b"7", like("")]))
    assert response.status_code == 202
    answer = response.json()
    assert (answer["accepted_count"], answer["rejected_count"], answer["lines"]) == (2, 4, 6)
    named = [(r["line"], r["field"]) for r in answer["rejected"]]
    assert named == [(2, "event"), (3, "event"), (5, "event"), (6, "item_id")]
    assert all(r["reason"] for r in answer["rejected"])
    assert stage.items() == ["1", "2"]


def test_where_no_line_is_an_event_it_is_422(stage: Stage) -> None:
    response = stage.post(b"a\nb\n")
    assert response.status_code == 422
    assert response.json()["rejected_count"] == 2


def test_a_body_without_a_line_is_nothing_to_do(stage: Stage) -> None:
    assert stage.post(b"").status_code == 202
    assert stage.post(b"\n\n").json()["accepted_count"] == 0


def test_of_many_refusals_all_are_counted_and_the_first_are_named(stage: Stage) -> None:
    answer = stage.post(b"x\n" * 3_000).json()
    assert answer["rejected_count"] == 3_000
    assert [r["line"] for r in answer["rejected"]] == list(range(1, 1_001))


def test_a_line_that_is_too_long_is_refused_and_the_next_is_taken(stage: Stage) -> None:
    answer = stage.post(b"[" * 3_000_000 + b"\n" + like(1)).json()
    assert answer["accepted_count"] == 1
    (refused,) = answer["rejected"]
    assert (refused["line"], refused["value"]) == (1, "'3000000 bytes'")


@pytest.mark.parametrize("content_type", ["application/jsonl", "Application/NDJSON; charset=utf-8"])
def test_lines_have_several_names(stage: Stage, content_type: str) -> None:
    assert stage.post(like(1), Content_Type=content_type).json()["accepted_count"] == 1


def test_lines_under_another_name_are_told_theirs(stage: Stage) -> None:
    response = stage.post(like(1) + b"\n" + like(2), Content_Type="application/json")
    assert response.status_code == 400
    assert "application/x-ndjson" in response.json()["error"]
    assert stage.items() == []


# gzip


@pytest.mark.parametrize("cuts", [1, 7, 10_000])
def test_lines_may_be_packed(stage: Stage, cuts: int) -> None:
    packed = gzip.compress(b"\n".join(map(like, range(1_200))))
    pieces = (packed[i : i + cuts * 10] for i in range(0, len(packed), cuts * 10))
    answer = stage.post(pieces, Content_Encoding="gzip").json()
    assert answer["accepted_count"] == 1_200


def test_packed_files_may_follow_each_other(stage: Stage) -> None:
    packed = gzip.compress(like(1) + b"\n") + gzip.compress(like(2))
    assert stage.post(packed, Content_Encoding="gzip").json()["accepted_count"] == 2


def test_one_event_may_be_packed_too(stage: Stage) -> None:
    response = stage.post(
        gzip.compress(like(1)), Content_Encoding="gzip", Content_Type="application/json"
    )
    assert response.status_code == 202
    assert stage.items() == ["1"]


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"no gzip", id="no gzip"),
        pytest.param(gzip.compress(like(1))[:-9], id="cut off"),
        pytest.param(b"\x1f\x8b\x08\x00\x00", id="cut off in its header"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(stage: Stage, body: bytes, content_type: str) -> None:
    response = stage.post(body, Content_Encoding="gzip", Content_Type=content_type)
    assert response.status_code == 400
    assert "gzip" in response.json()["error"]


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
def test_a_bomb_is_refused_before_it_is_unpacked(stage: Stage, content_type: str) -> None:
    bomb = gzip.compress(b"\n" * 50_000_000)
    config = ApiConfig(max_ndjson_bytes=1_000_000)
    response = stage.post(bomb, config, Content_Encoding="gzip", Content_Type=content_type)
    assert response.status_code == 413


def test_a_packing_nobody_knows_is_refused(stage: Stage) -> None:
    response = stage.post(like(1), Content_Encoding="br")
    assert response.status_code == 415
    assert "'br'" in response.json()["error"]


@given(st.binary(max_size=300), st.integers(1, 50))
@EXAMPLES
def test_any_bytes_go_through_unpacking_unchanged_however_they_are_cut(
    data: bytes, size: int
) -> None:
    packed = gzip.compress(data)
    unpacker = Unpacker(packed=True, most=10_000)
    out = b"".join(
        piece for i in range(0, len(packed), size) for piece in unpacker.feed(packed[i : i + size])
    )
    assert out + b"".join(unpacker.finish()) == data


@given(st.binary(max_size=200))
@EXAMPLES
def test_no_bytes_make_unpacking_fail(data: bytes) -> None:
    unpacker = Unpacker(packed=True, most=100)
    try:
        list(unpacker.feed(b"\x1f\x8b\x08\x00" + data))
        list(unpacker.finish())
    except (BadBody, BodyTooLarge):
        pass


@given(st.lists(st.binary(max_size=8)))
@EXAMPLES
def test_lines_are_the_same_however_they_are_cut(pieces: list[bytes]) -> None:
    lines = Lines(longest=4)
    found = [line for piece in pieces for line in lines.feed(piece)]
    found += lines.finish()
    whole = b"".join(pieces).split(b"\n")
    expected = whole if whole[-1] else whole[:-1]
    assert [(line.raw, line.size) for line in found] == [(w[:4], len(w)) for w in expected]


# Limits, and a log that cannot take it


def test_over_the_limit_what_was_taken_before_is_told(stage: Stage) -> None:
    config = ApiConfig(max_events=10, max_ndjson_bytes=100_000)
    pieces = (like(i) + b"\n" for i in range(4_000))
    response = stage.post(pieces, config)
    assert response.status_code == 413
    answer = response.json()
    assert "100000 bytes" in answer["error"]
    assert 0 < answer["accepted_count"] == answer["lines"] == len(stage.items()) < 4_000


class FillingLog(FileLog):
    """A log that takes `room` appends and then fails."""

    room = 2
    error: LogError

    def append(self, records: Sequence[Append]) -> None:
        if self.room == 0:
            raise self.error
        self.room -= 1
        super().append(records)


@pytest.mark.parametrize(
    ("error", "status"), [(LogFull("no space is left"), 507), (LogError("it is away"), 503)]
)
def test_nothing_is_claimed_that_is_not_durable(
    stage: Stage, tmp_path: Path, error: LogError, status: int
) -> None:
    log = FillingLog(tmp_path / "filling.db")
    log.error = error
    stage = Stage(replace(stage.service, log=log), stage.connect, log)
    response = stage.post(b"\n".join(map(like, range(100))), ApiConfig(max_events=10))
    assert response.status_code == status
    assert int(response.headers["Retry-After"]) > 0
    answer = response.json()
    assert answer["error"] == str(error)
    assert answer["accepted_count"] == answer["lines"] == 20
    assert stage.items() == [str(i) for i in range(20)]
    log.close()


ODD_LINE = st.sampled_from(
    [like(1), b"{}", b"[]", b"null", b'{"kind":"tick"}', b'{"kind":"like","user_id":"\\ud800"}',
     b"\xef\xbb\xbf" + like(2), b"\x00", b"[" * 2_000]
) | st.binary(max_size=40)  # fmt: skip


@given(body=st.lists(ODD_LINE, max_size=6).map(b"\n".join), packed=st.booleans())
@EXAMPLES
def test_no_body_makes_the_service_fail(fuzzed: Stage, body: bytes, packed: bool) -> None:
    encoding = "gzip" if packed else "identity"
    sent = gzip.compress(body) if packed else body
    response = fuzzed.post(sent, Content_Encoding=encoding)
    assert response.status_code in (202, 422)
    answer = response.json()
    assert answer["rejected_count"] == len(answer["rejected"])


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, connect: Connect) -> Iterator[Stage]:
    log = FileLog(tmp_path_factory.mktemp("fuzzed") / "log.db")
    catalog = Catalog(EventRules(), BehaviourConfig(), AggregatorConfig())
    nobody: Any = None
    service = Service(
        log, EventRules(), nobody, catalog, ServingMetrics(Metrics()), dict, lambda: None
    )
    yield Stage(service, connect, log)
    log.close()


# `headrace ingest --url`


@pytest.fixture
def address(stage: Stage) -> Iterator[str]:
    """The service on a port of its own."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = create_app(stage.service, ApiConfig(max_events=10))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_a_file_can_be_sent_to_a_service(stage: Stage, address: str, tmp_path: Path) -> None:
    path = tmp_path / "likes.csv"
    path.write_text("kind,user_id,item_id\n" + "".join(f"like,u,{i}\n" for i in range(50)))
    config = IngestConfig(batch=20)
    console = Console(file=(tmp_path / "told").open("w"))
    with console.file:
        assert ingest(str(path), config, EventRules(), url_sink(address), console)
    assert stage.items() == [str(i) for i in range(50)]
    assert "50 accepted, 0 refused" in (tmp_path / "told").read_text()


def test_what_the_service_refuses_is_told_by_its_line(
    stage: Stage, address: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("kind,user_id,item_id\nlike,u,1\nfound,u,2\nlike,u,3\n")
    here = EventRules({**EventRules().kinds, "found": ("user_id",)})  # the service knows it not
    console = Console(file=(tmp_path / "told").open("w"), width=200)
    with console.file:
        assert not ingest(str(path), IngestConfig(), here, url_sink(address), console)
    told = (tmp_path / "told").read_text()
    assert "2 accepted, 1 refused" in told
    assert "line 3: 'found'" in told
    assert stage.items() == ["1", "3"]


def test_a_service_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("kind,user_id,item_id\nlike,u,1\n")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        sink = url_sink(f"http://127.0.0.1:{reserved.getsockname()[1]}")
        with pytest.raises(LogError, match="cannot be reached"):
            ingest(str(path), IngestConfig(), EventRules(), sink, Console(quiet=True))
