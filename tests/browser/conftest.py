"""A headless Chromium, started once per module that needs one, and windows in it that note what happens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.comparison_page import Made, make_page, ready

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Seen:
    """What the browser reported."""

    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's own Chromium: nothing is downloaded."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"needs {' or '.join(_NAMES[::2])}: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    with playwright.sync_playwright() as driver:
        # Chromium refuses to run in its sandbox as root, which containers are.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = driver.chromium.launch(executable_path=program, headless=True, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The page under test."""
    return make_page(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="module")
def windows(browser: Browser) -> Iterator[Callable[..., tuple[Page, Seen]]]:
    """Windows by their settings; a window is used again, because opening one takes as long as a test."""
    opened: dict[str, tuple[Page, Seen]] = {}

    def window(**settings: Any) -> tuple[Page, Seen]:
        name = repr(sorted(settings.items()))
        if name not in opened:
            page, seen = browser.new_context(**settings).new_page(), Seen()
            page.on("console", lambda message: seen.problems.append(message.text))
            page.on("pageerror", lambda error: seen.problems.append(str(error)))
            page.on("request", lambda request: seen.requests.append(request.url))
            opened[name] = page, seen
        return opened[name]

    yield window
    for page, _ in opened.values():
        page.context.close()


@pytest.fixture
def look(windows: Callable[..., tuple[Page, Seen]], made: Made) -> Iterator[Callable[..., Page]]:
    """Opens the page; afterwards nothing may have been fetched, and no error may have been reported."""
    used: list[Seen] = []

    def opened(fragment: str = "", **settings: Any) -> Page:
        page, seen = windows(**{"viewport": {"width": 1280, "height": 900}, **settings})
        page.goto("about:blank")  # a new fragment alone would not load the page anew
        seen.problems.clear()
        seen.requests.clear()
        used.append(seen)
        page.goto(f"{made.address}{fragment}")
        ready(page)
        return page

    yield opened
    for seen in used:
        assert not seen.problems
        fetched = {url.split("#")[0] for url in seen.requests if not url.startswith("blob:")}
        assert fetched == {made.address}
