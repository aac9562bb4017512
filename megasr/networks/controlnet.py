"""MegaSRControlNet: a trained copy of the U-Net's encoder that looks at lq, with CSM and MSFM at its sites.

Source: ControlNet (2302.05543), with f_lq of the LQ encoder added after the first convolution and, unlike the original,
the adapters of MegaSR in every block (2503.08096 v2, figure 2).
"""

from __future__ import annotations

import torch
from diffusers import ControlNetModel
from torch import nn

from megasr.guidance.registry import GuidanceType
from megasr.networks.config import AdapterConfig
from megasr.networks.lq_encoder import LQEncoder
from megasr.networks.sites import (
    BlockRunner,
    SiteCondition,
    build_sites,
    embed_time,
    run_block,
    run_encoder,
    run_middle,
)
from megasr.networks.unet import Residuals
from megasr.rng import seeded_initialisation


class MegaSRControlNet(nn.Module):
    """ControlNet with adapters; its outputs are zero at step 0.

    Args:
        unet: the prior's U-Net, whose encoder and middle block are copied.
        downsampling: f of the VAE.
        config: what the adapter consists of.
        guidance: the resolved guidance types of the config.
        seed: of the initial weights.
    """

    def __init__(
        self,
        unet: nn.Module,
        downsampling: int,
        config: AdapterConfig,
        guidance: tuple[GuidanceType, ...],
        seed: int,
    ) -> None:
        super().__init__()
        with seeded_initialisation(seed, "controlnet"):
            controlnet = ControlNetModel.from_unet(unet)
            controlnet.controlnet_cond_embedding = LQEncoder(unet.config.block_out_channels[0], downsampling)
        self.controlnet = controlnet.requires_grad_(True).train()
        self.recompute = config.gradient_checkpointing
        self.run_block = run_block
        self.sites = build_sites(controlnet, config, guidance, seed, "controlnet")

    def encode_lq(self, lq_up: torch.Tensor) -> torch.Tensor:
        """lq_up (B, 3, H, W) in [0, 1] -> f_lq (B, C, h, w). Once per image."""
        return self.controlnet.controlnet_cond_embedding(lq_up)

    def forward(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, f_lq: torch.Tensor, conditions: tuple[SiteCondition, ...]
    ) -> Residuals:
        """What to add to the U-Net's skips and middle block. f_lq of b images serves any multiple of b."""
        model = self.controlnet
        run = BlockRunner(self.sites, conditions, self.recompute, self.run_block)
        time_embedding = embed_time(model, timesteps, z_t.dtype)
        features = (model.conv_in(z_t).unflatten(0, (-1, len(f_lq))) + f_lq).flatten(0, 1)
        features, skips = run_encoder(model, run, features, time_embedding)
        features = run_middle(model, run, features, time_embedding)
        zero_convolutions = zip(model.controlnet_down_blocks, skips, strict=True)
        return Residuals([conv(skip) for conv, skip in zero_convolutions], model.controlnet_mid_block(features))
