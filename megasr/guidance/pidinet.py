"""PiDiNet: soft edges by pixel difference convolutions (2108.07009), in the layout of its public weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import nn

from megasr.guidance.extractors import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MapNetwork,
    Preprocessing,
    Size,
    Views,
    fill,
    read_state_dict,
    write_state_dict,
)

EXPORTED_PIDINET, PUBLIC_PIDINET = "pidinet.safetensors", "table5_pidinet.pth"
_WIDTH, _REDUCED, _ATTENTION = 60, 24, 4
_BLOCKS = (3, 4, 4, 4)  # of the four stages
_DILATIONS = (5, 7, 9, 11)
Difference = Literal["central", "angular", "radial", "none"]
# The paper's choice of 16 convolutions, CARV x 4: the first is the one before the blocks.
_DIFFERENCES: tuple[Difference, ...] = ("central", "angular", "radial", "none") * 4
# Neighbours of a 3x3 window in reading order: who stands one step counter-clockwise, the centre being itself no pair.
_NEXT = [3, 0, 1, 6, 4, 2, 7, 8, 5]
# Of a 5x5 window: the eight pixels of its rim that continue the 3x3 window's rim outwards, and that inner rim.
_OUTER, _INNER = [0, 2, 4, 10, 14, 20, 22, 24], [6, 7, 8, 11, 13, 16, 17, 18]


def difference_kernel(weight: torch.Tensor, kind: Difference) -> torch.Tensor:
    """The plain kernel of a pixel difference convolution: (o, i, 3, 3) -> the same, or (o, i, 5, 5) of a radial one.

    A convolution of differences of pixels is one of pixels with the differences of the weights (equations 2-5).
    """
    if kind == "none":
        return weight
    flat = weight.flatten(2)
    if kind == "central":  # each neighbour less the centre
        centre = F.one_hot(torch.tensor(4, device=weight.device), 9).to(flat)
        return (flat - centre * flat.sum(-1, keepdim=True)).view_as(weight)
    if kind == "angular":  # each neighbour less the next one on the ring
        return (flat - flat[..., _NEXT]).view_as(weight)
    wide = flat.new_zeros(*flat.shape[:2], 25)  # radial: each pixel of the outer ring less the one before it inside
    wide[..., _OUTER], wide[..., _INNER] = flat[..., 1:], -flat[..., 1:]
    return wide.view(*flat.shape[:2], 5, 5)


class _Convolution(nn.Module):
    def __init__(self, kind: Difference, width_in: int, width: int, groups: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width_in // groups, 3, 3))
        self.kind, self.groups = kind, groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = difference_kernel(self.weight, self.kind)
        return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=self.groups)


class _Block(nn.Module):
    """Depthwise differences, then a pointwise convolution; the first block of a later stage halves the resolution."""

    def __init__(self, kind: Difference, width_in: int, width: int, halves: bool) -> None:
        super().__init__()
        self.conv1 = _Convolution(kind, width_in, width_in, groups=width_in)
        self.conv2 = nn.Conv2d(width_in, width, 1, bias=False)
        self.halves = halves
        if halves:
            self.shortcut = nn.Conv2d(width_in, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(x, 2) if self.halves else x
        y = self.conv2(F.relu(self.conv1(x)))
        return y + (self.shortcut(x) if self.halves else x)


class _Dilated(nn.Module):
    """Compact dilated convolutions: context of several distances in few channels."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 1)
        for place, dilation in enumerate(_DILATIONS, 1):
            conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
            self.add_module(f"conv2_{place}", conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *dilated = self.children()
        x = first(F.relu(x))
        return torch.stack([conv(x) for conv in dilated]).sum(0)


class _Attention(nn.Module):
    """Compact spatial attention: one weight per pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, _ATTENTION, 1)
        self.conv2 = nn.Conv2d(_ATTENTION, 1, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.conv2(self.conv1(F.relu(x))))


class _Reduction(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class PiDiNet(MapNetwork):
    """Soft edges at the image's own resolution. Its representation is the four stages' features.

    Args:
        width: channels of the first stage; the second has twice, the others four times as many.
        reduced: channels of the side branches.
    """

    gives = ("pidinet",)
    outputs = ("pidinet",)
    smallest_px = 8  # three poolings

    def __init__(self, width: int = _WIDTH, reduced: int = _REDUCED) -> None:
        super().__init__()
        kinds = iter(_DIFFERENCES)
        self.init_block = _Convolution(next(kinds), 3, width)
        widths = (width, 2 * width, 4 * width, 4 * width)
        width_in = width
        for stage, (count, width_out) in enumerate(zip(_BLOCKS, widths, strict=True), 1):
            for place in range(1, count + 1):
                halves = stage > 1 and place == 1
                self.add_module(f"block{stage}_{place}", _Block(next(kinds), width_in, width_out, halves))
                width_in = width_out
        self.dilations = nn.ModuleList(_Dilated(channels, reduced) for channels in widths)
        self.attentions = nn.ModuleList(_Attention(reduced) for _ in widths)
        self.conv_reduces = nn.ModuleList(_Reduction(reduced) for _ in widths)
        self.classifier = nn.Conv2d(len(widths), 1, 1)

    def encode(self, views: Views) -> tuple[torch.Tensor, ...]:
        """Features of the four stages: (B, C_i, H / 2^i, W / 2^i), i = 0...3.

        Raises:
            UsageError: the image is too small.
        """
        self.check_size(views.size)
        normalise = Preprocessing(min(views.size), IMAGENET_MEAN, IMAGENET_STD)
        x = self.init_block(normalise.prepare(views, 1).to(self.device, self.dtype))
        features = []
        for stage, count in enumerate(_BLOCKS, 1):
            for place in range(1, count + 1):
                x = cast(torch.Tensor, self.get_submodule(f"block{stage}_{place}")(x))
            features.append(x)
        return tuple(features)

    def decode(self, representation: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Logits of an edge, (B, 1, H, W) float32: the four side outputs joined by the classifier."""
        size = representation[0].shape[-2:]
        parts = zip(representation, self.dilations, self.attentions, self.conv_reduces, strict=True)
        sides = [reduce(attend(dilate(x))) for x, dilate, attend, reduce in parts]
        resized = [F.interpolate(side, size, mode="bilinear", align_corners=False) for side in sides]
        return {"pidinet": self.classifier(torch.cat(resized, 1)).float()}

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """The probability of an edge, (B, 1, *size)."""
        logits = F.interpolate(raw["pidinet"].float(), size, mode="bilinear", align_corners=False)
        return {"pidinet": torch.sigmoid(logits)}

    def export(self, folder: Path) -> None:
        """Write pidinet.safetensors, in the public file's names."""
        write_state_dict(self, folder / EXPORTED_PIDINET)


def load_pidinet(source: str) -> PiDiNet:
    """A frozen PiDiNet in float32: of the manifest, of a table5_pidinet.pth, an export, or a folder of one.

    Raises:
        MegaSRError: the file is missing, broken, or of another network (also of PiDiNet's light and converted ones).
    """
    path, state = read_state_dict(source, "PiDiNet", (EXPORTED_PIDINET, PUBLIC_PIDINET))
    first, side = state.get("init_block.weight"), state.get("dilations.0.conv1.weight")
    with torch.device("meta"):
        network = PiDiNet(_WIDTH if first is None else len(first), _REDUCED if side is None else len(side))
    fill(network, state, f"PiDiNet {path}")
    return network.freeze()
