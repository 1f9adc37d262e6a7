"""In which order ADER's protocol is learnt."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import ader
from features.batch import read_samples
from streaming.ids import stable_id


def test_clicks_are_learnt_in_the_order_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_DATA", str(tmp_path))
    items = [10, 20, 11, 21, 12, 10]
    clicks = {"period": [0, 0, 0, 0, 0, 1], "session": [1, 2, 1, 2, 1, 3], "item": items}
    pq.write_table(pa.table(clicks), tmp_path / "diginetica.parquet")
    ((rows, _),) = ader.periods(1)
    learnt = read_samples(rows)
    ids = [stable_id(str(item)) for item in items]
    assert learnt.item_ids.tolist() == ids[:5]
    history = learnt.users.history
    assert history.lengths.tolist() == [0, 0, 1, 1, 2]
    assert history.values.tolist() == [ids[0], ids[1], ids[0], ids[2]]
