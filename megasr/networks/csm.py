"""CSM: text and image tokens through a gated double cross-attention, and v1's representation cross-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from megasr.networks.config import Gate
from megasr.plugins import Registry

KeyValue = tuple[torch.Tensor, torch.Tensor]  # each (B, heads, tokens, C / heads)


def split_heads(tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def project_keys_values(to_k: nn.Module, to_v: nn.Module, tokens: torch.Tensor, heads: int) -> KeyValue:
    """Keys and values of (B, N, D) tokens. They depend on neither F nor the timestep: once per image is enough."""
    return split_heads(to_k(tokens), heads), split_heads(to_v(tokens), heads)


def attend(attention: nn.Module, query: torch.Tensor, key_value: KeyValue) -> torch.Tensor:
    """Scaled dot-product attention and the output projection of diffusers' Attention: (B, heads, N, _) -> (B, N, C)."""
    attended = F.scaled_dot_product_attention(query, *key_value)
    return attention.to_out[0](attended.transpose(1, 2).flatten(2))


def text_projections(attention: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """The layers of diffusers' Attention that make keys and values of text, in cross- or in joint attention."""
    if attention.added_kv_proj_dim is not None:
        return attention.add_k_proj, attention.add_v_proj
    return attention.to_k, attention.to_v


def frozen_copy(layer: nn.Linear) -> nn.Linear:
    """A layer with the same weights, not trained. (copy.deepcopy fails on the fake tensors of a memory plan.)"""
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
    if kind != "linear":
        return ScaleGate(width if kind == "channel" else 1)
    gate = nn.Linear(width, width)
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    return gate


class CSM(nn.Module):
    """The visual branch of one cross-attention site.

    Args:
        attention: the site's attention to text (diffusers' Attention). K and V of text are copied and stay frozen; Q
            of F and the output projection are shared with it.
        image_width: E, width of the image tokens; None when they come translated, by one connector for all sites.
        gate: form of the gate.
    """

    def __init__(self, attention: nn.Module, image_width: int | None, gate: Gate) -> None:
        super().__init__()
        keys, values = text_projections(attention)
        self.connector = nn.Identity() if image_width is None else nn.Linear(image_width, keys.in_features)
        self.to_k, self.to_v = frozen_copy(keys), frozen_copy(values)
        self.gate = build_gate(gate, attention.query_dim)

    def keys_values(self, image_tokens: torch.Tensor, heads: int) -> KeyValue:
        """(B, N, E) image tokens, or (B, N, D) translated ones -> K' c(e_i), V' c(e_i). Once per image."""
        return project_keys_values(self.to_k, self.to_v, self.connector(image_tokens), heads)

    def forward(self, attention: nn.Module, query: torch.Tensor, key_value: KeyValue) -> torch.Tensor:
        """gate(A_i), (B, h*w, C), to be added to the text branch. `query` is the text branch's own."""
        return self.gate(attend(attention, query, key_value))


CSMS: Registry[type[nn.Module]] = Registry("adapter.csm")
"""Classes for `adapter.csm`: constructor, `keys_values` and `forward` as CSM's, with a zero output at step 0.
`CSMS.register("mine", MyCSM)` in a user's package adds one; for FSDP2 it names its layers as CSM does."""
CSMS.register("megasr", CSM)


class RCA(nn.Module):
    """F' = F + Attn(Norm(F), representation), zero-initialised; the representation is (B, M, representation_width)."""

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
        return project_keys_values(self.attention.to_k, self.attention.to_v, representation, self.attention.heads)

    def forward(self, features: torch.Tensor, key_value: KeyValue) -> torch.Tensor:
        """F -> F', (B, C, h, w)."""
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        query = split_heads(self.attention.to_q(tokens), self.attention.heads)
        return features + attend(self.attention, query, key_value).transpose(1, 2).reshape(features.shape)
