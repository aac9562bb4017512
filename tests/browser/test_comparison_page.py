"""The comparison page as a person uses it. Every test also checks that nothing was fetched and nothing complained."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from megasr.evaluation.comparison import Method, write_page
from megasr.evaluation.evaluator import Evaluation
from megasr.evaluation.protocol import get_protocol
from megasr.images import write_png
from tests.helpers.comparison_page import (
    HEIGHT,
    HOSTILE,
    KEYS,
    LABELS,
    SCORES,
    WIDTH,
    A,
    B,
    Made,
    check_crops,
    check_split,
    column,
    luminance,
    numbers,
    point,
    ready,
    state,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import Seen


def test_crops_follow_the_pointer_together(look: Callable[..., Page], made: Made) -> None:
    page = look()
    page.locator("#viewer").scroll_into_view_if_needed()
    seen = set()
    for x, y in ((40, 30), (80, 60), (0, 95)):
        page.mouse.move(*point(page, x, y))
        left, top, width, height = check_crops(page, made, KEYS[0])
        for at, start, length, end in ((x, left, width, WIDTH), (y, top, height, HEIGHT)):
            assert start in (0, end - length) or abs(start + length / 2 - at) <= 1.5
        seen.add((left, top))
    assert len(seen) == 3

    page.keyboard.press("+")
    smaller = check_crops(page, made, KEYS[0])
    assert smaller[2] < width
    assert smaller[3] < height
    drawn = page.locator("#box").bounding_box()
    stage = page.locator("#stage").bounding_box()
    assert drawn is not None and stage is not None
    assert drawn["width"] / stage["width"] == pytest.approx(smaller[2] / WIDTH, abs=0.01)
    assert (drawn["x"] - stage["x"]) / stage["width"] == pytest.approx(smaller[0] / WIDTH, abs=0.01)

    page.mouse.move(*point(page, 40, 50))
    page.mouse.down()
    page.mouse.up()
    held = check_crops(page, made, KEYS[0])
    page.mouse.move(*point(page, 90, 20))
    assert check_crops(page, made, KEYS[0]) == held
    page.focus("#box")
    page.keyboard.press("ArrowRight")
    assert check_crops(page, made, KEYS[0])[0] == held[0] + 1


def test_divider_moves_by_mouse_and_keys(look: Callable[..., Page], made: Made) -> None:
    page = look()
    page.keyboard.press("8")  # there is no such picture
    assert check_split(page, made, KEYS[0], A, B) == WIDTH // 2
    page.mouse.move(*point(page, WIDTH / 2 - 0.5, 20))
    page.mouse.down()
    page.mouse.move(*point(page, WIDTH / 4 - 0.5, 20), steps=3)
    page.mouse.up()
    assert check_split(page, made, KEYS[0], A, B) == WIDTH // 4
    for key, value in (("End", 100), ("ArrowLeft", 99), ("Shift+ArrowLeft", 89), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        assert page.get_attribute("#divider", "aria-valuenow") == str(value)
    check_split(page, made, KEYS[0], A, B)
    page.keyboard.press("End")
    page.select_option("#left", label="lq")
    page.keyboard.press("Shift+Digit4")
    ready(page)
    check_split(page, made, KEYS[0], "lq", "hq")


def test_table_sorts_filters_and_changes_its_metric(look: Callable[..., Page]) -> None:
    page = look()
    heads = page.locator("#scores thead th")
    assert column(page, 1) == [HOSTILE, "photo 2", "photo 10"]  # by name, numbers as numbers
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"
    heads.nth(2).locator("button").click()
    assert numbers(column(page, 3)) == sorted(SCORES[B]["psnr_y"])
    page.keyboard.press("Enter")  # the head keeps the focus
    assert numbers(column(page, 3)) == sorted(SCORES[B]["psnr_y"], reverse=True)
    assert [heads.nth(i).get_attribute("aria-sort") for i in range(4)] == ["none", "none", "descending", "none"]
    heads.nth(3).locator("button").click()
    assert numbers(column(page, 4)) == [-2, 0.5, 7]
    assert column(page, 1) == ["photo 2", "photo 10", HOSTILE]
    assert page.locator("#scores tbody strong").all_inner_texts() == ["30.00", "25.50", "27.00"]

    page.locator("#images select").select_option("gmsd")
    assert numbers(column(page, 4)) == pytest.approx([-0.2, 0.05, 0.05])
    assert page.locator("#scores tbody strong").all_inner_texts() == ["0.1000", "0.1000", "0.2000"]
    assert page.locator("#scores .better").all_inner_texts() == ["\N{MINUS SIGN}0.2000"]
    assert page.locator("#crops .score").all_inner_texts()[1:3] == ["0.1000 best", "0.1500"]
    page.fill("#filter", "PHOTO")
    assert column(page, 1) == ["photo 2", "photo 10"]
    page.locator("#scores tbody tr").nth(1).click()
    ready(page)
    assert state(page)[0] == "photo 10"
    assert page.locator("#scores tr[aria-current=true]").inner_text().startswith("photo 10")


def test_means_directions_and_origin_of_the_numbers(look: Callable[..., Page]) -> None:
    page = look()
    assert page.locator("#means thead th").all_inner_texts()[1:] == [
        "psnr_y ↑\nhigher is better",
        "gmsd ↓\nlower is better",
    ]
    assert page.locator("#means strong").all_inner_texts() == ["26.83", "0.1667"]
    assert (
        page.locator("#means tbody").first.locator("tr").nth(1).locator("td").first.inner_text()
        == "26.83\n[25.50, 28.00]"
    )
    difference = page.locator("#means tbody").nth(1).locator("tr").nth(1).locator("td").first
    assert difference.inner_text().startswith("+1.83\n[")
    assert "better" not in (difference.get_attribute("class") or "")  # its interval includes zero
    header = page.inner_text("header")
    for text in ("weight-free-v1", get_protocol("weight-free-v1").fingerprint, "0123456789ab", "2026-11-23", "0.1.16"):
        assert text in header
    page.locator("#skipped summary").click()
    assert page.inner_text("#skipped li") == "fsim: <i>not asked for</i>"
    assert page.is_hidden("#lossy")


def test_names_are_shown_and_never_parsed(look: Callable[..., Page]) -> None:
    page = look()
    page.keyboard.press("k")
    ready(page)
    assert state(page)[0] == HOSTILE
    assert page.inner_text("h1") == f"{A}, {B}"
    assert page.title() == f"{A}, {B} — megasr compare"
    assert page.locator("[onerror], main b").count() == 1  # the name of the skipped metric
    assert page.locator("#left option").all_text_contents() == list(LABELS)


def test_keys(look: Callable[..., Page], made: Made) -> None:
    page = look()
    first = state(page)
    assert first == ("photo 2", A, B, "4×")
    for key, expected in [
        ("j", ("photo 10", A, B, "4×")),
        ("ArrowRight", ("photo 10", A, B, "4×")),  # it is the last one
        ("ArrowLeft", ("photo 2", A, B, "4×")),
        ("k", (HOSTILE, A, B, "4×")),
        ("Digit4", (HOSTILE, "hq", B, "4×")),
        ("Shift+Digit1", (HOSTILE, "hq", "lq", "4×")),
        ("x", (HOSTILE, "lq", "hq", "4×")),
        ("-", (HOSTILE, "lq", "hq", "3×")),
        ("+", (HOSTILE, "lq", "hq", "4×")),
    ]:
        page.keyboard.press(key)
        ready(page)
        assert state(page) == expected, key
    check_crops(page, made, HOSTILE)
    for key, image in (("j", "photo 10"), ("k", HOSTILE)):  # faster than pictures are decoded, and no key is lost
        press = f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{ key: '{key}', bubbles: true }}))"
        page.evaluate(f"{press}; {press}")
        ready(page)
        assert state(page)[0] == image
        check_crops(page, made, image)
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("j")  # what lies behind the list stays as it is
    page.keyboard.press("Escape")
    assert page.locator("dialog").is_hidden()
    page.focus("#filter")
    page.keyboard.type("x1j")
    ready(page)
    assert state(page) == (HOSTILE, "lq", "hq", "4×")


def test_a_link_restores_the_view(look: Callable[..., Page], made: Made) -> None:
    page = look()
    page.keyboard.press("k")
    ready(page)
    for key in ("1", "Shift+Digit4", "+", "+"):
        page.keyboard.press(key)
    page.locator("#viewer select.metric").select_option("gmsd")
    page.mouse.move(*point(page, 70, 40))
    region = check_crops(page, made, HOSTILE)
    page.wait_for_url(re.compile("left=lq.*right=hq.*zoom=8.*score=gmsd"))
    fragment = page.url[page.url.index("#") :]
    wrong = look("#image=absent&left=C&zoom=5&x=-1&y=z&score=lpips")
    assert state(wrong) == ("photo 2", A, B, "4×")
    restored = look(fragment)
    assert state(restored) == (HOSTILE, "lq", "hq", "8×")
    assert check_crops(restored, made, HOSTILE) == region
    assert restored.locator("#images select").input_value() == "gmsd"
    restored.evaluate("location.hash = 'image=photo+10&zoom=2'")  # a link to another view of the page that is open
    restored.wait_for_function("document.getElementById('zoom').textContent === '2×'")
    ready(restored)
    assert state(restored) == ("photo 10", "lq", "hq", "2×")


def test_narrow_screens_and_fingers(look: Callable[..., Page], made: Made) -> None:
    page = look(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for element in page.locator(":is(h1, .bar button, .bar select, .bar input, #stage, #crops figure, .scroll)").all():
        box = element.bounding_box()
        assert box is not None
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360, element.inner_text()
    page.locator("#divider").scroll_into_view_if_needed()
    page.touchscreen.tap(*point(page, 100, 30))
    left, _, width, _ = check_crops(page, made, KEYS[0])
    assert left + width / 2 == pytest.approx(100, abs=2) or left == WIDTH - width
    touch = page.context.new_cdp_session(page)
    for kind, x in (("touchStart", WIDTH / 2), ("touchMove", WIDTH * 0.6), ("touchMove", WIDTH * 0.75)):
        at = dict(zip("xy", point(page, x - 0.5, 15), strict=True))
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [at]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert page.get_attribute("#divider", "aria-valuenow") == "75"
    table = page.locator("#means").locator("..")
    assert table.evaluate("box => box.scrollWidth >= box.clientWidth && getComputedStyle(box).overflowX") == "auto"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_both_colour_schemes_can_be_read(look: Callable[..., Page], scheme: Literal["dark", "light"]) -> None:
    page = look()
    page.emulate_media(color_scheme=scheme)
    script = """names => names.map(name => {
      document.body.style.color = `var(--${name})`;
      return getComputedStyle(document.body).color.match(/\\d+/g).map(Number);
    })"""
    paper, shade, *inks = (
        luminance(c) for c in page.evaluate(script, ["paper", "shade", "ink", "quiet", "better", "worse"])
    )
    background = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert luminance(background) == paper
    assert (paper < 0.05) == (scheme == "dark")
    for ink in inks:
        for ground in (paper, shade):
            low, high = sorted((ink, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2.2, 1.4.3


def test_metrics_that_disagree_are_told_and_their_correlations_are_shown(
    windows: Callable[..., tuple[Page, Seen]], tmp_path: Path
) -> None:
    keys = [f"photo {number}" for number in range(9)]
    hard, noise = np.arange(9.0), np.array([3, 1, 4, 1, 5, 9, 2, 6, 5]) / 100
    files = {key: tmp_path / f"{key}.png" for key in keys}
    for file in files.values():
        write_png(np.zeros((8, 8, 3), np.uint8), file)
    methods = []
    for label, gain in (("first", 0.0), ("second", 1.0)):
        scores = {"psnr_y": hard + gain * (1 + noise), "gmsd": hard + gain * (1 + noise)}
        rows = [{"key": key, **{name: values[i] for name, values in scores.items()}} for i, key in enumerate(keys)]
        means = {name: float(values.mean()) for name, values in scores.items()}
        protocol = get_protocol("weight-free-v1")
        methods.append(Method(label, Evaluation(protocol.name, protocol.fingerprint, tuple(rows), means), files))
    write_page(tmp_path / "page.html", methods)
    page, seen = windows()
    page.goto((tmp_path / "page.html").as_uri())
    told = page.locator("#conflicts")
    assert told.is_visible()
    assert told.inner_text().startswith("second against first: metrics disagree: better in psnr_y, worse in gmsd.")
    page.locator("#correlations summary").click()
    cells = [row.split("\t") for row in page.locator("#correlations table").inner_text().splitlines()]
    assert cells == [["", "psnr_y", "gmsd"], ["psnr_y", "+1.00", "-1.00"], ["gmsd", "-1.00", "+1.00"]]
    assert "gains of 1 method over the first on 9 images" in page.locator("#correlations summary").inner_text()
    assert not seen.problems
