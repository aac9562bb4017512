"""The photographs inside scikit-image, and the evaluation crops of them."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.photos import EVAL_PHOTOS, TRAIN_PHOTOS, grid_crops, load_photo
from megasr.errors import UsageError

PHOTOS = (*TRAIN_PHOTOS, *EVAL_PHOTOS)


def test_training_and_evaluation_are_different_photographs() -> None:
    assert len({photo.file for photo in PHOTOS}) == len(PHOTOS)
    assert len({photo.name for photo in PHOTOS}) == len(PHOTOS)
    thumbnails = [load_photo(photo.name)[::16, ::16][:18, :18].astype(float).ravel() for photo in PHOTOS]
    likeness = np.corrcoef(np.stack(thumbnails)) - np.eye(len(PHOTOS))
    assert likeness.max() < 0.9


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda photo: photo.name)
def test_photograph_is_rgb_in_the_wheel(photo: object) -> None:
    image = load_photo(photo.name)  # type: ignore[attr-defined]
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert min(image.shape[:2]) >= 256
    assert image.std() > 10
    assert photo.tags  # type: ignore[attr-defined]
    assert not image.flags.writeable, "it is shared by all who ask for it"


def test_an_unknown_photograph_is_named() -> None:
    with pytest.raises(UsageError, match="unknown photograph 'chelsy'; did you mean chelsea"):
        load_photo("chelsy")


@pytest.mark.parametrize(("height", "width"), [(300, 451), (512, 512), (427, 640), (128, 128)])
def test_grid_crops_are_inside_apart_and_from_the_centre(height: int, width: int) -> None:
    size = 128
    places = grid_crops(height, width, size, 100)
    assert len(places) == (height // size) * (width // size)
    assert all(0 <= top <= height - size and 0 <= left <= width - size for top, left in places)
    covered = np.zeros((height, width), int)
    for top, left in places:
        covered[top : top + size, left : left + size] += 1
    assert covered.max() == 1
    distances = [(top + 64 - height / 2) ** 2 + (left + 64 - width / 2) ** 2 for top, left in places]
    assert distances == sorted(distances)
    assert grid_crops(height, width, size, 2) == places[:2]
