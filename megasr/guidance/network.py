"""What all networks that make guidance maps share: three steps that fine-tuning for lq needs apart, and their export.

    image --encode--> representation --decode--> raw outputs --finish--> maps in [0, 1]

Raw outputs, by guidance type (h x w is the network's own resolution):
    hed, sketch    logits of an edge (B, 1, h, w)
    depth          inverse depth of any scale and shift (B, 1, h, w)
    normal         vectors of any length (B, 3, h, w), x right, y up, z to the viewer
    segmentation   class logits (B, K, h, w)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import nn

from megasr.errors import UsageError

Size = tuple[int, int]  # height, width


class Views:
    """An image at the sizes that networks ask for: each is made once, however many networks share it.

    Args:
        image: (B, 3, H, W) float32 in [0, 1].
    """

    def __init__(self, image: torch.Tensor) -> None:
        self.image = image
        self._made: dict[Size, torch.Tensor] = {self.size: image}

    @property
    def size(self) -> Size:
        """(H, W) of the image itself."""
        return self.image.shape[-2], self.image.shape[-1]

    def at(self, size: Size) -> torch.Tensor:
        """The image at another size (bicubic, antialiased when it shrinks), (B, 3, h, w) in [0, 1]."""
        if size not in self._made:
            made = F.interpolate(self.image, size, mode="bicubic", antialias=True, align_corners=False)
            self._made[size] = made.clamp(0, 1)
        return self._made[size]


def fit_size(size: Size, shorter_px: int, multiple: int) -> Size:
    """The size of about the same aspect whose shorter side is about `shorter_px`; both are multiples, one at least."""
    scale = shorter_px / min(size)
    height, width = (max(1, round(side * scale / multiple)) * multiple for side in size)
    return height, width


class MapNetwork(nn.Module):
    """A network that makes one or several kinds of maps of an image.

    Attributes:
        gives: names of the guidance types that it makes.
        outputs: those of them that have a raw output; the others are computed from it (normals from depth).
        smallest_px: the least height and width of an image that it can work on.
        relative_depth: scale and shift of its inverse depth mean nothing.
    """

    gives: tuple[str, ...]
    outputs: tuple[str, ...]
    smallest_px: int = 1
    relative_depth: bool = True

    def encode(self, views: Views) -> tuple[torch.Tensor, ...]:
        """The representation: feature maps of the encoder, fine to coarse."""
        raise NotImplementedError

    def decode(self, representation: tuple[torch.Tensor, ...], names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Raw outputs of these types (see the module's docstring)."""
        raise NotImplementedError

    def finish(self, raw: Mapping[str, torch.Tensor], names: tuple[str, ...], size: Size) -> dict[str, torch.Tensor]:
        """Maps of these types, (B, C, *size) float32 in [0, 1]."""
        raise NotImplementedError

    def export(self, folder: Path) -> None:
        """Write the network in the format that it is loaded from."""
        raise NotImplementedError

    def forward(self, views: Views, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Maps of these types at the size of the image, from one pass through the encoder."""
        return self.finish(self.decode(self.encode(views), names), names, views.size)

    @property
    def dtype(self) -> torch.dtype:
        """In which the network computes; maps are float32 always."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @property
    def device(self) -> torch.device:
        """On which the network computes; maps stay there."""
        return next(self.parameters()).device

    def freeze(self) -> Self:
        """No gradients, evaluation mode. Returns itself."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """A frozen network stays in evaluation mode whatever Lightning asks for."""
        frozen = not any(p.requires_grad for p in self.parameters())
        return super().train(mode and not frozen)

    def check_size(self, size: Size) -> None:
        """Refuse an image that is too small for the layers.

        Raises:
            UsageError: a side is shorter than `smallest_px`.
        """
        if min(size) < self.smallest_px:
            raise UsageError(
                f"guidance {'/'.join(self.gives)}: images must be {self.smallest_px} px or more in height and width, "
                f"got {size[0]} x {size[1]}"
            )
