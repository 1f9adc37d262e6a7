"""What the trainers' tests share: micro-batches by hand, a slice of MovieLens, groups of ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from features.behaviour import Behaviour, BehaviourConfig
from features.definitions import SAMPLE_FEATURES
from streaming.artefact import Artefact
from streaming.events import EventRules, encode_events
from streaming.joiner import Joiner, JoinerConfig
from streaming.log import EVENTS, SAMPLES, Append, Record
from streaming.samples import encode_samples, sample_schema
from streaming.sources.movielens import MovieLens
from trainers.exchange import Exchange, PeerLost, connect
from trainers.frequency import FrequencyConfig
from trainers.negatives import NegativesConfig
from trainers.trainer import TrainerConfig

LOGGED_US = 1_700_000_000_000_000
T = TypeVar("T")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As the trainer runs: the bits of a result must not depend on the number of cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def micro_batch() -> Callable[..., Record]:
    """A record of samples from rows that name only what matters to the test; with `labels`."""

    def make(
        rows: Sequence[Mapping[str, Any]], offset: int = 0, labels: Sequence[str] = ()
    ) -> Record:
        defaults = {"kind": "rate", "at": LOGGED_US, "logged_us": LOGGED_US}
        filled = [{**defaults, **row} for row in rows]
        batch = pa.RecordBatch.from_pylist(filled, schema=sample_schema(labels, SAMPLE_FEATURES))
        return _record(encode_samples(batch), offset)

    return make


@pytest.fixture(scope="session")
def small() -> TrainerConfig:
    """A trainer that takes a step in a few milliseconds."""
    return TrainerConfig(
        options={"width": 8, "hidden": 16, "table": {"optimiser": {"learning_rate": 0.5}}},
        negatives=NegativesConfig(uniform=32),
        refresh=16,
        publish_every_s=0.1,
        snapshot_every=5,
        frequency=FrequencyConfig(buckets=1 << 10),
    )


@pytest.fixture(scope="session")
def stream() -> list[Record]:
    """600 MovieLens ratings and their movies, joined as in production, in steps of 64."""
    source = MovieLens()
    ratings = source.batch(source.declarations, 600)
    movies = source.batch(0, source.declarations)
    movies = movies.filter(pc.is_in(movies["item_id"], value_set=ratings["item_id"]))
    joiner = Joiner(JoinerConfig(step_size=64), EventRules(), Behaviour(BehaviourConfig()))
    events = [
        _record(encode_events(batch), offset) for offset, batch in enumerate((movies, ratings))
    ]
    samples = [output for record in events for output in joiner.on_batch([record])]
    assert {output.topic for output in samples} == {SAMPLES}
    return [_record(output, offset) for offset, output in enumerate(samples)]


@pytest.fixture(scope="session")
def assert_same_state() -> Callable[[Artefact, Artefact], None]:
    """Fails unless two states are equal to the last bit."""

    def compare(one: Artefact, other: Artefact) -> None:
        assert one.meta == other.meta
        assert one.shards.keys() == other.shards.keys()
        for name, table in one.shards.items():
            assert table.equals(other.shards[name], check_metadata=True), name

    return compare


@pytest.fixture(scope="session")
def together() -> Callable[..., list[Any]]:
    """Runs something in every rank of a group, each a thread of its own; gives what each returns.

    The error of a rank is raised here, that which broke the group before what came of it.
    """

    def run_all(ranks: int, run: Callable[[Exchange], T], within_s: float = 10.0) -> list[T]:
        store = HashStore()

        def of_rank(rank: int) -> T:
            torch.set_num_threads(1)
            exchange = connect(store, "127.0.0.1", rank, ranks, within_s)
            try:
                return run(exchange)
            finally:
                exchange.leave()  # as a process does that ends

        with ThreadPoolExecutor(ranks) as pool:
            runs = [pool.submit(of_rank, rank) for rank in range(ranks)]
        errors = [error for error in (run.exception() for run in runs) if error is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, PeerLost)):
            raise error
        return [run.result() for run in runs]

    return run_all


def _record(output: Append, offset: int) -> Record:
    assert output.topic in (EVENTS, SAMPLES)
    return Record(output.topic, 0, offset, output.key, output.value, LOGGED_US + offset)
