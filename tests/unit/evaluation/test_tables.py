"""Tables: what may stand in one, what is marked, and text that no markup swallows."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from typing import Any

import pytest

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluation
from megasr.evaluation.protocol import get_protocol, published
from megasr.evaluation.tables import means_frame, rows_csv, text_table

PROTOCOL = get_protocol("stablesr-crops-v1")
KEYS = [f"image/{i}" for i in range(40)]


def evaluation(psnr: float, lpips: float = 0.3, **changes: object) -> Evaluation:
    made = Evaluation(
        protocol=PROTOCOL.name,
        fingerprint=PROTOCOL.fingerprint,
        rows=tuple({"key": key, "psnr": psnr, "lpips": lpips} for key in KEYS),
        means={"psnr": psnr, "lpips": lpips},
        intervals={"psnr": (psnr - 0.5, psnr + 0.25)},
        set_values={"fid": 130.256},
        skipped={"musiq": "no weights", "dists": "no weights"},
        data="drealsr",
        provenance={"benchmark_images": [40, 93]},
    )
    return replace(made, **changes)


def table(text: str) -> dict[str, list[str]]:
    """First cell -> other cells of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in cells}) == 1
    return {row[0]: row[1:] for row in cells}


def markdown(*arguments: Any, **options: Any) -> str:
    return text_table(*arguments, **options).markdown()


def test_markdown() -> None:
    # B and C are printed alike, so both are second; lower LPIPS is better; equal FIDs have no best.
    methods = [("A", evaluation(25.3, 0.31)), ("B", evaluation(25.101)), ("C", evaluation(25.102))]
    methods.append(("D", evaluation(24, 0.4, means={"psnr": 24.0}, skipped={"lpips": "broken", "musiq": "no weights"})))
    text = markdown(methods, intervals=True)
    rows = table(text)
    assert rows["Method"] == ["Images", "PSNR ↑", "LPIPS ↓", "FID ↓"]
    assert rows["A"] == ["40 of 93", "**25.30 [24.80, 25.55]**", "<u>0.3100</u>", "130.26"]
    assert rows["B"] == ["40 of 93", "<u>25.10 [24.60, 25.35]</u>", "**0.3000**", "130.26"]
    assert rows["C"][1:3] == ["<u>25.10 [24.60, 25.35]</u>", "**0.3000**"]
    assert rows["D"] == ["40 of 93", "24.00 [23.50, 24.25]", "–", "130.26"]
    assert f"**stablesr-crops-v1 ({PROTOCOL.fingerprint}), drealsr, 40 of 93 images**" in text
    assert "- Not taken: MUSIQ (no weights)." in text
    assert "- Not taken for A, B, C: DISTS (no weights)." in text
    assert "- Not taken for D: LPIPS (broken)." in text
    alone = markdown(methods[:1])
    assert table(alone)["A"] == ["40 of 93", "25.30", "0.3100", "130.26"]
    assert "bold" not in alone
    assert "bootstrap" not in alone


def test_published_rows_stand_apart_and_warn() -> None:
    rows = published(PROTOCOL.name, "drealsr")
    text = markdown([("mine", evaluation(30)), ("other", evaluation(29))], rows)
    cells = table(text)
    assert list(cells)[2:4] == ["mine", "other"]
    assert cells[r"SeeSR-50 \[1\]"] == ["93", "28.17", "0.3189", "147.39"]
    assert cells[r"SeeSR-50 \[3\]"] == ["93", "28.14", "0.3141", "–"]
    assert cells["mine"][1] == "**30.00**"
    assert r"- \[1\] OSEDiff (2406.08177) Table 1: as published, not measured here." in text
    assert "GDPO-SR (2603.16769): as published, as notes about the paper have it, not measured here." in text
    assert "- WARNING: these numbers are of 40 images, published ones of 93." in text
    whole = evaluation(30, rows=tuple({"key": str(i), "psnr": 30.0} for i in range(93)), provenance={})
    assert "WARNING" not in markdown([("mine", whole)], rows)
    assert table(markdown([("mine", whole)], rows))["mine"][0] == "93"
    only_psnr = evaluation(30, means={"psnr": 30.0}, set_values={})
    assert "Table 7" not in markdown([("mine", only_psnr)], [replace(r, values={"lpips": 0.1}) for r in rows])

    other = get_protocol("dreamclear-1024-v1")
    unknown = published(other.name, "realsr-1024")
    mine = evaluation(30, protocol=other.name, fingerprint=other.fingerprint, data="realsr-1024")
    assert "- WARNING: ? marks published numbers of an unknown number" in markdown([("mine", mine)], unknown)


FEW = tuple({"key": key, "psnr": 1.0} for key in [*KEYS[:39], "stranger"])


@pytest.mark.parametrize(
    ("other", "error", "says"),
    [
        ({"fingerprint": "12345678"}, UsageError, f"mine was measured under .* {PROTOCOL.fingerprint}, B .* 12345678"),
        ({"protocol": "whole-image-v1"}, UsageError, "B under whole-image-v1"),
        ({"rows": FEW}, UsageError, "2 are in one of them alone: image/39, stranger"),
        ({"data": "realsr"}, UsageError, "mine is of the set drealsr, B of realsr"),
        ({"label": "mine"}, UsageError, "labels of a table must differ: mine, mine"),
    ],
)
def test_what_cannot_be_compared_gets_no_table(other: dict, error: type[Exception], says: str) -> None:
    label = other.pop("label", "B")
    for write in (text_table, means_frame):
        with pytest.raises(error, match=says):
            write([("mine", evaluation(25)), (label, evaluation(24, **other))])


def test_a_nameless_set_and_a_changed_protocol() -> None:
    nameless = evaluation(25, data=None)
    assert "drealsr" in markdown([("A", nameless), ("B", evaluation(24))])
    assert "images of no named set" in markdown([("A", nameless)])
    for rows in (published(PROTOCOL.name, "drealsr"), published("whole-image-v1", "realsr-whole")):
        with pytest.raises(UsageError, match="these numbers cannot be compared"):
            markdown([("A", nameless)], rows)
    with pytest.raises(MegaSRError, match="taken under"):
        markdown([("A", evaluation(25, fingerprint="12345678"))])
    with pytest.raises(UsageError, match="no evaluations"):
        markdown([])


def test_no_text_is_markup() -> None:
    label = "[a] *b*_c|d & 50% $x$ #1 {y} ~^\\ <z>\nline"
    rows = list(table(markdown([(label, evaluation(25))])))
    assert re.sub(r"\\(.)", r"\1", rows[2]) == label.replace("\n", " ")
    text = text_table([(label, evaluation(25)), ("B", evaluation(24))], published(PROTOCOL.name, "drealsr")).latex()
    line = next(line for line in text.splitlines() if line.startswith("{[}"))
    assert line.startswith(
        r"{[}a] {*}b{*}\_c\textbar{}d \& 50\% \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{}"
        r"\textbackslash{} \textless{}z\textgreater{} line & 40 of 93 & \textbf{25.00} & 0.3000 & 130.26 \\"
    )
    assert r"B & 40 of 93 & \underline{24.00} & 0.3000" in text
    assert r"Method & Images & PSNR $\uparrow$ & LPIPS $\downarrow$ & FID $\downarrow$ \\" in text
    assert r"\caption{stablesr-crops-v1 (" in text
    assert r"\begin{tabular}{lrrrr}" in text
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended) == ["minipage", "table", "tabular"]


def test_csv_is_unrounded_and_says_what_it_is() -> None:
    mine = evaluation(25.123456789, intervals={"psnr": (24.9, 25.3)})
    bare = evaluation(24, intervals={}, skipped={})
    lines = list(
        csv.DictReader(
            io.StringIO(
                means_frame([("A, a", mine), ("B", bare)], published(PROTOCOL.name, "drealsr")).to_csv(index=False)
            )
        )
    )
    assert lines[0] == {
        "method": "A, a",
        "source": "measured",
        "steps": "",
        "images": "40",
        "set_images": "93",
        "protocol": PROTOCOL.name,
        "fingerprint": PROTOCOL.fingerprint,
        "data": "drealsr",
        "psnr": "25.123456789",
        "lpips": "0.3",
        "fid": "130.256",
        "psnr_low": "24.9",
        "psnr_high": "25.3",
        "skipped": "musiq: no weights; dists: no weights",
    }
    assert (lines[1]["psnr_low"], lines[1]["skipped"]) == ("", "")
    assert [lines[2][name] for name in ("method", "steps", "source", "images", "fid", "fingerprint")] == [
        *("StableSR", "200", "OSEDiff (2406.08177) Table 1", "93", "148.98", ""),
    ]
    rows = list(csv.DictReader(io.StringIO(rows_csv(mine))))
    assert [row["key"] for row in rows] == KEYS
    assert rows[0] == {
        "key": "image/0",
        "psnr": "25.123456789",
        "lpips": "0.3",
        "protocol": PROTOCOL.name,
        "fingerprint": PROTOCOL.fingerprint,
        "data": "drealsr",
    }


def test_other_versions_of_pyiqa_are_told_and_other_weights_refused() -> None:
    first = evaluation(25, provenance={"versions": {"pyiqa": "0.1.16"}, "weights": {"a.pth": "1"}})
    other = replace(first, provenance={"versions": {"pyiqa": "0.1.10"}, "weights": {"a.pth": "1"}})
    assert "WARNING: measured with different versions of pyiqa: 0.1.10, 0.1.16." in markdown(
        [("A", first), ("B", other)]
    )
    assert "versions" not in markdown([("A", first), ("B", first)])
    with pytest.raises(UsageError, match="two files a.pth, 1 and 2"):
        markdown([("A", first), ("B", replace(other, provenance={"weights": {"a.pth": "2"}}))])
