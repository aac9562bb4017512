"""Real pairs: layouts, and mismatches reported pair by pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines.paired import PairedSource
from data_pipelines.samples import UnusableSampleError
from megasr.errors import UsageError
from megasr.images import from_uint8, write_png

SCALE = 4


def place(height: int, width: int, pixels: int = 1) -> np.ndarray:
    """(H, W, 3) uint8 in which the first two channels say which lq pixel this is, the third is 7."""
    rows, columns = np.mgrid[:height, :width] // pixels
    return np.dstack([rows, columns, np.full_like(rows, 7)]).astype(np.uint8)


def write(path: Path, hq: bool, height: int = 10, width: int = 12) -> None:
    factor = SCALE if hq else 1
    write_png(place(height * factor, width * factor, factor), path)


@pytest.mark.parametrize(
    ("lq", "hq", "keys"),
    [
        ("lq/{}.png", "hq/{}.png", ["b/2", "b/10"]),
        ("lq/{}_x1.png", "hq/{}_x1.png", ["b/2_x1", "b/10_x1"]),  # StableSR's test crops
        ("test_LR/{}_x4.png", "test_HR/{}_x1.png", ["b/2", "b/10"]),  # DRealSR
        ("LR_bicubic/{}x4.png", "HR/{}.png", ["b/2", "b/10"]),  # DIV2K
        ("both/{}_LR4.png", "both/{}_HR.png", ["b/2", "b/10"]),  # RealSR v3
        ("both/{}_x4.png", "both/{}_x1.png", ["b/2", "b/10"]),
    ],
)
def test_layouts(tmp_path: Path, lq: str, hq: str, keys: list[str]) -> None:
    for name in ("b/2", "b/10"):
        write(tmp_path / lq.format(name), hq=False)
        write(tmp_path / hq.format(name), hq=True)
    folders = [tmp_path / pattern.split("/")[0] for pattern in (hq, lq)]
    source = PairedSource(folders[0], SCALE, None if folders[0] == folders[1] else folders[1])
    if folders[0].name == "hq":
        assert PairedSource(tmp_path, SCALE).pairs == source.pairs
    assert sorted(keys) == [key for key, _, _ in source.pairs]
    (tmp_path / hq.format("b/2")).with_suffix(".txt").write_text("dog, ball")
    sample = source.read(len(source) - 1)
    assert sample.key == keys[0]
    assert sample.tags == "dog, ball"
    assert np.array_equal(sample.hq, place(40, 48, SCALE))
    assert sample.lq is not None
    assert torch.equal(sample.lq, from_uint8(place(10, 12)))
    assert sorted(source.order(draw, 3) for draw in range(2, 4)) == [0, 1]


def test_all_mismatches_are_reported_pair_by_pair(tmp_path: Path) -> None:
    for name in ("good", "large", "rotated", "damaged", "lonely"):
        write(tmp_path / "lq" / f"{name}.png", hq=False)
    for name in ("good", "damaged", "single"):
        write(tmp_path / "hq" / f"{name}.png", hq=True)
    write(tmp_path / "hq" / "large.png", hq=True, width=13)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(place(40, 48)).save(tmp_path / "hq" / "rotated.png", exif=exif)
    (tmp_path / "lq" / "damaged.png").write_bytes(b"no image")
    with pytest.raises(UsageError) as caught:
        PairedSource(tmp_path, SCALE)
    first, *lines = str(caught.value).splitlines()
    assert first.endswith("5 images do not make pairs of x4:")
    assert len(lines) == 5
    for says in (
        "hq/large.png: 52x40 px is not 4 x 12x10 px of",
        "hq/rotated.png: 40x48 px is not 4 x 12x10 px of",
        "lq/damaged.png: not an image",
        "lq/lonely.png: no hq called 'lonely'",
        "hq/single.png: no lq called 'single'",
    ):
        assert any(says in line for line in lines), says


def test_a_long_report_shows_twenty_and_counts_the_rest(tmp_path: Path) -> None:
    for number in range(23):
        write(tmp_path / f"{number}_LR4.png", hq=False, height=1, width=1)
    with pytest.raises(UsageError) as caught:
        PairedSource(tmp_path, SCALE)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("23 images do not make pairs of x4:")
    assert lines[-1] == "  and 3 more"
    assert len(lines) == 22


def test_names_that_say_nothing_or_too_much_are_reported(tmp_path: Path) -> None:
    for name in ("a_HR", "a_x1"):
        write(tmp_path / f"{name}.png", hq=True)
    for name in ("a_LR4", "b_LR2", "c"):
        write(tmp_path / f"{name}.png", hq=False)
    with pytest.raises(UsageError) as caught:
        PairedSource(tmp_path, SCALE)
    report = str(caught.value)
    assert "a_x1.png: its pair 'a' has a_HR.png already" in report
    assert "b_LR2.png: its name ends in none of _HR _x1 _LR4 _x4" in report
    assert "c.png: its name ends in none of" in report


def test_two_lq_of_one_hq_are_not_chosen_from(tmp_path: Path) -> None:
    write(tmp_path / "hq" / "a.png", hq=True)
    for name in ("a_LR4", "a_x4"):
        write(tmp_path / "lq" / f"{name}.png", hq=False)
    with pytest.raises(UsageError, match="3 images do not make pairs"):
        PairedSource(tmp_path, SCALE)


@pytest.mark.parametrize("side", ["lq", "hq"])
def test_a_pair_that_is_damaged_behind_its_header_costs_one_sample(tmp_path: Path, side: str) -> None:
    write(tmp_path / "lq" / "a.png", hq=False)
    write(tmp_path / "hq" / "a.png", hq=True)
    path = tmp_path / side / "a.png"
    path.write_bytes(path.read_bytes()[:-40])
    source = PairedSource(tmp_path, SCALE)
    with pytest.raises(UnusableSampleError, match=rf"a: unreadable \(.*{side}/a\.png") as caught:
        source.read(0)
    assert caught.value.damaged
