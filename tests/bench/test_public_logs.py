"""Public logs as samples, and pairs of neighbours in their lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import _logs
from benchmarks._logs import Log, Neighbours
from streaming.samples import decode_samples
from streaming.sources.open_bandit import OpenBandit


class Few:
    """The first events of Open Bandit."""

    total = 6_000

    def __init__(self) -> None:
        self.batch = OpenBandit().batch


@pytest.fixture(scope="module")
def bandit() -> Log:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_logs, "open_source", lambda _name: Few())
        return _logs.log.__wrapped__("open-bandit")


def made(lists: list[str]) -> Log:
    """Lists of items by their letters, capitals were clicked on."""
    letters = np.array([*"".join(lists)])
    sizes = [len(one) for one in lists]
    return Log(
        pa.record_batch({"label_click": pa.array(np.char.isupper(letters), pa.float32())}),
        np.array([ord(letter) for letter in np.char.lower(letters)]),
        np.repeat(np.arange(len(lists)), sizes),
        np.concatenate([np.arange(size) for size in sizes]),
        np.char.isupper(letters).astype(np.float64),
        np.zeros(len(letters), np.bool_),
    )


def test_a_log_is_its_impressions_in_time_with_what_was_clicked(bandit: Log) -> None:
    events = Few().batch(0, Few.total).to_pylist()
    shown = {e["request_id"]: e for e in events if e["kind"] == "impression"}
    clicks = {e["request_id"] for e in events if e["kind"] == "click"}
    last = max(e["at"] for e in shown.values())
    closed = [r for r, e in shown.items() if (last - e["at"]).total_seconds() > 1 or r in clicks]
    assert len(bandit) == len(closed)
    assert clicks
    assert bandit.clicked.sum() == len(clicks)
    random = [r for r in closed if '"policy": "random"' in shown[r]["attributes"]]
    assert bandit.randomised.sum() == len(random)
    at = bandit.rows["at"].cast(pa.int64()).to_numpy()
    assert (np.diff(at) >= 0).all()
    assert np.bincount(bandit.places).tolist() == [
        sum(shown[r]["position"] == place for r in closed) for place in range(3)
    ]


def test_records_have_all_samples_and_what_is_taken_away_was_not_clicked(bandit: Log) -> None:
    first = bandit.clicked.cumsum() <= 1
    left = bandit.without(~first)
    rows = pa.concat_batches([decode_samples(record) for record in left.records])
    assert rows.num_rows == len(bandit)
    assert rows["label_click"].to_numpy().sum() == left.clicked.sum() == 1


def test_halves_share_no_list() -> None:
    whole = made(["aBc"] * 50)
    first, rest = whole.halves(1)
    assert len(first) + len(rest) == len(whole)
    assert 0 < len(first) < len(whole)
    assert not set(first.requests) & set(rest.requests)


def test_neighbours_are_one_clicked_and_one_not_of_items_that_were_learnt() -> None:
    learnt = made(["abcd"])
    shown = made(["aBc", "Ax", "dC", "ab", "D"])
    pairs = Neighbours.of(shown, learnt)
    assert list(zip(pairs.upper, pairs.lower, strict=True)) == [(0, 1), (1, 2), (5, 6)]
    assert pairs.first.tolist() == [False, True, False]


def test_knowing_the_place_finds_half_of_the_neighbours() -> None:
    shown = made(["Ab", "Ab", "Ab", "aB"])
    pairs = Neighbours.of(shown, shown)
    assert pairs.found(-shown.places.astype(np.float64)) == 0.5
    assert pairs.found(np.zeros(len(shown))) == 0.5
    assert pairs.found(shown.clicked) == 1.0
