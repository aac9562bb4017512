"""Names of files, runs, labels and tags are text on every page that is written, whatever they look like."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.page import write_page as write_study_page
from megasr.evaluation.comparison import Method, write_page
from megasr.evaluation.evaluator import Evaluation
from megasr.evaluation.protocol import get_protocol
from megasr.images import write_png
from tests.helpers.study_page import study_page, with_pictures

MARKUP = '</script></title></style><script>alert(1)</script><img src=x onerror=alert(1)>\'" onload="alert(1)<!--'


class Outline(HTMLParser):
    """What a browser would make of a page: its elements and their attributes, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements, self.attributes = Counter[str](), set[str]()
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count it."""
        self.elements[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        """The text of a script."""
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def hostile(value: Any) -> Any:
    """Every text in some content with markup behind it; equal texts stay equal."""
    if isinstance(value, str):
        return value and value + MARKUP
    if isinstance(value, dict):
        return {hostile(key): hostile(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(hostile, value))
    if isinstance(value, pd.DataFrame):  # the columns of a table are our own
        return value.map(hostile)
    return value


def check_same_elements(plain: str, broken: str) -> dict[str, Any]:
    """Both have the same kinds of elements and attributes, and as many scripts. Returns the data of the second."""
    before, after = Outline(plain), Outline(broken)
    assert set(after.elements) == set(before.elements)
    assert after.elements["script"] == before.elements["script"]
    assert after.attributes == before.attributes
    assert MARKUP not in broken
    data = [script for script in after.scripts if script.startswith("{")]
    assert len(data) == 1
    found: dict[str, Any] = json.loads(data[0])
    return found


def test_a_study_page_has_no_markup_of_others(tmp_path: Path) -> None:
    plain = with_pictures(study_page(), tmp_path / "pictures", 2)
    own = {"lq", "hq", "bicubic"}  # names of pictures

    def label(name: str) -> str:
        return name if name in own else name + MARKUP

    texts = ("title", "question", "answer", "trust", "ranking", "hypotheses", "worth", "synergies", "curves_axis",
             "curves_note", "failures", "notes", "provenance")  # fmt: skip
    broken = replace(
        plain,
        **{name: hostile(getattr(plain, name)) for name in texts},
        curves=plain.curves.rename(columns=label),
        pictures={
            label(name): {key + MARKUP: file for key, file in files.items()} for name, files in plain.pictures.items()
        },
        scores={label(name): scores.rename(index=lambda key: key + MARKUP) for name, scores in plain.scores.items()},
    )
    verdicts = broken.ranking["verdict"].str.replace("reference" + MARKUP, "reference", regex=False)
    broken = replace(broken, ranking=broken.ranking.assign(verdict=verdicts))
    write_study_page(plain, tmp_path / "plain.html")
    write_study_page(broken, tmp_path / "broken.html")
    data = check_same_elements((tmp_path / "plain.html").read_text(), (tmp_path / "broken.html").read_text())
    assert [image["key"] for image in data["images"]] == list(broken.pictures["hq"])


def test_a_comparison_page_has_no_markup_of_others(tmp_path: Path) -> None:
    write_png(np.zeros((16, 16, 3), np.uint8), tmp_path / "image.png")
    for name, markup in (("plain", ""), ("broken", MARKUP)):
        key = f"image{markup}"
        pictures = {key: tmp_path / "image.png", f"{key} 2": tmp_path / "image.png"}
        evaluation = Evaluation(
            protocol="weight-free-v1",
            fingerprint=get_protocol("weight-free-v1").fingerprint,
            rows=tuple({"key": one, "psnr_y": 20.0} for one in pictures),
            means={"psnr_y": 20.0},
            skipped={f"fsim{markup}": f"not asked for{markup}"},
            provenance=dict.fromkeys(("commit", "time", "device"), f"x{markup}"),
            data=f"set{markup}",
        )
        methods = [Method(f"{label}{markup}", evaluation, pictures) for label in ("one", "two")]
        write_page(tmp_path / f"{name}.html", methods, hq=pictures, lq=pictures)
    data = check_same_elements((tmp_path / "plain.html").read_text(), (tmp_path / "broken.html").read_text())
    assert [method["label"] for method in data["methods"]] == [f"one{MARKUP}", f"two{MARKUP}"]
