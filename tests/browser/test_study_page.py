"""A study's page as a person uses it. Every test also checks that nothing was fetched and nothing complained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from ablations.page import write_page
from tests.browser.conftest import Seen
from tests.helpers.comparison_page import column, numbers, ready, state
from tests.helpers.study_page import BEST, CONTROL, HOSTILE, REFERENCE, study_page, with_pictures

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("study")
    write_page(with_pictures(study_page(), folder, 3), folder / "page.html")
    return (folder / "page.html").as_uri()


@pytest.fixture
def open_page(windows: Callable[..., tuple[Page, Seen]], address: str) -> Iterator[Callable[..., Page]]:
    used: list[Seen] = []

    def opened(**settings: Any) -> Page:
        page, seen = windows(**{"viewport": {"width": 1440, "height": 900}, **settings})
        page.goto("about:blank")
        seen.problems.clear()
        seen.requests.clear()
        used.append(seen)
        page.goto(address)
        ready(page)
        return page

    yield opened
    for seen in used:
        assert not seen.problems
        assert {url.split("#")[0] for url in seen.requests if not url.startswith("blob:")} == {address}


def test_the_answer_comes_first_and_names_are_text(open_page: Callable[..., Page]) -> None:
    page = open_page()
    assert page.inner_text(".lead").startswith("Invented numbers: depth + hed is better")
    assert page.inner_text(".trust").startswith("Controls passed.")
    answer, ranking = page.locator(".trust").bounding_box(), page.locator("#ranking").bounding_box()
    assert answer is not None and ranking is not None
    assert answer["y"] + answer["height"] < ranking["y"] < 900
    assert HOSTILE in page.inner_text("#failed")
    assert HOSTILE in page.inner_text("#provenance")
    assert page.locator("[onerror]").count() == 0
    assert page.title() == "prior_selection \u2014 megasr study"


def test_every_figure_has_a_name_and_a_description(open_page: Callable[..., Page]) -> None:
    page = open_page()
    for name in ("ranking", "shapley", "synergy", "curves"):
        figure = page.locator(f"#{name} svg[role=img].wide")
        for attribute in ("aria-labelledby", "aria-describedby"):
            reference = figure.get_attribute(attribute)
            assert page.locator(f"#{reference}").text_content()


def test_ranking_sorts_by_any_column(open_page: Callable[..., Page]) -> None:
    page = open_page()

    def cells(number: int) -> list[str]:
        found = page.locator(f"#rows tbody tr > :nth-child({number})").all_inner_texts()
        return [one.split("\n")[0] for one in found]

    heads = page.locator("#rows thead th")
    assert cells(1)[0] == BEST
    assert heads.nth(1).get_attribute("aria-sort") == "descending"
    heads.nth(1).locator("button").click()
    assert numbers(cells(2)) == sorted(numbers(cells(2)))
    assert cells(1)[-1] == BEST
    heads.nth(0).locator("button").click()
    assert cells(1)[0] == "bicubic", "baselines are rows too"
    assert [heads.nth(i).get_attribute("aria-sort") for i in range(4)] == ["ascending", "none", "none", "none"]
    heads.nth(3).locator("button").click()
    for most_first in (True, False):
        *known, last = cells(4)
        assert last == "\u2013"  # unknown is neither the most nor the least
        shares = [int(share.removesuffix(" %")) for share in known]
        assert shares == sorted(shares, reverse=most_first)
        heads.nth(3).locator("button").click()


def test_two_combinations_are_compared_image_by_image(open_page: Callable[..., Page]) -> None:
    page = open_page()
    assert state(page)[1:3] == (REFERENCE, BEST)
    captions = "#crops figure:visible .name"
    assert page.locator(captions).all_inner_texts() == ["lq", BEST, REFERENCE, "hq"]
    page.locator("#rows .name", has_text=CONTROL).click()
    assert state(page)[1:3] == (REFERENCE, CONTROL)
    assert page.locator(captions).all_inner_texts() == ["lq", REFERENCE, CONTROL, "hq"]
    heads = page.locator("#scores thead button").all_inner_texts()
    assert [re.sub(r"\s+", " ", head).strip() for head in heads] == ["Image", REFERENCE, CONTROL, f"\u0394 {CONTROL}"]
    left, right, gaps = (numbers(column(page, number)) for number in (2, 3, 4))
    assert gaps == pytest.approx([b - a for a, b in zip(left, right, strict=True)], abs=2e-4)
    page.locator("#scores thead button").nth(3).click()
    assert numbers(column(page, 4)) == sorted(gaps)
    page.select_option("#right", label="hq")  # it has no scores: its columns go, and so does the order by them
    assert page.locator("#scores thead button").count() == 2
    page.focus("#divider")
    page.keyboard.press("End")
    assert page.get_attribute("#divider", "aria-valuenow") == "100"


def test_narrow_screens(open_page: Callable[..., Page]) -> None:
    page = open_page(viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("svg.narrow:visible").count() == 4
    assert page.locator("svg.wide:visible").count() == 0
    for figure in page.locator("svg.narrow").all():
        box = figure.bounding_box()
        assert box is not None
        assert box["x"] >= 0 and 340 <= box["width"] <= 390 - box["x"]


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_figures_follow_the_colour_scheme(open_page: Callable[..., Page], scheme: Literal["dark", "light"]) -> None:
    page = open_page()
    page.emulate_media(color_scheme=scheme)
    fill = "getComputedStyle(document.querySelector('#ranking .plot text')).fill.match(/\\d+/g).map(Number)"
    assert (min(page.evaluate(fill)) > 128) == (scheme == "dark")
