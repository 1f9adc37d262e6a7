"""A page in a browser, watched: what it complains of, and whether its numbers are the service's."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import ConsoleMessage, Page

SIZES = {"ms": 1e-3, "µs": 1e-6, "s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}


class Watched:
    """A page, what it complained of, and the newest JSON that it was given, by path."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.answers: dict[str, Any] = {}
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("response", self._note)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _note(self, response: Any) -> None:
        path = response.url.split("?")[0].partition("/v1/")[2]
        if path.startswith("monitor") and response.status == 200:
            self.answers[path] = response.json()

    def figures(self) -> list[dict[str, str]]:
        """The numbers on the page: `text` as people read it, `value`, its `unit`, and `figure`,
        where it stands in the answers.
        """
        script = "all => all.map(one => ({...one.dataset, text: one.textContent}))"
        return list(self.page.locator("[data-figure]").evaluate_all(script))

    def told(self, where: str) -> Any:
        """What stands at "monitor#freshness.0.p50_s" in the answers, once it has been noted."""
        for _ in range(50):
            try:
                return told(self.answers, where)
            except (KeyError, ValueError):
                self.page.wait_for_timeout(100)
        return told(self.answers, where)


def told(answers: dict[str, Any], where: str) -> Any:
    """What stands at "monitor#freshness.0.p50_s" in the answers."""
    path, _, keys = where.partition("#")
    found = answers[path]
    while keys:
        if isinstance(found, list):
            key, _, keys = keys.partition(".")
            found = found[int(key)]
        else:  # names may have dots and slashes in them
            name = max((n for n in found if f"{keys}.".startswith(f"{n}.")), key=len)
            found, keys = found[name], keys[len(name) + 1 :]
    return found


def read(text: str, unit: str) -> float:
    """The number that people read, in the unit that the service told it in."""
    digits, _, rest = text.replace(",", "").partition(" ")
    number = re.fullmatch(r"(-?[\d.]+(?:e[+-]?\d+)?)([KMB]?)(?:/s|/min)?", digits)
    if number is None:
        raise ValueError(f"{text!r} is no number")
    value = float(number[1]) * {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}[number[2]]
    if unit in ("s", "ms"):
        return value * SIZES[rest] * (1_000.0 if unit == "ms" else 1.0)
    return value * BYTES[rest] if unit == "bytes" else value
