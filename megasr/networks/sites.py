"""Sites: the places in the U-Net and the ControlNet where CSM, RCA and MSFM sit, and how a block runs through one.

Every block is ResBlock -> CSM (inside the transformer) -> RCA (v1) -> MSFM. diffusers' modules are used as they are;
what is written out here is only their forward, so that the adapters stand in plain sight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from megasr.errors import UsageError
from megasr.guidance.registry import GuidanceType
from megasr.networks.config import AdapterConfig
from megasr.networks.csm import CSM, RCA, KeyValue, attend, project_keys_values, project_query
from megasr.networks.msfm import MSFM, Modulation, count_channels, group_maps
from megasr.rng import seeded_initialisation


class Semantics(NamedTuple):
    """What the prompts and the image mean: text (B, L, D), image tokens (B, N, E), representation (B, M, R)."""

    text: torch.Tensor
    image: torch.Tensor | None = None
    representation: torch.Tensor | None = None


class SiteCondition(NamedTuple):
    """Everything a site needs to know about the image. Independent of z_t and t: computed once per image."""

    text: KeyValue
    image: KeyValue | None
    representation: KeyValue | None
    modulation: Modulation | None


class Site(nn.Module):
    """The adapters of one cross-attention site.

    Args:
        transformer: diffusers' Transformer2DModel at this site (read for its sizes; not kept).
        level: how often the latents were halved here.
        config: what the adapter consists of.
        guidance: the resolved guidance types that are fused here.
        seed: of the initial weights.
        place: name of the site, to which its initial weights are keyed.
    """

    def __init__(
        self,
        transformer: nn.Module,
        level: int,
        config: AdapterConfig,
        guidance: tuple[GuidanceType, ...],
        seed: int,
        place: str,
    ) -> None:
        super().__init__()
        if len(transformer.transformer_blocks) != 1:
            raise UsageError(
                f"the prior's U-Net has {len(transformer.transformer_blocks)} transformer layers per block; "
                "MegaSR's sites need one, as in Stable Diffusion 1.x and 2.x"
            )
        attention = transformer.transformer_blocks[0].attn2
        channels = transformer.in_channels
        self.level = level
        self.csm = self.rca = self.msfm = None
        if config.image:
            with seeded_initialisation(seed, place, "csm"):
                self.csm = CSM(attention, None if config.connector else config.image_width, config.gate)
        if config.rca:
            with seeded_initialisation(seed, place, "rca"):
                self.rca = RCA(channels, attention.heads, config.representation_width)
        if guidance:
            groups = group_maps(guidance, config.fusion)
            with seeded_initialisation(seed, place, "msfm"):
                self.msfm = MSFM(
                    channels,
                    groups=transformer.norm.num_groups,
                    edge_channels=[count_channels(group) for group in groups.separate],
                    region_channels=count_channels(groups.aggregated),
                    width=config.saft_width,
                    fusion_init=config.fusion_init,
                    stage1=config.stage1,
                )

    def read(self, transformer: nn.Module, semantics: Semantics) -> SiteCondition:
        """Keys and values of one image for this site; it has no modulation yet."""
        attention = transformer.transformer_blocks[0].attn2
        return SiteCondition(
            text=project_keys_values(attention.to_k, attention.to_v, semantics.text, attention.heads),
            image=self.csm.keys_values(semantics.image, attention.heads) if self.csm is not None else None,
            representation=self.rca.keys_values(semantics.representation) if self.rca is not None else None,
            modulation=None,
        )

    def forward(self, transformer: nn.Module, features: torch.Tensor, condition: SiteCondition) -> torch.Tensor:
        """F (B, C, h, w) -> F', through the prior's transformer block and the adapters."""
        tokens, features_in = features, features
        tokens = transformer.norm(tokens)
        if transformer.use_linear_projection:
            tokens = transformer.proj_in(tokens.permute(0, 2, 3, 1).flatten(1, 2))
        else:
            tokens = transformer.proj_in(tokens).permute(0, 2, 3, 1).flatten(1, 2)
        tokens = self._transformer_block(transformer.transformer_blocks[0], tokens, condition)
        if transformer.use_linear_projection:
            tokens = transformer.proj_out(tokens)
        features = tokens.unflatten(1, features_in.shape[-2:]).permute(0, 3, 1, 2).contiguous()
        if not transformer.use_linear_projection:
            features = transformer.proj_out(features)
        features = features + features_in
        if self.rca is not None:
            features = self.rca(features, condition.representation)
        if self.msfm is not None:
            features = self.msfm(features, condition.modulation)
        return features

    def _transformer_block(self, block: nn.Module, tokens: torch.Tensor, condition: SiteCondition) -> torch.Tensor:
        tokens = block.attn1(block.norm1(tokens)) + tokens
        query = project_query(block.attn2, block.norm2(tokens))
        semantics = attend(block.attn2, query, condition.text)
        if self.csm is not None:
            semantics = semantics + self.csm(block.attn2, query, condition.image)
        tokens = semantics + tokens
        return block.ff(block.norm3(tokens)) + tokens


def iterate_transformers(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """(transformer, level) of every cross-attention site of a U-Net or ControlNet, in the order of the forward pass."""
    for level, block in enumerate(model.down_blocks):
        yield from ((transformer, level) for transformer in getattr(block, "attentions", ()))
    deepest = len(model.down_blocks) - 1
    yield from ((transformer, deepest) for transformer in model.mid_block.attentions)
    for position, block in enumerate(getattr(model, "up_blocks", ())):
        yield from ((transformer, deepest - position) for transformer in getattr(block, "attentions", ()))


def build_sites(
    model: nn.Module, config: AdapterConfig, guidance: tuple[GuidanceType, ...], seed: int, name: str
) -> nn.ModuleList:
    """One Site per cross-attention of a U-Net or ControlNet, in the order of the forward pass."""
    transformers = enumerate(iterate_transformers(model))
    return nn.ModuleList(Site(t, level, config, guidance, seed, f"{name}.{i}") for i, (t, level) in transformers)


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


def compiled_block() -> Callable[..., torch.Tensor]:
    """run_block through torch.compile: each kind of block is compiled once, in the first step."""
    import torch._dynamo

    # A network has more kinds of blocks, by width, size and parts, than dynamo compiles of one function by default.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(run_block, dynamic=False)


class BlockRunner:
    """Runs blocks in order, handing each site its condition; recomputes them in the backward pass when asked."""

    def __init__(
        self,
        sites: nn.ModuleList,
        conditions: tuple[SiteCondition, ...],
        recompute: bool,
        run_block: Callable[..., torch.Tensor] = run_block,
    ) -> None:
        self.pairs = iter(zip(sites, conditions, strict=True))
        self.recompute = recompute and torch.is_grad_enabled()
        self.run_block = run_block

    def __call__(
        self, block: nn.Module, index: int, features: torch.Tensor, time_embedding: torch.Tensor
    ) -> torch.Tensor:
        """Run ResBlock `index` of a diffusers block, and its site when the block has attention."""
        resnet = block.resnets[index]
        attentions = getattr(block, "attentions", None)
        if not attentions:
            return self.run(resnet, features, time_embedding)
        site, condition = next(self.pairs)
        return self.run(self.run_block, resnet, attentions[index], site, features, time_embedding, condition)

    def run(self, function: Callable[..., torch.Tensor], *arguments: object) -> torch.Tensor:
        """Call a block, to be recomputed in the backward pass when asked."""
        if self.recompute:
            return checkpoint(function, *arguments, use_reentrant=False)
        return function(*arguments)


def run_encoder(
    model: nn.Module, run: BlockRunner, features: torch.Tensor, time_embedding: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Down blocks of a U-Net or ControlNet -> (features, skips); skips start with the input."""
    skips = [features]
    for block in model.down_blocks:
        for index in range(len(block.resnets)):
            features = run(block, index, features, time_embedding)
            skips.append(features)
        for downsampler in block.downsamplers or ():
            features = downsampler(features)
            skips.append(features)
    return features, skips


def run_middle(
    model: nn.Module, run: BlockRunner, features: torch.Tensor, time_embedding: torch.Tensor
) -> torch.Tensor:
    """ResBlock, then (site, ResBlock): the middle block has its attention between two ResBlocks."""
    middle = model.mid_block
    site, condition = next(run.pairs)
    features = run.run(
        run.run_block, middle.resnets[0], middle.attentions[0], site, features, time_embedding, condition
    )
    return run.run(middle.resnets[1], features, time_embedding)


def embed_time(model: nn.Module, timesteps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B,) timesteps -> (B, E) time embedding of a U-Net or ControlNet."""
    return model.time_embedding(model.time_proj(timesteps).to(dtype))
