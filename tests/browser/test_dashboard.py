"""The dashboard in a real browser, over a real service whose monitor stands still."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect
from starlette.types import ASGIApp

from benchmarks._browser import Watched, read
from benchmarks._monitor import DRIFTS, HELD, MOVIES, StillMonitor
from features.aggregator import AggregatorConfig
from features.behaviour import BehaviourConfig
from features.catalog import Catalog
from serving.http.api import ApiConfig, ApiKey, Service, create_app
from serving.metrics import ServingMetrics
from serving.recommender import Recommender
from serving.replica import Replica
from streaming.events import EventRules
from streaming.file_log import FileLog
from streaming.log import EVENTS, Record
from streaming.metrics import Metrics

pytestmark = pytest.mark.browser
PAGES = (
    "overview", "live", "streaming", "features", "trainers", "serving", "items", "quality", "gate",
    "dead-letters",
)  # fmt: skip
NASTY = "<img src=x onerror=\"document.title='hurt'\"><script>document.title='hurt'</script>&amp;"


class NoFeatures:
    """Knows nobody."""

    is_local = True

    def read(self, view: Any, keys: Any) -> list[dict[str, Any]]:
        return [view.defaults for _ in keys]


def make_service(log: FileLog, monitor: StillMonitor | None) -> Service:
    """A service that knows some movies."""
    catalog = Catalog(EventRules(), BehaviourConfig(), AggregatorConfig())
    events = [
        {"kind": "item", "item_id": item, "attributes": {"title": title}}
        for item, title in MOVIES.items()
    ]
    catalog.on_batch(
        [Record(EVENTS, 0, n, None, json.dumps(e).encode(), 10**15) for n, e in enumerate(events)]
    )
    return Service(
        log=log,
        rules=EventRules(),
        recommender=Recommender(Replica(), catalog, NoFeatures()),
        catalog=catalog,
        metrics=ServingMetrics(Metrics()),
        status=lambda: {"ready": True},
        not_ready=lambda: None,
        monitor=monitor,
    )


@contextmanager
def listening(app: ASGIApp, port: int = 0) -> Iterator[int]:
    """Serves an application at a port as long as the block lasts."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off"}
        server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=2, **quiet))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def monitor() -> StillMonitor:
    return StillMonitor()


@pytest.fixture
def service(tmp_path: Path, monitor: StillMonitor) -> Iterator[Service]:
    log = FileLog(tmp_path / "log")
    yield make_service(log, monitor)
    log.close()


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    with listening(create_app(service, ApiConfig())) as port:
        yield f"http://127.0.0.1:{port}/dashboard"


def open_page(page: Page, name: str, query: str = "") -> None:
    page.evaluate("where => { location.hash = where }", f"{name}{query}")
    expect(page.locator("#pages a[aria-current]")).to_have_attribute("href", f"#{name}")
    expect(page.locator("#page .waiting")).to_have_count(0)


# A page as wide as a desk is served to all of these, in one system.


@pytest.mark.parametrize("name", PAGES)
def test_every_number_on_the_page_is_that_of_the_service(
    address: str, watch: Callable[..., Watched], monitor: StillMonitor, name: str
) -> None:
    monitor.alerts = [HELD, DRIFTS]
    query = {"items": "?item=318&user=user-1"}.get(name, "")
    watched = watch(f"{address}#{name}{query}")
    page = watched.page
    expect(page.locator("#title")).to_have_text(name.capitalize().replace("-", " "))
    expect(page.locator("#page .waiting")).to_have_count(0)
    if name == "live":
        expect(page.get_by_test_id("stream").locator("li")).to_have_count(60)
        return
    least = {
        "overview": 45,
        "streaming": 12,
        "items": 16,
        "quality": 120,
        "gate": 6,
        "dead-letters": 1,
    }
    figures = page.locator("[data-figure]")
    expect(figures.nth(least.get(name, 3) - 1)).to_be_attached()
    for shown in watched.figures():
        value = watched.told(shown["figure"])
        if value is None:
            assert shown["text"] == "–", shown
            continue
        assert float(shown["value"]) == value, shown
        assert read(shown["text"], shown["unit"]) == pytest.approx(value, rel=6e-3, abs=6e-4), shown


def test_the_newest_value_stands_beside_each_line(
    address: str, watch: Callable[..., Watched]
) -> None:
    watched = watch(f"{address}#trainers")
    page = watched.page
    expect(page.locator("[data-chart]")).to_have_count(4)
    expect(page.locator("[data-line='loss'][data-value]")).to_be_visible()
    series = watched.told("monitor/series#series.loss") and watched.told("monitor/series#series")
    for line in page.locator("[data-line]").all():
        newest = series[line.get_attribute("data-line") or ""][-1]
        if newest is None:
            expect(line).to_have_text("–")
        else:
            assert float(line.get_attribute("data-value") or "nan") == newest


def test_a_chart_is_read_with_the_keyboard(address: str, watch: Callable[..., Watched]) -> None:
    watched = watch(f"{address}#serving")
    page = watched.page
    chart = page.locator("[data-chart='answers_per_s'] svg")
    expect(chart).to_have_attribute("aria-valuetext", re.compile("lowest .*, highest"))
    values = watched.told("monitor/series#series.answers_per_s")
    chart.focus()
    page.keyboard.press("Home")
    line = page.locator("[data-line='answers_per_s']")
    assert float(line.get_attribute("data-value") or "nan") == values[0]
    page.keyboard.press("ArrowRight")
    assert int(chart.get_attribute("aria-valuenow") or 0) > 0
    # The crosshair is that of all charts, and goes with the focus.
    expect(page.locator(".cross[visibility='visible']")).to_have_count(
        page.locator("[data-chart]").count()
    )
    page.keyboard.press("Tab")
    expect(page.locator(".cross[visibility='visible']")).to_have_count(0)


def test_the_verdict_says_what_is_wrong_since_when_and_what_to_do(
    address: str, watch: Callable[..., Watched], monitor: StillMonitor
) -> None:
    page = watch(address).page
    verdict = page.get_by_test_id("verdict")
    expect(verdict).to_contain_text("All well")
    expect(page).to_have_title("Overview · Headrace")
    monitor.alerts = [HELD, DRIFTS]
    expect(verdict).to_contain_text("2 things need you", timeout=10_000)
    expect(verdict).to_contain_text(str(HELD["sentence"]))
    expect(verdict).to_contain_text("for 12.6 min")
    expect(verdict.get_by_role("link", name="What to do")).to_have_attribute(
        "href", str(DRIFTS["runbook"])
    )
    expect(page).to_have_title("(2) Overview · Headrace")
    expect(page.get_by_test_id("version-held-back")).to_have_text("#1041")
    open_page(page, "features")
    expect(page.locator("#wrong")).to_contain_text("Version held")
    monitor.alerts = []
    expect(page.locator("#wrong")).to_be_hidden(timeout=10_000)


def test_the_runbook_of_an_alert_is_shown_beside_it(
    address: str, watch: Callable[..., Watched], monitor: StillMonitor
) -> None:
    monitor.alerts = [HELD]
    page = watch(address).page
    page.get_by_role("button", name="What to do").click()
    book = page.locator("#runbook")
    expect(book).to_contain_text("Version held")
    expect(book.locator("h3").first).to_be_visible()
    expect(book.locator("code").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(book).to_be_hidden()


def test_the_keyboard_is_enough(address: str, watch: Callable[..., Watched]) -> None:
    page = watch(address).page
    expect(page.locator("#page .waiting")).to_have_count(0)
    for digit, name in zip("1234567890", PAGES, strict=True):
        page.keyboard.press(digit)
        expect(page.locator("#pages a[aria-current]")).to_have_attribute("href", f"#{name}")
    for letter, name in zip("olsftviqgd", PAGES, strict=True):
        page.keyboard.press("g")
        page.keyboard.press(letter)
        expect(page.locator("#pages a[aria-current]")).to_have_attribute("href", f"#{name}")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    page.keyboard.press("g")
    page.keyboard.press("i")
    page.keyboard.press("/")
    page.keyboard.type("matrix")
    expect(page.get_by_test_id("found").locator("[data-item-id='2571']")).to_be_visible()
    expect(page.get_by_test_id("found").locator("button")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("neighbours").locator(".picture h3")).to_have_text(MOVIES["2571"])
    assert page.evaluate("location.hash") == "#items?item=2571"


def test_neighbours_that_came_and_left_are_named(
    address: str, watch: Callable[..., Watched]
) -> None:
    watched = watch(f"{address}#items?item=318")
    moved = watched.page.get_by_test_id("moved")
    expect(moved).to_contain_text("came;")
    found = watched.told("monitor/neighbours#")
    now, then = ({i["item_id"]: i["title"] for i in found[at]["items"]} for at in ("now", "then"))
    came = ", ".join(title for item, title in now.items() if item not in then)
    left = ", ".join(title for item, title in then.items() if item not in now)
    expect(moved).to_have_text(f"{came} came; {left} left.")
    spots = watched.page.locator(".scatter .spot")
    expect(spots).to_have_count(len(now.keys() | then.keys()))


def test_every_cell_of_the_heat_map_can_be_read(
    address: str, watch: Callable[..., Watched]
) -> None:
    watched = watch(f"{address}#items?item=318&user=user-1")
    page = watched.page
    cells = page.locator(".heatmap tbody td")
    expect(cells).to_have_count(56)
    found = watched.told("monitor/interactions#")
    values = [value for row in found["values"] for value in row]
    shown = cells.evaluate_all("all => all.map(one => Number(one.dataset.value))")
    assert shown == values
    cells.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    readout = page.get_by_test_id("readout")
    expect(readout).to_contain_text(f"{found['rows'][1]['title']} → {found['columns'][1]['title']}")
    number = float((readout.text_content() or "").split()[0])
    assert number == pytest.approx(found["values"][1][1], rel=6e-3)


def test_the_stream_is_filtered_paused_and_followed(
    address: str, watch: Callable[..., Watched], monitor: StillMonitor
) -> None:
    page = watch(f"{address}#live").page
    steps = page.get_by_test_id("stream").locator("li")
    expect(steps).to_have_count(60)
    page.locator("#live-user").fill("user-2")
    expect(steps.filter(has=page.locator(".user"))).to_have_count(9)
    expect(page.locator(".stream .user").first).to_have_text("user-2")
    page.locator("[data-stage='event'] button").first.click()
    way = page.get_by_test_id("way").locator("li")
    expect(way).to_have_count(4)  # the version, the answer, the event, the sample
    expect(page.locator(".stream .chosen")).to_have_count(3)
    page.locator("#title").click()
    page.keyboard.press("p")
    expect(page.get_by_test_id("pause")).to_have_attribute("aria-pressed", "true")
    monitor.steps = 64
    expect(page.locator("#page")).to_contain_text("4 steps since", timeout=10_000)
    page.locator("#live-user").fill("")  # what stands can be looked at all the same
    expect(steps).to_have_count(60)
    expect(steps.first).to_have_attribute("data-seq", "60")
    page.get_by_test_id("pause").click()
    expect(steps.first).to_have_attribute("data-seq", "64")


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_needs_no_sideways_scrolling(
    address: str, watch: Callable[..., Watched], monitor: StillMonitor, name: str
) -> None:
    monitor.alerts = [HELD, DRIFTS]
    page = watch(address, viewport={"width": 360, "height": 740}).page
    page.get_by_role("button", name="Menu").click()
    page.locator(f"#pages a[href='#{name}']").click()
    expect(page.locator("#nav")).to_be_hidden()
    open_page(page, name, "?item=318&user=user-1" if name == "items" else "")
    wide = page.evaluate("document.documentElement.scrollWidth")
    beyond = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(one => one.checkVisibility() &&"
        " one.getBoundingClientRect().right > 361).map(one => one.outerHTML.slice(0, 120))"
    )
    assert (wide, beyond) == (360, [])


CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const found = rgba(getComputedStyle(one).backgroundColor);
      if (found[3] === 255) return found;
    }
    return rgba("white");
  };
  return [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility()
      && !node.closest("svg, dialog, .unseen, .skip")
      && [...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim()))
    .map((node) => {
      const [a, b] = [light(rgba(getComputedStyle(node).color)), light(ground(node))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 100)];
    }).filter(([ratio]) => ratio < 4.5);
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_by_day_and_by_night(
    address: str, watch: Callable[..., Watched], monitor: StillMonitor, scheme: str
) -> None:
    monitor.alerts = [HELD, DRIFTS]
    page = watch(address, color_scheme=scheme).page
    for name in PAGES:
        open_page(page, name, "?item=318&user=user-1" if name == "items" else "")
        assert page.evaluate(CONTRAST) == [], name


def test_the_theme_can_be_chosen_and_is_kept(address: str, watch: Callable[..., Watched]) -> None:
    page = watch(address, color_scheme="light").page
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.keyboard.press("t")
    page.keyboard.press("t")
    expect(page.get_by_test_id("theme")).to_have_text("Theme: dark")
    assert page.evaluate(paper) != light
    page.reload()
    expect(page.get_by_test_id("theme")).to_have_text("Theme: dark")
    assert page.evaluate(paper) != light


def test_what_others_wrote_is_text(
    address: str, watch: Callable[..., Watched], monitor: StillMonitor
) -> None:
    monitor.title = monitor.reason = NASTY
    monitor.alerts = [{**HELD, "sentence": NASTY, "name": NASTY, "runbook": "javascript:alert(1)"}]
    page = watch(address).page
    for name in PAGES:
        open_page(page, name, "?item=318&user=user-1" if name == "items" else "")
        assert page.locator("main img, main script, main [href^='javascript']").count() == 0
        assert "hurt" not in page.title()
    open_page(page, "gate")
    expect(page.get_by_test_id("gate-history")).to_contain_text(NASTY)
    open_page(page, "items", "?item=318")
    expect(page.locator(".picture h3")).to_have_text(NASTY)


def test_a_system_that_has_just_begun_says_what_it_waits_for(
    address: str, watch: Callable[..., Watched], monitor: StillMonitor
) -> None:
    monitor.empty = True
    page = watch(address).page
    sentences = {
        "overview": "Nothing has come along yet",
        "live": "Nothing has happened since",
        "streaming": "no figures yet",
        "quality": "No impressions have met their labels yet",
        "gate": "No version has been checked yet",
        "dead-letters": "No event has been refused",
    }
    for name, sentence in sentences.items():
        open_page(page, name)
        expect(page.get_by_test_id("page")).to_contain_text(sentence)


def test_figures_stay_while_the_service_is_gone(
    service: Service, browser: Browser, monitor: StillMonitor
) -> None:
    app = create_app(service, ApiConfig())
    page = browser.new_page()
    with listening(app) as port:
        page.goto(f"http://127.0.0.1:{port}/dashboard")
        expect(page.get_by_test_id("freshness")).to_contain_text("taken by a replica")
    expect(page.get_by_test_id("banner")).to_contain_text("does not answer", timeout=15_000)
    expect(page.get_by_test_id("banner")).to_contain_text("What you see is of")
    expect(page.get_by_test_id("freshness")).to_contain_text("taken by a replica")
    with listening(app, port):
        expect(page.get_by_test_id("banner")).to_be_hidden(timeout=15_000)
        expect(page.locator("body")).to_have_attribute("data-state", "live")
        page.context.close()


def test_a_key_is_asked_for_sent_and_kept_for_the_tab(service: Service, browser: Browser) -> None:
    keys = {"ops": ApiKey(hashlib.sha256(b"open sesame").hexdigest(), "read")}
    with listening(create_app(service, ApiConfig(api_keys=keys))) as port:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/dashboard#quality")
        lock = page.get_by_test_id("lock")
        expect(lock).to_contain_text("a key is needed")
        page.keyboard.type("wrong")  # the field has the focus
        page.keyboard.press("Enter")
        expect(lock).to_contain_text("was not taken")
        page.locator("#key").fill("open sesame")
        page.keyboard.press("Enter")
        expect(lock).to_be_hidden()
        expect(page.get_by_test_id("slices")).to_contain_text("CTR")
        page.reload()
        expect(page.get_by_test_id("slices")).to_contain_text("CTR")
        assert page.evaluate("Object.keys(localStorage).includes('headrace.key')") is False
        page.context.close()


def test_where_nothing_is_watched_the_page_says_where_to_look(
    service: Service, browser: Browser
) -> None:
    with listening(create_app(replace(service, monitor=None), ApiConfig())) as port:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/dashboard")
        expect(page.get_by_test_id("absent")).to_contain_text("`headrace run`")
        expect(page.get_by_test_id("page")).to_be_hidden()
        page.context.close()


def test_a_tab_that_nobody_looks_at_asks_nothing(
    address: str, watch: Callable[..., Watched], monitor: StillMonitor
) -> None:
    page = watch(f"{address}#live").page
    expect(page.get_by_test_id("stream").locator("li")).to_have_count(60)
    hide = (
        "value => { Object.defineProperty(document, 'hidden', { value, configurable: true });"
        " document.dispatchEvent(new Event('visibilitychange')); }"
    )
    page.evaluate(hide, arg=True)
    page.wait_for_timeout(300)  # what was on its way has come
    asked = len(monitor.asked)
    page.wait_for_timeout(2_500)
    assert len(monitor.asked) == asked
    page.evaluate(hide, arg=False)
    with page.expect_response(re.compile("/v1/monitor/stream")):
        pass
    assert len(monitor.asked) > asked


def test_the_playground_and_the_dashboard_know_each_other(
    address: str, watch: Callable[..., Watched]
) -> None:
    page = watch(address).page
    page.get_by_role("link", name="Playground").click()
    page.get_by_role("link", name="Dashboard").click()
    expect(page.locator("#title")).to_have_text("Overview")
