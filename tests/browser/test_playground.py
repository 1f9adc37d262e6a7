"""The playground in a real browser, on a real service."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Route, expect

from benchmarks._browser import Watched
from benchmarks._service import Service

pytestmark = pytest.mark.browser


@pytest.fixture
def page(running: Service, watch: Callable[..., Watched]) -> Page:
    return watch(running.url).page


def shown(page: Page) -> list[str | None]:
    """The item ids of the recommendations on the page, in order."""
    cards = page.get_by_test_id("recommendation").all()
    return [card.get_attribute("data-item-id") for card in cards]


def test_a_visitor_searches_rates_and_sees_the_answer_change(page: Page) -> None:
    expect(page.get_by_test_id("recommendation").first).to_be_visible(timeout=15_000)
    before = shown(page)
    page.get_by_test_id("search").fill("shawshank")
    found = page.get_by_test_id("result").and_(page.locator("[data-item-id='318']"))
    found.get_by_test_id("rate-5").click()
    answer = page.get_by_test_id("answer-ms").and_(page.locator("[data-ms]"))
    expect(answer).to_be_attached(timeout=15_000)
    expect(page.get_by_test_id("learnt-ms").and_(page.locator("[data-ms]"))).to_be_attached(
        timeout=15_000
    )
    assert 0 < float(answer.get_attribute("data-ms") or 0) < 15_000
    assert shown(page) != before
    assert "318" not in shown(page)
    expect(page.get_by_test_id("rated")).to_have_attribute("data-item-id", "318")


def test_a_new_visitor_starts_over(page: Page) -> None:
    expect(page.get_by_test_id("recommendation").first).to_be_visible(timeout=15_000)
    page.get_by_test_id("recommendation").first.get_by_test_id("rate-4").click()
    expect(page.get_by_test_id("rated")).to_have_count(1)
    page.get_by_test_id("new-visitor").click()
    expect(page.get_by_test_id("rated")).to_have_count(0)


def test_the_keyboard_is_enough(page: Page) -> None:
    expect(page.get_by_test_id("recommendation").first).to_be_visible(timeout=15_000)
    page.keyboard.press("/")
    page.keyboard.type("toy story")
    expect(page.locator("[data-testid='result'][data-item-id='1']")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("5")
    expect(page.get_by_test_id("rated")).to_have_count(1, timeout=5_000)


def test_the_status_is_live(page: Page) -> None:
    expect(page.get_by_test_id("status")).to_have_attribute("data-state", "live", timeout=15_000)
    expect(page.get_by_test_id("status")).to_contain_text(re.compile(r"recall", re.IGNORECASE))


def test_it_says_why_the_order_is_as_it_is(page: Page) -> None:
    expect(page.get_by_test_id("recommendation").first).to_be_visible(timeout=15_000)
    expect(page.get_by_test_id("formula")).to_be_hidden()
    page.get_by_test_id("why").check()
    card = page.get_by_test_id("recommendation").first
    expect(card.get_by_test_id("task-share")).to_contain_text("%")
    expect(page.get_by_test_id("formula")).to_contain_text("No ranker has learnt enough yet")
    page.reload()  # it is remembered
    expect(page.get_by_test_id("why-card").first).to_be_visible(timeout=15_000)
    page.get_by_test_id("why").uncheck()
    expect(page.get_by_test_id("why-card")).to_have_count(0)
    expect(page.get_by_test_id("formula")).to_be_hidden()


def test_it_shows_what_a_ranker_predicts_and_what_that_weighs(page: Page) -> None:
    def with_ranker(route: Route) -> None:
        answer = route.fetch().json()
        for place, item in enumerate(answer["items"]):
            item["why"]["tasks"] |= {"click": 0.5 / (1 + place), "watch": 0.0004}
        answer["ranker"] = "mmoe/a/7"
        answer["fusion"] = {"how": "product", "weights": {"share": 0.5, "click": 1.0}, "powers": {}}
        route.fulfill(json=answer)

    expect(page.get_by_test_id("recommendation").first).to_be_visible(timeout=15_000)
    page.route("**/v1/recommend*", with_ranker)
    page.get_by_test_id("why").check()
    tasks = page.get_by_test_id("task-click")
    first, second = tasks.nth(0), tasks.nth(1)
    expect(first).to_contain_text("50%")
    expect(second.locator(".bar i")).to_have_attribute("style", "width: 50%;")
    expect(page.get_by_test_id("task-watch").first).to_have_class("idle")  # it has no weight
    expect(page.get_by_test_id("task-watch").first).to_contain_text("<0.1%")
    expect(page.get_by_test_id("formula")).to_contain_text("your next choice0.5 × click")
    expect(page.get_by_test_id("formula")).to_contain_text("mmoe/a/7")
