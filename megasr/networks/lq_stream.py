"""DiT4SR's stream of lq's tokens in a block of an MMDiT (2503.23580, section 3): its own layers, which are trained.

Tokens of the image and of lq are one sequence (B, 2 * h * w, C), the image's first. Both go through the block's frozen
layers; what lq's need beside them is here. github.com/Adam-duan/DiT4SR, commit 7ec9e5e, model_dit4sr_r1/attention.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from megasr.networks.csm import frozen_copy, split_heads


class LQAttention(nn.Module):
    """Linear layers of lq's tokens after the frozen projections of an attention, and an output projection.

    At step 0 lq's queries, keys and values are zero: the image reads nothing of lq, but the zero keys take their share
    of its softmax. The output projection starts as a copy of the attention's.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        width = attention.inner_dim
        self.to_q, self.to_k, self.to_v = (_zero(nn.Linear(width, width)) for _ in range(3))
        self.to_out = frozen_copy(attention.to_out[0]).requires_grad_(True)

    def project(self, attention: nn.Module, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Queries, keys and values of both streams, (B, 2 * N, C) each."""
        projected = []
        for shared, own in ((attention.to_q, self.to_q), (attention.to_k, self.to_k), (attention.to_v, self.to_v)):
            image, lq = shared(tokens).chunk(2, dim=1)
            projected.append(torch.cat([image, own(lq)], dim=1))
        return projected

    def output(self, attention: nn.Module, attended: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The output projections; lq's has a residual of the attention's input `tokens`."""
        image, lq = attended.chunk(2, dim=1)
        return torch.cat([attention.to_out[0](image), self.to_out(lq + tokens.chunk(2, dim=1)[1])], dim=1)


class LQStream(nn.Module):
    """What a block has for lq's tokens: an LQAttention for each of its attentions, and a convolution in its MLP."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attn = LQAttention(block.attn)
        self.attn2 = LQAttention(block.attn2) if block.use_dual_attention else None
        hidden = block.ff.net[2].in_features
        self.convolution = _zero(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden))

    def self_attend(self, attention: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        """The block's second attention, of both streams without the text."""
        assert self.attn2 is not None
        heads = attention_heads(attention, self.attn2.project(attention, tokens))
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.attn2.output(attention, attended, tokens)

    def feed(
        self, block: nn.Module, tokens: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """The block's MLP: lq's hidden features (h, w) are convolved, 3x3 and by channel, and added to the image's."""
        image, lq = tokens.chunk(2, dim=1)
        # `forward` passes by the hook of SiteProbes, which measures the image's stream.
        normed = torch.cat([block.norm2(image), block.norm2.forward(lq)], dim=1)
        enter, _, leave = block.ff.net
        image, lq = enter(normed * (1 + scale[:, None]) + shift[:, None]).chunk(2, dim=1)
        injected = self.convolution(lq.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
        return leave(torch.cat([image + injected, lq], dim=1))

    def shared_parts(self, block: nn.Module) -> list[nn.Module]:
        """Modules of the block's MLP and second attention, which are called one by one."""
        parts, attention = [block.ff.net[0], block.ff.net[2]], block.attn2
        if attention is not None:
            parts += [attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]]
            parts += [norm for norm in (attention.norm_q, attention.norm_k) if norm is not None]
        return parts

    def own_parts(self) -> list[nn.Module]:
        """Modules of this stream, which are called in every pass."""
        attentions = [self.attn, *([] if self.attn2 is None else [self.attn2])]
        return [*(layer for attention in attentions for layer in attention.children()), self.convolution]


def attention_heads(attention: nn.Module, projected: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Projected queries, keys and values (B, N, C) in heads, and normalised where the attention does so."""
    query, key, value = (split_heads(part, attention.heads) for part in projected)
    return normalise(attention.norm_q, query), normalise(attention.norm_k, key), value


def normalise(norm: nn.Module | None, heads: torch.Tensor) -> torch.Tensor:
    """An attention's norm of queries or keys, which SD 3 has not and SD 3.5 has."""
    return heads if norm is None else norm(heads)


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
