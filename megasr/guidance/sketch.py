"""Line drawings (Chan et al., 2203.12691, "informative drawings"): the network behind ControlNet's line art.

A generator that draws dark lines on white; here lines are bright, as all edge maps are. Modules bear the names of the
public file (sk_model.pth).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from megasr.guidance.checkpoints import fill, find_file, read_state_dict, write_state_dict
from megasr.guidance.network import MapNetwork, Size, Views

EXPORTED, PUBLIC = "sketch.safetensors", "sk_model.pth"
_WIDTH, _RESIDUALS = 64, 3
_MULTIPLE = 4  # two halvings


class SketchNetwork(MapNetwork):
    """Line drawings at the image's own resolution. Its representation is the features at a quarter of it.

    Args:
        width: channels at full resolution; a quarter of the resolution has four times as many.
        residuals: number of residual blocks.
    """

    gives = ("sketch",)
    outputs = ("sketch",)
    smallest_px = 8  # reflection needs two pixels at a quarter of the resolution

    def __init__(self, width: int = _WIDTH, residuals: int = _RESIDUALS) -> None:
        super().__init__()
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), *_norm_relu(width))
        self.model1 = nn.Sequential(*_down(width, 2 * width), *_down(2 * width, 4 * width))
        self.model2 = nn.Sequential(*(_Residual(4 * width) for _ in range(residuals)))
        self.model3 = nn.Sequential(*_up(4 * width, 2 * width), *_up(2 * width, width))
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7))

    def encode(self, views: Views) -> tuple[torch.Tensor, ...]:
        """One map of features, (B, 4 * width, h / 4, w / 4); h and w are H and W padded to multiples of 4.

        Raises:
            UsageError: the image is too small.
        """
        self.check_size(views.size)
        height, width = views.size
        image = views.image.to(self.device, self.dtype)
        padded = F.pad(image, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE), mode="reflect")
        return (self.model2(self.model1(self.model0(padded))),)

    def decode(self, representation: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Logits of a line at the padded size, (B, 1, h, w) float32: the public network's own, negated."""
        if "sketch" not in names:
            return {}
        return {"sketch": -self.model4(self.model3(representation[-1])).float()}

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """Lines, (B, 1, *size), bright where the drawing is dark; what was padded is cut off."""
        if "sketch" not in names:
            return {}
        return {"sketch": torch.sigmoid(raw["sketch"][..., : size[0], : size[1]].float())}

    def export(self, folder: Path) -> None:
        """Write sketch.safetensors, in the public file's names."""
        write_state_dict(self, folder / EXPORTED)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = ((nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3)) for _ in range(2))
        self.conv_block = nn.Sequential(*first, *_norm_relu(width), *second, nn.InstanceNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv_block(x)


def _norm_relu(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(width), nn.ReLU()


def _down(width_in: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width_in, width, 3, stride=2, padding=1), *_norm_relu(width)


def _up(width_in: int, width: int) -> tuple[nn.Module, ...]:
    return nn.ConvTranspose2d(width_in, width, 3, stride=2, padding=1, output_padding=1), *_norm_relu(width)


def load_sketch(source: str) -> SketchNetwork:
    """A frozen line-drawing network in float32.

    Args:
        source: a name of the weights manifest, the public sk_model.pth, an exported file, or the folder of one.

    Raises:
        MegaSRError: the file is missing, broken, or of another network.
    """
    path = find_file(source, "sketch network", (EXPORTED, PUBLIC))
    state = read_state_dict(path, "sketch network")
    first = state.get("model0.1.weight")
    residuals = next(i for i in count() if f"model2.{i}.conv_block.1.weight" not in state)
    with torch.device("meta"):
        network = SketchNetwork(_WIDTH if first is None else len(first), residuals or _RESIDUALS)
    fill(network, state, f"sketch network {path}")
    return network.freeze()
