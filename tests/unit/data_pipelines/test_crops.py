"""Crops: hq, lq and maps show the same place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_pipelines.samples import Sample, UnusableSampleError, center_crop_sample, crop_sample
from megasr.images import from_uint8

SCALE = 4


def place(height: int, width: int, pixels: int = 1) -> np.ndarray:
    """(H, W, 3) uint8 in which the first two channels say which lq pixel this is, the third is 7."""
    rows, columns = np.mgrid[:height, :width] // pixels
    return np.dstack([rows, columns, np.full_like(rows, 7)]).astype(np.uint8)


def pair(height: int = 30, width: int = 40) -> Sample:
    hq = place(height * SCALE, width * SCALE, SCALE)
    maps = {"depth": from_uint8(hq)[:1], "oracle_normal": from_uint8(hq)}
    return Sample("a", hq, "dog", maps, lq=from_uint8(place(height, width)))


def test_a_crop_takes_the_same_place_of_hq_lq_and_maps() -> None:
    corners, flips = set(), set()
    for draw in range(200):
        crop = crop_sample(pair(), 24, 5, "a", draw)
        assert crop.lq is not None
        assert crop.hq.shape == (24, 24, 3)
        assert crop.lq.shape == (3, 6, 6)
        assert torch.equal(from_uint8(crop.hq), crop.lq.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2))
        assert torch.equal(crop.maps["depth"], from_uint8(crop.hq)[:1])
        normal, flipped = crop.maps["oracle_normal"], bool(crop.lq[1, 0, 0] > crop.lq[1, 0, 1])
        x = from_uint8(crop.hq)[0]
        assert torch.equal(normal[0], 1 - x if flipped else x), "the normal of a mirrored surface is mirrored"
        assert torch.equal(normal[1:], from_uint8(crop.hq)[1:])
        corners.add(tuple((crop.lq[:2].amin((1, 2)) * 255).int().tolist()))
        flips.add(flipped)
        assert (crop.key, crop.tags) == ("a", "dog")
    assert {row for row, _ in corners} == set(range(25)), "every place, to the last pixel"
    assert len({column for _, column in corners}) == 35
    assert flips == {True, False}


@pytest.mark.parametrize("size", [(30, 40), (31, 41), (6, 7)])
def test_the_centre_is_the_same_place_of_hq_lq_and_maps(size: tuple[int, int]) -> None:
    crop = center_crop_sample(pair(*size), 24)
    assert crop.lq is not None
    assert torch.equal(from_uint8(crop.hq), crop.lq.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2))
    assert torch.equal(crop.maps["depth"], from_uint8(crop.hq)[:1])
    assert crop.hq[0, 0].tolist() == [(size[0] - 6) // 2, (size[1] - 6) // 2, 7]


def test_without_lq_the_corner_is_any_pixel() -> None:
    image = place(50, 70)
    crops = [crop_sample(Sample("a", image), 16, 3, "a", draw) for draw in range(200)]
    assert all(crop.lq is None for crop in crops)
    corners = {tuple(np.minimum(crop.hq[0, 0], crop.hq[0, -1])[:2]) for crop in crops}
    rows, columns = ({int(corner[axis]) for corner in corners} for axis in (0, 1))
    assert len(corners) > 150
    assert min(rows) < 3 and max(rows) > 31 and max(rows) <= 34
    assert min(columns) < 3 and max(columns) > 51 and max(columns) <= 54
    assert {number % SCALE for number in rows | columns} == set(range(SCALE))
    whole = crop_sample(pair(6, 6), 24, 0, "a")
    assert sorted(whole.hq.reshape(-1, 3).tolist()) == sorted(pair(6, 6).hq.reshape(-1, 3).tolist())


def test_a_crop_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UnusableSampleError, match=r"a: smaller than 128 px \(160x120 px\)") as caught:
        crop_sample(pair(), 128, 0, "a")
    assert not caught.value.damaged
