"""One denoising step of a batch of images: tiles, both halves of classifier-free guidance, and conditions made once.

Keys and values of the words and image tokens are read once per image. What has a place (f_lq, scale and shift of every
MSFM site) is made once per tile, and shared by all steps and both halves. Only of images with more tiles than are kept
it is made again in every step, so that memory does not grow with the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megasr.diffusion.guidance_free import Interval, guided, is_guided
from megasr.inference.tiling import Box, Grid
from megasr.networks.network import Conditions, MegaSRNetwork, SaftMaps
from megasr.networks.words import join_words, put_words, repeat_words

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
