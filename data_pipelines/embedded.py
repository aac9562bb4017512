"""Data that ship with the package: photographs of scikit-image, and procedural scenes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch

from data_pipelines.data_module import EVAL_SEED, Backend, SRDataModule
from data_pipelines.photos import EVAL_PHOTOS, TRAIN_PHOTOS, grid_crops, load_photo
from data_pipelines.samples import Sample, crop_sample
from data_pipelines.scenes.rendering import render_scene
from data_pipelines.scenes.source import as_sample, pool_sample, render_pool, scene_sample, unknown_maps
from megasr.errors import UsageError
from megasr.images import read_image
from megasr.rng import numpy_generator


class PhotoDataModule(SRDataModule):
    """The photographs inside scikit-image: training on some, evaluation on fixed crops of others, without tags.

    Args:
        eval_samples: size of the evaluation set at most, spread evenly over the photographs.
    """

    def __init__(
        self, degradation: str = "bicubic", backend: Backend = "cpu", usm_target: bool = False,
        eval_degradation: str | None = None, scale_factor: int = 4, crop_size_px: int = 128,
        eval_crop_size_px: int | None = None, batch_size: int = 8, train_samples: int = 1024, eval_samples: int = 16,
        num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(
            scale_factor=scale_factor, crop_size_px=crop_size_px, eval_crop_size_px=eval_crop_size_px,
            batch_size=batch_size, train_samples=train_samples, eval_samples=eval_samples, num_workers=num_workers,
            seed=seed, degradation=degradation, eval_degradation=eval_degradation, backend=backend,
            usm_target=usm_target,
        )  # fmt: skip
        smallest = min(min(load_photo(photo.name).shape[:2]) for photo in (*TRAIN_PHOTOS, *EVAL_PHOTOS))
        for name, size in (("crop_size_px", self.crop_size_px), ("eval_crop_size_px", self.eval_crop_size_px)):
            if size > smallest:
                raise UsageError(f"data.{name} {size}: the smallest photograph has {smallest} px")
        self.crops = _spread_crops(self.eval_crop_size_px, eval_samples)

    def num_eval(self) -> int:
        return min(self.eval_samples, len(self.crops))

    def train_sample(self, draw: int) -> Sample:
        photo = TRAIN_PHOTOS[int(numpy_generator(self.seed, "photo", draw).integers(len(TRAIN_PHOTOS)))]
        whole = Sample(f"{photo.name}/{draw}", load_photo(photo.name))
        return crop_sample(whole, self.crop_size_px, self.seed, "photo", draw)

    def eval_sample(self, index: int) -> Sample:
        name, (top, left) = self.crops[index]
        size = self.eval_crop_size_px
        return Sample(f"{name}/{top}-{left}", load_photo(name)[top : top + size, left : left + size])


def _spread_crops(size_px: int, count: int) -> list[tuple[str, tuple[int, int]]]:
    """(photograph, place) of `count` evaluation crops: one of every photograph before a second one of any."""
    ranked = []
    for number, photo in enumerate(EVAL_PHOTOS):
        height, width = load_photo(photo.name).shape[:2]
        places = grid_crops(height, width, size_px, count)
        ranked += [(rank, number, photo.name, place) for rank, place in enumerate(places)]
    chosen = sorted(sorted(ranked)[:count], key=lambda crop: (crop[1], crop[0]))
    return [(name, place) for _, _, name, place in chosen]


class SceneDataModule(SRDataModule):
    """Procedural scenes with their tags and exact maps. The evaluation scenes are the same for every seed.

    Args:
        pool: number of scenes that are rendered once, at eval_crop_size_px, for training on crops of them, with the
            tags of what the crop shows; 0 renders a new scene for every draw, which takes longer than a small model's
            training step.
    """

    patches = 0  # see WorldDataModule

    def __init__(
        self, pool: int = 0, degradation: str = "bicubic", backend: Backend = "cpu", usm_target: bool = False,
        eval_degradation: str | None = None, scale_factor: int = 4, crop_size_px: int = 128,
        eval_crop_size_px: int | None = None, batch_size: int = 8, train_samples: int = 1024, eval_samples: int = 16,
        num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(
            scale_factor=scale_factor, crop_size_px=crop_size_px, eval_crop_size_px=eval_crop_size_px,
            batch_size=batch_size, train_samples=train_samples, eval_samples=eval_samples, num_workers=num_workers,
            seed=seed, degradation=degradation, eval_degradation=eval_degradation, backend=backend,
            usm_target=usm_target,
        )  # fmt: skip
        if pool < 0:
            raise UsageError(f"data.pool must not be negative, got {pool}")
        if pool and crop_size_px > self.eval_crop_size_px:
            raise UsageError(
                f"data.crop_size_px {crop_size_px} is larger than the scenes of the pool, which are rendered at "
                f"data.eval_crop_size_px {self.eval_crop_size_px}"
            )
        self.pool = pool

    def train_sample(self, draw: int) -> Sample:
        if self.pool:
            pool = render_pool(self.pool, self.seed, self.eval_crop_size_px)
            return pool_sample(pool, draw, self.seed, self.crop_size_px, self.patches)
        return scene_sample(f"scene/{draw}", draw, self.seed, self.crop_size_px)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        if self.pool and self.num_workers:  # the loader's processes are forked with it, and none renders its own
            render_pool(self.pool, self.seed, self.eval_crop_size_px)
        return super().train_dataloader()

    def eval_sample(self, index: int) -> Sample:
        return as_sample(self.eval_key(index), _eval_scene(index, EVAL_SEED, self.eval_crop_size_px))

    def eval_key(self, index: int) -> str:
        return f"eval-scene/{index}"

    def order_fingerprint(self) -> str:
        return super().order_fingerprint() + (f" and a pool of {self.pool} scenes" if self.pool else "")


# A study evaluates many runs on the same scenes in one process; 0.5 MB each at 128 px.
_eval_scene = lru_cache(maxsize=32)(render_scene)


class WorldDataModule(SceneDataModule):
    """What the tiny prior is trained on: scenes, and photographs tagged with what they show.

    Args:
        photo_share: share of the training draws that are crops of photographs, in [0, 1].
        photos: folder of photographs with their tags in PHOTO.txt, which `make photos` fetches; None takes the few that
            ship with scikit-image.
        photo_zoom: also show photographs smaller: a crop may cover this share of the photograph's shorter side, or any
            less, drawn anew each time; 0 always cuts at full resolution.
        maps: give scenes their exact maps, and photographs maps of NaN (unknown), to train extractors.
        patches: give the tag of each of patches x patches parts of a scene ("" of a photograph), for CLIP's patch
            tokens; 0 gives none. Needs a pool.
        pool: see SceneDataModule.
    """

    def __init__(
        self, photo_share: float = 0.25, photos: str | None = None, photo_zoom: float = 0.0, maps: bool = False,
        patches: int = 0, pool: int = 0, degradation: str = "bicubic", backend: Backend = "cpu",
        usm_target: bool = False, eval_degradation: str | None = None, scale_factor: int = 4, crop_size_px: int = 128,
        eval_crop_size_px: int | None = None, batch_size: int = 8, train_samples: int = 1024, eval_samples: int = 16,
        num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(
            pool=pool, scale_factor=scale_factor, crop_size_px=crop_size_px, eval_crop_size_px=eval_crop_size_px,
            batch_size=batch_size, train_samples=train_samples, eval_samples=eval_samples, num_workers=num_workers,
            seed=seed, degradation=degradation, eval_degradation=eval_degradation, backend=backend,
            usm_target=usm_target,
        )  # fmt: skip
        for name, share in (("photo_share", photo_share), ("photo_zoom", photo_zoom)):
            if not 0 <= share <= 1:
                raise UsageError(f"data.{name} must be in [0, 1], got {share}")
        if patches < 0 or (patches and (not pool or crop_size_px % patches)):
            raise UsageError(
                f"data.patches {patches} must divide data.crop_size_px {crop_size_px}, and needs data.pool"
            )
        self.photo_share, self.photos, self.photo_zoom = photo_share, photos, photo_zoom
        self.maps, self.patches = maps, patches

    def train_sample(self, draw: int) -> Sample:
        rng = numpy_generator(self.seed, "world", draw)
        if rng.random() >= self.photo_share:
            sample = super().train_sample(draw)
            return sample if self.maps else replace(sample, maps={})  # a batch needs the same of all
        photos = load_photos(self.photos)
        name, image, tags = photos[int(rng.integers(len(photos)))]
        most = max(1.0, self.photo_zoom * min(image.shape[:2]) / self.crop_size_px)
        zoom = float(np.exp(rng.uniform(0, np.log(most))))  # pixels of the photograph per pixel of the crop
        if zoom > 1:
            height, width = (max(self.crop_size_px, round(size / zoom)) for size in image.shape[:2])
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        crop = crop_sample(Sample(f"{name}/{draw}", image, tags), self.crop_size_px, self.seed, "world", draw)
        maps = unknown_maps(self.crop_size_px) if self.maps else {}
        return replace(crop, maps=maps, patch_tags=("",) * self.patches**2)

    def order_fingerprint(self) -> str:
        names = "" if self.photos is None else f" ({len(load_photos(self.photos))} of {Path(self.photos).name})"
        return f"{super().order_fingerprint()}, {self.photo_share:g} of them photographs{names}"


@lru_cache(maxsize=2)
def load_photos(folder: str | None) -> tuple[tuple[str, np.ndarray, str], ...]:
    """(name, (H, W, 3) uint8, tags) of the photographs of a folder, in memory; None: of scikit-image's for training.

    Raises:
        UsageError: the folder holds no PNG.
    """
    if folder is None:
        return tuple((photo.name, load_photo(photo.name), ", ".join(photo.tags)) for photo in TRAIN_PHOTOS)
    paths = sorted(Path(folder).glob("*.png"))
    if not paths:
        raise UsageError(f"data.photos {folder} holds no PNG: make photos fetches them")
    tags = (path.with_suffix(".txt") for path in paths)
    words = [path.read_text().strip() if path.is_file() else "" for path in tags]
    return tuple((path.stem, read_image(path), text) for path, text in zip(paths, words, strict=True))
