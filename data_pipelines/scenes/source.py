"""Scenes as a source of samples."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from data_pipelines.samples import Sample, crop_sample
from megasr.console import progress_bars
from megasr.rng import numpy_generator

if TYPE_CHECKING:
    from data_pipelines.scenes.rendering import Scene


def scene_sample(key: str, index: int, seed: int, size_px: int) -> Sample:
    """Render scene `index` of `seed` at (size_px, size_px), with its tags and exact maps."""
    from data_pipelines.scenes.rendering import render_scene

    return as_sample(key, render_scene(index, seed, size_px))


def as_sample(key: str, scene: Scene) -> Sample:
    """A scene with its tags and exact maps."""
    from data_pipelines.scenes.rendering import segmentation_rgb

    maps = {
        "oracle_depth": scene.depth[..., None],
        "oracle_normal": scene.normal,
        "oracle_segmentation": segmentation_rgb(scene.segmentation),
        "oracle_edge": scene.edges[..., None],
    }
    tensors = {name: torch.from_numpy(value).permute(2, 0, 1).contiguous().float() for name, value in maps.items()}
    return Sample(key, scene.hq, ", ".join(scene.tags), tensors)


def unknown_maps(size_px: int) -> dict[str, torch.Tensor]:
    """The maps of a picture that is no scene: NaN, in the shapes of as_sample."""
    channels = {"oracle_depth": 1, "oracle_normal": 3, "oracle_segmentation": 3, "oracle_edge": 1}
    return {name: torch.full((count, size_px, size_px), torch.nan) for name, count in channels.items()}


class SceneSource:
    """Scenes of one seed (see data_pipelines.samples.Source): every draw is a new one.

    Args:
        size_px: height and width.
        seed: of the scenes.
    """

    def __init__(self, size_px: int, seed: int) -> None:
        self.size_px, self.seed = size_px, seed

    @property
    def fingerprint(self) -> str:
        """Of the seed."""
        return f"scenes of seed {self.seed}"

    def __len__(self) -> int:
        return 2**40  # more than any training draws

    def read(self, index: int) -> Sample:
        """Scene `index`."""
        return scene_sample(f"scene/{index}", index, self.seed, self.size_px)

    def order(self, draw: int, seed: int) -> int:
        """Scenes have no order to shuffle: draw d shows scene d."""
        return draw % len(self)


@lru_cache(maxsize=2)
def render_pool(count: int, seed: int, size_px: int) -> tuple[Scene, ...]:
    """Scenes 0 to count - 1 of a seed, kept for all data modules of this process: 0.06 s and 0.5 MB each at 128 px."""
    from rich.progress import BarColumn, MofNCompleteColumn

    from data_pipelines.scenes.rendering import render_scene

    scenes = []
    with progress_bars(BarColumn(), MofNCompleteColumn()) as progress:
        for index in range(count):
            scenes.append(render_scene(index, seed, size_px))
            progress("rendering scenes", index + 1, count)
    return tuple(scenes)


def pool_sample(pool: tuple[Scene, ...], draw: int, seed: int, size_px: int, patches: int = 0) -> Sample:
    """A random crop of a random scene of the pool, with the tags of what the crop shows; half of them mirrored.

    Args:
        pool: of render_pool.
        draw: which draw.
        seed: of the draws.
        size_px: of the crop.
        patches: give the tag of each of patches x patches parts of the crop; a divisor of size_px, or 0.
    """
    from data_pipelines.scenes.rendering import crop_scene, patch_tags

    rng = numpy_generator(seed, "pool", draw)
    index = int(rng.integers(len(pool)))
    top, left = (int(n) for n in rng.integers(pool[index].hq.shape[0] - size_px + 1, size=2))
    scene = crop_scene(pool[index], top, left, size_px)
    sample = as_sample(f"scene/{index}/{draw}", scene)
    if not patches:
        return crop_sample(sample, size_px, seed, "pool", draw)
    sample.maps["instance"] = torch.from_numpy(scene.instance[None].astype("float32"))  # mirrored like the others
    sample = crop_sample(sample, size_px, seed, "pool", draw)
    instance = sample.maps.pop("instance")[0].numpy().astype("int64")
    return replace(sample, patch_tags=patch_tags(scene.names, instance, patches))
