"""Tiles of large images: their grid, their blending, and the autoencoder and the denoiser tile by tile."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import torch

from megasr.diffusion import Interval, guided, is_guided
from megasr.errors import MegaSRError, UsageError
from megasr.networks.network import (
    Conditions,
    MegaSRNetwork,
    SaftMaps,
    WeightedMaps,
    join_words,
    put_words,
    repeat_words,
)
from megasr.prior import Prior

Box = tuple[int, int]  # row and column of a tile in its grid
GROUPS_KEPT = 4  # groups of tiles whose conditions stay in memory between steps


@dataclass(frozen=True)
class Tiling:
    """How an image is cut.

    Args:
        size: height and width of a tile in px of the output; rounded up to what the prior can take.
        overlap: px that neighbours share, at least; None is a quarter of the size.
        batch: tiles that go through the network at once.

    Raises:
        UsageError: a number is too small, or tiles overlap by more than a half.
    """

    size: int
    overlap: int | None = None
    batch: int = 4

    def __post_init__(self) -> None:
        if self.size < 1 or self.batch < 1:
            raise UsageError(f"tile must be at least 1 px and at least one at once, got {self.size} px, {self.batch}")
        if self.overlap is not None and not 0 < self.overlap <= self.size // 2:
            raise UsageError(
                f"tile_overlap must be from 1 px to half of the tile of {self.size} px, got {self.overlap}"
            )

    def grid(self, height: int, width: int, multiple: int) -> Grid:
        """The grid over an image whose sides are multiples of `multiple` px."""
        size = -(-self.size // multiple) * multiple
        overlap = size // 4 if self.overlap is None else self.overlap
        overlap = min(-(-overlap // multiple) * multiple, size - multiple)
        return Grid(Axis(height, size, overlap), Axis(width, size, overlap), self.batch)


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of an image: `length` of the side, `size` of a tile, `overlap` of neighbours.

    A tile that is longer than the side is as long as the side; the last two overlap by more where the length needs it.
    """

    length: int
    size: int
    overlap: int

    @property
    def extent(self) -> int:
        """Length of every tile."""
        return min(self.size, self.length)

    @property
    def starts(self) -> list[int]:
        """Where the tiles begin."""
        stride = self.size - self.overlap
        count = 1 + max(0, math.ceil((self.length - self.size) / stride)) if self.length > self.size else 1
        return [min(i * stride, self.length - self.extent) for i in range(count)]

    def weights(self) -> torch.Tensor:
        """(tiles, extent) blending weights with sin^2 ramps; at every point of the side they sum to 1."""
        place = torch.arange(self.extent) + 0.5
        ramp = (torch.minimum(place, self.extent - place) / max(1, self.overlap)).clamp(max=1)
        ramp = (ramp * math.pi / 2).sin().square()
        total = torch.zeros(self.length)
        for start in self.starts:
            total[start : start + self.extent] += ramp
        return torch.stack([ramp / total[start : start + self.extent] for start in self.starts])

    def divided(self, factor: int) -> Axis:
        """The same tiles where everything is smaller by a factor."""
        return Axis(self.length // factor, self.size // factor, self.overlap // factor)


@dataclass(frozen=True)
class Grid:
    """Tiles over an image, `batch` of which go through the network at once."""

    rows: Axis
    columns: Axis
    batch: int = 1

    @classmethod
    def whole(cls, height: int, width: int) -> Grid:
        """One tile."""
        return cls(Axis(height, height, 0), Axis(width, width, 0))

    def divided(self, factor: int) -> Grid:
        """The same tiles where everything is smaller by a factor, as in the latents."""
        return replace(self, rows=self.rows.divided(factor), columns=self.columns.divided(factor))

    @property
    def is_whole(self) -> bool:
        """Whether there is one tile, the image: nothing is cut or blended."""
        return len(self.rows.starts) == len(self.columns.starts) == 1

    @property
    def groups(self) -> list[list[Box]]:
        """Tiles in groups that go through the network at once."""
        boxes = list(product(range(len(self.rows.starts)), range(len(self.columns.starts))))
        return [boxes[i : i + self.batch] for i in range(0, len(boxes), self.batch)]

    def place(self, box: Box) -> tuple[slice, slice]:
        """Rows and columns of a tile."""
        top, left = self.rows.starts[box[0]], self.columns.starts[box[1]]
        return slice(top, top + self.rows.extent), slice(left, left + self.columns.extent)

    def crop(self, image: torch.Tensor, boxes: Sequence[Box]) -> torch.Tensor:
        """(B, C, height, width) -> tiles (len(boxes) * B, C, extent, extent): all images of the first tile first."""
        if self.is_whole:
            return image
        return torch.cat([image[(..., *self.place(box))] for box in boxes])

    def blend(self, make: Callable[[list[Box]], torch.Tensor]) -> torch.Tensor:
        """One image from the tiles that `make` returns for each group, in the order of `crop`, in this grid's units."""
        if self.is_whole:
            return make([(0, 0)])
        row_weights, column_weights = self.rows.weights(), self.columns.weights()
        image: torch.Tensor | None = None
        for group in self.groups:
            tiles = make(group).float().unflatten(0, (len(group), -1))
            if image is None:
                image = tiles.new_zeros(*tiles.shape[1:3], self.rows.length, self.columns.length)
            for (row, column), tile in zip(group, tiles, strict=True):
                weight = torch.outer(row_weights[row], column_weights[column]).to(tile)
                image[(..., *self.place((row, column)))] += weight * tile
        assert image is not None
        return image


def encode_tiles(
    prior: Prior, lq_up: torch.Tensor, grid: Grid, encode: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> z (B, C, h, w) float32; see Prior.encode, in whose place an `encode` is used."""
    latents, encode = grid.divided(prior.downsampling), encode or prior.encode
    return latents.blend(lambda boxes: _run(prior, lambda: encode(grid.crop(lq_up, boxes)))).float()


def decode_tiles(prior: Prior, z: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Z -> (B, 3, H, W) float32 in [0, 1].

    Raises:
        MegaSRError: z is not finite: the U-Net overflowed.
    """
    if not z.isfinite().all():
        raise MegaSRError(
            "sampling ended in values that are not finite: use bfloat16 or float32, or a smaller guidance_scale"
        )
    latents = grid.divided(prior.downsampling)
    return grid.blend(lambda boxes: _run(prior, lambda: prior.decode(latents.crop(z, boxes))))


def _run(prior: Prior, call: Callable[[], torch.Tensor]) -> torch.Tensor:
    result = call()
    if prior.vae.dtype != torch.float32 and not result.isfinite().all():
        # Stable Diffusion's VAE has features beyond 65504, float16's largest number.
        warnings.warn(f"the VAE overflows in {prior.vae.dtype}: it computes in float32 from here on", stacklevel=2)
        prior.vae.float()
        result = call()
    return result


class Guidance(NamedTuple):
    """Classifier-free guidance: keys and values of the negative prompts, its strength, and see SamplerConfig."""

    negative: Conditions
    cfg_scale: float
    interval: Interval | None
    num_train_timesteps: int


class TiledDenoiser:
    """(z_t, timesteps) -> prediction for whole images, tile by tile; conditions are made once, not in every step.

    Args:
        network: the adapted prior.
        lq_up: (B, 3, H, W) in [0, 1].
        known: keys and values of the prompts and tokens (see MegaSRNetwork.read).
        weighted_maps: inputs of the SAFTs for the whole images (see MegaSRNetwork.guide).
        grid: tiles in px.
        guidance: None for none.
        z_lq: latents of lq_up for the lq stream, if there is one.
    """

    def __init__(
        self,
        network: MegaSRNetwork,
        lq_up: torch.Tensor,
        known: Conditions,
        weighted_maps: WeightedMaps,
        grid: Grid,
        guidance: Guidance | None = None,
        z_lq: torch.Tensor | None = None,
    ) -> None:
        self.network, self.lq_up, self.known, self.guidance = network, lq_up, known, guidance
        self.weighted_maps, self.z_lq = weighted_maps, z_lq
        self.pixels, self.latents = grid, grid.divided(network.downsampling)
        self._placed: dict[tuple[Box, ...], Conditions] = {}

    def __call__(self, z_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Prediction for the whole images; all timesteps are the same."""
        guidance = self.guidance
        if guidance is not None and not is_guided(
            int(timesteps[0]), guidance.num_train_timesteps, guidance.cfg_scale, guidance.interval
        ):
            guidance = None
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
        return guided(positive, negative, guidance.cfg_scale)

    def _conditions(self, boxes: list[Box], guidance: Guidance | None) -> Conditions:
        known = repeat_words(self.known, len(boxes))
        placed = self._placed.get(tuple(boxes))
        if placed is None:
            weighted_maps = [(weight, self._crop(maps, boxes)) for weight, maps in self.weighted_maps]
            z_lq = None if self.z_lq is None else self.latents.crop(self.z_lq, boxes)
            placed = self.network.guide(known, self.pixels.crop(self.lq_up, boxes), weighted_maps, z_lq)
            if len(self._placed) < GROUPS_KEPT:
                self._placed[tuple(boxes)] = placed
        if guidance is None:
            return placed
        return put_words(join_words(known, repeat_words(guidance.negative, len(boxes))), placed)

    def _crop(self, maps: SaftMaps, boxes: list[Box]) -> SaftMaps:
        return [
            [self.latents.divided(2**site.level).crop(part, boxes) for part in parts]
            for (_, site), parts in zip(self.network.sites, maps, strict=True)
        ]
