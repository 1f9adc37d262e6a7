"""The playground in a real browser, on a real service."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

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
