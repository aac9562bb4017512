"""The whole network: what is known of an image is turned into conditions once; every denoising step uses them.

Shapes: lq_up (B, 3, H, W) in [0, 1]; maps name -> (B, C, H', W') in [0, 1] at any size; z_t (B, C, h, w) latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import starmap
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from megasr.errors import UsageError
from megasr.guidance.registry import resolve_guidance
from megasr.networks.config import AdapterConfig
from megasr.networks.controlnet import MegaSRControlNet
from megasr.networks.csm import KeyValue
from megasr.networks.msfm import MSFM, Modulation, group_maps
from megasr.networks.sites import Semantics, SiteCondition, compiled_block, iterate_transformers
from megasr.networks.unet import MegaSRUNet
from megasr.prior import Prior
from megasr.rng import seeded_initialisation

SaftMaps = tuple[tuple[Sequence[torch.Tensor], ...], ...]  # per model and site: what each of its SAFTs sees


class Conditions(NamedTuple):
    """All that depends on the image and the words, but not on z_t or the timestep."""

    f_lq: torch.Tensor | None
    unet: tuple[SiteCondition, ...]
    controlnet: tuple[SiteCondition, ...]


class MegaSRNetwork(nn.Module):
    """Adapted U-Net and ControlNet on a frozen prior. What is made beside the forward pass calls its hooks as well.

    Args:
        prior: the frozen prior.
        config: what the adapter consists of.
        seed: of the initial weights; the global random state is neither used nor changed.
    """

    def __init__(self, prior: Prior, config: AdapterConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.guidance = tuple(resolve_guidance(config.guidance))
        self.groups = group_maps(self.guidance, config.fusion)
        in_unet, in_controlnet = (
            self.guidance if config.fusion_in in (None, m) else () for m in ("unet", "controlnet")
        )
        self.unet = MegaSRUNet(prior.unet, config, in_unet, seed)
        self.controlnet = None
        if config.controlnet:
            self.controlnet = MegaSRControlNet(prior.unet, prior.downsampling, config, in_controlnet, seed)
        self.connector = None
        if config.image and config.connector == "shared":
            with seeded_initialisation(seed, "connector"):
                self.connector = nn.Linear(config.image_width, prior.unet.config.cross_attention_dim)
        self.downsampling = prior.downsampling
        self.halvings = len(prior.unet.config.down_block_types) - 1

    def compile_blocks(self) -> None:
        """Run every block through torch.compile: the same numbers up to rounding, and minutes until the first step."""
        self.unet.run_block = compiled_block()
        if self.controlnet is not None:
            self.controlnet.run_block = self.unet.run_block

    def conditions(self, lq_up: torch.Tensor, semantics: Semantics, maps: Mapping[str, torch.Tensor]) -> Conditions:
        """Everything the denoising steps need to know about a batch of images.

        Raises:
            UsageError: the size does not fit the prior, or tokens that the config asks for are missing.
        """
        self._check(lq_up)
        height, width = (n // self.downsampling for n in lq_up.shape[-2:])
        # Through the class: where weights are spread, these are forwards of their own on the object, and this is one.
        cls = MegaSRNetwork
        shown = [(1.0, cls.saft_maps(self, maps, height, width))]
        return cls.guide(self, cls.read(self, semantics), lq_up, shown)

    @apply_forward_hook
    def read(self, semantics: Semantics) -> Conditions:
        """The part of the conditions that knows no place: keys and values of every site.

        Raises:
            UsageError: tokens that the config asks for are missing.
        """
        for name, wanted in (("image", self.config.image), ("representation", self.config.rca)):
            if wanted and getattr(semantics, name) is None:
                raise UsageError(f"the adapter uses {name} tokens, but the batch has none and no encoder is set")
        if self.connector is not None:
            semantics = semantics._replace(image=self.connector(semantics.image))
        per_model = [
            tuple(
                site.read(transformer, semantics)
                for (transformer, _), site in zip(iterate_transformers(model), sites, strict=True)
            )
            for model, sites in self.models
        ]
        return Conditions(None, per_model[0], per_model[1] if self.controlnet is not None else ())

    @apply_forward_hook
    def saft_maps(self, maps: Mapping[str, torch.Tensor], height: int, width: int) -> SaftMaps:
        """What the SAFTs of every site see of whole images whose latents have this size."""
        pyramid = [self._resize_maps(maps, height >> level, width >> level) for level in range(self.halvings + 1)]
        return tuple(
            tuple(site.msfm.saft_maps(*pyramid[site.level]) if site.msfm is not None else () for site in sites)
            for _, sites in self.models
        )

    @apply_forward_hook
    def guide(self, known: Conditions, lq_up: torch.Tensor, shown: Sequence[tuple[float, SaftMaps]]) -> Conditions:
        """Add what has a place: f_lq, and at every site the weighted sum of the modulations by sets of maps.

        Args:
            known: from `read`.
            lq_up: (B, 3, H, W) whole images, or tiles of them.
            shown: weights that sum to 1, and maps of the same images or tiles.
        """
        chosen = [
            tuple(
                condition._replace(modulation=_weighted(site.msfm, [(weight, maps[m][n]) for weight, maps in shown]))
                for n, (site, condition) in enumerate(zip(sites, conditions, strict=True))
            )
            for m, ((_, sites), conditions) in enumerate(zip(self.models, known[1:], strict=False))
        ]
        f_lq = self.controlnet.encode_lq(lq_up) if self.controlnet is not None else None
        return Conditions(f_lq, chosen[0], chosen[1] if self.controlnet is not None else ())

    @property
    def models(self) -> list[tuple[nn.Module, nn.ModuleList]]:
        """diffusers' U-Net and, when there is one, ControlNet, each with its sites."""
        models = [(self.unet.unet, self.unet.sites)]
        return models + ([(self.controlnet.controlnet, self.controlnet.sites)] if self.controlnet is not None else [])

    def forward(self, z_t: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Prediction (B, C, h, w) for z_t at `timesteps` (B,)."""
        residuals = None
        if self.controlnet is not None:
            residuals = self.controlnet(z_t, timesteps, conditions.f_lq, conditions.controlnet)
        return self.unet(z_t, timesteps, conditions.unet, residuals)

    def _check(self, lq_up: torch.Tensor) -> None:
        multiple = self.downsampling * 2**self.halvings
        if any(n % multiple for n in lq_up.shape[-2:]):
            height, width = lq_up.shape[-2:]
            raise UsageError(
                f"image of {width}x{height} px: the prior needs multiples of {multiple} px; pad or crop it"
            )

    def _resize_maps(
        self, maps: Mapping[str, torch.Tensor], height: int, width: int
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """The stacks of the groups of maps, averaged over the pixels of each feature (area)."""
        sized = {g.name: F.interpolate(maps[g.name], (height, width), mode="area") for g in self.guidance}
        return self.groups.stack(sized)


def _weighted(msfm: MSFM | None, shown: Sequence[tuple[float, Sequence[torch.Tensor]]]) -> Modulation | None:
    if msfm is None:
        return None
    if len(shown) == 1:
        return msfm.modulate(shown[0][1])
    scales, shifts = zip(*(msfm.modulate(maps) for _, maps in shown), strict=True)
    weights = [weight for weight, _ in shown]
    return tuple(sum(w * part for w, part in zip(weights, parts, strict=True)) for parts in (scales, shifts))


def repeat_words(known: Conditions, copies: int) -> Conditions:
    """Keys and values of B images for `copies` times B: image 0, 1, ... B - 1, 0, 1, ..."""
    if copies == 1:
        return known
    return _map_words(lambda tensor: tensor.repeat(copies, *[1] * (tensor.ndim - 1)), known)


def join_words(first: Conditions, second: Conditions) -> Conditions:
    """Keys and values of both, one after the other along the batch."""
    return _map_words(lambda a, b: torch.cat([a, b]), first, second)


def put_words(known: Conditions, placed: Conditions) -> Conditions:
    """Keys and values of `known`, with f_lq, scales and shifts of `placed`, whose batch may be a part of its size."""

    def put(sites: tuple[SiteCondition, ...], others: tuple[SiteCondition, ...]) -> tuple[SiteCondition, ...]:
        return tuple(s._replace(modulation=o.modulation) for s, o in zip(sites, others, strict=True))

    return Conditions(placed.f_lq, put(known.unet, placed.unet), put(known.controlnet, placed.controlnet))


def _map_words(change: Callable[..., torch.Tensor], *known: Conditions) -> Conditions:
    def pair(*pairs: KeyValue | None) -> KeyValue | None:
        present = [p for p in pairs if p is not None]
        return (change(*(p[0] for p in present)), change(*(p[1] for p in present))) if present else None

    def site(*sites: SiteCondition) -> SiteCondition:
        text, image, representation = (pair(*(s[i] for s in sites)) for i in range(3))
        assert text is not None
        return SiteCondition(text, image, representation, None)

    unet, controlnet = (
        tuple(starmap(site, zip(*models, strict=True)))
        for models in ([k.unet for k in known], [k.controlnet for k in known])
    )
    return Conditions(None, unet, controlnet)
