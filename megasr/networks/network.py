"""The whole network: an image is turned into conditions once; every denoising step uses them.

Shapes: lq_up (B, 3, H, W) in [0, 1]; maps name -> (B, C, H', W') in [0, 1] at any size; z_t (B, C, h, w) latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from torch.utils._pytree import tree_map

from megasr.errors import UsageError
from megasr.guidance.registry import resolve_guidance
from megasr.networks.config import AdapterConfig
from megasr.networks.controlnet import MegaSRControlNet
from megasr.networks.csm import text_projections
from megasr.networks.lora import add_lora, sharing_copy
from megasr.networks.mmdit import MegaSRMMDiT, MMDiTControlNet
from megasr.networks.msfm import Modulation, group_maps
from megasr.networks.sites import AdaptedModel, Semantics, Site, SiteCondition, compiled_block, iterate_transformers
from megasr.networks.unet import MegaSRUNet
from megasr.prior import Prior, encode_images
from megasr.rng import seeded_initialisation
from megasr.semantics.text import TextStates

SaftMaps = Sequence[Sequence[torch.Tensor]]  # per site (U-Net's, then ControlNet's): the input of each of its SAFTs
WeightedMaps = Sequence[tuple[float, SaftMaps]]  # weights that sum to 1, and the maps whose modulations they weigh


# Adapted denoiser and its ControlNet by the denoiser's class in diffusers.
ADAPTED = {
    "UNet2DConditionModel": (MegaSRUNet, MegaSRControlNet),
    "SD3Transformer2DModel": (MegaSRMMDiT, MMDiTControlNet),
}


class Conditions(NamedTuple):
    """All that depends on the image and the words, but not on z_t or the timestep.

    Attributes:
        f_lq: features of lq for the ControlNet, or its tokens for the lq stream.
        unet: of the sites of the denoiser.
        controlnet: of the sites of the ControlNet.
        text: what SDXL's time embedding and the blocks of an MMDiT read themselves.
    """

    f_lq: torch.Tensor | None
    unet: tuple[SiteCondition, ...]
    controlnet: tuple[SiteCondition, ...]
    text: TextStates | None = None


class MegaSRNetwork(nn.Module):
    """The adapter network: adapted denoiser and ControlNet on a frozen prior.

    Args:
        prior: the frozen prior.
        config: what the adapter consists of.
        seed: of the initial weights; the global random state is neither used nor changed.
    """

    def __init__(self, prior: Prior, config: AdapterConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config = config.at_size(sum(p.numel() for p in prior.unet.parameters()))
        self.guidance = tuple(resolve_guidance(config.guidance))
        self.groups = group_maps(self.guidance, config.fusion)
        in_unet, in_controlnet = (
            self.groups if config.fusion_in in (None, model) else group_maps((), config.fusion)
            for model in ("unet", "controlnet")
        )
        denoiser, controlnet = ADAPTED[type(prior.unet).__name__]
        # An MMDiT has the name of a U-Net too: names of weights are in checkpoints.
        self.unet: AdaptedModel = denoiser(prior.unet, prior.downsampling, config, in_unet, seed)
        self.controlnet: AdaptedModel | None = None
        if config.controlnet:
            self.controlnet = controlnet(prior.unet, prior.downsampling, config, in_controlnet, seed)
        self.connector = None
        if config.image and config.connector == "shared":
            block, _ = next(iterate_transformers(prior.unet))
            keys, _ = text_projections(self.unet.site.place(block).attention)
            with seeded_initialisation(seed, "connector"):
                self.connector = nn.Linear(config.image_width, keys.in_features)
        if config.prior_lora is not None:  # last: ControlNet and CSM start from the prior's own weights
            self.unet.unet = add_lora(sharing_copy(prior.unet), config.prior_lora, seed, "prior_lora")
        self.vae = None
        if config.encoder_lora is not None:
            self.vae = sharing_copy(prior.vae)
            add_lora(self.vae.encoder, config.encoder_lora, seed, "encoder_lora")
        self.downsampling, self.size_multiple = prior.downsampling, prior.size_multiple
        self.schedule = prior.schedule

    def compile_blocks(self) -> None:
        """Run every block through torch.compile: the same numbers up to rounding, and minutes until the first step."""
        self.unet.run_block = compiled_block(self.unet.run_block)
        if self.controlnet is not None:
            self.controlnet.run_block = self.unet.run_block

    @property
    def sites(self) -> list[tuple[nn.Module, Site]]:
        """(block, site) of the denoiser and then of the ControlNet, each in the order of the forward pass."""
        return [
            (block, site)
            for adapted in self.models
            for (block, _), site in zip(iterate_transformers(adapted.model), adapted.sites, strict=True)
        ]

    @property
    def models(self) -> list[AdaptedModel]:
        """The adapted denoiser, and the ControlNet if there is one."""
        return [self.unet, *([] if self.controlnet is None else [self.controlnet])]

    # Where FSDP2 spreads the weights, these five are forwards of their own on the object (see training/sharding.py);
    # `apply_forward_hook` lets accelerate's offloading hooks see them as well.

    def conditions(
        self,
        lq_up: torch.Tensor,
        semantics: Semantics,
        maps: Mapping[str, torch.Tensor],
        z_lq: torch.Tensor | None = None,
    ) -> Conditions:
        """Conditions of a batch of whole images; z_lq, the latents of lq_up, is for the lq stream.

        Raises:
            UsageError: the size does not fit the prior, or tokens that the config asks for are missing.
        """
        multiple = self.size_multiple
        height, width = lq_up.shape[-2:]
        if height % multiple or width % multiple:
            raise UsageError(
                f"image of {width}x{height} px: the prior needs multiples of {multiple} px; pad or crop it"
            )
        cls = MegaSRNetwork  # called through the class, so that this is one forward under FSDP2, not four
        saft_maps = cls.saft_maps(self, maps, height // self.downsampling, width // self.downsampling)
        return cls.guide(self, cls.read(self, semantics), lq_up, [(1.0, saft_maps)], z_lq)

    @apply_forward_hook
    def encode(self, lq_up: torch.Tensor) -> torch.Tensor:
        """The latent of lq_up by the VAE with the adapter's LoRA on its encoder; see megasr.prior.encode_images."""
        return encode_images(self.vae, lq_up)

    @apply_forward_hook
    def read(self, semantics: Semantics) -> Conditions:
        """Keys and values of every site; no f_lq and no modulations yet.

        Raises:
            UsageError: tokens that the config asks for are missing.
        """
        for name, used in (("image", self.config.image), ("representation", self.config.rca)):
            if used and getattr(semantics, name) is None:
                raise UsageError(f"the adapter uses {name} tokens, but the batch has none and no encoder is set")
        if self.connector is not None:
            semantics = semantics._replace(image=self.connector(semantics.image))
        read = self._by_model(None, (site.read(block, semantics) for block, site in self.sites))
        return read._replace(text=semantics.text) if isinstance(semantics.text, TextStates) else read

    @apply_forward_hook
    def saft_maps(self, maps: Mapping[str, torch.Tensor], height: int, width: int) -> SaftMaps:
        """Inputs of every site's SAFTs for whole images with latents of this size; maps are averaged over areas."""
        patch = self.config.map_patch

        def at(level: int, guidance_map: torch.Tensor) -> torch.Tensor:
            size = ((height >> level) * patch, (width >> level) * patch)
            return F.pixel_unshuffle(F.interpolate(guidance_map, size, mode="area"), patch)

        pyramid = {
            level: self.groups.stack({g.name: at(level, maps[g.name]) for g in self.guidance})
            for level in sorted({site.level for _, site in self.sites})
        }
        return [site.msfm.saft_maps(*pyramid[site.level]) if site.msfm is not None else [] for _, site in self.sites]

    @apply_forward_hook
    def guide(
        self,
        known: Conditions,
        lq_up: torch.Tensor,
        weighted_maps: WeightedMaps,
        z_lq: torch.Tensor | None = None,
    ) -> Conditions:
        """Add f_lq, and at every site the weighted sum of the modulations by sets of maps.

        Args:
            known: from `read`.
            lq_up: (B, 3, H, W) whole images, or tiles of them.
            weighted_maps: from `saft_maps`, of the same images or tiles.
            z_lq: latents of lq_up, for the lq stream.
        """
        chosen = [
            condition._replace(modulation=_modulate(site, [(weight, maps[i]) for weight, maps in weighted_maps]))
            for i, ((_, site), condition) in enumerate(zip(self.sites, known.unet + known.controlnet, strict=True))
        ]
        f_lq = None
        if self.controlnet is not None:
            f_lq = self.controlnet.encode_lq(lq_up)
        elif self.config.lq_stream:
            f_lq = self.unet.encode_lq(z_lq)
        return self._by_model(f_lq, chosen)._replace(text=known.text)

    def _by_model(self, f_lq: torch.Tensor | None, conditions: Iterable[SiteCondition]) -> Conditions:
        every, in_unet = tuple(conditions), len(self.unet.sites)
        return Conditions(f_lq, every[:in_unet], every[in_unet:])

    def forward(self, z_t: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Prediction (B, C, h, w) for z_t at `timesteps` (B,)."""
        timesteps, residuals = self.schedule.model_timesteps(timesteps), None
        text = () if conditions.text is None else (conditions.text,)
        if self.controlnet is not None:
            residuals = self.controlnet(z_t, timesteps, conditions.f_lq, conditions.controlnet, *text)
        stream = {"f_lq": conditions.f_lq} if self.config.lq_stream else {}
        return self.unet(z_t, timesteps, conditions.unet, residuals, *text, **stream)


def _modulate(site: Site, weighted: Sequence[tuple[float, Sequence[torch.Tensor]]]) -> Modulation | None:
    if site.msfm is None:
        return None
    modulations = [site.msfm.modulate(maps) for _, maps in weighted]
    if len(modulations) == 1:
        return modulations[0]
    scales, shifts = zip(*modulations, strict=True)
    weights = [weight for weight, _ in weighted]
    scale, shift = (sum(w * part for w, part in zip(weights, parts, strict=True)) for parts in (scales, shifts))
    return scale, shift


def repeat_words(known: Conditions, copies: int) -> Conditions:
    """Keys and values (see `read`) of B images for `copies` times B tiles: image 0, 1, ... B - 1, 0, 1, ..."""
    return tree_map(lambda t: None if t is None else t.repeat(copies, *[1] * (t.ndim - 1)), known)


def join_words(first: Conditions, second: Conditions) -> Conditions:
    """Keys and values (see `read`) of both halves of classifier-free guidance, concatenated along the batch."""
    return tree_map(lambda a, b: None if a is None else torch.cat([a, b]), first, second)


def put_words(known: Conditions, placed: Conditions) -> Conditions:
    """Keys and values of `known` with f_lq and modulations of `placed`, whose batch may be a part of its size."""

    def put(sites: tuple[SiteCondition, ...], others: tuple[SiteCondition, ...]) -> tuple[SiteCondition, ...]:
        return tuple(s._replace(modulation=o.modulation) for s, o in zip(sites, others, strict=True))

    return Conditions(placed.f_lq, put(known.unet, placed.unet), put(known.controlnet, placed.controlnet), known.text)
