"""A diffusers folder with the layout of Stable Diffusion XL, but narrow, and random weights that are not zero."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.helpers.sd3 import small_clip, small_clip_tokenizer

LAYERS = (1, 1, 2)  # of the transformers on each level; the first level has none


def write_sdxl_prior(folder: Path) -> Path:
    """f = 4, three levels of which the first has no attention; as diffusers' pipeline saves it."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    folder.mkdir(parents=True, exist_ok=True)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    sizes: dict[str, Any] = {
        "sample_size": 16, "block_out_channels": (32, 32, 64), "norm_num_groups": 4, "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": LAYERS, "attention_head_dim": (1, 2, 4), "use_linear_projection": True,
        "cross_attention_dim": 16 + 24, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {
            "vae": AutoencoderKL(
                block_out_channels=(8,) * 3, norm_num_groups=4, latent_channels=4, scaling_factor=0.13025, **blocks
            ),
            "unet": UNet2DConditionModel(**sizes),
            "text_encoder": small_clip(16, None), "text_encoder_2": small_clip(24, 20),
        }  # fmt: skip
    tokenizers = {name: small_clip_tokenizer(folder) for name in ("tokenizer", "tokenizer_2")}
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    pipeline = StableDiffusionXLPipeline(scheduler=scheduler, add_watermarker=False, **parts, **tokenizers)
    pipeline.save_pretrained(folder / "prior")
    return folder / "prior"


@functools.cache
def sdxl_folder() -> str:
    """The folder of such a prior, written once per process."""
    return str(write_sdxl_prior(Path(tempfile.mkdtemp(prefix="megasr-sdxl-"))))
