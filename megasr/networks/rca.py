"""RCA, representation cross-attention: v1's extra layer after CSM, over the tagger's image representation.

v1 of the paper keeps SeeSR's layer (2311.16518); v2 drops it. Differs from SeeSR: the output projection starts at zero,
so that the prior is left as it was at step 0.

Shapes: F (B, C, h, w); representation (B, M, R).
"""

from __future__ import annotations

import torch
from torch import nn

from megasr.networks.csm import KeyValue, attend, project_keys_values, project_query


class RCA(nn.Module):
    """F' = F + Attn(Norm(F), representation).

    Args:
        channels: C of the site.
        heads: attention heads.
        representation_width: R.
    """

    def __init__(self, channels: int, heads: int, representation_width: int) -> None:
        super().__init__()
        from diffusers.models.attention_processor import Attention

        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(
            query_dim=channels, cross_attention_dim=representation_width, heads=heads, dim_head=channels // heads
        )
        nn.init.zeros_(self.attention.to_out[0].weight)
        nn.init.zeros_(self.attention.to_out[0].bias)

    def keys_values(self, representation: torch.Tensor) -> KeyValue:
        """(B, M, R) -> keys and values."""
        attention = self.attention
        return project_keys_values(attention.to_k, attention.to_v, representation, attention.heads)

    def forward(self, features: torch.Tensor, key_value: KeyValue) -> torch.Tensor:
        """F -> F', (B, C, h, w)."""
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        attended = attend(self.attention, project_query(self.attention, tokens), key_value)
        return features + attended.transpose(1, 2).reshape(features.shape)
