"""Image semantics: OpenCLIP patch tokens e_i of the degraded image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.files import read_saved
from megasr.semantics.clip import FOLDERS, WEIGHTS, find_clip, load_open_clip, prepare_images
from megasr.weights import MANIFEST


@dataclass(frozen=True)
class VisionConfig:
    """Which OpenCLIP vision tower gives the image tokens.

    Args:
        weights: checkpoint file of an open_clip model (open_clip's format, safetensors or pickle).
        model: open_clip model name, as SD 2.x was trained with ViT-H-14's text tower; or, without weights, `tiny` or
            `tiny_lq` (the shipped ones), `clip-vit-h14` (megasr weights) or a folder in open_clip's local-dir format.

    Raises:
        UsageError: a name without weights, or one that brings them with weights.
    """

    weights: str = ""
    model: str = "ViT-H-14"

    def __post_init__(self) -> None:
        if self.brings_weights and self.weights:
            raise UsageError(f"vision.model {self.model!r} brings its own weights: leave out vision.weights")
        if not self.brings_weights and not self.weights:
            raise UsageError(f"vision.weights: name the checkpoint of {self.model}, or set vision.model to tiny")

    @property
    def brings_weights(self) -> bool:
        """The model is a shipped one, one of the manifest, or a folder."""
        return self.model in (*FOLDERS, *MANIFEST) or "/" in self.model or Path(self.model).is_dir()

    @property
    def weights_file(self) -> Path:
        """Where the weights are."""
        return find_clip(self.model) / WEIGHTS if self.brings_weights else Path(self.weights)


class VisionEncoder(nn.Module):
    """lq_up -> (B, N, E) patch tokens of a frozen OpenCLIP vision transformer.

    Raises:
        UsageError: open_clip does not know the model.
        MegaSRError: the weights are missing or belong to another model.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        model = load_open_clip(config.model) if config.brings_weights else _create(config)
        self.visual = model.visual.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> VisionEncoder:
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, N, E)."""
        features = self.visual.forward_intermediates(
            prepare_images(self.visual, image), indices=1, normalize_intermediates=True, intermediates_only=True,
            output_fmt="NLC",
        )  # fmt: skip
        return features["image_intermediates"][-1]


def _create(config: VisionConfig) -> Any:
    """A model that open_clip knows by name, with the weights of a file."""
    import open_clip

    if config.model not in open_clip.list_models():
        raise unknown_name("open_clip model", config.model, ["tiny", *open_clip.list_models()])
    try:
        if Path(config.weights).is_file() and Path(config.weights).suffix not in (".safetensors", ".npz", ".npy"):
            read_saved(Path(config.weights))  # open_clip would pass on torch's advice to read what could run code
        return open_clip.create_model(config.model, pretrained=config.weights)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise MegaSRError(f"vision weights {config.weights!r} for {config.model} cannot be loaded: {error}") from error
