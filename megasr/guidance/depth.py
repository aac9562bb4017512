"""Depth by Depth Anything V2 (Yang et al., 2406.09414), a transformers folder, and the normals that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from megasr.errors import MegaSRError
from megasr.guidance.checkpoints import (
    Preprocessing,
    load_transformers,
    read_config,
    read_preprocessing,
    save_transformers,
)
from megasr.guidance.network import MapNetwork, Size, Views
from megasr.guidance.normals import normals_from_depth

ARCHITECTURE = "DepthAnythingForDepthEstimation"
_SHORTER_PX = 518  # of Depth Anything's own processor
_LEAST_SPAN = 1e-5  # of the largest value: a range below that is rounding, not depth


class DepthNetwork(MapNetwork):
    """Inverse depth, near = bright. Its representation is the backbone's four feature maps.

    Args:
        model: transformers' DepthAnythingForDepthEstimation, of relative depth.
        preprocessing: size and normalisation of the image that it sees.
    """

    gives = ("depth", "normal")
    outputs = ("depth",)

    def __init__(self, model: Any, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing

    def encode(self, views: Views) -> tuple[torch.Tensor, ...]:
        """Four maps (B, C, h / patch, w / patch) from layers of growing depth, all of one size.

        The network's decoder ignores the class token, so the maps are without it.
        """
        image = self.preprocessing.prepare(views, self.model.config.patch_size).to(self.device, self.dtype)
        rows = image.shape[-2] // self.model.config.patch_size
        tokens = self.model.backbone.forward_with_filtered_kwargs(image).feature_maps
        return tuple(x[:, 1:].transpose(1, 2).unflatten(2, (rows, -1)) for x in tokens)

    def decode(self, representation: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Inverse depth of any scale and shift, (B, 1, h, w) float32."""
        if not set(self.gives) & set(names):
            return {}
        grid = representation[0].shape[-2:]
        tokens = [F.pad(x.flatten(2).transpose(1, 2), (0, 0, 1, 0)) for x in representation]
        fused = [x.float() for x in self.model.neck(tokens, *grid)]
        # The head in float32: depth in bfloat16 is a flight of stairs, and normals are its derivative.
        weights = {name: value.float() for name, value in self.model.head.named_parameters()}
        with torch.autocast(self.device.type, enabled=False):
            depth = torch.func.functional_call(self.model.head, weights, (fused, *grid))
        return {"depth": depth[:, None]}

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """Depth (B, 1, *size), normalised per image, and pseudo-normals (B, 3, *size) of it."""
        if not set(self.gives) & set(names):
            return {}
        depth = normalise_depth(F.interpolate(raw["depth"].float(), size, mode="bilinear", align_corners=False))
        maps = {"depth": depth}
        if "normal" in names:
            maps["normal"] = normals_from_depth(depth)
        return {name: maps[name] for name in self.gives if name in names}

    def export(self, folder: Path) -> None:
        """Write a transformers folder."""
        save_transformers(self.model, self.preprocessing, folder)


def normalise_depth(depth: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) of any scale and shift -> [0, 1], the least value of each image to 0 and the largest to 1.

    A constant map gives zeros: nothing is near.
    """
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    least = torch.maximum(low.abs(), high.abs()) * _LEAST_SPAN
    span = torch.maximum(high - low, least.clamp_min(torch.finfo(depth.dtype).tiny))
    return ((depth - low) / span).clamp(0, 1)


def load_depth(source: str) -> DepthNetwork:
    """A frozen depth network in float32.

    Args:
        source: a name of the weights manifest, a hub id that is in the local cache, or a transformers folder.

    Raises:
        MegaSRError: the folder is missing, broken, of another architecture, or of a network of metric depth.
    """
    folder, config = read_config(source, "depth network", (ARCHITECTURE,))
    kind = config.get("depth_estimation_type", "relative")
    if kind != "relative":  # such a network predicts distances: far would be bright
        raise MegaSRError(f"depth network {source!r} in {folder} predicts {kind} depth; needed: a relative one")
    preprocessing = read_preprocessing(folder, f"depth network {source!r}", _SHORTER_PX)
    return DepthNetwork(load_transformers(folder, ARCHITECTURE, f"depth network {source!r}"), preprocessing).freeze()
