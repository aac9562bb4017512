"""The small extractor that ships with the package: edges, depth, normals and segmentation from one encoder.

A residual U-Net encoder, a feature pyramid (1612.03144) and one head per map. Its world are the rendered scenes: the
classes and colours of its segmentation come with the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from megasr.errors import MegaSRError, UsageError
from megasr.files import read_safetensors
from megasr.guidance.extractors import MapNetwork, Size, Views
from megasr.images import pad_to_multiple

FOLDERS = {
    "tiny": Path(__file__).parent.parent / "assets" / "tiny_extractors",
    "tiny_lq": Path(__file__).parent.parent / "assets" / "tiny_extractors_lq",
}
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_STRIDE = 16  # image pixels per pixel of the coarsest feature map
_GROUPS = 8
_HEAD_WIDTH = 24
_COLOR_TOLERANCE = 0.01


class _Block(nn.Module):
    """Pre-activation residual block of two 3x3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.silu(norm(h)))
        return x + h


class TinyMaps(MapNetwork):
    """Edges (borders and creases of objects), depth, normals and segmentation of the rendered scenes.

    Args:
        classes: names of the classes.
        colors: one RGB triple in [0, 1] per class.
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the image.
        blocks: residual blocks at each of these.
        pyramid_width: channels of the feature pyramid.
    """

    gives = outputs = ("hed", "depth", "normal", "segmentation")
    relative_depth = False  # the nearest pixel of a scene has depth 1, the sky 0

    colors: torch.Tensor

    def __init__(
        self,
        classes: Sequence[str],
        colors: Sequence[Sequence[float]],
        widths: Sequence[int] = (24, 48, 96, 128),
        blocks: Sequence[int] = (1, 2, 2, 2),
        pyramid_width: int = 48,
    ) -> None:
        super().__init__()
        colors = [[round(float(value), 4) for value in color] for color in colors]
        sizes = {"widths": list(widths), "blocks": list(blocks), "pyramid_width": pyramid_width}
        self.config: dict[str, Any] = {"classes": list(classes), "colors": colors, **sizes}
        self.downs = nn.ModuleList(
            nn.Conv2d(low, high, 3, stride=1 if level == 0 else 2, padding=1)
            for level, (low, high) in enumerate(zip((12, *widths[:-1]), widths, strict=True))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(_Block(width) for _ in range(count))) for width, count in zip(widths, blocks, strict=True)
        )
        self.context = nn.Linear(widths[-1], widths[-1])  # depth is a matter of the whole picture
        self.laterals = nn.ModuleList(nn.Conv2d(width, pyramid_width, 1) for width in widths)
        self.smooth = _Block(pyramid_width)
        # Edges need the finest pixels, so four of them come from each pixel at 1/2; the others are as fine as 1/2.
        channels = {"hed": 4, "depth": 1, "normal": 3, "segmentation": len(classes)}
        self.heads = nn.ModuleDict({name: _head(pyramid_width, count) for name, count in channels.items()})
        # uint8, so that a cast of the network leaves the colours as they are.
        levels = torch.tensor([[round(value * 255) for value in color] for color in colors], dtype=torch.uint8)
        self.register_buffer("colors", levels, persistent=False)

    def encode(self, views: Views) -> tuple[torch.Tensor, ...]:
        """Four feature maps, at 1/2 to 1/16 of the image padded to multiples of 16 px."""
        x = F.pixel_unshuffle(pad_to_multiple(views.image.to(self.device, self.dtype), _STRIDE) * 2 - 1, 2)
        features = []
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = stage(down(x))
            features.append(x)
        features[-1] = x + self.context(x.mean((2, 3)))[..., None, None]
        return tuple(features)

    def decode(self, representation: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Raw outputs of these types: edges at the padded size, the others at half of it."""
        x = self.laterals[-1](representation[-1])
        for lateral, feature in zip(reversed(self.laterals[:-1]), reversed(representation[:-1]), strict=True):
            x = lateral(feature) + F.interpolate(x, feature.shape[-2:], mode="bilinear", align_corners=False)
            if feature is representation[1]:
                x = self.smooth(x)
        raw = {name: self.heads[name](x) for name in names}
        if "hed" in raw:
            raw["hed"] = F.pixel_shuffle(raw["hed"], 2)
        if "depth" in raw:
            raw["depth"] = raw["depth"].sigmoid()
        return raw

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """Maps: probabilities of an edge, inverse depth, normals as (n + 1) / 2, the colour of the likeliest class."""
        padded = tuple(side + -side % _STRIDE for side in size)
        maps = {}
        for name in names:
            value = raw[name].float()
            if name != "hed":
                value = F.interpolate(value, padded, mode="bilinear", align_corners=False)
            value = value[..., : size[0], : size[1]]
            if name == "hed":
                maps[name] = value.sigmoid()
            elif name == "depth":
                maps[name] = value.clamp(0, 1)
            elif name == "normal":  # shorter ones stay so: the sky has none, and doubt shortens a mean
                maps[name] = (value / value.norm(dim=1, keepdim=True).clamp(min=1) + 1) / 2
            else:
                maps[name] = (self.colors[value.argmax(1)].float() / 255).permute(0, 3, 1, 2).contiguous()
        return maps

    def classes_of(self, colors: torch.Tensor) -> torch.Tensor:
        """Class ids (B, H, W) of a map in the colours of the classes, (B, 3, H, W).

        Raises:
            UsageError: a colour is that of no class.
        """
        known = self.colors[None].to(colors) / 255
        distance = torch.cdist(colors.permute(0, 2, 3, 1).reshape(1, -1, 3), known).squeeze(0)
        nearest, classes = distance.min(1)
        if nearest.max() > _COLOR_TOLERANCE:
            raise UsageError(
                f"the segmentation has colours of none of the {len(self.colors)} classes of the network: "
                "it belongs to other data"
            )
        return classes.reshape(len(colors), *colors.shape[-2:])

    def export(self, folder: Path) -> None:
        """Write config.json and model.safetensors (fp16)."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config) + "\n")
        save_file({k: v.detach().half().contiguous().cpu() for k, v in self.state_dict().items()}, folder / WEIGHTS)


def _head(width: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.GroupNorm(_GROUPS, width),
        nn.SiLU(),
        nn.Conv2d(width, _HEAD_WIDTH, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(_HEAD_WIDTH, channels, 1),
    )


def load_tiny(source: str) -> TinyMaps:
    """The shipped network (`tiny`: trained on clean images; `tiny_lq`: tuned for lq), or one from a folder.

    Raises:
        MegaSRError: a file is missing, damaged, or does not fit the other.
    """
    folder = FOLDERS.get(source, Path(source))
    absent = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if absent:
        raise MegaSRError(f"extractor {source!r}: {folder} lacks {', '.join(absent)}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        network = build_tiny(**config)
        network.load_state_dict(read_safetensors(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise MegaSRError(f"extractor {source!r} in {folder} cannot be read: {error}") from error
    return network.freeze()


def build_tiny(classes: Sequence[str], colors: Sequence[Sequence[float]], **sizes: Any) -> TinyMaps:
    """A network with random weights; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        return TinyMaps(classes, colors, **sizes)
