"""experiments.guidance.boundaries on a small data set in BSDS500's own files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from experiments.guidance.boundaries import main

SIZE = (192, 256)  # 2.4 px of tolerance


def _write(folder: Path, name: str, column: int, annotators: int = 2) -> None:
    """A grey and a white half, and people who all see the border between them."""
    hq = np.full((*SIZE, 3), 60, np.uint8)
    hq[:, column:] = 220
    Image.fromarray(hq).save(folder / f"{name}.jpg", quality=95)
    outline = np.zeros(SIZE, np.uint8)
    outline[:, column] = 1
    cells = np.empty((1, annotators), dtype=object)
    for number in range(annotators):
        cells[0, number] = {"Boundaries": outline, "Segmentation": np.ones(SIZE, np.uint16)}
    savemat(folder / f"{name}.mat", {"groundTruth": cells})


@pytest.fixture
def bsds(tmp_path: Path) -> Path:
    split = tmp_path / "bsds" / "val"
    split.mkdir(parents=True)
    for number, column in enumerate((70, 128, 200)):
        _write(split, f"image{number}", column)
    return split.parent


def test_canny_finds_what_everyone_has_drawn(bsds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    assert main(["--bsds", str(bsds), "--methods", "canny", "--degradation", "bicubic", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    hq, lq = document["rows"]
    assert (hq["view"], lq["view"], hq["images"]) == ("hq", "lq", 3)
    assert hq["ods"] > 0.95
    assert hq["ods_interval"][0] <= hq["ods"] <= hq["ods_interval"][1]
    assert document["settings"]["degradation"] == "bicubic"
    printed = capsys.readouterr().out
    assert f"| canny | hq | {hq['ods']:.3f} [" in printed and "| canny | lq |" in printed


def test_a_method_is_compared_with_the_first(bsds: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    methods = ["--methods", "canny", "hed=tiny", "--images", "2", "--thresholds", "4"]
    assert main(["--bsds", str(bsds), *methods, "--out", str(out)]) == 0
    rows = {(row["method"], row["view"]): row for row in json.loads(out.read_text())["rows"]}
    gap = rows["hed=tiny", "hq"]["minus_first"]["mean"]
    assert gap == pytest.approx(rows["hed=tiny", "hq"]["ods"] - rows["canny", "hq"]["ods"])
    assert "minus_first" not in rows["canny", "hq"]
    assert rows["canny", "hq"]["images"] == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--methods", "depth"], "method 'depth': depth does not make edges"),
        (["--methods", "canny", "--images", "4"], "4 images: give a number from 1 to 3"),
        (["--methods", "canny", "--split", "test"], "no folder 'test'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    bsds: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["--bsds", str(bsds), *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0]


def test_damaged_drawings_are_named(bsds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--bsds", str(bsds), "--methods", "canny"]
    (bsds / "val" / "image1.mat").write_bytes(b"not a mat file")
    assert main(run) == 1
    assert "image1.mat" in capsys.readouterr().err
    (bsds / "val" / "image1.mat").unlink()
    assert main(run) == 1
    assert "no .mat for image1" in capsys.readouterr().err
    shutil.copy(bsds / "val" / "image0.mat", bsds / "val" / "image1.mat")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(bsds / "val" / "image1.jpg", quality=95)
    assert main(run) == 1
    assert "do not fit" in capsys.readouterr().err
