"""The monitor's parts: what it keeps of real expositions, and what expressions make of that."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing

import pytest

from features.aggregator import AggregatorConfig
from features.behaviour import BehaviourConfig
from features.catalog import Catalog
from infra.monitor.announced import Announced
from infra.monitor.expressions import (
    Age,
    Expression,
    Highest,
    Increase,
    Last,
    Moved,
    Quantile,
    Rate,
    scaled,
)
from infra.monitor.history import History, Selection
from infra.monitor.scrape import Scraper
from infra.monitor.series import SERIES
from infra.monitor.stream import Stream
from infra.targets import Target
from streaming.events import EventRules
from streaming.log import EVENTS, Append
from streaming.memory_log import MemoryLog
from streaming.metrics import Metrics
from trainers.versions import VersionInfo, announcement, doorbell

DOORS = "headrace_doors_total"
OWN = Target("run", 0, "here:1")


def told(values: Mapping[str, list[float | None]], period_s: float = 1.0) -> History:
    """A history of figures by name; None is "not told"."""
    history, rows = History(100), dict[str, int]()
    for moment in range(max(len(one) for one in values.values())):
        history.open(1_000 + period_s * moment)
        for name, one in values.items():
            if (value := one[moment]) is not None:
                if name not in rows:
                    row = history.add(name, {"of": name})
                    assert row is not None
                    rows[name] = row
                history.note(rows[name], value)
    return history


def value(expression: Expression, history: History) -> float | None:
    return expression.value(history).get(())


# -- history -----------------------------------------------------------------------------------


def test_a_counter_goes_on_where_its_process_begins_anew() -> None:
    history = told({DOORS: [10, 20, 30, 5, 15]})
    assert value(Increase(DOORS, over_s=60), history) == 20 + 5 + 10
    assert value(Rate(DOORS, over_s=2), history) == (5 + 10) / 2


def test_a_counter_that_is_not_told_any_more_stands_still() -> None:
    history = told({DOORS: [10, 20, None, None], "other": [1, 1, 1, 1]})
    assert value(Increase(DOORS, over_s=1), history) == 0
    assert value(Increase(DOORS, over_s=10), history) == 10


def test_a_gauge_that_is_not_told_any_more_has_no_value() -> None:
    history = told({"doors": [4, 7, None], "other": [1, 1, 1]})
    assert value(Last("doors"), history) is None
    assert value(Highest("doors", over_s=10), history) == 7
    assert value(Moved("doors", over_s=10), history) == 3
    assert value(Moved("doors", over_s=0), history) is None


def test_a_window_reaches_back_as_far_as_there_is_something() -> None:
    history = told({DOORS: [0, 6]}, period_s=3)
    assert value(Rate(DOORS, over_s=3_600), history) == 2
    assert value(Rate(DOORS, over_s=3_600), told({DOORS: [5]})) is None


def test_the_ring_forgets_what_is_older_and_figures_of_which_nothing_is_left() -> None:
    history = History(10)
    gone = history.add("doors", {})
    assert gone is not None
    stays = history.add(DOORS, {})
    assert stays is not None
    for moment in range(250):
        history.open(moment)
        history.note(stays, 2.0 * moment)
        if moment < 50:
            history.note(gone, 1)
    assert len(history) == 1
    assert history.times.tolist() == list(range(240, 250))
    assert value(Increase(DOORS, over_s=5), history) == 10
    assert history.add("next", {}) == gone
    assert value(Last("doors"), history) is None


def test_there_is_room_for_more_figures_than_at_first() -> None:
    history = History(4)
    history.open(0)
    for number in range(300):
        row = history.add("doors", {"of": str(number)})
        assert row is not None
        history.note(row, number)
    assert value(Last("doors"), history) == sum(range(300))
    assert Last("doors", ("of",)).value(history)["299",] == 299


# -- expressions -------------------------------------------------------------------------------


def test_a_quantile_is_that_of_prometheus() -> None:
    # 10 up to .1, 20 more up to .5, 10 more beyond: its histogram_quantile(.5) is .3.
    assert Quantile("h", q=0.5).promql() == (
        "histogram_quantile(0.5, sum by (le) (rate(h_bucket[1m])))"
    )
    history = History(10)
    rows = {bound: history.add("h_bucket", {"le": bound}) for bound in ("0.1", "0.5", "+Inf")}
    for moment in range(2):
        history.open(moment)
        for (_, row), count in zip(rows.items(), (10, 30, 40), strict=True):
            assert row is not None
            history.note(row, count * moment)
    assert value(Quantile("h", q=0.5), history) == pytest.approx(0.3)
    assert value(Quantile("h", q=0.99), history) == 0.5  # beyond the last bound: that bound
    history.open(100)
    assert value(Quantile("h", over_s=1), history) is None  # nothing came in that time


def test_labels_are_matched_by_name() -> None:
    history = History(10)
    history.open(0)
    for name, labels, number in (
        ("lag", {"group": "joiner", "partition": "0"}, 3),
        ("lag", {"group": "joiner", "partition": "1"}, 0),
        ("lag", {"group": "trainer", "partition": "0"}, 5),
        ("busy", {"group": "joiner"}, 1),
    ):
        row = history.add(name, labels)
        assert row is not None
        history.note(row, number)
    lag, busy = Last("lag", ("group", "partition")), Last("busy", ("group",))
    assert ((lag > 0) & busy).value(history) == {("joiner", "0"): 3}
    assert (lag > 0).unless(busy).value(history) == {("trainer", "0"): 5}
    assert Last("lag", ("group",), {"partition": "~[01]"}).value(history) == {
        ("joiner",): 3,
        ("trainer",): 5,
    }
    assert (busy / Last("lag", ("group",))).value(history) == {("joiner",): 1 / 3}
    assert (busy | Last("lag", ("group",))).value(history) == {("joiner",): 1, ("trainer",): 5}
    assert ((lag > 0) & busy).promql() == (
        "(sum by (group, partition) (lag) > 0) and on (group) sum by (group) (busy)"
    )
    with pytest.raises(ValueError, match="must be among"):
        busy & lag
    with pytest.raises(ValueError, match="must be the same"):
        busy | lag


def test_what_is_divided_by_nothing_is_not_known() -> None:
    assert value(Last("part") / Last("whole"), told({"part": [1], "whole": [0]})) is None


def test_an_age_is_that_of_the_youngest() -> None:
    assert value(Age("at"), told({"at": [990]})) == 10
    assert value(Age("at"), told({"at": [1_000.4]})) == 0  # told while it was asked
    assert Age("at").promql() == "time() - max(at)"
    assert (Age("at") > 5).promql() == "(time() - max(at)) > 5"


def test_windows_are_scaled_but_never_uselessly_short() -> None:
    assert Rate("a_total", over_s=300).promql(0.1) == "sum(rate(a_total[30s]))"
    assert (scaled(300, 0.001), scaled(2, 0.001), scaled(300, 1)) == (5, 2, 300)


def test_declared_series_have_names_of_their_own_and_units() -> None:
    names = [series.name for series in SERIES]
    assert len(names) == len(set(names))
    units = {"s", "ms", "1/s", "bytes", "records", "ratio", "cores", ""}
    assert {series.unit for series in SERIES} <= units


# -- scraping ----------------------------------------------------------------------------------


@pytest.fixture
def process() -> Iterator[tuple[Metrics, Target]]:
    """A process that tells figures, over a real connection."""
    metrics = Metrics()
    with metrics.served("127.0.0.1") as port:
        yield metrics, Target("trainer", 1, f"127.0.0.1:{port}")


def scraper(history: History, own: Metrics | None = None) -> Scraper:
    wanted = [Selection(DOORS), Selection("up"), Selection("lag", (("group", "joiner"),))]
    wanted += list(Quantile("headrace_freshness_seconds").selections())
    exposition = (own or Metrics()).exposition
    return Scraper(history, wanted, ("run", lambda: exposition()[0]), timeout_s=0.5)


def test_figures_of_all_processes_come_together(process: tuple[Metrics, Target]) -> None:
    theirs, target = process
    own, history = Metrics(), History(10)
    scraping = scraper(history, own)
    doors = [m.counter(DOORS, "Doors.", ["colour"]).labels('r"ed, {x}') for m in (own, theirs)]
    theirs.gauge("lag", "Lag.", ["group"]).labels("joiner").set(3)
    theirs.gauge("lag", "Lag.", ["group"]).labels("trainer").set(4)  # nobody wants it
    theirs.freshness("served").observe(0.2)
    for moment in range(3):
        for one in doors:
            one.inc(2)
        scraping.take(scraping.read([OWN, target]), 100.0 + moment)
    assert Increase(DOORS, ("process", "rank", "colour")).value(history) == {
        ("run", "0", 'r"ed, {x}'): 4,
        ("trainer", "1", 'r"ed, {x}'): 4,
    }
    assert Last("lag", ("group",)).value(history) == {("joiner",): 3}
    assert Last("up", ("process",)).value(history) == {("run",): 1, ("trainer",): 1}
    scraping.close()


def test_what_was_counted_before_it_was_told_is_no_growth(
    process: tuple[Metrics, Target],
) -> None:
    """As of a trainer, which goes on counting where its cut was made."""
    metrics, target = process
    history = History(10)
    scraping = scraper(history)
    scraping.take(scraping.read([target]), 100.0)
    doors = metrics.counter(DOORS, "Doors.", ["colour"]).labels("red")
    doors.inc(1_000)
    scraping.take(scraping.read([target]), 101.0)
    doors.inc(5)
    scraping.take(scraping.read([target]), 102.0)
    assert value(Increase(DOORS), history) == 5
    scraping.close()


def test_what_does_not_answer_is_down_and_holds_up_nobody(
    process: tuple[Metrics, Target],
) -> None:
    metrics, target = process
    metrics.counter(DOORS, "Doors.").labels().inc()
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        silent = Target("joiner", 0, f"127.0.0.1:{deaf.getsockname()[1]}")
        nobody = Target("aggregator", 0, "127.0.0.1:1")
        history = History(10)
        scraping = scraper(history)
        begun = time.monotonic()
        scraping.take(scraping.read([silent, nobody, target]), 100.0)
        assert time.monotonic() - begun < 5
    assert Last("up", ("process",)).value(history) == {
        ("joiner",): 0,
        ("aggregator",): 0,
        ("trainer",): 1,
    }
    scraping.take(scraping.read([target]), 101.0)  # and what is gone is not down
    assert Last("up", ("process",)).value(history) == {("trainer",): 1}
    scraping.close()


def test_what_is_told_of_another_process_is_that_ones() -> None:
    own, history = Metrics(), History(10)
    own.gauge("lag", "Lag.", ["group", "process"]).labels("joiner", "trainer").set(1)
    scraping = scraper(history, own)
    scraping.take(scraping.read([OWN]), 100.0)
    assert Last("lag", ("process", "rank")).value(history) == {("trainer", "0"): 1}
    scraping.close()


def test_figures_may_be_wanted_of_one_process_alone(process: tuple[Metrics, Target]) -> None:
    theirs, target = process
    own, history = Metrics(), History(10)
    for metrics in (own, theirs):
        metrics.gauge("load", "Load.").labels().set(1)
    wanted = [Selection("load", (("process", "trainer"),))]
    scraping = Scraper(history, wanted, ("run", lambda: own.exposition()[0]), timeout_s=0.5)
    scraping.take(scraping.read([OWN, target]), 100.0)
    assert Last("load", ("process",)).value(history) == {("trainer",): 1}
    scraping.close()


def test_an_exposition_is_told_apart_by_its_lines_alone() -> None:
    """Two processes of one name that come one after the other are two."""
    history = History(10)
    with ExitStack() as stack:
        scraping = scraper(history)
        stack.callback(scraping.close)
        for moment, count in enumerate((7, 3)):
            metrics = Metrics()
            metrics.counter(DOORS, "Doors.").labels().inc(count)
            with metrics.served("127.0.0.1") as port:
                target = Target("trainer", 0, f"127.0.0.1:{port}")
                scraping.take(scraping.read([target]), 100.0 + 2 * moment)
                metrics.counter(DOORS, "Doors.").labels().inc(count)
                scraping.take(scraping.read([target]), 101.0 + 2 * moment)
    assert value(Increase(DOORS), history) == 7 + 3


# -- what is announced, and what comes by ------------------------------------------------------


def version(number: int, held: str | None = None, suspect: str | None = None) -> Append:
    metrics = {
        "recall@50": 0.2, "gate_users": 256.0, "gate_gain": 1.2, "gate_gain_before": 1.9,
        "gate_gain_least": 1.5, "gate_calibration": 1.1, "gate_calibration_before": 0.9,
    }  # fmt: skip
    info = VersionInfo(
        "two_tower", "one", number, number - 1, 5, None, number, {}, metrics,
        held, "two_tower/one/1" if held else None, suspect,
    )  # fmt: skip
    return announcement(info, 100)


def test_the_history_of_the_gate_tells_when_it_changed_its_mind() -> None:
    log = MemoryLog()
    log.append([version(1), version(2, held="it is worse"), version(3, held="much worse")])
    with closing(log):
        announced = Announced(log)
        announced.turn()
        assert announced.gate("hold")["holds"]
        assert announced.versions("two_tower/one/1", None) == {
            "served": "two_tower/one/1", "candidate": "two_tower/one/3", "held": "two_tower/one/3",
            "reason": "much worse", "last_good": "two_tower/one/1", "pinned": None,
        }  # fmt: skip
        log.append([doorbell("two_tower"), version(4), version(5, suspect="odd")])
        announced.turn()
        gate = announced.gate("shadow")
        assert (gate["holds"], gate["reason"]) == (False, "odd")
        assert gate["checks"] == {
            "quality": {"ok": False, "gain": 1.2, "at least": 1.5, "before": 1.9, "users": 256.0},
            "calibration": {"now": 1.1, "before": 0.9},
        }
        assert [(one["verdict"], one["version"], one["reason"]) for one in gate["history"]] == [
            ("suspect", "two_tower/one/5", "odd"),
            ("freed", "two_tower/one/4", None),
            ("held", "two_tower/one/2", "it is worse"),
        ]


@pytest.fixture
def stream() -> Iterator[tuple[MemoryLog, Stream]]:
    with closing(MemoryLog()) as log:
        catalog = Catalog(EventRules(), BehaviourConfig(), AggregatorConfig())
        yield log, Stream(log, EventRules(), catalog)


def event(number: int, **more: object) -> Append:
    said = {"event_id": f"e{number}", "kind": "like", "at": "2026-11-22T10:00:00Z",
            "user_id": "ada", "item_id": "i1", **more}  # fmt: skip
    return Append(EVENTS, json.dumps(said).encode())


def test_events_answers_and_versions_come_by(stream: tuple[MemoryLog, Stream]) -> None:
    log, looking = stream
    common = {"kind": "impression", "request_id": "r", "attributes": {"version": "two_tower/one/1"}}
    shown = [event(n, item_id=f"i{n}", position=n, **common) for n in range(2)]
    log.append([event(9, value=None), *shown, version(2, held="it is worse")])
    first = looking.steps(0)
    told = {(one["stage"], one["text"], one.get("version")) for one in first["steps"]}
    assert ("event", "like", None) in told
    assert ("version", "delta after step 2, held back: it is worse", "two_tower/one/2") in told
    answers = [one for one in first["steps"] if one["stage"] == "answer"]
    assert {one["request_id"] for one in answers} == {"r"}
    assert {one["version"] for one in answers} == {"two_tower/one/1"}
    log.append([event(10, kind="click")])
    then = looking.steps(first["next"])
    assert [(one["text"], one["user_id"]) for one in then["steps"]] == [("click", "ada")]
    assert then["next"] == first["next"] + 1
    assert looking.steps(then["next"])["steps"] == []


def test_of_much_that_comes_the_newest_is_shown(stream: tuple[MemoryLog, Stream]) -> None:
    log, looking = stream
    log.append([event(0)])
    looking.steps(0)
    log.append([event(number, item_id=f"i{number}") for number in range(1, 5_000)])
    seen = looking.steps(0)["steps"]
    assert len(seen) <= 400
    assert seen[-1]["item_id"] == "i4999"


def test_what_cannot_be_read_is_passed_over(stream: tuple[MemoryLog, Stream]) -> None:
    log, looking = stream
    log.append([Append(EVENTS, b"no event"), Append("samples", b"no samples"), event(1)])
    assert [one["stage"] for one in looking.steps(0)["steps"]] == ["event"]


def test_a_number_that_is_none_is_no_figure() -> None:
    history = told({"doors": [math.nan]})
    assert value(Last("doors"), history) is None


def test_where_nothing_was_announced_nothing_is_held() -> None:
    with closing(MemoryLog()) as log:
        announced = Announced(log)
        announced.turn()
        assert announced.versions(None, None)["candidate"] is None
        assert announced.gate("hold") == {
            "mode": "hold", "holds": False, "reason": None, "checks": {}, "history": [],
        }  # fmt: skip
