"""Baselines that are not trained here: bicubic enlargement, and RRDBNet with the weights of Real-ESRGAN x4plus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from megasr.errors import MegaSRError, UsageError
from megasr.files import file_sha256
from megasr.guidance.extractors import fill, read_state_dict
from megasr.images import from_uint8, read_image, to_uint8, upsample_lq, write_png
from megasr.inference.tiling import Box, Tiling

BICUBIC, REAL_ESRGAN = NAMED = "bicubic", "realesrgan-x4plus"
_RRDB_SCALE = 4
_TILING = Tiling(size=1024, overlap=256, batch=1)  # px of sr; a tile takes about 1 GiB
_RESIDUAL, _SLOPE = 0.2, 0.2
_DENSE, _CONVOLUTIONS = 3, 5  # dense blocks per residual block, convolutions per dense block


class RRDBNet(nn.Module):
    """Generator of ESRGAN (1809.00219) and Real-ESRGAN (2107.10833), x4, with the parameter names of their files.

    Args:
        width: channels of the features.
        growth: channels that each convolution of a dense block adds.
        blocks: residual-in-residual dense blocks.
    """

    def __init__(self, width: int = 64, growth: int = 32, blocks: int = 23) -> None:
        super().__init__()
        self.conv_first = _conv(3, width)
        self.body = nn.ModuleList(_ResidualInResidual(width, growth) for _ in range(blocks))
        self.conv_body = _conv(width, width)
        self.conv_up1 = _conv(width, width)
        self.conv_up2 = _conv(width, width)
        self.conv_hr = _conv(width, width)
        self.conv_last = _conv(width, 3)

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, 4H, 4W), not clipped."""
        shallow = self.conv_first(lq)
        x = shallow
        for block in self.body:
            x = block(x)
        x = shallow + self.conv_body(x)
        for conv in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), _SLOPE)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), _SLOPE))


class _ResidualInResidual(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for number in range(1, _DENSE + 1):
            self.add_module(f"rdb{number}", _Dense(width, growth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x
        for dense in self.children():
            inner = dense(inner)
        return x + _RESIDUAL * inner


class _Dense(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for place in range(_CONVOLUTIONS):
            last = place == _CONVOLUTIONS - 1
            self.add_module(f"conv{place + 1}", _conv(width + place * growth, width if last else growth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *convs, last = self.children()
        features = [x]
        for conv in convs:
            features.append(F.leaky_relu(conv(torch.cat(features, 1)), _SLOPE))
        return x + _RESIDUAL * last(torch.cat(features, 1))


def _conv(width_in: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, 3, padding=1)


def load_rrdbnet(source: str) -> tuple[Path, RRDBNet]:
    """The file and the frozen network in float32 of `realesrgan-x4plus` or of a file in the layout of BasicSR.

    Raises:
        MegaSRError: the file is missing, broken, or of another network.
    """
    path, state = read_state_dict(source, "RRDBNet", ("RealESRGAN_x4plus.pth",))
    first, dense = state.get("conv_first.weight"), state.get("body.0.rdb1.conv1.weight")
    if first is None or dense is None:
        raise MegaSRError(f"RRDBNet {path} cannot be used: it has no conv_first.weight or no body.0.rdb1.conv1.weight")
    blocks = len({name.split(".")[1] for name in state if name.startswith("body.")})
    with torch.device("meta"):
        network = RRDBNet(len(first), len(dense), blocks)
    fill(network, state, f"RRDBNet {path}")
    return path, network.requires_grad_(False).eval()


@torch.no_grad()
def restore_tiled(network: nn.Module, lq: torch.Tensor) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1] -> (1, 3, 4H, 4W) in [0, 1]; in tiles of 256 px of lq that overlap by 64 px.

    An image that is no larger than a tile is restored whole.
    """
    height, width = (side * _RRDB_SCALE for side in lq.shape[-2:])
    grid = _TILING.grid(height, width, _RRDB_SCALE)
    tiles = grid.divided(_RRDB_SCALE)

    def make(boxes: list[Box]) -> torch.Tensor:
        return network(tiles.crop(lq, boxes))

    return grid.blend(make).clamp(0, 1)


def is_baseline(name: str) -> bool:
    """Whether it is the name of a baseline, or by its ending a file of an RRDBNet's weights."""
    return name in NAMED or Path(name).suffix in (".pth", ".safetensors")


def check_scale(baseline: str, scale_factor: int) -> None:
    """Raises UsageError when the baseline does not restore by this factor."""
    if baseline != BICUBIC and scale_factor != _RRDB_SCALE:
        raise UsageError(f"{baseline} restores x{_RRDB_SCALE}, these images are x{scale_factor}")


def load_baseline(
    baseline: str, scale_factor: int, device: str | torch.device = "cpu"
) -> tuple[Callable[[torch.Tensor], torch.Tensor], dict[str, str]]:
    """What restores lq (B, 3, H, W) in [0, 1] to sr, scale_factor times as large, and its provenance.

    Args:
        baseline: `bicubic`, `realesrgan-x4plus`, or a file of an RRDBNet's weights.
        scale_factor: size of sr over size of lq.
        device: where lq is and the network runs.

    Raises:
        UsageError: the baseline does not restore by this factor.
        MegaSRError: its weights are missing or broken; when it restores, sr is not finite.
    """
    check_scale(baseline, scale_factor)
    made_by = {"baseline": baseline}
    if baseline == BICUBIC:
        return partial(upsample_lq, scale_factor=scale_factor), made_by
    path, network = load_rrdbnet(baseline)
    network.to(device)

    def restore(lq: torch.Tensor) -> torch.Tensor:
        sr = torch.cat([restore_tiled(network, one[None].to(device)) for one in lq])
        if not torch.isfinite(sr).all():
            raise MegaSRError(f"{baseline}: sr is not finite: are these its weights?")
        return sr

    return restore, made_by | {"sha256": file_sha256(path)[:16]}


def restore_folder(
    baseline: str,
    lq: Mapping[str, Path],
    out: Path,
    *,
    scale_factor: int,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Restore images by a baseline, as PNG files.

    Args:
        baseline, scale_factor, device: see `load_baseline`.
        lq: key -> file.
        out: folder of `KEY.png`.
        progress: is called with the images done and the images in all.

    Returns:
        What made the images, for their provenance.

    Raises:
        UsageError, MegaSRError: as `load_baseline`; an image cannot be read or written.
    """
    restore, made_by = load_baseline(baseline, scale_factor, device)
    for done, (key, file) in enumerate(lq.items(), 1):
        sr = restore(from_uint8(read_image(file))[None])[0].cpu()
        write_png(to_uint8(sr), out / f"{key}.png")
        progress(done, len(lq))
    return made_by


def common_scale(lq: Mapping[str, Sequence[int]], hq: Mapping[str, Sequence[int]]) -> int:
    """The factor between the sizes of lq and hq, key -> (height, width).

    Raises:
        UsageError: lq is as large as hq, or the sides of an hq are not the same whole multiple of those of its lq as in
            the first image.
    """
    first = next(iter(lq))
    factor = max(1, hq[first][0] // lq[first][0])
    if tuple(hq[first]) == tuple(lq[first]):
        raise UsageError(
            f"lq of {first!r} is as large as its hq: is --lq the folder of lq? There is nothing to enlarge"
        )
    for key, size in lq.items():
        if tuple(hq[key]) != tuple(side * factor for side in size):
            raise UsageError(
                f"lq of {key!r} is {size[1]}x{size[0]} px, its hq {hq[key][1]}x{hq[key][0]} px: not x{factor} of it; a "
                "baseline restores lq to the size of hq"
            )
    return factor
