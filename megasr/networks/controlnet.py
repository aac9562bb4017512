"""The ControlNet on lq, with its encoder."""

from __future__ import annotations

import math

import torch
from diffusers import ControlNetModel
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch import nn

from megasr.networks.config import AdapterConfig
from megasr.networks.msfm import MapGroups
from megasr.networks.sites import AdaptedModel, SiteCondition, embed_time, run_encoder, run_middle
from megasr.networks.unet import Residuals
from megasr.plugins import Registry
from megasr.prior import time_ids
from megasr.rng import seeded_initialisation
from megasr.semantics.text import TextStates

# ControlNet's widths for a VAE that shrinks 8 times; a shallower VAE uses the first ones.
_WIDTHS = (16, 32, 96, 256)


class LQEncoder(ControlNetConditioningEmbedding):
    """lq_up (B, 3, H, W) in [0, 1] -> f_lq (B, channels, H / downsampling, W / downsampling).

    Args:
        channels: width of the U-Net's first convolution, to whose output f_lq is added.
        downsampling: f of the VAE, a power of two.
    """

    def __init__(self, channels: int, downsampling: int) -> None:
        halvings = int(math.log2(downsampling))
        widths = _WIDTHS[: halvings + 1] + _WIDTHS[-1:] * max(0, halvings + 1 - len(_WIDTHS))
        super().__init__(conditioning_embedding_channels=channels, block_out_channels=widths)


LQ_ENCODERS: Registry[type[nn.Module]] = Registry("adapter.lq_encoder")
"""Classes for `adapter.lq_encoder`: constructor and `forward` as LQEncoder's.
`LQ_ENCODERS.register("mine", MyEncoder)` in a user's package adds one."""
LQ_ENCODERS.register("megasr", LQEncoder)


class MegaSRControlNet(AdaptedModel):
    """ControlNet with adapters: the encoder and middle block of the prior's U-Net, with outputs of zero at step 0."""

    def __init__(self, unet: nn.Module, downsampling: int, config: AdapterConfig, groups: MapGroups, seed: int) -> None:
        encoder = LQ_ENCODERS[config.lq_encoder]
        with seeded_initialisation(seed, "controlnet"):
            controlnet = ControlNetModel.from_unet(unet)
            controlnet.controlnet_cond_embedding = encoder(unet.config.block_out_channels[0], downsampling)
        super().__init__(controlnet.requires_grad_(True).train(), config, groups, seed, "controlnet")
        self.downsampling = downsampling

    @property
    def lq_encoder(self) -> nn.Module:
        """The encoder of lq."""
        return self.controlnet.controlnet_cond_embedding

    def encode_lq(self, lq_up: torch.Tensor) -> torch.Tensor:
        """lq_up (B, 3, H, W) in [0, 1] -> f_lq (B, C, h, w). Once per image."""
        return self.lq_encoder(lq_up)

    def forward(
        self,
        z_t: torch.Tensor,
        timesteps: torch.Tensor,
        f_lq: torch.Tensor,
        conditions: tuple[SiteCondition, ...],
        text: TextStates | None = None,
    ) -> Residuals:
        """What to add to the U-Net's skips and middle block. f_lq of b images serves any multiple of b."""
        model = self.controlnet
        added = None if text is None else (text.pooled, time_ids(z_t, self.downsampling))
        run = self.block_runner(embed_time(model, timesteps, z_t.dtype, added), conditions)
        features = (model.conv_in(z_t).unflatten(0, (-1, len(f_lq))) + f_lq).flatten(0, 1)
        features, skips = run_encoder(model, run, features)
        features = run_middle(model, run, features)
        zero_convolutions = zip(model.controlnet_down_blocks, skips, strict=True)
        return Residuals([conv(skip) for conv, skip in zero_convolutions], model.controlnet_mid_block(features))
