"""CSM: text and image tokens through a gated double cross-attention, and v1's representation cross-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from megasr.networks.config import Gate

KeyValue = tuple[torch.Tensor, torch.Tensor]


def split_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def project_keys_values(to_k: nn.Module, to_v: nn.Module, tokens: torch.Tensor, heads: int) -> KeyValue:
    """Keys and values of `tokens`. They depend on neither F nor the timestep: once per image is enough."""
    return split_heads(to_k(tokens), heads), split_heads(to_v(tokens), heads)


def project_query(attention: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Q F of a site: normalised (B, h*w, C) -> (B, heads, h*w, C / heads). Both branches of CSM ask with it."""
    return split_heads(attention.to_q(features), attention.heads)


def attend(attention: nn.Module, query: torch.Tensor, key_value: KeyValue) -> torch.Tensor:
    """diffusers' Attention with query, keys and values at hand: memory-efficient SDPA, then the output projection.

    Args:
        attention: diffusers' Attention (its to_out is used).
        query: (B, heads, h*w, C / heads).
        key_value: two (B, heads, N, C / heads).
    """
    attended = F.scaled_dot_product_attention(query, *key_value)
    return attention.to_out[0](attended.transpose(1, 2).flatten(2))


def frozen_copy(layer: nn.Linear) -> nn.Linear:
    """A layer with the same weights, which are not trained.

    Not copy.deepcopy: it reads the storage of a weight, and the fake tensors of a memory plan have none (it crashes).
    """
    has_bias, weight = layer.bias is not None, layer.weight
    copied = nn.Linear(layer.in_features, layer.out_features, has_bias, device=weight.device, dtype=weight.dtype)
    copied.load_state_dict(layer.state_dict())
    return copied.requires_grad_(False)


class ScaleGate(nn.Module):
    """A zero-initialised factor: one per channel (width C) or one for the site (width 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features * self.weight


def build_gate(kind: Gate, width: int) -> nn.Module:
    """LGWAM, the zero-initialised gate of the visual branch. Its form in the paper is unknown; v1 draws a Linear."""
    if kind == "linear":
        gate = nn.Linear(width, width)
        nn.init.zeros_(gate.weight)
        nn.init.zeros_(gate.bias)
        return gate
    return ScaleGate(width if kind == "channel" else 1)


class CSM(nn.Module):
    """The visual branch of one cross-attention site.

    Args:
        attention: the site's own text cross-attention (diffusers' Attention). K and V are copied and stay frozen;
            Q and the output projection are shared with it.
        image_width: E, width of the image tokens; None when they come translated, by one connector for all sites.
        gate: form of the gate.
    """

    def __init__(self, attention: nn.Module, image_width: int | None, gate: Gate) -> None:
        super().__init__()
        width = attention.cross_attention_dim
        self.connector = nn.Identity() if image_width is None else nn.Linear(image_width, width)
        self.to_k, self.to_v = frozen_copy(attention.to_k), frozen_copy(attention.to_v)
        self.gate = build_gate(gate, attention.query_dim)

    def keys_values(self, image_tokens: torch.Tensor, heads: int) -> KeyValue:
        """(B, N, E) image tokens, or (B, N, D) translated ones -> K' c(e_i), V' c(e_i)."""
        return project_keys_values(self.to_k, self.to_v, self.connector(image_tokens), heads)

    def forward(self, attention: nn.Module, query: torch.Tensor, key_value: KeyValue) -> torch.Tensor:
        """gate(A_i), to be added to the text branch: (B, h*w, C)."""
        return self.gate(attend(attention, query, key_value))


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
