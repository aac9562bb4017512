from __future__ import annotations

import math

import pytest
import torch

from megasr.guidance.regions import RELIEF, normals_from_depth


def directions(depth: torch.Tensor, **more: float) -> torch.Tensor:
    """(H, W) -> unit normals (3, H, W)."""
    return normals_from_depth(depth[None, None], **more)[0] * 2 - 1


def ramp(height: int, width: int) -> torch.Tensor:
    """0 at the left, 1 at the right."""
    return torch.linspace(0, 1, width).expand(height, width)


def test_a_flat_map_faces_the_viewer() -> None:
    found = directions(torch.full((9, 12), 0.3))
    assert torch.equal(found, torch.tensor([0.0, 0, 1]).view(3, 1, 1).expand(3, 9, 12))


def test_a_wall_on_the_right_faces_left() -> None:
    found = directions(ramp(20, 20))  # brighter, hence nearer, to the right
    assert (found[0] < -0.1).all() and found[1].abs().max() < 1e-6 and (found[2] > 0).all()


def test_a_floor_faces_up() -> None:
    found = directions(ramp(20, 20).T)  # nearer at the bottom of the image
    assert (found[1] > 0.1).all() and found[0].abs().max() < 1e-6 and (found[2] > 0).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (512, 512)])
def test_the_angle_of_a_plane_does_not_depend_on_the_size(height: int, width: int) -> None:
    inner = directions(ramp(height, width), relief=2.0)[:, 1:-1, 1:-1]
    slope = 2.0 * min(height, width) / (width - 1)
    expected = torch.tensor([-slope, 0, 1]) / math.hypot(slope, 1)
    torch.testing.assert_close(inner, expected.view(3, 1, 1).expand_as(inner), atol=1e-4, rtol=0)


def test_a_sphere_has_the_normals_of_a_sphere() -> None:
    """A hemisphere drawn as a relief in its true proportions: a point at (x, y) has the normal (x, y, z)."""
    side, relief = 201, 0.5
    y, x = torch.meshgrid(torch.linspace(1, -1, side), torch.linspace(-1, 1, side), indexing="ij")
    radius = torch.hypot(x, y)
    z = (1 - radius**2).clamp_min(0).sqrt()  # 1 is half the side
    found = directions(z, relief=relief)
    cosine = (found * torch.stack([x, y, z])).sum(0)
    assert cosine[radius < 0.9].min() > 0.999


def test_sobel_ignores_noise_across_the_gradient_and_borders_are_replicated() -> None:
    depth = ramp(16, 16)
    found = directions(depth)
    torch.testing.assert_close(found[:, 0], found[:, 8])
    border, inner = found[0, 8, 0], found[0, 8, 1]
    slope = RELIEF * 16 / 15
    assert inner == pytest.approx(-slope / math.hypot(slope, 1), abs=1e-5)
    assert border == pytest.approx(-slope / 2 / math.hypot(slope / 2, 1), abs=1e-5)


def test_shape_range_and_unit_length() -> None:
    found = normals_from_depth(torch.rand(3, 1, 17, 23, generator=torch.Generator().manual_seed(0)).bfloat16())
    assert found.shape == (3, 3, 17, 23) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close((found * 2 - 1).norm(dim=1), torch.ones(3, 17, 23))
