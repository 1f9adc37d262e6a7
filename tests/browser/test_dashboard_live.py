"""The dashboard in a real browser, over a real `headrace run` and its monitor."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks._browser import Watched, read, told
from benchmarks._service import Service, service, toml
from infra.recipe_file import RECIPES

pytestmark = pytest.mark.browser
REPLAYED = 10_000
STAGES = ("event", "sample", "version", "answer")
# How many figures of a page stand still at least once all is learnt, and some that must.
STILL = {
    "overview": (24, {"monitor#freshness.3.count", "monitor/series#series.recall.-1"}),
    "streaming": (20, {"end.events.0", "end.versions.0", "lag_trainer"}),
    "features": (8, {"freshness_stored_p50"}),
    "trainers": (40, {"recall", "table_rows", "figure.samples"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def running(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It has learnt a little, and nothing happens in it but what a test does."""
    home = tmp_path_factory.mktemp("live") / "home"
    table = tomllib.loads((RECIPES / "world.toml").read_text())
    table["replay"] = {"limit": REPLAYED}
    table["monitor"] = {"period_s": 0.5}
    table["models"] = {"mind": {}}
    file = home.with_name("home.toml")
    file.write_text(toml(table))
    with service(home, None, str(file)) as headrace:
        headrace.wait_until_ready()
        headrace.wait_for(headrace.caught_up)
        yield headrace


def asked(running: Service, series: set[str]) -> dict[str, Any]:
    """What the service tells at this moment, by path, as pages are told it."""
    names = f"names={','.join(series) or 'none'}&window_s=60"
    return {
        "monitor": running.get("/v1/monitor"),
        "monitor/series": running.get(f"/v1/monitor/series?{names}"),
    }


def drawn_anew(page: Page) -> None:
    """Returns when the page shows something that was asked for later than now."""
    for _ in range(2):  # the first may be an answer to what was asked before
        with page.expect_response(lambda response: response.url.endswith("/v1/monitor")):
            pass
    page.wait_for_timeout(100)


def compared(running: Service, watched: Watched) -> tuple[set[str], list[dict[str, str]]]:
    """The names of figures that have not changed meanwhile; and those shown otherwise."""
    there = {one["figure"] for one in watched.figures()}
    names = {where.split(".")[1] for where in there if "#series." in where}
    before = asked(running, names)
    drawn_anew(watched.page)
    figures = [one for one in watched.figures() if one["figure"] in there]
    after = asked(running, names)
    still, wrong = set(), []
    for shown in figures:
        where = shown["figure"]
        if (value := told(before, where)) != told(after, where):
            continue
        path, _, end = where.rpartition(".")
        still.add(told(after, f"{path}.name") if "#floors." in where and end else where)
        text = shown["text"]
        if value is None:
            right = text == "–"
        else:
            right = float(shown["value"]) == value
            right &= read(text, shown["unit"]) == pytest.approx(value, rel=6e-3, abs=6e-4)
        if not right:
            wrong.append(shown | {"told": str(value)})
    return still, wrong


@pytest.mark.parametrize("name", STILL)
def test_what_stands_still_is_the_same_on_the_page_and_in_the_service(
    running: Service, watch: Callable[..., Watched], name: str
) -> None:
    watched = watch(f"{running.url}/dashboard#{name}")
    expect(watched.page.locator("#page .waiting")).to_have_count(0)
    least, wanted = STILL[name]
    until = time.monotonic() + 20
    while True:  # what has just been learnt still moves
        still, wrong = compared(running, watched)
        if not wrong and len(still) >= least and wanted <= still:
            break
        assert time.monotonic() < until, (wrong, wanted - still, len(still))
    if name == "overview":
        versions = running.get("/v1/monitor")["versions"]
        for which in ("served", "candidate"):
            shown = watched.page.get_by_test_id(f"version-{which}").locator(".version")
            expect(shown).to_have_attribute("title", versions[which])
        expect(watched.page.get_by_test_id("version-held-back")).to_have_text("no")
        beside = watched.page.get_by_test_id("beside-mind").locator(".version")
        expect(beside).to_have_attribute(
            "title", running.get("/v1/status")["served_beside"]["mind"]
        )


def test_what_is_near_an_item_is_drawn(running: Service, watch: Callable[..., Watched]) -> None:
    page = watch(f"{running.url}/dashboard#items").page
    page.get_by_test_id("found").locator("button").nth(2).click()
    expect(page).to_have_url(re.compile("#items[?]item="))
    near = page.get_by_test_id("neighbours")
    expect(near.locator(".list").last.locator("li")).to_have_count(12)
    item = page.evaluate("new URLSearchParams(location.hash.split('?')[1]).get('item')")
    found = running.get(f"/v1/monitor/neighbours?item_id={item}")
    expect(near.locator(".picture h3")).to_have_text(found["item"]["title"])
    expect(near.locator(".list").last.locator(".name")).to_have_text(
        [one["title"] for one in found["now"]["items"]]
    )
    then = found["then"]["items"] if found["then"] else []
    spots = {one["item_id"] for one in [*found["now"]["items"], *then]}
    expect(near.locator(".scatter .spot")).to_have_count(len(spots))


def test_an_event_becomes_an_answer_before_ones_eyes(
    running: Service, watch: Callable[..., Watched]
) -> None:
    page = watch(f"{running.url}/dashboard#live?user=ada").page
    steps = page.get_by_test_id("stream").locator("li")
    of = {stage: steps.and_(page.locator(f"[data-stage='{stage}']")) for stage in STAGES}
    expect(of["version"].first).to_be_visible()
    for stage in ("answer", "event", "sample"):
        expect(of[stage]).to_have_count(0)

    first = running.get("/v1/recommend?user_id=ada&k=5")
    expect(of["answer"].locator(".version")).to_have_attribute("title", first["version"])
    item, request_id = first["items"][0]["item_id"], first["request_id"]
    click = {"kind": "click", "user_id": "ada", "item_id": item, "request_id": request_id}
    assert running.post_events([click])[0] == 202
    expect(of["event"].locator(".what")).to_contain_text(f"ada click {first['items'][0]['title']}")
    expect(of["sample"].locator(".what")).to_contain_text("click 1")
    of["event"].get_by_role("button").click()
    way = page.get_by_test_id("way").locator("li")
    expect(way).to_have_count(4)
    stages = way.evaluate_all("all => all.map(one => one.dataset.stage)")
    assert stages == ["version", "answer", "event", "sample"]

    learnt = of["version"].first.locator(".version")
    expect(learnt).not_to_have_attribute("title", first["version"])
    newest = number(learnt.get_attribute("title"))
    running.wait_for(lambda: number(running.get("/v1/status")["served_version"]) >= newest)
    second = running.get("/v1/recommend?user_id=ada&k=5")
    expect(of["answer"].first.locator(".version")).to_have_attribute("title", second["version"])


def number(version: str | None) -> int:
    return int((version or "").rpartition("/")[2])
