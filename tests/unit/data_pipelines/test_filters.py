"""Filters of images: what is kept, what is dropped, and the words for it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.ndimage

from data_pipelines.filters import FilteredSource, ImageFilter, describe_drops, sharpness
from data_pipelines.folder import FolderSource
from data_pipelines.photos import TRAIN_PHOTOS, load_photo
from data_pipelines.samples import UnusableSampleError
from megasr.errors import UsageError
from megasr.images import write_png

PHOTO = load_photo(TRAIN_PHOTOS[0].name)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    luma = np.array(PHOTO.astype(np.float64) @ [0.299, 0.587, 0.114]).round()
    # scipy's "mirror" is OpenCV's default border: the edge pixel is not repeated.
    expected = scipy.ndimage.laplace(luma, mode="mirror").var()
    assert sharpness(PHOTO) == pytest.approx(expected, rel=0.01)
    assert sharpness(np.full((9, 9, 3), 200, np.uint8)) == 0
    chequered = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2).astype(np.uint8) % 2 * 255
    assert sharpness(chequered) == 1020**2, "the end of the range"


def test_blur_lowers_it_and_the_filter_sees_it() -> None:
    values = [sharpness(cv2.GaussianBlur(PHOTO, (0, 0), sigma)) for sigma in (0.5, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    between = ImageFilter(min_sharpness=(values[1] + values[2]) / 2)
    assert between.reason(PHOTO) is None
    assert between.reason(cv2.GaussianBlur(PHOTO, (0, 0), 2)) == f"less sharp than {between.min_sharpness}"


@pytest.mark.parametrize(
    ("size", "kept"), [((64, 64), True), ((63, 200), False), ((200, 63), False), ((64, 1000), True)]
)
def test_the_shorter_side_counts(size: tuple[int, int], kept: bool) -> None:
    reason = ImageFilter(min_size_px=64).reason(np.zeros((*size, 3), np.uint8))
    assert reason == (None if kept else "smaller than 64 px")
    assert ImageFilter().reason(np.zeros((*size, 3), np.uint8)) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"min_size_px": -1}, "min_size_px must be a number of at least 0, got -1"),
        ({"min_sharpness": -0.5}, "min_sharpness must be a number of at least 0, got -0.5"),
        ({"min_sharpness": float("nan")}, "min_sharpness must be a number of at least 0, got nan"),
        ({"min_sharpness": float("inf")}, "min_sharpness must be a number of at least 0, got inf"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ImageFilter(**settings)  # type: ignore[arg-type]


def test_a_filtered_source_keeps_numbers_and_order_and_says_what_it_drops(tmp_path: Path) -> None:
    for name, size in (("a", 64), ("b", 63), ("c", 90)):
        write_png(np.zeros((size, 100, 3), np.uint8), tmp_path / f"{name}.png")
    folder = FolderSource(tmp_path)
    source = FilteredSource(folder, ImageFilter(min_size_px=64))
    assert len(source) == 3
    assert [source.order(draw, 7) for draw in range(30)] == [folder.order(draw, 7) for draw in range(30)]
    assert [source.read(index).key for index in (0, 2)] == ["a", "c"]
    with pytest.raises(UnusableSampleError, match=r"b: smaller than 64 px \(100x63 px\)") as caught:
        source.read(1)
    assert (caught.value.reason, caught.value.damaged) == ("smaller than 64 px", False)


def test_drops_are_counted_by_reason() -> None:
    counts = {"less sharp than 20.0": 2, "unreadable": 9, "smaller than 64 px": 2}
    assert describe_drops(counts, 300) == (
        "13 of 300 images dropped: 9 unreadable, 2 less sharp than 20.0, 2 smaller than 64 px"
    )
    assert describe_drops({}, 300) == "0 of 300 images dropped"
