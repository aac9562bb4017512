"""Extractors of edge maps: Canny, HED, LSD, sketch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from megasr.guidance.extractors import MapNetwork, Size, Views, fill, read_state_dict, write_state_dict
from megasr.images import from_uint8, to_uint8

_BLUR_SIGMA_PX = 1.0
_LOW_TO_HIGH = 0.5


def extract_canny(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> edges (B, 1, H, W), each pixel 0 or 1.

    The upper threshold is Otsu's of the gradient magnitude, so that dark, flat and blurred photographs keep their
    strongest edges; the lower one is half of it. Keys are not used.
    """
    return torch.stack([from_uint8(_canny(photo)[..., None]) for photo in to_uint8(image)]).to(image.device)


def _canny(photo: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) uint8, each pixel 0 or 255."""
    import cv2

    grey = cv2.GaussianBlur(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), (0, 0), _BLUR_SIGMA_PX)
    dx = cv2.Sobel(grey, cv2.CV_16S, 1, 0)
    dy = cv2.Sobel(grey, cv2.CV_16S, 0, 1)
    magnitude = np.abs(dx.astype(np.int32)) + np.abs(dy)  # the L1 norm that cv2.Canny thresholds
    peak = max(1, int(magnitude.max()))
    scaled = (magnitude * 255 // peak).astype(np.uint8)
    threshold, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    high = max(1.0, threshold * peak / 255)
    return cv2.Canny(dx, dy, _LOW_TO_HIGH * high, high)


EXPORTED_HED, PUBLIC_HED = "hed.safetensors", "ControlNetHED.pth"
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
        for place, number in enumerate(_CONVOLUTIONS):
            width_in = widths[place - 1] if place else 3
            self.add_module(f"block{place + 1}", _Block(width_in, widths[place], number))

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
        sides = [block.projection(x).float() for block, x in zip(self._blocks, representation, strict=True)]
        size = sides[0].shape[-2:]
        resized = [F.interpolate(side, size, mode="bilinear", align_corners=False) for side in sides]
        return {"hed": torch.stack(resized).mean(0)}

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """The probability of an edge, (B, 1, *size)."""
        logits = F.interpolate(raw["hed"].float(), size, mode="bilinear", align_corners=False)
        return {"hed": torch.sigmoid(logits)}

    def export(self, folder: Path) -> None:
        """Write hed.safetensors, in the public file's names."""
        write_state_dict(self, folder / EXPORTED_HED)


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
    """A frozen HED network in float32: of the weights manifest, of a ControlNetHED.pth, an export, or a folder of one.

    Raises:
        MegaSRError: the file is missing, broken, or of another network.
    """
    path, state = read_state_dict(source, "HED network", (EXPORTED_HED, PUBLIC_HED))
    firsts = [state.get(f"block{place + 1}.convs.0.weight") for place in range(len(_WIDTHS))]
    with torch.device("meta"):
        network = HedNetwork(tuple(w if x is None else len(x) for x, w in zip(firsts, _WIDTHS, strict=True)))
    fill(network, state, f"HED network {path}")
    return network.freeze()


# Segments shorter than this share of the diagonal are texture: 20 px at 512 x 512, as M-LSD's own demonstration has it.
_SHORTEST = 20 / (512 * 2**0.5)
_SUBPIXEL_BITS = 4  # cv2.line takes coordinates in sixteenths of a pixel


def extract_lsd(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> segments (B, 1, H, W) in [0, 1], 1 px wide and anti-aliased. Keys are not used.

    An image smaller than a few pixels, where no segment can be told from chance, gives zeros.
    """
    return torch.stack([from_uint8(_draw_lsd(photo)[..., None]) for photo in to_uint8(image)]).to(image.device)


def _draw_lsd(photo: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) uint8."""
    import cv2

    # The advanced refinement is the one that tests each segment against chance: the others find lines in noise.
    detector = cv2.createLineSegmentDetector(cv2.LSD_REFINE_ADV)
    segments = detector.detect(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))[0]
    ends = np.zeros((0, 4), np.float32) if segments is None else segments.reshape(-1, 4)  # x, y, x, y
    lengths = np.hypot(ends[:, 2] - ends[:, 0], ends[:, 3] - ends[:, 1])
    kept = ends[lengths >= _SHORTEST * np.hypot(photo.shape[0], photo.shape[1])]
    return draw_segments(kept, photo.shape[:2])


def draw_segments(ends: np.ndarray, size: Size) -> np.ndarray:
    """Line segments (N, 4) as x, y, x, y in pixels -> (H, W) uint8, drawn 1 px wide and anti-aliased."""
    import cv2

    canvas = np.zeros(size, np.uint8)
    for end in np.rint(ends * 2**_SUBPIXEL_BITS).astype(int).tolist():
        cv2.line(canvas, end[:2], end[2:], 255, 1, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas


EXPORTED_SKETCH, PUBLIC_SKETCH = "sketch.safetensors", "sk_model.pth"
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
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU())
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
        return {"sketch": -self.model4(self.model3(representation[-1])).float()}

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """Lines, (B, 1, *size), bright where the drawing is dark; what was padded is cut off."""
        return {"sketch": torch.sigmoid(raw["sketch"][..., : size[0], : size[1]].float())}

    def export(self, folder: Path) -> None:
        """Write sketch.safetensors, in the public file's names."""
        write_state_dict(self, folder / EXPORTED_SKETCH)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = ((nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3)) for _ in range(2))
        norms = nn.InstanceNorm2d(width), nn.InstanceNorm2d(width)
        self.conv_block = nn.Sequential(*first, norms[0], nn.ReLU(), *second, norms[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv_block(x)


def _down(width_in: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width_in, width, 3, stride=2, padding=1), nn.InstanceNorm2d(width), nn.ReLU()


def _up(width_in: int, width: int) -> tuple[nn.Module, ...]:
    up = nn.ConvTranspose2d(width_in, width, 3, stride=2, padding=1, output_padding=1)
    return up, nn.InstanceNorm2d(width), nn.ReLU()


def load_sketch(source: str) -> SketchNetwork:
    """A frozen line-drawing network in float32: of the manifest, of an sk_model.pth, an export, or a folder of one.

    Raises:
        MegaSRError: the file is missing, broken, or of another network.
    """
    path, state = read_state_dict(source, "sketch network", (EXPORTED_SKETCH, PUBLIC_SKETCH))
    first = state.get("model0.1.weight")
    residuals = next(i for i in count() if f"model2.{i}.conv_block.1.weight" not in state)
    with torch.device("meta"):
        network = SketchNetwork(_WIDTH if first is None else len(first), residuals or _RESIDUALS)
    fill(network, state, f"sketch network {path}")
    return network.freeze()
