"""LQ image encoder: the degraded image at the size of hq becomes features f_lq at the size of the latents.

A stride-2 convolution per halving, as ControlNet's condition embedding (2302.05543); the last layer is zero at step 0.
"""

from __future__ import annotations

import math

from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

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
