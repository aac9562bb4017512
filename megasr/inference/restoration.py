"""How sr comes about: the one place, for evaluation (MegaSRModule.restore) and for use (MegaSRPipeline)."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from megasr.batch import SRBatch
from megasr.diffusion.objective import Denoiser, add_noise
from megasr.diffusion.sampling import (
    SOLVERS,
    Interval,
    OnStep,
    build_scheduler,
    ddim,
    guided,
    is_guided,
    solve,
    spaced_timesteps,
)
from megasr.guidance.extract import Shown, extract_shown, mix_subsets
from megasr.guidance.sources import Networks
from megasr.images import pad_to_multiple, resize
from megasr.inference.color import ColorFix, fix_color
from megasr.inference.tiling import Box, Grid, Tiling, decode_tiles, encode_tiles
from megasr.networks.network import Conditions, MegaSRNetwork, SaftMaps, join_words, put_words, repeat_words
from megasr.networks.sites import Semantics
from megasr.prior import Prior
from megasr.rng import keyed_normal, torch_generator

if TYPE_CHECKING:
    from megasr.training.config import SamplerConfig


GROUPS_KEPT = 4


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance.

    Attributes:
        negative: keys and values of the negative prompts.
        scale: guidance_scale.
        interval: see SamplerConfig.
        num_train_timesteps: length of the prior's schedule.
    """

    negative: Conditions
    scale: float
    interval: Interval | None
    num_train_timesteps: int

    def at(self, timestep: int) -> bool:
        """Whether a step is guided."""
        return is_guided(timestep, self.num_train_timesteps, self.scale, self.interval)


class TiledDenoiser:
    """(z_t, timesteps) -> prediction for whole images.

    Args:
        network: the adapted prior.
        lq_up: (B, 3, H, W) in [0, 1].
        known: keys and values of the images' own words and tokens.
        shown: weights, and what the SAFTs see of the whole images (see MegaSRNetwork.guide).
        grid: tiles in px.
        guidance: None for none.
    """

    def __init__(
        self,
        network: MegaSRNetwork,
        lq_up: torch.Tensor,
        known: Conditions,
        shown: Sequence[tuple[float, SaftMaps]],
        grid: Grid,
        guidance: Guidance | None = None,
    ) -> None:
        self.network, self.lq_up, self.known, self.shown, self.guidance = network, lq_up, known, shown, guidance
        self.pixels, self.latents = grid, grid.divided(network.downsampling)
        self._placed: dict[tuple[Box, ...], Conditions] = {}

    def __call__(self, z_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Prediction for the whole images; all timesteps are the same."""
        guidance = self.guidance if self.guidance is not None and self.guidance.at(int(timesteps[0])) else None
        return self.latents.blend(lambda boxes: self._predict(z_t, timesteps, boxes, guidance))

    def _predict(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, boxes: list[Box], guidance: Guidance | None
    ) -> torch.Tensor:
        conditions = self._conditions(boxes, guidance)
        tiles = self.latents.crop(z_t, boxes).to(self.lq_up.dtype)
        timesteps = timesteps.repeat(len(boxes))
        if guidance is None:
            return self.network(tiles, timesteps, conditions)
        both = self.network(tiles.repeat(2, 1, 1, 1), timesteps.repeat(2), conditions)
        positive, negative = both.chunk(2)
        return guided(positive, negative, guidance.scale)

    def _conditions(self, boxes: list[Box], guidance: Guidance | None) -> Conditions:
        known = repeat_words(self.known, len(boxes))
        placed = self._placed.get(tuple(boxes))
        if placed is None:
            shown = [(weight, self._crop(maps, boxes)) for weight, maps in self.shown]
            placed = self.network.guide(known, self.pixels.crop(self.lq_up, boxes), shown)
            if len(self._placed) < GROUPS_KEPT:
                self._placed[tuple(boxes)] = placed
        if guidance is None:
            return placed
        return put_words(join_words(known, repeat_words(guidance.negative, len(boxes))), placed)

    def _crop(self, maps: SaftMaps, boxes: list[Box]) -> SaftMaps:
        if self.latents.is_whole:
            return maps
        return tuple(
            tuple(
                [self.latents.divided(2**site.level).crop(part, boxes) for part in parts]
                for site, parts in zip(sites, of_model, strict=True)
            )
            for (_, sites), of_model in zip(self.network.models, maps, strict=True)
        )


# Of a larger image that is restored in tiles, maps and tokens are made of a copy of this many px: whole, so that its
# tiles agree, and small, so that memory is bounded. For every feature of SD's latents that is still a pixel, up to
# 8192 x 8192 px.
_SEEN_PX = 1024**2


@dataclass(frozen=True)
class Wanted:
    """How a batch is restored.

    Attributes:
        sampler: steps and guidance.
        shown: whose map each of the adapter's types sees.
        strengths: of every type; None is 1 for all.
        seed: of all draws, which are keyed by the images.
        tiling: None restores whole images.
        color_fix: see megasr.inference.color.
        dtype: in which the network computes; None leaves it to autocast.
        on_step: called after every step.
    """

    sampler: SamplerConfig
    shown: Shown
    seed: int
    strengths: Mapping[str, float] | None = None
    tiling: Tiling | None = None
    color_fix: ColorFix | None = None
    dtype: torch.dtype | None = None
    on_step: OnStep | None = None


class Restorer(Protocol):
    """What a module must have to restore: MegaSRModule has it."""

    prior: Prior
    network: MegaSRNetwork
    networks: Networks
    alphas_cumprod: torch.Tensor

    def semantics(self, batch: SRBatch, lq_up: torch.Tensor, prompts: list[str]) -> Semantics:
        """Text and image tokens of a batch."""
        ...

    def prompts(self, batch: SRBatch, lq_up: torch.Tensor, suffix: str = "") -> list[str]:
        """The words for each sample."""
        ...


class Restored(NamedTuple):
    """sr (B, 3, H, W) float32 in [0, 1], and the maps that were shown, name -> (B, C, H', W') in [0, 1]."""

    sr: torch.Tensor
    maps: dict[str, torch.Tensor]


@torch.no_grad()
def restore(module: Restorer, batch: SRBatch, lq_up: torch.Tensor, wanted: Wanted) -> Restored:
    """Restore a batch. Noise is keyed by the image: batch size and order do not matter.

    Args:
        module: prior, adapter and what makes maps, tokens and tags.
        batch: needs keys and lq.
        lq_up: lq at the size of sr, which may be any.
        wanted: how.

    Raises:
        UsageError: the sampler cannot be used, or a map or token is missing.
        MegaSRError: weights are missing, or numbers overflowed.
    """
    prior = module.prior
    height, width = lq_up.shape[-2:]
    padded = pad_to_multiple(lq_up, prior.size_multiple)
    sides = padded.shape[-2], padded.shape[-1]
    grid = Grid.whole(*sides) if wanted.tiling is None else wanted.tiling.grid(*sides, prior.size_multiple)
    seen, padded_seen = (lq_up, padded) if grid.is_whole else (_shrink(padded),) * 2
    maps = extract_shown(SRBatch(**{**batch, "lq": seen}), wanted.shown, 1, module.networks)
    known, guidance = _read_words(module, batch, padded_seen, wanted)
    shown = _mix_maps(module, maps, grid, wanted)
    denoiser = TiledDenoiser(module.network, _cast(padded, wanted), known, shown, grid, guidance)
    z = _sample(module, batch["keys"], padded, denoiser, grid, wanted)
    sr = decode_tiles(prior, z, grid)[..., :height, :width]
    used = {own.name: maps[own.name] for own, source in wanted.shown.items() if source is not None}
    return Restored(fix_color(sr, lq_up, wanted.color_fix), used)


def _shrink(image: torch.Tensor) -> torch.Tensor:
    height, width = image.shape[-2:]
    ratio = math.sqrt(min(1.0, _SEEN_PX / (height * width)))
    return image if ratio == 1 else resize(image, max(1, round(height * ratio)), max(1, round(width * ratio)))


def _cast(tensor: torch.Tensor, wanted: Wanted) -> torch.Tensor:
    return tensor if wanted.dtype is None else tensor.to(wanted.dtype)


def _read_words(
    module: Restorer, batch: SRBatch, seen: torch.Tensor, wanted: Wanted
) -> tuple[Conditions, Guidance | None]:
    """Keys and values of the prompts and tokens, and of the negative prompt where there is guidance."""
    sampler, network = wanted.sampler, module.network
    semantics = module.semantics(batch, seen, module.prompts(batch, seen, sampler.positive_prompt))
    semantics = Semantics(*(None if part is None else _cast(part, wanted) for part in semantics))
    known = network.read(semantics)
    if sampler.guidance_scale == 1:
        return known, None
    negative = module.prior.text_encoder([sampler.negative_prompt] * len(batch["keys"]))
    against = network.read(semantics._replace(text=_cast(negative, wanted)))
    steps = len(module.alphas_cumprod)
    return known, Guidance(against, sampler.guidance_scale, sampler.guidance_interval, steps)


def _mix_maps(
    module: Restorer, maps: Mapping[str, torch.Tensor], grid: Grid, wanted: Wanted
) -> list[tuple[float, SaftMaps]]:
    """Subsets of the maps by the strengths: what the SAFTs see of each, and its weight."""
    multiple = module.prior.size_multiple
    padded = {name: _cast(pad_to_multiple(image, multiple), wanted) for name, image in maps.items()}
    latents = grid.divided(module.prior.downsampling)

    def see(names: Container[str]) -> SaftMaps:
        present = {n: image if n in names else torch.zeros_like(image) for n, image in padded.items()}
        return module.network.saft_maps(present, latents.rows.length, latents.columns.length)

    if not padded or wanted.strengths is None:
        return [(1.0, see(padded))]
    return [(weight, see(names)) for weight, names in mix_subsets(wanted.strengths)]


def _sample(
    module: Restorer, keys: list[str], lq_up: torch.Tensor, denoiser: Denoiser, grid: Grid, wanted: Wanted
) -> torch.Tensor:
    """From noise, or the noised latent of lq_up, to z0."""
    prior, sampler, alphas = module.prior, wanted.sampler, module.alphas_cumprod
    timesteps = spaced_timesteps(sampler.num_steps, sampler.start_fraction, len(alphas))
    latents = grid.divided(prior.downsampling)
    shape = prior.unet.config.in_channels, latents.rows.length, latents.columns.length
    z = keyed_normal(wanted.seed, keys, shape, "sampling_noise").to(lq_up.device)
    if sampler.start == "lq":
        starts = torch.full((len(keys),), timesteps[0], device=z.device)
        z = add_noise(prior.scheduler, encode_tiles(prior, lq_up, grid), z, starts)
    if sampler.solver is None:
        return ddim(denoiser, alphas, prior.prediction_type, z, timesteps, wanted.on_step)
    solver = SOLVERS[sampler.solver]
    scheduler = build_scheduler(solver, prior.scheduler, sampler.num_steps, timesteps[0] + 1)
    generators = [torch_generator(wanted.seed, "solver_noise", key) for key in keys] if solver.random else []
    return solve(denoiser, solver, scheduler, z, generators, wanted.on_step)
