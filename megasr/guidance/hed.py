"""HED edges (Xie & Tu, 1504.06375): the network behind ControlNet's soft edges, in its public file's names and layout.

VGG16's convolutions (1409.1556) in five blocks, each with a 1 x 1 projection to an edge logit; the map is the sigmoid
of the mean logit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from megasr.guidance.checkpoints import fill, find_file, read_state_dict, write_state_dict
from megasr.guidance.network import MapNetwork, Size, Views

EXPORTED, PUBLIC = "hed.safetensors", "ControlNetHED.pth"
_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = (2, 2, 3, 3, 3)  # per block


class HedNetwork(MapNetwork):
    """Soft edges at the image's own resolution. Its representation is the five blocks' features.

    Args:
        widths: channels of the five blocks.
    """

    gives = ("hed",)
    outputs = ("hed",)
    smallest_px = 16  # four poolings

    def __init__(self, widths: tuple[int, ...] = _WIDTHS) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))  # mean colour of images in [0, 255]
        for place, count in enumerate(_CONVOLUTIONS):
            width_in = widths[place - 1] if place else 3
            self.add_module(f"block{place + 1}", _Block(width_in, widths[place], count))

    @property
    def _blocks(self) -> list[_Block]:
        return [self.get_submodule(f"block{place + 1}") for place in range(len(_CONVOLUTIONS))]  # type: ignore[misc]

    def encode(self, views: Views) -> tuple[torch.Tensor, ...]:
        """Features of the five blocks: (B, C_i, H / 2^i, W / 2^i), i = 0...4.

        Raises:
            UsageError: the image is too small.
        """
        self.check_size(views.size)
        # In float32: bfloat16 knows only every other of the 256 levels in the upper half.
        x = (views.image.to(self.device).float() * 255 - self.norm.float()).to(self.dtype)
        features: list[torch.Tensor] = []
        for block in self._blocks:
            x = block(F.max_pool2d(x, 2) if features else x)
            features.append(x)
        return tuple(features)

    def decode(self, representation: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Mean of the side outputs' logits, (B, 1, H, W) float32."""
        if "hed" not in names:
            return {}
        sides = [block.projection(x).float() for block, x in zip(self._blocks, representation, strict=True)]
        size = sides[0].shape[-2:]
        resized = [F.interpolate(side, size, mode="bilinear", align_corners=False) for side in sides]
        return {"hed": torch.stack(resized).mean(0)}

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """The probability of an edge, (B, 1, *size)."""
        if "hed" not in names:
            return {}
        logits = F.interpolate(raw["hed"].float(), size, mode="bilinear", align_corners=False)
        return {"hed": torch.sigmoid(logits)}

    def export(self, folder: Path) -> None:
        """Write hed.safetensors, in the public file's names."""
        write_state_dict(self, folder / EXPORTED)


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width if i else width_in, width, 3, padding=1) for i in range(count))
        self.projection = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution in self.convs:
            x = F.relu(convolution(x))
        return x


def load_hed(source: str) -> HedNetwork:
    """A frozen HED network in float32.

    Args:
        source: a name of the weights manifest, ControlNet's ControlNetHED.pth, an exported file, or the folder of one.

    Raises:
        MegaSRError: the file is missing, broken, or of another network.
    """
    path = find_file(source, "HED network", (EXPORTED, PUBLIC))
    state = read_state_dict(path, "HED network")
    firsts = [state.get(f"block{place + 1}.convs.0.weight") for place in range(len(_WIDTHS))]
    with torch.device("meta"):
        network = HedNetwork(tuple(w if x is None else len(x) for x, w in zip(firsts, _WIDTHS, strict=True)))
    fill(network, state, f"HED network {path}")
    return network.freeze()
