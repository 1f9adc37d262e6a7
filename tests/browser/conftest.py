"""Chromium, and pages in it that may not complain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from benchmarks._browser import Watched

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--disable-quic",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        assert "HEADRACE_REQUIRE_BROWSER" not in os.environ, "Chromium is required and not there"
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def watch(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Opens pages; at the end none of them may have complained."""
    opened: list[Watched] = []

    def make(url: str, **options: Any) -> Watched:
        watched = Watched(browser.new_page(**options))
        opened.append(watched)
        watched.page.goto(url)
        return watched

    yield make
    complaints = [text for one in opened for text in one.complaints]
    for one in opened:
        one.page.context.close()
    assert complaints == []
