"""A study's page as a file: marks stand where their values are, text is text, and what cannot be shown is refused."""

from __future__ import annotations

import csv
import io
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ablations.page.content import Bar, Curve, Heat, StudyPage
from ablations.page.curves import curves_plot, path, spread, thinned, visible_losses
from ablations.page.heat import strength, synergy_plot
from ablations.page.page import write_page
from ablations.page.plots import legend, ranking_plot, shapley_plot
from ablations.page.svg import MINUS, Scale, decimals, element, number, text
from ablations.page.tables import csv_table, latex_table
from megasr.errors import MegaSRError, UsageError
from tests.helpers.study_page import BEST, CONTROL, HOSTILE, REFERENCE, study_page, with_pictures

PAGE = study_page()
NARROW_DOWN = {"rows": PAGE.rows[:3]}


def found(svg: str, tag: str, class_: str) -> list[ElementTree.Element]:
    return [one for one in ElementTree.fromstring(svg).iter(tag) if class_ in one.get("class", "").split()]


def place(mark: ElementTree.Element, name: str) -> float:
    return float(mark.get(name, "nan"))


def test_scale_and_its_ticks() -> None:
    scale = Scale(-2, 8, 100, 200)
    assert [scale.at(value) for value in (-2, 3, 8)] == [100, 150, 200]
    assert scale.ticks(5) == [-2, 0, 2, 4, 6, 8]
    assert Scale(0.013, 0.021, 0, 1).ticks(4) == pytest.approx([0.014, 0.016, 0.018, 0.02])


def test_numbers_have_a_true_minus_and_no_sign_at_zero() -> None:
    assert number(-0.0123, 3) == f"{MINUS}0.012"
    assert number(0.0123, 3, signed=True) == "+0.012"
    assert number(-0.0001, 3, signed=True) == "0.000"
    assert [decimals([value]) for value in (0.0123, 1.5, 250.0, 0.0)] == [4, 2, 0, 1]


def test_text_is_escaped_and_shortened() -> None:
    assert ElementTree.fromstring(text(HOSTILE, 0, 0)).text == HOSTILE
    short = ElementTree.fromstring(text("segmentation", 0, 0, room=40))
    assert short[0].text == "segmentation"
    assert (short[0].tail or "").endswith("\u2026")
    assert ElementTree.fromstring(element("g", class_=HOSTILE)).get("class") == HOSTILE


@pytest.mark.parametrize("wide", [True, False])
def test_ranking_places_every_interval_by_its_values(wide: bool) -> None:
    svg = ranking_plot(PAGE, wide)
    lines, rows = found(svg, "line", "interval"), PAGE.ranked
    assert len(lines) == len(rows) == 18
    assert [row.mean for row in rows] == sorted((row.mean for row in rows), reverse=True)
    zero = place(found(svg, "line", "zero")[0], "x1")
    one = lines[0]
    unit = (place(one, "x2") - place(one, "x1")) / (rows[0].high - rows[0].low)
    for drawn, row in zip(lines, rows, strict=True):
        assert place(drawn, "x1") == pytest.approx(zero + unit * row.low, abs=0.1)
        assert place(drawn, "x2") == pytest.approx(zero + unit * row.high, abs=0.1)
    heights = [place(drawn, "y1") for drawn in lines]
    assert heights == sorted(set(heights))
    better = [row.mean for row in rows if row.kind == "better"]
    xs = [place(mark, "cx") for mark in found(svg, "circle", "mark") if "better" in mark.get("class", "")]
    assert xs == pytest.approx([zero + unit * mean for mean in better], abs=0.1)
    # Neither the reference nor a control is a circle: their shape says what they are.
    assert len(found(svg, "path", "reference")) == len(found(svg, "rect", "control")) == 1


def test_the_smallest_difference_that_counts_is_a_band_around_zero() -> None:
    assert not found(ranking_plot(PAGE, True), "rect", "least")
    svg = ranking_plot(replace(PAGE, least_difference=0.004), True)
    (band,) = found(svg, "rect", "least")
    (zero,) = found(svg, "line", "zero")
    assert place(band, "x") + place(band, "width") / 2 == pytest.approx(place(zero, "x1"), abs=0.02)
    assert place(band, "width") > 5
    assert "lies beyond \u00b10.004" in legend(0.004) and "excludes zero" in legend()


def test_dots_show_the_combination() -> None:
    dots = found(ranking_plot(PAGE, True), "circle", "dot")
    types = PAGE.types
    for number_, row in enumerate(PAGE.ranked):
        mine = dots[number_ * len(types) : (number_ + 1) * len(types)]
        on = {name for name, dot in zip(types, mine, strict=True) if "on" in dot.get("class", "").split()}
        assert on == set(row.combination)


def test_shapley_bars_begin_at_zero() -> None:
    svg = shapley_plot([Bar("a", 0.4, 0.2, 0.6), Bar("b", -0.2, -0.5, 0.1)], "lpips", True)
    zero = place(found(svg, "line", "zero")[0], "x1")
    (up,), (down,) = found(svg, "rect", "positive"), found(svg, "rect", "negative")
    assert place(up, "x") == pytest.approx(zero, abs=0.01)
    assert place(down, "x") + place(down, "width") == pytest.approx(zero, abs=0.02)
    assert place(up, "width") == pytest.approx(2 * place(down, "width"), abs=0.02)


def test_synergy_is_hatched_where_zero_is_possible() -> None:
    heat = Heat(("a", "b", "c"), {("a", "b"): Bar("", 2, 1, 3), ("c", "a"): Bar("", -1, -2, 1)})
    svg = synergy_plot(heat, "lpips", True)
    assert [len(found(svg, "rect", kind)) for kind in ("positive", "negative", "unsure", "absent")] == [1, 0, 1, 1]
    assert found(svg, "rect", "unsure")[0].get("fill") == "url(#hatching-wide)"
    assert {one.text for one in found(svg, "text", "in-cell")} == {"+2.0", f"{MINUS}1.0"}
    half = Bar("", 1, 0.5, 1.5)
    assert strength(heat.cells["a", "b"], [heat.cells["a", "b"], half]) > strength(half, [heat.cells["a", "b"], half])


def test_curves_keep_peaks_gaps_and_last_values() -> None:
    across, up = Scale(0, 1000, 0, 10), Scale(0, 1, 100, 0)
    losses = [0.5] * 1000
    losses[333] = 1.0
    kept = thinned(enumerate(losses), across)
    assert (333, 1.0) in kept
    assert kept[-1] == (999, 0.5)
    assert len(kept) <= 44
    assert path(Curve("a", (0, 500, 600, 1000), (0, math.nan, 1, 0.5)), across, up) == "M0.0 100.0M6.0 0.0L10.0 50.0"
    assert [one.text for one in found(curves_plot([Curve("a", (0, 1), (0.5, 0.25))], True), "text", "value")] == [
        "0.250"
    ]


def test_a_steep_beginning_does_not_set_the_scale() -> None:
    steep = Curve("a", tuple(range(100)), (50.0, *[1.0, 1.2] * 49, 1.1))
    assert max(visible_losses([steep])) == 1.2
    assert "Cut off at the top" in curves_plot([steep], True)
    flat = Curve("a", tuple(range(100)), (*[1.0, 1.2] * 50,))
    assert "Cut off" not in curves_plot([flat], True)


def test_names_of_curves_do_not_overlap() -> None:
    placed = spread([50, 51, 52, 200, 199], 0, 200)
    assert sorted(placed) == [placed[i] for i in (0, 1, 2, 4, 3)]
    gaps = [b - a for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False)]
    assert min(gaps) >= 16
    assert max(placed) <= 200


def test_page_is_whole_without_pictures(tmp_path: Path) -> None:
    write_page(replace(PAGE, shapley=None, synergy=None, curves=(), failures=()), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert PAGE.answer[0] in page
    assert "No run failed." in page
    for absent in ('id="shapley"', 'id="synergy"', 'id="curves"', 'id="viewer"', HOSTILE, "http://", "https://"):
        assert absent not in page
    assert page.index("answer") < page.index('id="ranking"')


def test_page_with_pictures_is_whole_or_not_there(tmp_path: Path) -> None:
    page = with_pictures(replace(PAGE, **NARROW_DOWN), tmp_path / "pictures", 2)
    write_page(page, tmp_path / "page.html")
    written = (tmp_path / "page.html").read_text()
    assert len(re.findall(r'id="picture-\d+-\d+"', written)) == 2 * (3 + 3)
    assert HOSTILE not in written
    page.pictures[1].hq.write_bytes(b"")
    with pytest.raises(MegaSRError, match="cannot read"):
        write_page(page, tmp_path / "other.html")
    assert [one.name for one in tmp_path.glob("*.html*")] == ["page.html"]


def test_pictures_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    page = with_pictures(replace(PAGE, **NARROW_DOWN), tmp_path / "pictures", 2)
    first, second = page.pictures

    def refused(match: str, *pictures: object) -> None:
        with pytest.raises(UsageError, match=match):
            write_page(replace(page, pictures=pictures), tmp_path / "page.html")  # type: ignore[arg-type]

    refused("distinct keys", first, first)
    refused("of only one of", first, replace(second, restorations={}))
    refused("1 of 2 images", first, replace(second, bicubic=None))
    refused("cannot be called hq", *(replace(one, restorations={"hq": one.hq}) for one in page.pictures))


def test_content_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be drawn"):
        Bar("a", math.nan, 0, 1)
    with pytest.raises(UsageError, match="wrong way round"):
        Bar("a", 0, 1, -1)
    with pytest.raises(UsageError, match="share of images"):
        replace(PAGE.rows[1], wins=1.5)
    with pytest.raises(UsageError, match="do not increase"):
        Curve("a", (1, 1), (0.1, 0.2))
    with pytest.raises(UsageError, match="2 losses at 1 steps"):
        Curve("a", (1,), (0.1, 0.2))
    with pytest.raises(UsageError, match="may stand once"):
        Heat(("a", "b"), {("a", "b"): Bar("", 0, 0, 0), ("b", "a"): Bar("", 0, 0, 0)})
    with pytest.raises(UsageError, match="distinct labels"):
        replace(PAGE, rows=(PAGE.rows[0], PAGE.rows[0]))
    with pytest.raises(UsageError, match="which direction"):
        replace(PAGE, rows=(replace(PAGE.rows[0], means={"beauty": 1.0}),))


def test_csv_holds_every_number_unrounded() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_table(PAGE))))
    for line, row in zip(lines, PAGE.ranked, strict=True):
        assert line["combination"] == "+".join(row.combination)
        assert float(line["difference"]) == row.mean
        assert float(line["psnr_rgb"]) == row.means["psnr_rgb"]
        assert line["wins"] == ("" if row.wins is None else str(row.wins))


def test_latex_marks_the_best_and_escapes() -> None:
    page: StudyPage = replace(PAGE, question="50 % of a_b & c?", trust="#1")
    table = latex_table(page)
    assert r"50 \% of a\_b \& c?" in table
    assert r"\#1\par" in table
    bold = [line for line in table.splitlines() if r"\textbf" in line]
    assert len(bold) == 1
    assert bold[0].startswith(f"{BEST} & $+0.0300$ & $[+0.0254, +0.0346]$ & better & 92\\,\\%")
    assert bold[0].count(r"\textbf") == 2
    rows = [line for line in table.splitlines() if line.endswith(r"\\") and "$" in line]
    assert {line.count(" & ") for line in rows} == {7}
    assert any(line.startswith(CONTROL) for line in rows) and any(line.startswith(REFERENCE) for line in rows)


def test_a_control_is_never_the_best() -> None:
    control = next(row for row in PAGE.rows if row.label == CONTROL)
    page = replace(PAGE, rows=(*(r for r in PAGE.rows if r is not control), replace(control, means={"lpips": 0.01})))
    bold = [line for line in latex_table(page).splitlines() if r"\textbf" in line]
    assert [line.partition(" & ")[0] for line in bold] == [BEST]


def test_importing_the_page_does_not_import_torch() -> None:
    code = "import sys, ablations.page.page, ablations.page.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
