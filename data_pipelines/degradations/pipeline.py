"""The interface of a degradation: sample parameters per sample, then apply them. Applying draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from megasr.errors import UsageError
from megasr.images import from_uint8, resize

Params = dict[str, Any]  # plain data: it travels in the batch, in logs and in failure reports


class Degradation(Protocol):
    """hq -> lq. A variant is another draw for the same image."""

    @property
    def name(self) -> str:
        """Of the preset."""
        ...

    @property
    def scale_factor(self) -> int:
        """Size of hq over size of lq."""
        ...

    def sample_params(self, seed: int, keys: Sequence[str], variant: int = 0) -> list[Params]:
        """One parameter set per sample, a function of (seed, key, variant)."""
        ...

    def apply(self, hq: torch.Tensor, params: Sequence[Params]) -> torch.Tensor:
        """The `device` back end: hq (B, 3, H, W) in [0, 1] -> lq (B, 3, H / scale_factor, W / scale_factor).

        Same parameters, same bits on the same device.
        """
        ...

    def apply_image(self, hq: np.ndarray, params: Params) -> torch.Tensor:
        """The `cpu` back end, for loader workers: hq (H, W, 3) uint8 -> lq (3, H / scale_factor, W / scale_factor)."""
        ...


class Bicubic:
    """Antialiased bicubic down-sampling and nothing else: the degradation of classical super-resolution.

    Args:
        scale_factor: size of hq over size of lq; 1 leaves the image as it is.
        name: of the preset; it stands in every parameter set.
    """

    def __init__(self, scale_factor: int, name: str = "bicubic") -> None:
        self.scale_factor, self.name = scale_factor, name

    def sample_params(self, seed: int, keys: Sequence[str], variant: int = 0) -> list[Params]:
        """Nothing is random here: the parameters only say what was done."""
        return [{"name": self.name, "scale_factor": self.scale_factor} for _ in keys]

    def apply(self, hq: torch.Tensor, params: Sequence[Params]) -> torch.Tensor:
        """See Degradation.apply.

        Raises:
            UsageError: the size of hq is not a multiple of the scale factor.
        """
        height, width = hq.shape[-2:]
        if height % self.scale_factor or width % self.scale_factor:
            raise UsageError(f"hq of {width}x{height} px is not a multiple of scale_factor {self.scale_factor}")
        if self.scale_factor == 1:
            return hq
        return resize(hq, height // self.scale_factor, width // self.scale_factor)

    def apply_image(self, hq: np.ndarray, params: Params) -> torch.Tensor:
        """See Degradation.apply_image: the same code as on the device."""
        return self.apply(from_uint8(hq)[None], [params])[0]
