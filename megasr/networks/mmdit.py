"""Stable Diffusion 3's MMDiT (2403.03206) and a ControlNet on lq, with CSM and MSFM in every block.

A block has two streams of tokens, image and text, which attend to both (joint attention). CSM's visual branch belongs
to the image's queries, as IP-Adapter's does; MSFM modulates the image's tokens after the block. `attn2`, which the
first blocks of SD 3.5 have, attends from image to image and is no site of CSM. In place of the ControlNet a block may
have a third stream, of lq's tokens (lq_stream.py); CSM and MSFM leave it alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3ControlNetModel
from diffusers.models.normalization import RMSNorm
from torch import nn

from megasr.errors import UsageError
from megasr.networks.config import AdapterConfig
from megasr.networks.controlnet import LQ_ENCODERS
from megasr.networks.csm import split_heads
from megasr.networks.lq_stream import LQStream, attention_heads, normalise
from megasr.networks.msfm import MapGroups
from megasr.networks.sites import AdaptedModel, Place, Semantics, Site, SiteCondition
from megasr.rng import seeded_initialisation
from megasr.semantics.text import TextStates

# Image (B, h * w, C), or image and lq (B, 2 * h, w, C); and text (B, L, C) while it is still read.
Streams = tuple[torch.Tensor, torch.Tensor | None]


class JointSite(Site):
    """The adapters of one block of an MMDiT: its block is diffusers' JointTransformerBlock.

    Attributes:
        keeps_text: the text stream is read after this block.
    """

    def __init__(
        self, block: nn.Module, level: int, config: AdapterConfig, groups: MapGroups, seed: int, place: str
    ) -> None:
        super().__init__(block, level, config, groups, seed, place)
        self.keeps_text = not block.context_pre_only
        self.norm_k = None if self.csm is None else _frozen_norm(block.attn.norm_added_k)
        if config.lq_stream:
            with seeded_initialisation(seed, place, "lq_stream"):
                self.lq_stream = LQStream(block)

    @staticmethod
    def place(block: nn.Module) -> Place:
        return Place(block.attn, block.attn.query_dim, None)

    @staticmethod
    def after_attention(block: nn.Module) -> nn.Module:
        return block.norm2

    def running_parts(self, block: nn.Module) -> list[nn.Module]:
        joint, stream = block.attn, self.lq_stream
        image_parts = [block.ff, *([block.attn2] if block.use_dual_attention else [])]
        if stream is not None:
            image_parts = [*stream.shared_parts(block), *stream.own_parts()]
        projections = [joint.to_q, joint.to_k, joint.to_v, joint.add_q_proj, joint.add_k_proj, joint.add_v_proj]
        norms = [joint.norm_q, joint.norm_k, joint.norm_added_q, joint.norm_added_k]
        parts = [block.norm1, block.norm1_context, *projections, *(norm for norm in norms if norm is not None)]
        parts += [joint.to_out[0], block.norm2, *image_parts]
        if self.keeps_text:
            parts += [joint.to_add_out, block.norm2_context, block.ff_context]
        return [*parts, *super().running_parts(block)]

    def reading_parts(self, block: nn.Module) -> list[nn.Module]:
        return [*([] if self.norm_k is None else [self.norm_k]), *super().reading_parts(block)]

    def read(self, block: nn.Module, semantics: Semantics) -> SiteCondition:
        """Keys and values of the image tokens."""
        if self.csm is None:
            return SiteCondition((), None, None, None)
        keys, values = self.csm.keys_values(semantics.image, block.attn.heads)
        return SiteCondition((), (normalise(self.norm_k, keys), values), None, None)

    def forward(
        self,
        block: nn.Module,
        image: torch.Tensor,
        text: torch.Tensor,
        time_embedding: torch.Tensor,
        condition: SiteCondition,
    ) -> Streams:
        """All streams through the prior's block and the adapters."""
        stream, shape = self.lq_stream, image.shape
        if stream is not None:
            image = image.flatten(1, 2)
        normed, gate, shift_ff, scale_ff, gate_ff, *dual = block.norm1(image, emb=time_embedding)
        of_text: list[torch.Tensor] = []
        if block.context_pre_only:
            normed_text = block.norm1_context(text, time_embedding)
        else:
            normed_text, *of_text = block.norm1_context(text, emb=time_embedding)
        attended, attended_text = self._attend(block.attn, normed, normed_text, condition)
        # The image last: where frozen weights are sharded, a gradient at its end gathers those of the whole block.
        text = self._text_stream(block, text, attended_text, *of_text) if self.keeps_text else None
        image = image + gate.unsqueeze(1) * attended
        if block.use_dual_attention:
            normed_2, gate_2 = dual
            attended = (
                block.attn2(hidden_states=normed_2) if stream is None else stream.self_attend(block.attn2, normed_2)
            )
            image = image + gate_2.unsqueeze(1) * attended
        if stream is None:
            fed = block.ff(block.norm2(image) * (1 + scale_ff[:, None]) + shift_ff[:, None])
            return self._fuse(image + gate_ff.unsqueeze(1) * fed, condition), text
        height, width = shape[1] // 2, shape[2]
        fed = stream.feed(block, image, scale_ff, shift_ff, (height, width))
        image, lq = (image + gate_ff.unsqueeze(1) * fed).chunk(2, dim=1)
        return torch.cat([self._fuse(image, condition), lq], dim=1).unflatten(1, (2 * height, width)), text

    def _fuse(self, image: torch.Tensor, condition: SiteCondition) -> torch.Tensor:
        return image if self.msfm is None else self.msfm(image, condition.modulation)

    @staticmethod
    def _text_stream(
        block: nn.Module,
        text: torch.Tensor,
        attended: torch.Tensor,
        gate: torch.Tensor,
        shift_ff: torch.Tensor,
        scale_ff: torch.Tensor,
        gate_ff: torch.Tensor,
    ) -> torch.Tensor:
        text = text + gate.unsqueeze(1) * block.attn.to_add_out(attended)
        fed = block.ff_context(block.norm2_context(text) * (1 + scale_ff[:, None]) + shift_ff[:, None])
        return text + gate_ff.unsqueeze(1) * fed

    def _attend(
        self, joint: nn.Module, image: torch.Tensor, text: torch.Tensor, condition: SiteCondition
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Joint attention: image, and lq, with what CSM adds; and text before its output projection."""
        own, tokens = None if self.lq_stream is None else self.lq_stream.attn, image.shape[1]
        layers = joint.to_q, joint.to_k, joint.to_v
        projected = [layer(image) for layer in layers] if own is None else own.project(joint, image)
        of_image = attention_heads(joint, projected)
        query, key, value = (
            split_heads(layer(text), joint.heads) for layer in (joint.add_q_proj, joint.add_k_proj, joint.add_v_proj)
        )
        of_text = normalise(joint.norm_added_q, query), normalise(joint.norm_added_k, key), value
        all_heads = (torch.cat(parts, dim=2) for parts in zip(of_image, of_text, strict=True))
        both = F.scaled_dot_product_attention(*all_heads).transpose(1, 2).flatten(2)
        attended = joint.to_out[0](both[:, :tokens]) if own is None else own.output(joint, both[:, :tokens], image)
        if self.csm is not None and own is None:
            attended = attended + self.csm(joint, of_image[0], condition.image)
        elif self.csm is not None:
            added = self.csm(joint, of_image[0].chunk(2, dim=2)[0], condition.image)
            attended = attended + F.pad(added, (0, 0, 0, tokens // 2))  # zeros for lq
        return attended, both[:, tokens:]


def _frozen_norm(norm: nn.Module | None) -> nn.Module | None:
    """A copy of an attention's norm of keys: where weights are sharded, it is called at another time than the block."""
    if norm is None:
        return None
    copied = RMSNorm(len(norm.weight), norm.eps)
    copied.weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
    return copied


def run_joint_block(
    block: nn.Module,
    site: JointSite,
    image: torch.Tensor,
    text: torch.Tensor,
    time_embedding: torch.Tensor,
    condition: SiteCondition,
) -> Streams:
    """One block with its adapters."""
    return site(block, image, text, time_embedding, condition)


class _AdaptedMMDiT(AdaptedModel):
    """An MMDiT's blocks with adapters.

    Raises:
        UsageError: the adapter has a part that cannot work on tokens.
    """

    site = JointSite

    def __init__(self, model: nn.Module, config: AdapterConfig, groups: MapGroups, seed: int, name: str) -> None:
        if config.rca:
            raise UsageError("adapter.rca follows a U-Net's cross-attention, and this prior has none: turn it off")
        if any(groups) and config.fusion_init == "as_drawn":
            raise UsageError(
                "adapter.fusion_init as_drawn replaces F by its normalisation, which a transformer's blocks cannot do "
                "without: they add to F from the first to the last; use residual"
            )
        super().__init__(model, config, groups, seed, name)
        self.run_block = run_joint_block

    def tokens(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) -> tokens with their positions.

        Raises:
            UsageError: the prior has no positions for an image of this size.
        """
        model = self.model
        most = model.pos_embed.pos_embed_max_size * model.config.patch_size
        if max(z.shape[-2:]) > most:
            raise UsageError(
                f"latents of {z.shape[-1]}x{z.shape[-2]}: the prior has positions for {most} on a side; use tiles"
            )
        return model.pos_embed(z).contiguous()

    def embed(self, z_t: torch.Tensor, timesteps: torch.Tensor, text: TextStates) -> tuple[torch.Tensor, ...]:
        """Tokens of z_t, the text stream, and the embedding of timestep and pooled text, by which blocks are modulated.

        Raises:
            UsageError: the prior has no positions for an image of this size.
        """
        model = self.model
        embedding = model.time_text_embed(timesteps, text.pooled)
        return self.tokens(z_t), model.context_embedder(text.states), embedding


class MegaSRMMDiT(_AdaptedMMDiT):
    """The prior's SD3Transformer2DModel with adapters; its weights and names do not change."""

    keeps_evaluating = True

    def __init__(
        self, transformer: nn.Module, downsampling: int, config: AdapterConfig, groups: MapGroups, seed: int
    ) -> None:
        super().__init__(transformer, config, groups, seed, "unet")

    def encode_lq(self, z_lq: torch.Tensor) -> torch.Tensor:
        """Latents of lq (B, C, h, w) -> f_lq (B, h / patch, w / patch, D): tokens with the image's positions."""
        height, width = (side // self.model.config.patch_size for side in z_lq.shape[-2:])
        return self.tokens(z_lq).unflatten(1, (height, width))

    def forward(
        self,
        z_t: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: tuple[SiteCondition, ...],
        residuals: list[torch.Tensor] | None,
        text: TextStates,
        f_lq: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Velocity (B, C, h, w) for latents z_t at timesteps (B,) between 0 and 1000.

        Each residual of the ControlNet serves as many blocks in a row as there are blocks for each of its own. f_lq is
        of the lq stream; that of b images serves any multiple of b.
        """
        model, patch = self.model, self.model.config.patch_size
        height, width = (side // patch for side in z_t.shape[-2:])
        image, states, embedding = self.embed(z_t, timesteps, text)
        if f_lq is not None:
            lq = f_lq.repeat(len(image) // len(f_lq), 1, 1, 1)
            image = torch.cat([image.unflatten(1, (height, width)), lq], dim=1)
        blocks = zip(model.transformer_blocks, self.sites, conditions, strict=True)
        for number, (block, site, condition) in enumerate(blocks):
            image, states = self.maybe_recompute(self.run_block, block, site, image, states, embedding, condition)
            if residuals is not None and not block.context_pre_only:
                image = image + residuals[int(number / (len(self.sites) / len(residuals)))]
        if f_lq is not None:
            image = image[:, :height].flatten(1, 2)
        image = model.proj_out(model.norm_out(image, embedding))
        image = image.reshape(len(image), height, width, patch, patch, model.out_channels)
        return image.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class MMDiTControlNet(_AdaptedMMDiT):
    """ControlNet with adapters: the first half of the prior's blocks, with outputs of zero at step 0."""

    def __init__(
        self, transformer: nn.Module, downsampling: int, config: AdapterConfig, groups: MapGroups, seed: int
    ) -> None:
        encoder, patch = LQ_ENCODERS[config.lq_encoder], transformer.config.patch_size
        with seeded_initialisation(seed, "controlnet"):
            controlnet = _copy_first_half(transformer)
            # In the place of an embedding of the control's latents.
            controlnet.pos_embed_input = encoder(transformer.inner_dim, downsampling * patch)
        controlnet.requires_grad_(True).train()
        controlnet.pos_embed.pos_embed = transformer.pos_embed.pos_embed  # frozen: not learnt, and not held twice
        super().__init__(controlnet, config, groups, seed, "controlnet")
        last = controlnet.transformer_blocks[-1]
        self.sites[-1].keeps_text = False  # nothing reads it: what makes it would get no gradient
        for unread in (last.attn.add_q_proj, last.attn.norm_added_q, last.attn.to_add_out, last.ff_context):
            if unread is not None:
                unread.requires_grad_(False)

    @property
    def lq_encoder(self) -> nn.Module:
        """The encoder of lq."""
        return self.model.pos_embed_input

    def encode_lq(self, lq_up: torch.Tensor) -> torch.Tensor:
        """lq_up (B, 3, H, W) in [0, 1] -> f_lq (B, h * w, C), one for each token. Once per image."""
        return self.lq_encoder(lq_up).flatten(2).transpose(1, 2)

    def forward(
        self,
        z_t: torch.Tensor,
        timesteps: torch.Tensor,
        f_lq: torch.Tensor,
        conditions: tuple[SiteCondition, ...],
        text: TextStates,
    ) -> list[torch.Tensor]:
        """What to add after the transformer's blocks. f_lq of b images serves any multiple of b."""
        model = self.model
        image, states, embedding = self.embed(z_t, timesteps, text)
        image, residuals = (image.unflatten(0, (-1, len(f_lq))) + f_lq).flatten(0, 1), []
        blocks = zip(model.transformer_blocks, self.sites, conditions, model.controlnet_blocks, strict=True)
        for block, site, condition, zero_layer in blocks:
            image, states = self.maybe_recompute(self.run_block, block, site, image, states, embedding, condition)
            residuals.append(zero_layer(image))
        return residuals


def _copy_first_half(transformer: nn.Module) -> Any:
    """diffusers' ControlNet; its own `from_transformer` changes the transformer's config."""
    config: dict[str, Any] = {**transformer.config, "num_layers": max(1, len(transformer.transformer_blocks) // 2)}
    names = (
        "sample_size", "patch_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads",
        "joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "out_channels", "pos_embed_max_size",
        "dual_attention_layers", "qk_norm",
    )  # fmt: skip
    controlnet = SD3ControlNetModel(**{name: config[name] for name in names})
    del controlnet.pos_embed.pos_embed
    controlnet.pos_embed.proj.load_state_dict(transformer.pos_embed.proj.state_dict())
    for part in ("time_text_embed", "context_embedder"):
        getattr(controlnet, part).load_state_dict(getattr(transformer, part).state_dict())
    for own, block in zip(controlnet.transformer_blocks, transformer.transformer_blocks, strict=False):
        own.load_state_dict(block.state_dict())
    return controlnet
