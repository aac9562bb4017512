"""Saliency on images where one thing stands out."""

from __future__ import annotations

import pytest
import torch

from megasr.guidance.regions import extract_saliency

CELL_PX = 32


def bars(odd: tuple[int, int] | None, size: int = 5) -> torch.Tensor:
    """Upright bars, a little out of line, of which the odd one lies."""
    image = torch.full((1, 3, size * CELL_PX, size * CELL_PX), 0.9)
    generator = torch.Generator().manual_seed(0)
    for row in range(size):
        for column in range(size):
            down, right = torch.randint(0, 9, (2,), generator=generator).tolist()
            top, left = row * CELL_PX + 5 + down, column * CELL_PX + 5 + right
            if (row, column) == odd:
                image[..., top + 5 : top + 9, left : left + 14] = 0.1
            else:
                image[..., top : top + 14, left + 5 : left + 9] = 0.1
    return image


@pytest.mark.parametrize("odd", [(1, 3), (2, 2), (3, 1)])
@pytest.mark.parametrize("scale", [1, 4])
def test_the_odd_one_out_is_the_most_salient(odd: tuple[int, int], scale: int) -> None:
    image = bars(odd).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    saliency = extract_saliency(image, ["a"])
    assert saliency.shape == (1, 1, *image.shape[-2:])
    cells = torch.nn.functional.avg_pool2d(saliency, CELL_PX * scale)[0, 0]
    assert divmod(int(cells.argmax()), cells.shape[1]) == odd
    others = cells.flatten().sort().values[:-1]
    assert cells.max() > 1.15 * others.max()


def test_saliency_is_that_of_64_px_whatever_the_size() -> None:
    image = bars((1, 3))
    large = extract_saliency(image.repeat_interleave(3, -1).repeat_interleave(3, -2), ["a"])
    same_size = torch.nn.functional.avg_pool2d(large, 3)
    assert (same_size - extract_saliency(image, ["a"])).abs().mean() < 0.02


def test_a_map_uses_the_whole_range() -> None:
    saliency = extract_saliency(bars((2, 1)), ["a"])
    assert saliency.dtype == torch.float32
    assert 0 <= saliency.min() < 0.02
    assert 0.98 < saliency.max() <= 1


@pytest.mark.parametrize("size", [(96, 64), (512, 512), (50, 77), (200, 3), (3, 200), (1, 1)])
def test_a_flat_image_gives_zeros(size: tuple[int, int]) -> None:
    for value in (0.0, 0.3, 1.0):
        flat = torch.full((1, 3, *size), value)
        assert torch.equal(extract_saliency(flat, ["a"]), torch.zeros(1, 1, *size))
    coloured = torch.tensor([0.9, 0.1, 0.4]).view(1, 3, 1, 1).expand(1, 3, *size)
    assert extract_saliency(coloured, ["a"]).sum() == 0


def test_rounding_is_no_signal() -> None:
    noise = 1e-7 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert extract_saliency(0.5 + noise, ["a"]).sum() == 0
    stripe = torch.zeros(1, 3, 64, 64)
    stripe[..., 30:34] = 1.0
    saliency = extract_saliency(stripe, ["a"])[0, 0]
    assert (saliency - saliency[:1]).abs().max() < 1e-4, "an image that varies along x only has such a map"


def test_each_sample_by_itself() -> None:
    flat = torch.full((1, 3, 160, 160), 0.5)
    photo = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    batch = torch.cat([bars((1, 3)), flat, photo, bars((2, 2)), 0.2 * photo])
    together = extract_saliency(batch, list("abcde"))
    assert torch.equal(together, torch.cat([extract_saliency(image[None], ["z"]) for image in batch]))
    assert together[1].sum() == 0


def test_autocast_changes_nothing() -> None:
    image = bars((1, 3))
    with torch.autocast("cpu", torch.bfloat16):
        saliency = extract_saliency(image, ["a"])
    assert saliency.dtype == torch.float32
    assert torch.equal(saliency, extract_saliency(image, ["a"]))


def test_what_is_not_a_number_is_not_called_flat() -> None:
    image = bars((1, 3))
    image[0, 0, 50, 50] = torch.nan
    assert extract_saliency(image, ["a"]).isnan().any()
