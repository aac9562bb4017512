"""MegaSRUNet: any diffusers U-Net, frozen and unchanged, with CSM and MSFM at every cross-attention site."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from megasr.errors import UsageError
from megasr.networks.config import AdapterConfig
from megasr.networks.msfm import MapGroups
from megasr.networks.sites import AdaptedModel, SiteCondition, embed_time, layers, run_encoder, run_middle
from megasr.prior import time_ids
from megasr.semantics.text import TextStates

_UNSUPPORTED = ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "time_cond_proj_dim")


class Residuals(NamedTuple):
    """ControlNet output: one tensor per skip of the U-Net's encoder, and one for the middle block."""

    skips: list[torch.Tensor]
    middle: torch.Tensor


class MegaSRUNet(AdaptedModel):
    """The prior's U-Net (UNet2DConditionModel) with adapters; its weights and names do not change.

    Raises:
        UsageError: the U-Net has inputs that MegaSR does not have (class labels, added images), or the adapter a stream
            of tokens; names the field.
    """

    keeps_evaluating = True

    def __init__(self, unet: nn.Module, downsampling: int, config: AdapterConfig, groups: MapGroups, seed: int) -> None:
        needed = [field for field in _UNSUPPORTED if unet.config.get(field) is not None]
        if unet.config.get("addition_embed_type") not in (None, "text_time"):
            needed.append("addition_embed_type")
        for field in needed:
            raise UsageError(
                f"the prior's U-Net has {field}={unet.config[field]!r}; use one of Stable Diffusion 1.x, 2.x or XL"
            )
        if config.lq_stream:
            raise UsageError(
                "adapter.lq_stream needs a transformer's tokens, and this prior is a U-Net: use controlnet"
            )
        super().__init__(unet, config, groups, seed, "unet")
        self.downsampling = downsampling

    def forward(
        self,
        z_t: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: tuple[SiteCondition, ...],
        residuals: Residuals | None = None,
        text: TextStates | None = None,
    ) -> torch.Tensor:
        """Prediction for latents z_t (B, C, h, w) at `timesteps` (B,): noise or v, as the prior was trained.

        SDXL reads the pooled `text` beside the conditions.
        """
        unet = self.unet
        added = None if text is None else (text.pooled, time_ids(z_t, self.downsampling))
        run = self.block_runner(embed_time(unet, timesteps, z_t.dtype, added), conditions)
        features, skips = run_encoder(unet, run, unet.conv_in(z_t))
        if residuals is not None:
            skips = [skip + added for skip, added in zip(skips, residuals.skips, strict=True)]
        features = run_middle(unet, run, features)
        if residuals is not None:
            features = features + residuals.middle
        for block in unet.up_blocks:
            for resnet, transformer in layers(block):
                features = run(resnet, transformer, torch.cat([features, skips.pop()], dim=1))
            for upsampler in block.upsamplers or ():
                features = upsampler(features)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(features)))
