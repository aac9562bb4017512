from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from megasr.errors import MegaSRError, UsageError
from megasr.guidance.extractors import Views
from megasr.guidance.pidinet import PiDiNet, load_pidinet
from tests.helpers.extractor_checkpoints import pidinet_state, random_pictures, write_pidinet

# Rows and columns of the pairs of pixels whose differences are weighted: (3x3 in reading order) minus the other.
GRID = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
RING = [offset for offset in GRID if offset != (0, 0)]
CLOCKWISE = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_pidinet(tmp_path)


def at(x: torch.Tensor, offset: tuple[int, int]) -> torch.Tensor:
    """Every pixel's neighbour; zero outside."""
    padded = F.pad(x, (2, 2, 2, 2))
    row, column = 2 + offset[0], 2 + offset[1]
    return padded[..., row : row + x.shape[-2], column : column + x.shape[-1]]


def difference(x: torch.Tensor, weight: torch.Tensor, kind: str) -> torch.Tensor:
    """A depthwise convolution of differences of pixels, pair by pair as the paper defines them."""
    total = torch.zeros_like(x)
    for place, offset in enumerate(GRID):
        w = weight[:, 0].flatten(1)[:, place][None, :, None, None]
        if kind == "none":
            pair = at(x, offset)
        elif kind == "central":
            pair = at(x, offset) - x
        elif offset == (0, 0):
            continue
        elif kind == "angular":  # the neighbour less the one that follows it clockwise
            pair = at(x, offset) - at(x, CLOCKWISE[(CLOCKWISE.index(offset) + 1) % 8])
        else:  # outwards along each ray; the weights are the last eight of the nine
            w = weight[:, 0].flatten(1)[:, 1 + RING.index(offset)][None, :, None, None]
            pair = at(x, (2 * offset[0], 2 * offset[1])) - at(x, offset)
        total = total + w * pair
    return total


def plain_pidinet(state: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """The published forward pass, one operation after another: the probability of an edge."""

    def conv(x: torch.Tensor, name: str, **more: int) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **more)

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = (image - mean) / std
    first = state["init_block.weight"]
    x = F.conv2d(x, first, padding=1) - F.conv2d(x, first.sum((2, 3), keepdim=True))
    kinds, sides = ["angular", "radial", "none"] + 3 * ["central", "angular", "radial", "none"], []
    for stage, count in enumerate((3, 4, 4, 4), 1):
        for place in range(1, count + 1):
            name = f"block{stage}_{place}"
            halves = f"{name}.shortcut.weight" in state
            x = F.max_pool2d(x, 2, 2) if halves else x
            y = conv(F.relu(difference(x, state[f"{name}.conv1.weight"], kinds.pop(0))), f"{name}.conv2")
            x = y + (conv(x, f"{name}.shortcut") if halves else x)
        place = stage - 1
        y = conv(F.relu(x), f"dilations.{place}.conv1")
        y = sum(conv(y, f"dilations.{place}.conv2_{i}", padding=d, dilation=d) for i, d in enumerate((5, 7, 9, 11), 1))
        gate = conv(conv(F.relu(y), f"attentions.{place}.conv1"), f"attentions.{place}.conv2", padding=1)
        side = conv(y * torch.sigmoid(gate), f"conv_reduces.{place}.conv")
        sides.append(F.interpolate(side, image.shape[-2:], mode="bilinear", align_corners=False))
    return torch.sigmoid(conv(torch.cat(sides, 1), "classifier"))


def test_equals_the_published_forward_pass(checkpoint: Path) -> None:
    network, image = load_pidinet(str(checkpoint.parent)), random_pictures(2, 43, 54)
    found, expected = network(Views(image), ("pidinet",))["pidinet"], plain_pidinet(pidinet_state(), image)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert found.std() > 0.05


def test_an_export_is_read_as_the_public_file_is(checkpoint: Path, tmp_path: Path) -> None:
    network = load_pidinet(str(checkpoint))
    network.export(tmp_path / "tuned")
    again = load_pidinet(str(tmp_path / "tuned"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    assert sum(value.numel() for value in PiDiNet().parameters()) == 710_149  # of table5_pidinet.pth


def test_what_cannot_be_used_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pidinet: images must be 8 px or more .* got 7 x 40"):
        load_pidinet(str(checkpoint))(Views(random_pictures(1, 7, 40)), ("pidinet",))
    state, path = pidinet_state(), tmp_path / "x.pth"
    for wrong, message in (
        ({k: v for k, v in state.items() if "dilations" not in k}, "Missing key.*dilations"),  # the light one
        (
            state | {"block1_2.conv1.weight": torch.zeros(32, 1, 5, 5)},
            "size mismatch for block1_2",
        ),  # the converted one
    ):
        torch.save({"state_dict": wrong}, path)
        with pytest.raises(MegaSRError, match=rf"PiDiNet .*x.pth cannot be used: .*({message})"):
            load_pidinet(str(path))
    with pytest.raises(MegaSRError, match=r"has neither pidinet.safetensors nor table5_pidinet.pth"):
        load_pidinet(str(tmp_path / ".."))
