"""MegaSRUNet: any diffusers U-Net, frozen and unchanged, with CSM and MSFM at every cross-attention site.

Shapes: z_t (B, C, h, w) latents; timesteps (B,); residuals: what the ControlNet adds to the skips and the middle.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from megasr.errors import UsageError
from megasr.guidance.registry import GuidanceType
from megasr.networks.config import AdapterConfig
from megasr.networks.sites import (
    BlockRunner,
    SiteCondition,
    build_sites,
    embed_time,
    run_block,
    run_encoder,
    run_middle,
)


class Residuals(NamedTuple):
    """ControlNet output: one tensor per skip of the U-Net's encoder, and one for the middle block."""

    skips: list[torch.Tensor]
    middle: torch.Tensor


def check_plain_unet(unet: nn.Module) -> None:
    """Refuse U-Nets with inputs that MegaSR does not have (class labels, added conditions, GLIGEN).

    Raises:
        UsageError: names the config field.
    """
    for field in (
        "class_embed_type",
        "num_class_embeds",
        "addition_embed_type",
        "encoder_hid_dim",
        "time_cond_proj_dim",
    ):
        if unet.config.get(field) is not None:
            raise UsageError(
                f"the prior's U-Net has {field}={unet.config[field]!r}; use a Stable Diffusion 1.x or 2.x one"
            )


class MegaSRUNet(nn.Module):
    """The prior's U-Net with adapters.

    Args:
        unet: diffusers' UNet2DConditionModel. Used as it is; its weights and names do not change.
        config: what the adapter consists of.
        guidance: the resolved guidance types of the config.
        seed: of the initial weights.
    """

    def __init__(self, unet: nn.Module, config: AdapterConfig, guidance: tuple[GuidanceType, ...], seed: int) -> None:
        super().__init__()
        check_plain_unet(unet)
        self.unet = unet
        self.recompute = config.gradient_checkpointing
        self.run_block = run_block
        self.sites = build_sites(unet, config, guidance, seed, "unet")

    def train(self, mode: bool = True) -> MegaSRUNet:
        """The adapters change mode; the frozen U-Net stays in evaluation mode."""
        super().train(mode)
        self.unet.eval()
        return self

    def forward(
        self,
        z_t: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: tuple[SiteCondition, ...],
        residuals: Residuals | None = None,
    ) -> torch.Tensor:
        """Prediction (B, C, h, w), noise or v as the prior was trained."""
        unet = self.unet
        run = BlockRunner(self.sites, conditions, self.recompute, self.run_block)
        time_embedding = embed_time(unet, timesteps, z_t.dtype)
        features, skips = run_encoder(unet, run, unet.conv_in(z_t), time_embedding)
        if residuals is not None:
            skips = [skip + added for skip, added in zip(skips, residuals.skips, strict=True)]
        features = run_middle(unet, run, features, time_embedding)
        if residuals is not None:
            features = features + residuals.middle
        for block in unet.up_blocks:
            for index in range(len(block.resnets)):
                features = run(block, index, torch.cat([features, skips.pop()], dim=1), time_embedding)
            for upsampler in block.upsamplers or ():
                features = upsampler(features)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(features)))
