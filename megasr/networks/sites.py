"""Sites: the places in the denoiser and the ControlNet where CSM, RCA and MSFM sit, and how a U-Net's blocks run.

A U-Net's block is ResBlock -> CSM (inside the transformer) -> RCA (v1) -> MSFM; an MMDiT's is in mmdit.py. diffusers'
modules are used as they are; only their forward is written out, with the adapters in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from megasr.networks.config import AdapterConfig
from megasr.networks.csm import CSMS, RCA, KeyValue, attend, project_keys_values, split_heads
from megasr.networks.msfm import MSFMS, MapGroups, Modulation, count_channels
from megasr.rng import seeded_initialisation
from megasr.semantics.text import Text, TextStates


class Semantics(NamedTuple):
    """Prompt and image as tokens: text as the prior reads it, image tokens (B, N, E), representation (B, M, R)."""

    text: Text
    image: torch.Tensor | None = None
    representation: torch.Tensor | None = None


class SiteCondition(NamedTuple):
    """Conditions of one site. Independent of z_t and t: computed once per image.

    Attributes:
        text: for each layer of the block; none in joint attention, where the text changes from block to block.
        image: of the tokens that CSM reads.
        representation: of v1's representation.
        modulation: scale and shift by the maps.
    """

    text: tuple[KeyValue, ...]
    image: KeyValue | None
    representation: KeyValue | None
    modulation: Modulation | None


class Place(NamedTuple):
    """Where the adapters of a site attach.

    Attributes:
        attention: of the block, to text; CSM shares its queries and its output.
        channels: C of F.
        norm_groups: groups of the block's GroupNorm; None where F are tokens.
    """

    attention: nn.Module
    channels: int
    norm_groups: int | None


class Site(nn.Module):
    """The adapters of one block that attends to text.

    Args:
        block: diffusers' block (read for its sizes; not kept).
        level: how often the latents were halved here.
        config: the adapter's, from AdapterConfig.at_size.
        groups: the guidance types that are fused here.
        seed: of the initial weights.
        place: name of the site, to which its initial weights are keyed.
    """

    def __init__(
        self, block: nn.Module, level: int, config: AdapterConfig, groups: MapGroups, seed: int, place: str
    ) -> None:
        super().__init__()
        attention, channels, norm_groups = self.place(block)
        self.level = level
        self.csm = self.rca = self.msfm = None
        self.lq_stream: nn.Module | None = None  # an MMDiT's
        if config.image:
            with seeded_initialisation(seed, place, "csm"):
                image_width = None if config.connector == "shared" else config.image_width
                self.csm = CSMS[config.csm](attention, image_width, config.gate)
        if config.rca:
            with seeded_initialisation(seed, place, "rca"):
                self.rca = RCA(channels, attention.heads, config.representation_width)
        if any(groups):
            with seeded_initialisation(seed, place, "msfm"):
                self.msfm = MSFMS[config.msfm](
                    channels,
                    groups=norm_groups,
                    edge_channels=[count_channels(group) * config.map_patch**2 for group in groups.separate],
                    region_channels=count_channels(groups.aggregated) * config.map_patch**2,
                    width=config.saft_width,
                    fusion_init=config.fusion_init,
                    stage1=config.stage1,
                )

    @staticmethod
    def place(block: nn.Module) -> Place:
        """Where the adapters attach."""
        raise NotImplementedError

    @staticmethod
    def after_attention(block: nn.Module) -> nn.Module:
        """The module of the block whose input are the features with what CSM has added."""
        raise NotImplementedError

    def read(self, block: nn.Module, semantics: Semantics) -> SiteCondition:
        """Keys and values of a batch of images for this site; no modulation yet."""
        raise NotImplementedError

    def running_parts(self, block: nn.Module) -> list[nn.Module]:
        """Modules of the prior's block and of this site that are called in every pass; MSFM's make conditions."""
        parts = [] if self.csm is None else [self.csm.gate]
        if self.rca is not None:
            parts += [self.rca.norm, self.rca.attention.to_q, self.rca.attention.to_out[0]]
        return parts

    def reading_parts(self, block: nn.Module) -> list[nn.Module]:
        """Modules that are called once per batch, by `read` and MSFM."""
        parts: list[nn.Module] = []
        if self.csm is not None:
            parts += [self.csm.connector, self.csm.to_k, self.csm.to_v]
        if self.rca is not None:
            parts += [self.rca.attention.to_k, self.rca.attention.to_v]
        if self.msfm is not None:
            parts += [*self.msfm.safts, *([] if self.msfm.aggregation is None else [self.msfm.aggregation])]
        return parts


class UNetSite(Site):
    """The adapters of a block of a U-Net: its block is diffusers' Transformer2DModel.

    SDXL's have several layers, each with a cross-attention: CSM's branch belongs to the last of them.
    """

    @staticmethod
    def place(block: nn.Module) -> Place:
        return Place(block.transformer_blocks[-1].attn2, block.in_channels, block.norm.num_groups)

    @staticmethod
    def after_attention(block: nn.Module) -> nn.Module:
        return block.transformer_blocks[-1].norm3

    def running_parts(self, block: nn.Module) -> list[nn.Module]:
        parts = [block.norm, block.proj_in, block.proj_out]
        for layer in block.transformer_blocks:
            cross = layer.attn2
            parts += [layer.norm1, layer.attn1, layer.norm2, cross.to_q, cross.to_out[0], layer.norm3, layer.ff]
        return [*parts, *super().running_parts(block)]

    def reading_parts(self, block: nn.Module) -> list[nn.Module]:
        read = [part for layer in block.transformer_blocks for part in (layer.attn2.to_k, layer.attn2.to_v)]
        return [*read, *super().reading_parts(block)]

    def read(self, transformer: nn.Module, semantics: Semantics) -> SiteCondition:
        text = semantics.text.states if isinstance(semantics.text, TextStates) else semantics.text
        attentions = [layer.attn2 for layer in transformer.transformer_blocks]
        return SiteCondition(
            text=tuple(project_keys_values(cross.to_k, cross.to_v, text, cross.heads) for cross in attentions),
            image=self.csm.keys_values(semantics.image, attentions[-1].heads) if self.csm is not None else None,
            representation=self.rca.keys_values(semantics.representation) if self.rca is not None else None,
            modulation=None,
        )

    def forward(self, transformer: nn.Module, features: torch.Tensor, condition: SiteCondition) -> torch.Tensor:
        """F (B, C, h, w) -> F', through the prior's transformer block and the adapters."""
        linear, tokens = transformer.use_linear_projection, transformer.norm(features)
        if not linear:
            tokens = transformer.proj_in(tokens)
        tokens = tokens.permute(0, 2, 3, 1).flatten(1, 2)
        if linear:
            tokens = transformer.proj_in(tokens)
        *earlier, last = zip(transformer.transformer_blocks, condition.text, strict=True)
        for layer, text in earlier:
            tokens = self._run_layer(layer, tokens, text, None)
        tokens = self._run_layer(last[0], tokens, last[1], condition.image)
        if linear:
            tokens = transformer.proj_out(tokens)
        update = tokens.unflatten(1, features.shape[-2:]).permute(0, 3, 1, 2).contiguous()
        if not linear:
            update = transformer.proj_out(update)
        features = update + features
        if self.rca is not None:
            features = self.rca(features, condition.representation)
        return features if self.msfm is None else self.msfm(features, condition.modulation)

    def _run_layer(
        self, layer: nn.Module, tokens: torch.Tensor, text: KeyValue, image: KeyValue | None
    ) -> torch.Tensor:
        tokens = layer.attn1(layer.norm1(tokens)) + tokens
        query = split_heads(layer.attn2.to_q(layer.norm2(tokens)), layer.attn2.heads)  # shared by text and image
        semantics = attend(layer.attn2, query, text)
        if self.csm is not None and image is not None:
            semantics = semantics + self.csm(layer.attn2, query, image)
        tokens = semantics + tokens
        return layer.ff(layer.norm3(tokens)) + tokens


def iterate_transformers(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """(block, level) of every site of a denoiser or ControlNet, in the order of the forward pass.

    A U-Net's blocks are its Transformer2DModels, an MMDiT's all of its blocks.
    """
    if hasattr(model, "transformer_blocks"):
        yield from ((block, int(math.log2(model.config.patch_size))) for block in model.transformer_blocks)
        return
    deepest = len(model.down_blocks) - 1
    blocks = [
        *zip(model.down_blocks, range(deepest + 1), strict=True),
        (model.mid_block, deepest),
        *((block, deepest - i) for i, block in enumerate(getattr(model, "up_blocks", ()))),
    ]
    for block, level in blocks:
        yield from ((transformer, level) for transformer in getattr(block, "attentions", ()))


def run_block(
    resnet: nn.Module,
    transformer: nn.Module,
    site: Site,
    features: torch.Tensor,
    time_embedding: torch.Tensor,
    condition: SiteCondition,
) -> torch.Tensor:
    """ResBlock -> CSM -> MSFM: the block of the figure."""
    return site(transformer, resnet(features, time_embedding), condition)


def compiled_block(run: Callable[..., Any] = run_block) -> Callable[..., Any]:
    """A function that runs a block, through torch.compile: each kind of block is compiled once, in the first step."""
    import torch._dynamo

    # A network has more kinds of blocks, by width, size and parts, than dynamo compiles of one function by default.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(run, dynamic=False)


# (ResBlock, transformer or None, features) -> features
Run = Callable[[nn.Module, nn.Module | None, torch.Tensor], torch.Tensor]


class AdaptedModel(nn.Module):
    """Base of the adapted denoisers and ControlNets: the sites, and how blocks run through them.

    Args:
        model: diffusers' denoiser or ControlNet; an attribute of the name `name`.
        config: the adapter's.
        groups: the guidance types that are fused here.
        seed: of the initial weights.
        name: `unet` or `controlnet`, to which the initial weights are keyed.
    """

    site: type[Site] = UNetSite
    keeps_evaluating = False  # the prior's own model: only its adapters change mode
    run_block: Callable[..., Any]

    def __init__(self, model: nn.Module, config: AdapterConfig, groups: MapGroups, seed: int, name: str) -> None:
        super().__init__()
        self.add_module(name, model)  # before the sites: optimizer states go by the order of the parameters
        self.name = name
        self.recompute = config.gradient_checkpointing
        self.run_block = run_block
        self.sites = nn.ModuleList(
            self.site(block, level, config, groups, seed, f"{name}.{i}")
            for i, (block, level) in enumerate(iterate_transformers(model))
        )

    @property
    def model(self) -> nn.Module:
        """diffusers' model."""
        return self.get_submodule(self.name)

    def train(self, mode: bool = True) -> Self:
        """Change mode; the model of a prior stays in evaluation mode."""
        super().train(mode)
        if self.keeps_evaluating:
            self.model.eval()
        return self

    def block_runner(self, time_embedding: torch.Tensor, conditions: tuple[SiteCondition, ...]) -> Run:
        """Runs blocks in the order of the forward pass, each with the next site and its condition."""
        pairs = iter(zip(self.sites, conditions, strict=True))

        def run(resnet: nn.Module, transformer: nn.Module | None, features: torch.Tensor) -> torch.Tensor:
            if transformer is None:
                return self.maybe_recompute(resnet, features, time_embedding)
            site, condition = next(pairs)
            return self.maybe_recompute(self.run_block, resnet, transformer, site, features, time_embedding, condition)

        return run

    def maybe_recompute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, and again in the backward pass where the adapter has gradient checkpointing."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)


def layers(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """(ResBlock, transformer after it or None) of a block of a U-Net or ControlNet."""
    return zip(block.resnets, getattr(block, "attentions", None) or [None] * len(block.resnets), strict=True)


def run_encoder(model: nn.Module, run: Run, features: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Down blocks of a U-Net or ControlNet -> (features, skips); skips start with the input."""
    skips = [features]
    for block in model.down_blocks:
        for resnet, transformer in layers(block):
            features = run(resnet, transformer, features)
            skips.append(features)
        for downsampler in block.downsamplers or ():
            features = downsampler(features)
            skips.append(features)
    return features, skips


def run_middle(model: nn.Module, run: Run, features: torch.Tensor) -> torch.Tensor:
    """The middle block: ResBlock, transformer, ResBlock."""
    first, last = model.mid_block.resnets
    return run(last, None, run(first, model.mid_block.attentions[0], features))


def embed_time(
    model: nn.Module,
    timesteps: torch.Tensor,
    dtype: torch.dtype,
    added: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """(B,) timesteps -> (B, E) time embedding of a U-Net or ControlNet.

    Args:
        model: diffusers'.
        timesteps: as the model counts them.
        dtype: of the result.
        added: what SDXL adds to it: pooled text (B, P), and `time_ids` (B, 6); None for SD 1.x and 2.x.
    """
    embedding = model.time_embedding(model.time_proj(timesteps).to(dtype))
    if added is None:
        return embedding
    pooled, sizes = added
    sizes = model.add_time_proj(sizes.flatten()).reshape(len(pooled), -1)
    return embedding + model.add_embedding(torch.cat([pooled, sizes], dim=-1).to(dtype))
