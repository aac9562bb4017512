"""Image semantics: OpenCLIP patch tokens e_i of the degraded image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from megasr.errors import MegaSRError, unknown_name


@dataclass(frozen=True)
class VisionConfig:
    """Which OpenCLIP vision tower gives the image tokens.

    Args:
        model: open_clip model name; SD 2.x was trained with ViT-H-14's text tower.
        weights: checkpoint file of that model (open_clip's format, safetensors or pickle).
    """

    weights: str
    model: str = "ViT-H-14"


class VisionEncoder(nn.Module):
    """lq_up -> (B, N, E) patch tokens of a frozen OpenCLIP vision transformer.

    Raises:
        UsageError: open_clip does not know the model.
        MegaSRError: the weights are missing or belong to another model.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        import open_clip

        if config.model not in open_clip.list_models():
            raise unknown_name("open_clip model", config.model, open_clip.list_models())
        try:
            model = open_clip.create_model(config.model, pretrained=config.weights)
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise MegaSRError(
                f"vision weights {config.weights!r} for {config.model} cannot be loaded: {error}"
            ) from error
        self.visual = model.visual.requires_grad_(False).eval()
        size = model.visual.image_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.visual, f"image_{name}", None) or _CLIP[name])
            self.register_buffer(name, values.view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> VisionEncoder:
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, N, E)."""
        image = F.interpolate(image, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        features = self.visual.forward_intermediates(
            (image - self.mean) / self.std, indices=1, normalize_intermediates=True, intermediates_only=True,
            output_fmt="NLC",
        )  # fmt: skip
        return features["image_intermediates"][-1]


# CLIP's pixel statistics (2103.00020), for towers that do not carry their own.
_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
