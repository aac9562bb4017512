"""Pictures of maps."""

from __future__ import annotations

import torch

from megasr.guidance.registry import render_colours, render_depth, render_edge, render_grey


def ramp() -> torch.Tensor:
    return torch.linspace(0, 1, 256).view(1, 1, 256).repeat(1, 2, 1)


def test_grey_and_colours_are_the_map_itself() -> None:
    colours = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(render_colours(colours), colours)
    assert torch.equal(render_grey(ramp()), ramp().expand(3, -1, -1))


def test_edges_are_dark_on_white() -> None:
    picture = render_edge(torch.tensor([[[0.0, 0.25, 1.0]]]))
    assert picture.tolist() == [[[1.0, 0.75, 0.0]]] * 3


def test_near_is_bright() -> None:
    picture = render_depth(ramp())
    assert picture.shape == (3, 2, 256)
    assert picture.dtype == torch.float32
    luminance = (picture[:, 0] * torch.tensor([[0.2126], [0.7152], [0.0722]])).sum(0)
    assert luminance[0] < 0.02
    assert luminance[-1] > 0.9
    assert (luminance[8:] > luminance[:-8]).all(), "the order of depths is the order of brightness"
    red, green, blue = picture[:, 0, 128]
    assert red > blue > green, "the middle of inferno is a red that leans to purple: not BGR"


def test_a_picture_does_not_share_the_maps_memory() -> None:
    for render, image in ((render_grey, ramp()), (render_colours, torch.zeros(3, 2, 2))):
        before = image.clone()
        render(image).add_(0.5)
        assert torch.equal(image, before)
