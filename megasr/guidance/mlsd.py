"""M-LSD tiny: straight line segments by a network (2106.00186), in the layout of its public weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from megasr.errors import MegaSRError
from megasr.guidance.edges import draw_segments
from megasr.guidance.extractors import (
    MapNetwork,
    Size,
    Views,
    fill,
    read_state_dict,
    write_state_dict,
)
from megasr.images import from_uint8

EXPORTED_MLSD, PUBLIC_MLSD = "mlsd.safetensors", "mlsd_512x512_tiny.onnx"
_INPUT_PX = "input_px"  # in an export: height and width of the images that it was trained on
# MobileNetV2's inverted residuals up to a quarter, an eighth and a sixteenth of the resolution: (width, stride).
_FINE, _MIDDLE, _COARSE = ((16, 1), (24, 2), (24, 1)), ((32, 2), (32, 1), (32, 1)), ((64, 2), (64, 1), (64, 1), (64, 1))
_EXPANSION = 6  # of all blocks but the first
_FOURTH = 1 / 127.5 - 1  # a fourth channel, which the published code fills with ones beside colours up to 255
_OUTPUTS, _CENTRE, _ENDS = 16, slice(7, 8), slice(8, 12)  # the other outputs serve the training
# Those of ControlNet's annotator. Lengths are in pixels at half the resolution that the network sees.
_SCORE, _SHORTEST_PX, _MOST = 0.1, 0.1, 200
# Its modules in the order of the public graph's convolutions.
_ORDER = (
    *("stem", "fine", "merge_fine.fine", "middle", "coarse"),
    *("merge_middle.coarse", "merge_middle.fine", "merge_middle.mix", "merge_middle.out"),
    *("merge_fine.coarse", "merge_fine.mix", "merge_fine.out", "head"),
)


def _pad(x: torch.Tensor) -> torch.Tensor:
    """Before a 3x3 convolution with stride two, as TensorFlow pads: at the bottom and on the right alone."""
    return F.pad(x, (0, 1, 0, 1))


class _Block(nn.Module):
    """An inverted residual of MobileNetV2 (1801.04381); batch normalisation is in its convolutions."""

    def __init__(self, width_in: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.expand = nn.Conv2d(width_in, inner, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, padding=2 - stride, groups=inner)
        self.project = nn.Conv2d(inner, width, 1)
        self.halves, self.is_residual = stride == 2, stride == 1 and width_in == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(_pad(y) if self.halves else y)))
        return x + y if self.is_residual else y


def _blocks(width_in: int, layout: tuple[tuple[int, int], ...], first_expansion: int = _EXPANSION) -> nn.Sequential:
    widths = (width_in, *(width for width, _ in layout))
    expansions = (first_expansion, *[_EXPANSION] * (len(layout) - 1))
    parts = zip(widths, layout, expansions, strict=False)
    return nn.Sequential(*(_Block(before, width, stride, by) for before, (width, stride), by in parts))


class _Merge(nn.Module):
    """Fine features beside coarser ones of twice the size of a pixel."""

    def __init__(self, fine: int, coarse: int, width: int) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(fine, width, 1), nn.Conv2d(coarse, width, 1)
        self.mix, self.out = nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, 64, 3, padding=1)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        x = torch.cat([F.relu(self.fine(fine)), F.relu(self.coarse(_double(coarse)))], 1)
        return F.relu(self.out(x + F.relu(self.mix(x))))


def _double(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class MlsdNetwork(MapNetwork):
    """Line segments of images that are resized to the square that it was trained on. Its representation is the trunk's
    features.

    Args:
        input_px: side of the square, a multiple of 16.
    """

    gives = ("mlsd",)
    outputs = ("mlsd",)

    def __init__(self, input_px: int = 512) -> None:
        super().__init__()
        self.size = input_px, input_px
        self.register_buffer(_INPUT_PX, torch.tensor(float(input_px)))
        self.stem = nn.Conv2d(4, 32, 3, stride=2)
        self.fine = _blocks(32, _FINE, first_expansion=1)
        self.middle, self.coarse = _blocks(24, _MIDDLE), _blocks(32, _COARSE)
        self.merge_middle, self.merge_fine = _Merge(32, 64, 64), _Merge(24, 64, 32)
        dilated, plain = nn.Conv2d(64, 64, 3, padding=5, dilation=5), nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Sequential(dilated, nn.ReLU(), plain, nn.ReLU(), nn.Conv2d(64, _OUTPUTS, 1))

    def encode(self, views: Views) -> tuple[torch.Tensor, ...]:
        """Features at a quarter, an eighth and a sixteenth of the resized image: 24, 32 and 64 channels."""
        image = views.at(self.size).to(self.device).float()
        x = F.pad(image * 2 - 1, (0, 0, 0, 0, 0, 1), value=_FOURTH).to(self.dtype)
        fine = self.fine(F.relu6(self.stem(_pad(x))))
        middle = self.middle(fine)
        return fine, middle, self.coarse(middle)

    def decode(self, representation: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """At half of the resized image, (B, 5, h, w) float32: the logit of a segment's centre, and x, y of both ends.

        The ends are in pixels of this map, from the centre.
        """
        fine, middle, coarse = representation
        y = _double(self.head(self.merge_fine(fine, self.merge_middle(middle, coarse)))).float()
        return {"mlsd": torch.cat([y[:, _CENTRE], y[:, _ENDS]], 1)}

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """The segments drawn 1 px wide and anti-aliased, (B, 1, *size)."""
        drawn = [from_uint8(draw_segments(find_segments(one, size).numpy(), size)[..., None]) for one in raw["mlsd"]]
        return {"mlsd": torch.stack(drawn).to(raw["mlsd"].device)}

    def export(self, folder: Path) -> None:
        """Write mlsd.safetensors."""
        write_state_dict(self, folder / EXPORTED_MLSD)


@torch.no_grad()
def find_segments(raw: torch.Tensor, size: Size) -> torch.Tensor:
    """Ends (N, 4) as x, y, x, y in pixels of an image of this size, the most probable first; raw is (5, h, w)."""
    raw = raw.detach().float().cpu()
    height, width = raw.shape[-2:]
    score = raw[0].sigmoid()
    peak = F.max_pool2d(score[None, None], 3, stride=1, padding=1)[0, 0] == score
    best, places = (score * peak).flatten().topk(min(_MOST, score.numel()))
    y, x = places // width, places % width
    offsets = raw[1:].flatten(1)[:, places].T
    lengths = (offsets[:, :2] - offsets[:, 2:]).norm(dim=1)
    ends = offsets + torch.stack([x, y, x, y], 1)
    scale = torch.tensor([size[1] / width, size[0] / height] * 2)
    return (ends * scale)[(best > _SCORE) & (lengths > _SHORTEST_PX)]


def load_mlsd(source: str) -> MlsdNetwork:
    """A frozen M-LSD tiny in float32: of the manifest, of an mlsd_512x512_tiny.onnx, an export, or a folder of one.

    Raises:
        MegaSRError: the file is missing, broken, or of another network (also of the large one).
    """
    path, state = read_state_dict(source, "M-LSD", (EXPORTED_MLSD, PUBLIC_MLSD))
    if path.suffix == ".onnx":
        state = _renamed(state, f"M-LSD {path} cannot be used")
    with torch.device("meta"):
        network = MlsdNetwork(int(state.get(_INPUT_PX, 0)))
    fill(network, state, f"M-LSD {path}")
    return network.freeze()


def _renamed(convolutions: dict[str, torch.Tensor], failure: str) -> dict[str, torch.Tensor]:
    """The state dict of an ONNX file's convolutions."""
    shape = convolutions.pop("input").int().tolist()
    with torch.device("meta"):
        known = list(MlsdNetwork().state_dict())
    names = [name for part in _ORDER for name in known if name.startswith(f"{part}.")]
    if len(convolutions) != len(names):
        count = f"it has {len(convolutions) // 2} convolutions, M-LSD tiny has {len(names) // 2}"
        raise MegaSRError(f"{failure}: {count}")
    if len(shape) != 4 or shape[1] != shape[2] or not shape[1] or shape[1] % 16:
        raise MegaSRError(f"{failure}: its input is {shape}, not [1, n, n, 4] with n a multiple of 16")
    return dict(zip(names, convolutions.values(), strict=True)) | {_INPUT_PX: torch.tensor(float(shape[1]))}
