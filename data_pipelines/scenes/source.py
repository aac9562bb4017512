"""Scenes as a source of samples."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial

import torch

from data_pipelines.samples import Sample, crop_sample
from data_pipelines.scenes.rendering import Scene, crop_scene, patch_tags, render_scene, segmentation_rgb
from data_pipelines.workers import use_one_thread
from megasr.console import progress_bars
from megasr.errors import UsageError
from megasr.rng import numpy_generator

_prepared: dict[tuple[int, int, int], tuple[Scene, ...]] = {}  # by prepare_pool


def scene_sample(key: str, index: int, seed: int, size_px: int) -> Sample:
    """Render scene `index` of `seed` at (size_px, size_px), with its tags and exact maps."""
    return as_sample(key, render_scene(index, seed, size_px))


def as_sample(key: str, scene: Scene) -> Sample:
    """A scene with its tags and exact maps."""
    maps = {
        "oracle_depth": scene.depth[..., None],
        "oracle_normal": scene.normal,
        "oracle_segmentation": segmentation_rgb(scene.segmentation),
        "oracle_edge": scene.edges[..., None],
    }
    tensors = {name: torch.from_numpy(value).permute(2, 0, 1).contiguous().float() for name, value in maps.items()}
    return Sample(key, scene.hq, ", ".join(scene.tags), tensors)


def unknown_maps(size_px: int) -> dict[str, torch.Tensor]:
    """Maps of NaN in the shapes of as_sample, for photographs."""
    channels = {"oracle_depth": 1, "oracle_normal": 3, "oracle_segmentation": 3, "oracle_edge": 1}
    return {name: torch.full((count, size_px, size_px), torch.nan) for name, count in channels.items()}


class SceneSource:
    """Scenes of one seed (see data_pipelines.samples.Source): every draw is a new one, of (size_px, size_px)."""

    def __init__(self, size_px: int, seed: int) -> None:
        self.size_px, self.seed = size_px, seed
        self.fingerprint = f"scenes of seed {seed}"

    def __len__(self) -> int:
        return 2**40  # more than any training draws

    def read(self, index: int) -> Sample:
        """Scene `index`."""
        return scene_sample(f"scene/{index}", index, self.seed, self.size_px)

    def tags(self, index: int) -> str:
        """Nothing knows them before the scene is rendered: UsageError."""
        raise UsageError("rendered scenes have other tags in every draw: they cannot be listed")

    def order(self, draw: int, seed: int) -> int:
        """Draw d shows scene d."""
        return draw % len(self)


@lru_cache(maxsize=2)
def render_pool(count: int, seed: int, size_px: int) -> tuple[Scene, ...]:
    """Scenes 0 to count - 1 of a seed, cached: 0.06 s and 0.5 MB each at 128 px."""
    from rich.progress import BarColumn, MofNCompleteColumn

    prepared = _prepared.get((count, seed, size_px))
    if prepared is not None:
        return prepared
    scenes = []
    with progress_bars(BarColumn(), MofNCompleteColumn()) as progress:
        for index in range(count):
            scenes.append(render_scene(index, seed, size_px))
            progress("rendering scenes", index + 1, count)
    return tuple(scenes)


def prepare_pool(count: int, seed: int, size_px: int, processes: int) -> None:
    """Render the scenes of render_pool by several processes, for this one and those that are forked from it.

    Not inside a training: it forks, and a training has threads.
    """
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), use_one_thread) as pool:
        render = partial(render_scene, seed=seed, size_px=size_px)
        _prepared[count, seed, size_px] = tuple(pool.map(render, range(count), chunksize=8))


def pool_sample(pool: tuple[Scene, ...], draw: int, seed: int, size_px: int, patches: int = 0) -> Sample:
    """A random crop of a random scene of render_pool, with the tags of what the crop shows; half of them mirrored.

    With `patches`, a divisor of size_px, also the tag of each of patches x patches parts.
    """
    rng = numpy_generator(seed, "pool", draw)
    index = int(rng.integers(len(pool)))
    top, left = (int(n) for n in rng.integers(pool[index].hq.shape[0] - size_px + 1, size=2))
    scene = crop_scene(pool[index], top, left, size_px)
    sample = as_sample(f"scene/{index}/{draw}", scene)
    sample.maps["instance"] = torch.from_numpy(scene.instance[None])  # mirrored with the others
    sample = crop_sample(sample, size_px, seed, "pool", draw)
    instance = sample.maps.pop("instance")[0].numpy()
    return replace(sample, patch_tags=patch_tags(scene.names, instance, patches)) if patches else sample
