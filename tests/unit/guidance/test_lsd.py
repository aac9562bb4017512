"""Line segments on images whose lines are known."""

from __future__ import annotations

import pytest
import torch

from megasr.guidance.edges import extract_lsd

SIZE_PX = 128


def grey(value: float) -> torch.Tensor:
    return torch.full((1, 3, SIZE_PX, SIZE_PX), value)


def rectangle(top: int, bottom: int, left: int, right: int, dark: float = 0.0, bright: float = 1.0) -> torch.Tensor:
    image = grey(dark)
    image[..., top:bottom, left:right] = bright
    return image


@pytest.mark.parametrize(("dark", "bright"), [(0.0, 1.0), (1.0, 0.0), (0.4, 0.55)])
def test_a_rectangle_has_four_lines(dark: float, bright: float) -> None:
    top, bottom, left, right = 30, 90, 20, 110
    lines = extract_lsd(rectangle(top, bottom, left, right, dark, bright), ["a"])[0, 0]
    assert lines.shape == (SIZE_PX, SIZE_PX)
    assert lines.dtype == torch.float32
    assert lines.min() == 0
    assert 0.5 < lines.max() <= 1
    border = torch.zeros_like(lines, dtype=torch.bool)
    border[top - 2 : bottom + 2, left - 2 : right + 2] = True
    border[top + 2 : bottom - 2, left + 2 : right - 2] = False
    assert lines[~border].sum() == 0, "nothing but the outline"
    for side in (
        lines[top - 2 : top + 2, left + 4 : right - 4].amax(0),
        lines[bottom - 2 : bottom + 2, left + 4 : right - 4].amax(0),
        lines[top + 4 : bottom - 4, left - 2 : left + 2].amax(1),
        lines[top + 4 : bottom - 4, right - 2 : right + 2].amax(1),
    ):
        assert side.min() > 0.4, "the line is not broken"
    across = lines[(top + bottom) // 2, : SIZE_PX // 2]
    place = (across * torch.arange(len(across))).sum() / across.sum()
    assert place.item() == pytest.approx(left - 0.5, abs=0.3), "between the last dark and the first bright pixel"
    assert across.count_nonzero() <= 3, "one pixel wide"


def test_a_diagonal_is_one_smooth_line() -> None:
    image = grey(0.0)
    image[..., torch.ones(SIZE_PX, SIZE_PX).tril(-1).bool()] = 1.0
    lines = extract_lsd(image, ["a"])[0, 0]
    rows, columns = lines.nonzero().T
    assert (rows - columns).abs().max() <= 3
    assert lines.amax(1)[4:-4].min() > 0.4
    assert len(lines.unique()) > 2, "anti-aliased"


def test_no_lines_in_nothing_noise_and_specks() -> None:
    noise = torch.rand(1, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(0))
    specks = rectangle(40, 44, 40, 44) + rectangle(80, 83, 100, 104)
    for image in (grey(0.0), grey(0.5), grey(1.0), noise, specks):
        assert extract_lsd(image, ["a"]).sum() == 0


def test_the_shortest_line_grows_with_the_image() -> None:
    square = torch.zeros(1, 3, 512, 512)
    square[..., 100:116, 100:116] = 1.0
    assert extract_lsd(square, ["a"]).sum() == 0, "16 px at 512 x 512 is texture"
    assert extract_lsd(square[..., 64:192, 64:192], ["a"]).sum() > 0, "at 128 x 128 it is a thing"


def test_each_sample_by_itself() -> None:
    batch = torch.cat([rectangle(30, 90, 20, 110), grey(0.5), rectangle(10, 60, 50, 100)])
    lines = extract_lsd(batch, ["a", "b", "c"])
    assert torch.equal(lines, torch.cat([extract_lsd(image[None], ["z"]) for image in batch]))
    assert not torch.equal(lines[0], lines[2])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 300), (300, 5)])
def test_tiny_and_narrow_images(size: tuple[int, int]) -> None:
    lines = extract_lsd(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)), ["a"])
    assert lines.shape == (1, 1, *size)
    assert 0 <= lines.min() <= lines.max() <= 1
