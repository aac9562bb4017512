"""MegaSRPipeline: a trained adapter and a photograph in, sr out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.images import from_uint8, to_uint8

if TYPE_CHECKING:
    from megasr.training.config import SamplerConfig
    from megasr.training.module import MegaSRModule


class MegaSRPipeline:
    """Restore photographs with a trained adapter.

    Args:
        module: a trained module.
        device: where to run, as torch names it.
    """

    def __init__(self, module: MegaSRModule, device: str = "cpu") -> None:
        self.module = module.to(device).eval()
        self.device = device
        unavailable = [g.name for g in module.network.guidance if g.source != "lq"]
        if unavailable:
            raise UsageError(
                f"the adapter was trained with {', '.join(unavailable)}, which needs hq or rendered maps: "
                "such controls can be evaluated, but not used to restore a photograph"
            )

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, prior: str | None = None, sampler: SamplerConfig | None = None, device: str = "cpu"
    ) -> MegaSRPipeline:
        """Load a checkpoint.

        Args:
            path: checkpoint written by `megasr fit` or a study.
            prior: where the prior lies; None takes the source it was trained with.
            sampler: replaces the sampler of the run.
            device: where to run.

        Raises:
            MegaSRError: the checkpoint or the prior is missing, or they do not belong together.
        """
        from megasr.training.module import MegaSRModule

        changes = {"sampler": sampler} if sampler is not None else {}
        return cls(MegaSRModule.from_checkpoint(path, prior, **changes), device)

    @torch.no_grad()
    def __call__(self, image: np.ndarray, tags: str = "", key: str = "image") -> np.ndarray:
        """Restore one photograph.

        Args:
            image: lq (h, w, 3) uint8 RGB.
            tags: comma-separated words for what it shows; "" when unknown.
            key: name of the image; the sampling noise is keyed by it.

        Returns:
            sr (h * scale_factor, w * scale_factor, 3) uint8 RGB.
        """
        lq = from_uint8(image)[None].to(self.device)
        batch = SRBatch(keys=[key], lq=lq, tags=[tags])
        return to_uint8(self.module.restore(batch))[0]
