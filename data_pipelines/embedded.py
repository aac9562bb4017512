"""Data that ship with the package: photographs of scikit-image, and scenes that are rendered."""

from __future__ import annotations

from typing import Any

from data_pipelines.crops import crop_sample
from data_pipelines.data_module import EVAL_SEED, SyntheticDataModule
from data_pipelines.photos import EVAL_PHOTOS, TRAIN_PHOTOS, grid_crops, load_photo
from data_pipelines.samples import Sample
from data_pipelines.scene_source import scene_sample
from megasr.errors import UsageError
from megasr.rng import numpy_generator


class PhotoDataModule(SyntheticDataModule):
    """The photographs inside scikit-image: training on some, evaluation on fixed crops of others.

    Tags are empty: nothing has looked at lq, and the photograph's name would be an answer from outside.

    Args:
        eval_samples: size of the evaluation set at most, spread evenly over the photographs.
        settings: see SyntheticDataModule.
    """

    def __init__(self, eval_samples: int = 16, **settings: Any) -> None:
        super().__init__(eval_samples=eval_samples, **settings)
        smallest = min(min(load_photo(photo.name).shape[:2]) for photo in (*TRAIN_PHOTOS, *EVAL_PHOTOS))
        for name, size in (("crop_size_px", self.crop_size_px), ("eval_crop_size_px", self.eval_crop_size_px)):
            if size > smallest:
                raise UsageError(f"data.{name} {size}: the smallest photograph has {smallest} px")
        self.crops = _spread_crops(self.eval_crop_size_px, eval_samples)

    def num_eval(self) -> int:
        return len(self.crops)

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


class SceneDataModule(SyntheticDataModule):
    """Procedural scenes with their tags and exact maps. See SyntheticDataModule.

    The evaluation scenes are the same whatever the seed, and no training seed draws them.
    """

    def train_sample(self, draw: int) -> Sample:
        return scene_sample(f"scene/{draw}", draw, self.seed, self.crop_size_px)

    def eval_sample(self, index: int) -> Sample:
        return scene_sample(self.eval_key(index), index, EVAL_SEED, self.eval_crop_size_px)

    def eval_key(self, index: int) -> str:
        return f"eval-scene/{index}"
