"""Sites: the places in the U-Net and the ControlNet where CSM, RCA and MSFM sit, and how a block runs through one.

Every block is ResBlock -> CSM (inside the transformer) -> RCA (v1) -> MSFM. diffusers' modules are used as they are;
only their forward is written out here, with the adapters in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from megasr.errors import UsageError
from megasr.networks.config import AdapterConfig
from megasr.networks.csm import CSMS, RCA, KeyValue, attend, project_keys_values, split_heads
from megasr.networks.msfm import MSFMS, MapGroups, Modulation, count_channels
from megasr.rng import seeded_initialisation


class Semantics(NamedTuple):
    """Prompt and image as tokens: text (B, L, D), image tokens (B, N, E), representation (B, M, R)."""

    text: torch.Tensor
    image: torch.Tensor | None = None
    representation: torch.Tensor | None = None


class SiteCondition(NamedTuple):
    """Conditions of one site. Independent of z_t and t: computed once per image."""

    text: KeyValue
    image: KeyValue | None
    representation: KeyValue | None
    modulation: Modulation | None


class Site(nn.Module):
    """The adapters of one cross-attention site.

    Args:
        transformer: diffusers' Transformer2DModel at this site (read for its sizes; not kept).
        level: how often the latents were halved here.
        config: the adapter's.
        groups: the guidance types that are fused here.
        seed: of the initial weights.
        place: name of the site, to which its initial weights are keyed.

    Raises:
        UsageError: the prior's transformers have more than one layer.
    """

    def __init__(
        self, transformer: nn.Module, level: int, config: AdapterConfig, groups: MapGroups, seed: int, place: str
    ) -> None:
        super().__init__()
        if len(transformer.transformer_blocks) != 1:
            raise UsageError(
                f"the prior's U-Net has {len(transformer.transformer_blocks)} transformer layers per block; "
                "MegaSR's sites need one, as in Stable Diffusion 1.x and 2.x"
            )
        attention = transformer.transformer_blocks[0].attn2
        self.level = level
        self.csm = self.rca = self.msfm = None
        if config.image:
            with seeded_initialisation(seed, place, "csm"):
                self.csm = CSMS[config.csm](attention, None if config.connector else config.image_width, config.gate)
        if config.rca:
            with seeded_initialisation(seed, place, "rca"):
                self.rca = RCA(transformer.in_channels, attention.heads, config.representation_width)
        if any(groups):
            with seeded_initialisation(seed, place, "msfm"):
                self.msfm = MSFMS[config.msfm](
                    transformer.in_channels,
                    groups=transformer.norm.num_groups,
                    edge_channels=[count_channels(group) for group in groups.separate],
                    region_channels=count_channels(groups.aggregated),
                    width=config.saft_width,
                    fusion_init=config.fusion_init,
                    stage1=config.stage1,
                )

    def read(self, transformer: nn.Module, semantics: Semantics) -> SiteCondition:
        """Keys and values of a batch of images for this site; no modulation yet."""
        attention = transformer.transformer_blocks[0].attn2
        return SiteCondition(
            text=project_keys_values(attention.to_k, attention.to_v, semantics.text, attention.heads),
            image=self.csm.keys_values(semantics.image, attention.heads) if self.csm is not None else None,
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
        tokens = self._transformer_block(transformer.transformer_blocks[0], tokens, condition)
        if linear:
            tokens = transformer.proj_out(tokens)
        update = tokens.unflatten(1, features.shape[-2:]).permute(0, 3, 1, 2).contiguous()
        if not linear:
            update = transformer.proj_out(update)
        features = update + features
        if self.rca is not None:
            features = self.rca(features, condition.representation)
        return features if self.msfm is None else self.msfm(features, condition.modulation)

    def _transformer_block(self, block: nn.Module, tokens: torch.Tensor, condition: SiteCondition) -> torch.Tensor:
        tokens = block.attn1(block.norm1(tokens)) + tokens
        query = split_heads(block.attn2.to_q(block.norm2(tokens)), block.attn2.heads)  # shared by text and image
        semantics = attend(block.attn2, query, condition.text)
        if self.csm is not None:
            semantics = semantics + self.csm(block.attn2, query, condition.image)
        tokens = semantics + tokens
        return block.ff(block.norm3(tokens)) + tokens


def iterate_transformers(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """(transformer, level) of every cross-attention site of a U-Net or ControlNet, in the order of the forward pass."""
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


def compiled_block() -> Callable[..., torch.Tensor]:
    """run_block through torch.compile: each kind of block is compiled once, in the first step."""
    import torch._dynamo

    # A network has more kinds of blocks, by width, size and parts, than dynamo compiles of one function by default.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(run_block, dynamic=False)


# (ResBlock, transformer or None, features) -> features
Run = Callable[[nn.Module, nn.Module | None, torch.Tensor], torch.Tensor]


class AdaptedModel(nn.Module):
    """Base of the adapted U-Net and ControlNet: the sites, and how blocks run through them.

    Args:
        model: diffusers' U-Net or ControlNet; an attribute of the name `name`.
        config: the adapter's.
        groups: the guidance types that are fused here.
        seed: of the initial weights.
        name: `unet` or `controlnet`, to which the initial weights are keyed.
    """

    def __init__(self, model: nn.Module, config: AdapterConfig, groups: MapGroups, seed: int, name: str) -> None:
        super().__init__()
        self.add_module(name, model)  # before the sites: optimizer states go by the order of the parameters
        self.recompute = config.gradient_checkpointing
        self.run_block = run_block
        self.sites = nn.ModuleList(
            Site(transformer, level, config, groups, seed, f"{name}.{i}")
            for i, (transformer, level) in enumerate(iterate_transformers(model))
        )

    def block_runner(self, time_embedding: torch.Tensor, conditions: tuple[SiteCondition, ...]) -> Run:
        """Runs blocks in the order of the forward pass, each with the next site and its condition."""
        pairs = iter(zip(self.sites, conditions, strict=True))
        recompute = self.recompute and torch.is_grad_enabled()

        def run(resnet: nn.Module, transformer: nn.Module | None, features: torch.Tensor) -> torch.Tensor:
            function: Callable[..., torch.Tensor] = resnet
            arguments: tuple[Any, ...] = (features, time_embedding)
            if transformer is not None:
                site, condition = next(pairs)
                function, arguments = self.run_block, (resnet, transformer, site, *arguments, condition)
            return checkpoint(function, *arguments, use_reentrant=False) if recompute else function(*arguments)

        return run


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


def embed_time(model: nn.Module, timesteps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B,) timesteps -> (B, E) time embedding of a U-Net or ControlNet."""
    return model.time_embedding(model.time_proj(timesteps).to(dtype))
