"""A study's page as a file: marks stand where their values are, text is text, figures are the same every time."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ablations.contact_sheet import _captions
from ablations.figures import COLORS, curves_figure, inline_svg, ranking_figure, shapley_figure, synergy_figure
from ablations.page import write_page
from ablations.tables import MINUS, decimals, interval_text, ranking_table, signed
from megasr.errors import MegaSRError
from megasr.evaluation.protocol import WEIGHT_FREE_V1
from tests.helpers.study_page import BEST, CONTROL, HOSTILE, REFERENCE, study_page, with_pictures

PAGE = study_page()
FEW = replace(PAGE, ranking=PAGE.ranking[:3])


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_numbers_have_a_true_minus_and_no_sign_at_zero() -> None:
    assert signed(-0.0123, 3) == f"{MINUS}0.012"
    assert signed(0.0123, 3) == "+0.012"
    assert signed(0.0123, 3, plus=False) == "0.012"
    assert signed(-0.0001, 3) == "0.000"
    assert [decimals([value]) for value in (0.0123, 1.5, 250.0, 0.0)] == [4, 2, 0, 1]
    assert interval_text(*(pd.Series([value]) for value in (0.5, -0.25, 1.25))) == [f"+0.500 [{MINUS}0.250, +1.250]"]


@pytest.mark.parametrize("wide", [True, False])
def test_ranking_places_every_interval_by_its_values(wide: bool) -> None:
    figure = ranking_figure(PAGE.ranking, "lpips", wide=wide)
    _, plot = figure.axes
    intervals = [collection.get_segments()[0] for collection in plot.collections]
    np.testing.assert_allclose([segment[:, 0] for segment in intervals], PAGE.ranking[["low", "high"]])
    heights = [segment[0, 1] for segment in intervals]
    assert heights == sorted(set(heights))
    _, *marks = plot.lines  # the first is zero
    np.testing.assert_allclose([line.get_xdata()[0] for line in marks], PAGE.ranking["difference"])
    markers = {row: line.get_marker() for row, line in zip(PAGE.ranking["label"], marks, strict=True)}
    assert (markers.pop(REFERENCE), markers.pop(CONTROL), set(markers.values())) == ("D", "s", {"o"})
    assert marks[0].get_markerfacecolor() == COLORS["better"]
    shown = texts(figure)
    assert sum(text.startswith(BEST) for text in shown) == 1
    assert "+0.0300 [+0.0254, +0.0346]" in shown
    assert ("shuffled maps (control)" in shown) == (not wide)


def test_the_smallest_difference_that_counts_is_a_band_around_zero() -> None:
    assert not ranking_figure(PAGE.ranking, "lpips").axes[1].patches
    (band,) = ranking_figure(PAGE.ranking, "lpips", least=0.004).axes[1].patches
    assert (band.get_x(), band.get_width()) == pytest.approx((-0.004, 0.008))


def test_dots_show_the_combination() -> None:
    words = ranking_figure(PAGE.ranking, "lpips").axes[0]
    off, on = words.lines
    assert (off.get_color(), on.get_color()) == (COLORS["rule"], COLORS["ink"])
    assert len(off.get_xdata()) + len(on.get_xdata()) == 5 * len(PAGE.ranking)
    per_row = np.unique(on.get_ydata(), return_counts=True)[1].tolist()
    assert per_row == [len(combination.split("+")) for combination in PAGE.ranking["combination"] if combination]


def test_shapley_bars_begin_at_zero() -> None:
    worth = pd.DataFrame({"label": ["a", "b"], "mean": [0.4, -0.2], "low": [0.2, -0.5], "high": [0.6, 0.1]})
    up, down = shapley_figure(worth, "lpips").axes[1].patches
    assert (up.get_x(), up.get_width(), down.get_x(), down.get_width()) == pytest.approx((0, 0.4, 0, -0.2))
    assert [to_hex(bar.get_facecolor()) for bar in (up, down)] == [COLORS["accent"], COLORS["worse"]]


def test_synergy_is_hatched_where_zero_is_possible() -> None:
    pairs = [("a", "b", 2.0, 1.0, 3.0), ("c", "a", -1.0, -2.0, 1.0), ("d", "a", 1.0, 0.5, 1.5)]
    figure = synergy_figure(pd.DataFrame(pairs, columns=["first", "second", "mean", "low", "high"]))
    cells = figure.axes[0].patches
    assert [cell.get_hatch() for cell in cells] == [None, "////", *[None] * 4]  # ab, ac, bc, ad, bd, cd
    assert [cell.get_linestyle() for cell in cells].count("--") == 3  # not measured
    strongest, half = cells[0].get_alpha(), cells[3].get_alpha()
    assert strongest is not None and half is not None and strongest > half > 0
    assert {"+2.0", f"{MINUS}1.0", "–"} <= set(texts(figure))


def test_curves_are_named_in_the_order_of_their_last_values_and_a_steep_beginning_is_cut_off() -> None:
    steep = pd.DataFrame({"a": [50.0, *[1.0, 1.2] * 49, 1.1], "b": [40.0, *[1.1, 1.3] * 49, 1.3]})
    figure = curves_figure(steep, "training loss")
    plot = figure.axes[1]
    assert [text.get_text() for text in plot.get_legend().get_texts()] == ["1.30  b", "1.10  a"]
    assert 1.3 < plot.get_ylim()[1] < 1.4
    assert any("Cut off at the top" in text for text in texts(figure))
    steep.loc[5, "a"] = np.nan
    assert len(curves_figure(steep[1:], "training loss").axes[1].lines[1].get_xdata()) == 98
    assert not texts(curves_figure(steep[1:], "training loss"))


def test_a_figure_is_text_of_the_page_and_the_same_every_time() -> None:
    ranking = PAGE.ranking.assign(label=[f"{HOSTILE} $x$ {number}" for number in range(len(PAGE.ranking))])
    once, again = (inline_svg(ranking_figure(ranking, "lpips"), "ranking-wide", HOSTILE, "a < b") for _ in range(2))
    assert once == again
    assert 'class="plot wide"' in once and "a &lt; b" in once
    for absent in ("<img", "style=", "<style", "http", "#1c1d1f", "<metadata"):
        assert absent not in once
    assert 'fill="var(--ink)"' in once
    assert once.count("<text") > 3 * len(ranking)


def test_page_is_whole_without_pictures(tmp_path: Path) -> None:
    nothing = {name: getattr(PAGE, name)[:0] for name in ("worth", "synergies", "curves")}
    write_page(replace(PAGE, **nothing, failures={}, provenance={}), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert PAGE.answer[0] in page
    assert "No run failed." in page
    for absent in ('id="shapley"', 'id="synergy"', 'id="curves"', 'id="viewer"', 'id="expected"', HOSTILE):
        assert absent not in page
    assert not re.search("https?://", page)
    assert page.index('class="answer"') < page.index('id="ranking"')
    write_page(replace(FEW, hypotheses={BEST: "It helps."}, least_difference=0.004), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "It helps. <strong>better</strong>" in page
    assert "lies beyond ±0.004" in page


def test_the_page_says_whether_controls_passed_or_one_is_missing(tmp_path: Path) -> None:
    for trusted, says in ((True, "Controls passed."), (False, "Controls failed."), (None, "A control is missing.")):
        write_page(replace(FEW, trusted=trusted), tmp_path / "page.html")
        assert f"<strong>{says}</strong> {PAGE.trust}" in (tmp_path / "page.html").read_text()


def test_page_with_pictures_is_whole_or_not_there(tmp_path: Path) -> None:
    page = with_pictures(FEW, tmp_path / "pictures", 2)
    write_page(page, tmp_path / "page.html")
    written = (tmp_path / "page.html").read_text()
    assert len(re.findall(r'id="picture-\d+-\d+"', written)) == 2 * (3 + 3)
    assert HOSTILE not in written
    page.pictures["hq"][HOSTILE].write_bytes(b"")
    with pytest.raises(MegaSRError, match="cannot read"):
        write_page(page, tmp_path / "other.html")
    assert [one.name for one in tmp_path.glob("*.html*")] == ["page.html"]


def test_latex_marks_the_best_and_escapes() -> None:
    table = ranking_table(PAGE.ranking, PAGE.metrics, "50 % of a_b & c?", ["#1"]).latex()
    assert r"50 \% of a\_b \& c?" in table
    assert r"\#1\par" in table
    bold = [line for line in table.splitlines() if r"\textbf" in line]
    assert len(bold) == 1
    assert bold[0].startswith(rf"{BEST} & +0.0300 & {{[}}+0.0254, +0.0346] & better & 92\%")
    assert bold[0].count(r"\textbf") == 2
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in rows} == {7}
    assert any(line.startswith(CONTROL) for line in rows) and any(line.startswith(REFERENCE) for line in rows)


def test_a_control_is_never_the_best() -> None:
    ranking = PAGE.ranking.copy()
    ranking.loc[ranking["label"] == CONTROL, "lpips"] = 0.01
    bold = [line for line in ranking_table(ranking, PAGE.metrics, "").latex().splitlines() if r"\textbf" in line]
    assert [line.partition(" & ")[0].strip() for line in bold] == [BEST]


def test_captions_of_the_contact_sheet_mark_the_best_combination_by_the_direction_of_the_metric() -> None:
    psnr, gmsd = (WEIGHT_FREE_V1.metric(name) for name in ("psnr_y", "gmsd"))
    assert _captions([23.456, 20.0, 19.0], psnr, 1) == [("23.46", False), ("20.00", True), ("19.00", False)]
    assert _captions([0.1, 0.21, 0.32], gmsd, 1) == [("0.100", False), ("0.210", True), ("0.320", False)]
    assert _captions([0.1, 0.21, 0.32], gmsd, 2) == [("0.100", False), ("0.210", False), ("0.320", True)]
