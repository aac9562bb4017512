"""MegaSR: a frozen prior, an adapter network and their conditions; loss and restoration. Needs no lightning."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from torch.utils._pytree import tree_map

from megasr.batch import SRBatch, check_image
from megasr.diffusion import (
    SOLVERS,
    Flow,
    OnStep,
    build_scheduler,
    ddim,
    diffusion_loss,
    solve,
    spaced_timesteps,
)
from megasr.errors import UsageError
from megasr.guidance.extract import (
    ExtractorConfig,
    Networks,
    Shown,
    extract_guidance,
    extract_shown,
    mix_subsets,
    shown_guidance,
)
from megasr.guidance.registry import GUIDANCE
from megasr.images import fix_color, pad_to_multiple, resize, upsample_lq
from megasr.inference.tiling import Grid, Guidance, TiledDenoiser, Tiling, decode_tiles, encode_tiles
from megasr.networks.config import AdapterConfig
from megasr.networks.controlnet import LQ_ENCODERS
from megasr.networks.csm import CSMS
from megasr.networks.msfm import MSFMS
from megasr.networks.network import Conditions, MegaSRNetwork, SaftMaps, WeightedMaps
from megasr.networks.sites import Semantics
from megasr.plugins import Registry
from megasr.prior import Prior, load_prior
from megasr.rng import Key, keyed_normal, torch_generator
from megasr.semantics.clip import VisionConfig, VisionEncoder
from megasr.semantics.taggers import Tagger
from megasr.semantics.tags import TaggerConfig, build_tagger
from megasr.training.checkpoint import build_from_state, read_checkpoint
from megasr.training.config import SamplerConfig

# Maps and tokens of an image in tiles are made from a copy of at most this many px, so that its tiles agree and memory
# is bounded. Up to 8192 x 8192 px that is still a pixel for every feature of SD's latents.
_MAPS_PX = 1024**2


_NETWORKS: dict[str, Registry[Any]] = {"msfm": MSFMS, "csm": CSMS, "lq_encoder": LQ_ENCODERS}  # AdapterConfig's


class FrozenParts:
    """Loads the frozen parts of a MegaSR. A memory plan replaces it by parts that have sizes and no weights."""

    def prior(self, source: str, text_states: str | None = None) -> Prior:
        """See load_prior."""
        return load_prior(source, text_states)

    def vision(self, config: VisionConfig | None) -> VisionEncoder | None:
        """The vision tower, None when none is set."""
        return None if config is None else VisionEncoder(config)

    def tagger(self, config: TaggerConfig | None) -> Tagger | None:
        """The tagger, None when none is set."""
        return None if config is None else build_tagger(config)

    def networks(self, config: ExtractorConfig | None) -> Networks:
        """The extractors, each of which is loaded when its first map is asked for."""
        return Networks(config)

    def perceptual(self, name: str, weights_dir: str | None) -> nn.Module:
        """See megasr.losses.perceptual.load_perceptual."""
        from megasr.losses.perceptual import load_perceptual

        return load_perceptual(name, weights_dir)


@dataclass(frozen=True)
class RestoreOptions:
    """How a batch is restored.

    Attributes:
        sampler: steps, classifier-free guidance, colours.
        map_sources: adapter's guidance type -> type whose map it gets, None for zeros (see shown_guidance).
        seed: of all draws, which are keyed by the images.
        strengths: of every guidance type; None is 1 for all.
        tiling: None restores whole images.
        dtype: in which the network computes; None leaves it to autocast.
        on_step: called after every step.
    """

    sampler: SamplerConfig
    map_sources: Shown
    seed: int
    strengths: Mapping[str, float] | None = None
    tiling: Tiling | None = None
    dtype: torch.dtype | None = None
    on_step: OnStep | None = None

    def cast(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in the network's dtype."""
        return tensor if self.dtype is None else tensor.to(self.dtype)


class Restored(NamedTuple):
    """sr (B, 3, H, W) float32 in [0, 1], and the guidance maps it was made with, name -> (B, C, H', W') in [0, 1]."""

    sr: torch.Tensor
    maps: dict[str, torch.Tensor]


class MegaSR(nn.Module):
    """An adapter network on a frozen text-to-image prior, with the extractors, vision tower and tagger it needs.

    >>> import torch
    >>> from megasr import MegaSR
    >>> system = MegaSR.from_checkpoint("tiny")  # the shipped adapter on the shipped prior
    >>> sr = system.restore({"keys": ["photo"], "lq": torch.rand(1, 3, 16, 16)})
    >>> tuple(sr.shape)
    (1, 3, 64, 64)

    Args:
        prior: `tiny`, a diffusers folder, `sd21-base` or a hub id in the local cache.
        adapter: what the trained part consists of.
        sampler: how sr is sampled.
        vision: the tower of the image tokens and of v1's representation, unless the batches bring them.
        extractors: networks that make the guidance maps; None takes the shipped ones.
        tagger: makes the tags of lq; None takes those that the batches bring.
        scale_factor: size of hq over size of lq.
        seed: of every draw.
        text_states: folder of `megasr embed`; prompts are looked up there, and the prior's text encoder is not loaded.

    Raises:
        UsageError: nothing would be trained, a setting of the tagger or the extractors would do nothing, or the text
            states are not of this prior's text encoder.
        MegaSRError: the prior or another frozen part is not on this machine.
    """

    parts = FrozenParts()

    def __init__(
        self,
        prior: str = "tiny",
        adapter: AdapterConfig = AdapterConfig(),  # noqa: B008  (frozen)
        sampler: SamplerConfig = SamplerConfig(),  # noqa: B008
        vision: VisionConfig | None = None,
        extractors: ExtractorConfig | None = None,
        tagger: TaggerConfig | None = None,
        scale_factor: int = 4,
        seed: int = 0,
        text_states: str | None = None,
    ) -> None:
        super().__init__()
        if text_states is not None and tagger is not None and tagger.kind in ("clip", "ram"):
            raise UsageError(
                f"model.text_states holds prompts that are known beforehand, model.tagger {tagger.kind} makes them of "
                "lq: leave one of the two out"
            )
        self.settings = plain_settings(
            prior=prior, adapter=adapter, sampler=sampler, vision=vision, extractors=extractors, tagger=tagger,
            scale_factor=scale_factor, seed=seed, text_states=text_states,
        )  # fmt: skip
        self.adapter, self.sampler, self.scale_factor, self.seed = adapter, sampler, scale_factor, seed
        self.prior = self.parts.prior(prior, text_states)
        self.prior_fingerprint = self.prior.fingerprint()
        self.network = MegaSRNetwork(self.prior, adapter, seed)
        if not any(p.requires_grad for p in self.network.parameters()):
            raise UsageError(
                "model.adapter is empty, so nothing is trained: turn on controlnet, lq_stream, guidance, image, rca or "
                "prior_lora"
            )
        self.vision = self.parts.vision(vision)
        if tagger is not None and not adapter.text:
            raise UsageError("model.tagger would do nothing: model.adapter.text is off")
        self.tagger = self.parts.tagger(tagger)
        self.networks = self.parts.networks(extractors)
        self.networks.config.check_used(self.network.guidance)
        self.map_sources = shown_guidance(self.network.guidance, sampler.shown_guidance)
        if sampler.solver is not None and isinstance(self.prior.schedule, Flow):
            raise UsageError(
                f"sampler.solver {sampler.solver} steps through DDPM's noise; leave it out for a flow: Euler"
            )

    @property
    def own_modules(self) -> dict[str, str]:
        """What users' modules have registered of this adapter -> the module, which loading it needs."""
        named: list[tuple[Registry[Any], str]] = [(GUIDANCE, guidance.name) for guidance in self.network.guidance]
        named += [(registry, getattr(self.adapter, name)) for name, registry in _NETWORKS.items()]
        modules = {f"{registry.kind} {name}": registry.module_of(name) for registry, name in named}
        return {part: module for part, module in modules.items() if module}

    @classmethod
    def from_checkpoint(cls, path: str | Path, prior: str | None = None, **changes: Any) -> Self:
        """Rebuild from a checkpoint of `megasr fit`, with the averaged weights when EMA was on.

        Args:
            path: the checkpoint; `tiny-one-step` and `tiny` ship.
            prior: where the prior lies on this machine; None takes the source that was trained with.
            changes: constructor arguments to replace, such as sampler.

        Raises:
            MegaSRError: the file cannot be read, is not of an adapter, or belongs to another prior.
        """
        return build_from_state(cls, read_checkpoint(path), path, prior, changes)

    # Conditions ------------------------------------------------------------------------------------------------------

    def prompts(self, batch: SRBatch, lq_up: torch.Tensor, suffix: str = "") -> list[str]:
        """The tags of each sample and the suffix, or empty prompts when the adapter uses no text."""
        if not self.adapter.text:
            return [""] * len(batch["keys"])
        tags = batch.get("tags") or [""] * len(batch["keys"])
        if self.tagger is not None:
            tags = self.tagger(lq_up, batch.get("tags"))
        return [join_prompt(tag, suffix) for tag in tags]

    def semantics(self, batch: SRBatch, lq_up: torch.Tensor, prompts: list[str]) -> Semantics:
        """Embed the prompts; take image tokens and representation from the batch, or from the vision tower.

        The tagger's zero-shot head sits on that tower, so its tokens are v1's representation.
        """
        tokens, representation = batch.get("image_tokens"), batch.get("representation")
        lacking = (self.adapter.image and tokens is None) or (self.adapter.rca and representation is None)
        if lacking and self.vision is not None:
            seen = self.vision(lq_up)
            tokens = seen if tokens is None else tokens
            representation = seen if representation is None else representation
        with torch.no_grad():
            text = self.prior.text_encoder(prompts)
        return Semantics(text, tokens, representation)

    def guidance_maps(self, batch: SRBatch) -> dict[str, torch.Tensor]:
        """The adapter's guidance maps, name -> (B, C, H, W), from the batch or extracted."""
        return extract_guidance(batch, self.network.guidance, self.scale_factor, self.networks)

    def conditions(
        self,
        batch: SRBatch,
        lq_up: torch.Tensor | None = None,
        prompts: list[str] | None = None,
        maps: Mapping[str, torch.Tensor] | None = None,
    ) -> Conditions:
        """Conditions of the denoising steps; what is None is made from the batch's lq."""
        lq_up = upsample_lq(batch["lq"], self.scale_factor) if lq_up is None else lq_up
        prompts = self.prompts(batch, lq_up) if prompts is None else prompts
        maps = self.guidance_maps(batch) if maps is None else maps
        z_lq = self._encode_lq(lq_up) if self.adapter.lq_stream else None
        return self.network.conditions(lq_up, self.semantics(batch, lq_up, prompts), maps, z_lq)

    # Loss ------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: SRBatch) -> torch.Tensor:
        """z0 (B, C, h, w) of hq: those that the batch brings, or the VAE's."""
        check_image(batch["hq"], "hq")
        return batch["latents"] if "latents" in batch else self.prior.encode(batch["hq"]).float()

    def loss(
        self, conditions: Conditions, z0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The diffusion loss of each sample, (B,)."""

        def denoiser(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.network(z_t, t, conditions)

        return diffusion_loss(denoiser, self.prior.schedule, z0, noise, timesteps)

    def sample(self, batch: SRBatch, lq_up: torch.Tensor, conditions: Conditions, *purpose: Key) -> torch.Tensor:
        """z0 (B, C, h, w) as the sampler makes it from a batch of whole images, with gradients through all its steps.

        Args:
            batch: needs keys.
            lq_up: (B, 3, H, W).
            conditions: of the batch.
            purpose: beside the images' keys, what the noise of the start is drawn for.
        """

        def denoiser(z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.network(z_t, t, conditions)

        prior, timesteps = self.prior, self._timesteps(self.sampler)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.network.vae is not None):
            z_lq = None if self.sampler.start == "noise" else self._encode_lq(lq_up).float()
        shape = lq_up.shape[-2] // prior.downsampling, lq_up.shape[-1] // prior.downsampling
        z = self._start(batch["keys"], z_lq, shape, self.sampler, timesteps[0], self.seed, *purpose).to(lq_up.device)
        return ddim(denoiser, prior.schedule, z, timesteps)

    @property
    def _encode_lq(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return self.prior.encode if self.network.vae is None else self.network.encode

    def _timesteps(self, sampler: SamplerConfig) -> list[int]:
        return spaced_timesteps(sampler.num_steps, sampler.start_fraction, self.prior.schedule.num_timesteps)

    def _start(
        self,
        keys: list[str],
        z_lq: torch.Tensor | None,
        size: tuple[int, int],
        sampler: SamplerConfig,
        timestep: int,
        seed: int,
        *purpose: Key,
    ) -> torch.Tensor:
        """Latents that the sampler begins with: the latent of lq_up, as it is or noised, or noise."""
        if z_lq is not None and sampler.start == "noiseless_lq":
            return z_lq
        shape = self.prior.unet.config.in_channels, *size
        noise = keyed_normal(seed, keys, shape, "sampling_noise", *purpose)
        if z_lq is None:
            return noise
        noise = noise.to(z_lq.device)
        timesteps = torch.full((len(keys),), timestep, device=z_lq.device)
        return self.prior.schedule.add_noise(z_lq, noise, timesteps)

    # Restoration -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def restore(self, batch: SRBatch) -> torch.Tensor:
        """Restore as trained: lq -> sr (B, 3, H, W) float32 in [0, 1].

        Noise is keyed by the image's key: batch size and order do not matter.
        """
        return self.restore_and_show(batch).sr

    @torch.no_grad()
    def restore_and_show(self, batch: SRBatch) -> Restored:
        """As `restore`, with the maps that were used."""
        check_image(batch["lq"], "lq")
        lq_up = upsample_lq(batch["lq"], self.scale_factor)
        return self.restore_with(batch, lq_up, RestoreOptions(self.sampler, self.map_sources, self.seed))

    @torch.no_grad()
    def restore_with(self, batch: SRBatch, lq_up: torch.Tensor, options: RestoreOptions) -> Restored:
        """Restore a batch in any size, in tiles, or with other strengths of guidance.

        Args:
            batch: needs keys and lq.
            lq_up: lq at the size of sr, which may be any.
            options: how.

        Raises:
            UsageError: the sampler cannot be used, or a map or token is missing.
            MegaSRError: weights are missing, or numbers overflowed.
        """
        height, width = lq_up.shape[-2:]
        padded = pad_to_multiple(lq_up, self.prior.size_multiple)
        sides = padded.shape[-2], padded.shape[-1]
        tiling = options.tiling
        grid = Grid.whole(*sides) if tiling is None else tiling.grid(*sides, self.prior.size_multiple)
        small, padded_small = (lq_up, padded) if grid.is_whole else (_shrink(padded),) * 2
        maps = extract_shown(SRBatch(**{**batch, "lq": small}), options.map_sources, 1, self.networks)
        known, guidance = self._read_words(batch, padded_small, options)
        weighted_maps = self._weigh_maps(maps, grid, options)
        z_lq = streamed = None
        if self.adapter.lq_stream or options.sampler.start != "noise":
            z_lq = encode_tiles(self.prior, padded, grid, self._encode_lq)
            streamed = options.cast(z_lq) if self.adapter.lq_stream else None
        denoiser = TiledDenoiser(self.network, options.cast(padded), known, weighted_maps, grid, guidance, streamed)
        z = self._sample(batch["keys"], z_lq, denoiser, grid, options)
        sr = decode_tiles(self.prior, z, grid)[..., :height, :width]
        used = {own.name: maps[own.name] for own, source in options.map_sources.items() if source is not None}
        return Restored(fix_color(sr, lq_up, options.sampler.color_fix), used)

    def _read_words(
        self, batch: SRBatch, lq_up: torch.Tensor, options: RestoreOptions
    ) -> tuple[Conditions, Guidance | None]:
        """Keys and values of prompts and tokens, and of the negative prompt for classifier-free guidance."""
        sampler = options.sampler
        semantics = self.semantics(batch, lq_up, self.prompts(batch, lq_up, sampler.positive_prompt))
        semantics = tree_map(lambda tokens: None if tokens is None else options.cast(tokens), semantics)
        known = self.network.read(semantics)
        if sampler.guidance_scale == 1:
            return known, None
        negative = tree_map(options.cast, self.prior.text_encoder([sampler.negative_prompt] * len(batch["keys"])))
        read = self.network.read(semantics._replace(text=negative))
        return known, Guidance(
            read, sampler.guidance_scale, sampler.guidance_interval, self.prior.schedule.num_timesteps
        )

    def _weigh_maps(self, maps: Mapping[str, torch.Tensor], grid: Grid, options: RestoreOptions) -> WeightedMaps:
        """Inputs of the SAFTs for the subsets of maps that the strengths mix, each with its weight."""
        padded = {name: options.cast(pad_to_multiple(image, self.prior.size_multiple)) for name, image in maps.items()}
        latents = grid.divided(self.prior.downsampling)

        def saft_maps(names: Container[str]) -> SaftMaps:
            subset = {name: image if name in names else torch.zeros_like(image) for name, image in padded.items()}
            return self.network.saft_maps(subset, latents.rows.length, latents.columns.length)

        if not padded or options.strengths is None:
            return [(1.0, saft_maps(padded))]
        return [(weight, saft_maps(names)) for weight, names in mix_subsets(options.strengths)]

    def _sample(
        self,
        keys: list[str],
        z_lq: torch.Tensor | None,
        denoiser: TiledDenoiser,
        grid: Grid,
        options: RestoreOptions,
    ) -> torch.Tensor:
        """From the sampler's start, which may need the latents of lq, to z0."""
        prior, sampler = self.prior, options.sampler
        timesteps, latents = self._timesteps(sampler), grid.divided(prior.downsampling)
        size, start = (latents.rows.length, latents.columns.length), None if sampler.start == "noise" else z_lq
        z = self._start(keys, start, size, sampler, timesteps[0], options.seed).to(denoiser.lq_up.device)
        if sampler.solver is None:
            return ddim(denoiser, prior.schedule, z, timesteps, options.on_step)
        solver = SOLVERS[sampler.solver]
        scheduler = build_scheduler(solver, prior.scheduler, sampler.num_steps, timesteps[0] + 1)
        generators = [torch_generator(options.seed, "solver_noise", key) for key in keys] if solver.random else []
        return solve(denoiser, solver, scheduler, z, generators, options.on_step)


def join_prompt(tags: str, suffix: str) -> str:
    """Tags and a suffix, either of which may be empty."""
    return ", ".join(part for part in (tags, suffix) if part)


def possible_prompts(
    adapter: AdapterConfig, sampler: SamplerConfig, training: Iterable[str], evaluation: Iterable[str]
) -> list[str]:
    """Every prompt that a training and the restoration of its evaluation set may ask for, each once.

    Args:
        adapter: without text it asks for no tags.
        sampler: its prompts belong to the evaluation.
        training: tags of the training images.
        evaluation: tags of the evaluation images.
    """
    prompts = ["", sampler.negative_prompt]
    if adapter.text:
        evaluation = list(evaluation)
        restored = (join_prompt(tags, sampler.positive_prompt) for tags in evaluation)
        prompts += [*training, *evaluation, *restored]
    return list(dict.fromkeys(prompts))


def plain_settings(**arguments: Any) -> dict[str, Any]:
    """Constructor arguments as plain data, which checkpoints (weights_only=True) and exported folders hold."""
    return {n: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for n, v in arguments.items()}


def _shrink(image: torch.Tensor) -> torch.Tensor:
    height, width = image.shape[-2:]
    ratio = math.sqrt(min(1.0, _MAPS_PX / (height * width)))
    return image if ratio == 1 else resize(image, max(1, round(height * ratio)), max(1, round(width * ratio)))
