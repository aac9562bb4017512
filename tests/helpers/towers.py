"""A small OpenCLIP model in open_clip's own format."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch

from megasr.semantics.clip import VisionConfig

NAME = "tiny-test-clip"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 24, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def random_tower(folder: Path) -> VisionConfig:
    """Write the weights of a random tiny model (16 tokens of width 24) and make open_clip know its name."""
    (folder / f"{NAME}.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    torch.save(open_clip.create_model(NAME).state_dict(), folder / "weights.pt")
    return VisionConfig(weights=str(folder / "weights.pt"), model=NAME)
