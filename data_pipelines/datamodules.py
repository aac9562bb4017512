"""LightningDataModules: photographs, rendered scenes, folders. All give the same batch (megasr.batch.SRBatch).

Training draws are random crops, counted from the start of training, so that a resumed run goes on with the very next
draw. Evaluation reads a fixed, complete, map-style set. lq is made on the device, after the batch has moved there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch

from data_pipelines.degradations.presets import get_degradation
from data_pipelines.folder import check_disjoint, index_folder, read_at_least
from data_pipelines.photos import EVAL_PHOTOS, TRAIN_PHOTOS, grid_crops, load_photo
from data_pipelines.samples import DrawLoader, DrawSampler, Sample, SampleSet, collate, random_crop
from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.images import center_crop
from megasr.rng import numpy_generator

EVAL_SEED = 2**31  # evaluation images and their degradation do not depend on the seed of a run


class SRDataModule(lightning.LightningDataModule):
    """What all sources share. A source says how training draw d and evaluation sample i are made.

    Args:
        degradation: name of the preset that makes lq from hq.
        scale_factor: size of hq over size of lq.
        crop_size_px: height and width of hq in training.
        eval_crop_size_px: height and width of hq in evaluation; None takes crop_size_px.
        batch_size: samples per batch and device.
        train_samples: draws per epoch, rounded down to whole batches.
        eval_samples: size of the evaluation set at most.
        num_workers: loader processes; 0 loads in the main process.
        seed: of every draw.
    """

    def __init__(
        self,
        degradation: str = "bicubic",
        scale_factor: int = 4,
        crop_size_px: int = 128,
        batch_size: int = 8,
        train_samples: int = 1024,
        eval_samples: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        eval_crop_size_px: int | None = None,
    ) -> None:
        super().__init__()
        at_least = {"crop_size_px": 16, "batch_size": 1, "train_samples": 1, "eval_samples": 1, "num_workers": 0}
        values = {"crop_size_px": crop_size_px, "batch_size": batch_size, "train_samples": train_samples}
        values |= {"eval_samples": eval_samples, "num_workers": num_workers}
        for name, least in at_least.items():
            if values[name] < least:
                raise UsageError(f"data.{name} must be at least {least}, got {values[name]}")
        if not 0 <= seed < EVAL_SEED:
            raise UsageError(f"data.seed must be in [0, 2**31), got {seed}")
        if train_samples < batch_size:
            raise UsageError(f"data.train_samples {train_samples} is less than one batch of {batch_size}")
        self.degradation = get_degradation(degradation, scale_factor)
        self.eval_crop_size_px = crop_size_px if eval_crop_size_px is None else eval_crop_size_px
        for name, size in (("crop_size_px", crop_size_px), ("eval_crop_size_px", self.eval_crop_size_px)):
            if size < 1 or size % scale_factor:
                raise UsageError(f"data.{name} {size} is not a positive multiple of data.scale_factor {scale_factor}")
        self.crop_size_px, self.batch_size, self.num_workers, self.seed = crop_size_px, batch_size, num_workers, seed
        self.train_samples, self.eval_samples = train_samples // batch_size * batch_size, eval_samples

    def train_sample(self, draw: int) -> Sample:
        """Training draw `draw`, counted from the start of training."""
        raise NotImplementedError

    def eval_sample(self, index: int) -> Sample:
        """Evaluation sample `index`, 0 <= index < num_eval()."""
        raise NotImplementedError

    def num_eval(self) -> int:
        """Size of the evaluation set."""
        return self.eval_samples

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        """Draws of the current epoch, from where training stands.

        Raises:
            UsageError: train_samples is less than one batch for every process.
        """
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        samples_per_step = self.batch_size * world_size
        steps = self.train_samples // samples_per_step
        if steps == 0:
            raise UsageError(
                f"data.train_samples {self.train_samples} is less than one batch of {self.batch_size} "
                f"for each of {world_size} devices"
            )
        sampler = DrawSampler(self._consumed_samples, steps * samples_per_step, rank, world_size)
        # The set has no end: the sampler decides which draws an epoch consists of.
        samples = SampleSet(self.train_sample, 2**62)
        return DrawLoader(samples, self.batch_size, sampler=sampler, num_workers=self.num_workers, collate_fn=collate)

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        """The whole evaluation set, in order."""
        samples = SampleSet(self.eval_sample, self.num_eval())
        return torch.utils.data.DataLoader(samples, self.batch_size, num_workers=self.num_workers, collate_fn=collate)

    def test_dataloader(self) -> torch.utils.data.DataLoader:
        """The same set as for validation."""
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch: SRBatch, dataloader_idx: int) -> SRBatch:
        """Add lq and what made it, on the device of hq; real pairs bring their own lq."""
        if "lq" not in batch:
            training = self.trainer is not None and self.trainer.training
            params = self.degradation.sample_params(self.seed if training else EVAL_SEED, batch["keys"])
            batch["lq"] = self.degradation.apply(batch["hq"], params)
            batch["degradation"] = params
        return batch

    def _consumed_samples(self) -> int:
        if self.trainer is None:
            return 0
        # Not `completed`: Lightning counts that only after the hook in which checkpoints are written.
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        return batches * self.batch_size * self.trainer.world_size


class PhotoDataModule(SRDataModule):
    """The photographs inside scikit-image: training on some, evaluation on fixed crops of others. See SRDataModule.

    Tags are empty: nothing has looked at lq, and the photograph's name would be an answer from outside.

    Args:
        eval_samples: size of the evaluation set at most, spread evenly over the photographs.
        settings: see SRDataModule.
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
        crop = random_crop(load_photo(photo.name), self.crop_size_px, self.seed, "photo", draw)
        return Sample(f"{photo.name}/{draw}", crop)

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
    """Procedural scenes with their tags and exact maps. See SRDataModule.

    The evaluation scenes are the same whatever the seed, and no training seed draws them.
    """

    def train_sample(self, draw: int) -> Sample:
        return self._render(f"scene/{draw}", draw, self.seed, self.crop_size_px)

    def eval_sample(self, index: int) -> Sample:
        return self._render(f"eval-scene/{index}", index, EVAL_SEED, self.eval_crop_size_px)

    def _render(self, key: str, index: int, seed: int, size_px: int) -> Sample:
        from data_pipelines.scenes import render_scene, segmentation_rgb

        scene = render_scene(index, seed, size_px)
        maps = {
            "oracle_depth": scene.depth[..., None],
            "oracle_normal": scene.normal,
            "oracle_segmentation": segmentation_rgb(scene.segmentation),
            "oracle_edge": scene.edges[..., None],
        }
        tensors = {name: torch.from_numpy(value).permute(2, 0, 1).contiguous().float() for name, value in maps.items()}
        return Sample(key, scene.hq, ", ".join(scene.tags), tensors)


class FolderDataModule(SRDataModule):
    """Folders of images, searched recursively: random crops for training, centre crops for evaluation.

    Args:
        train_root: folder of the training images.
        eval_root: folder of the evaluation images; no image may be in both.
        crop_size_px: height and width of hq in training.
        eval_samples: size of the evaluation set at most.
        settings: see SRDataModule.

    Raises:
        UsageError: a folder is missing or empty, or the two share images.
    """

    def __init__(
        self, train_root: str, eval_root: str, crop_size_px: int = 512, eval_samples: int = 100, **settings: Any
    ) -> None:
        super().__init__(crop_size_px=crop_size_px, eval_samples=eval_samples, **settings)
        train, evaluation = index_folder(Path(train_root)), index_folder(Path(eval_root))
        check_disjoint(train, evaluation)
        self.train_files, self.eval_files = list(train.items()), list(evaluation.items())[:eval_samples]

    def num_eval(self) -> int:
        return len(self.eval_files)

    def train_sample(self, draw: int) -> Sample:
        # Every image once, in a new order, before any comes again.
        epoch, position = divmod(draw, len(self.train_files))
        order = numpy_generator(self.seed, "order", epoch).permutation(len(self.train_files))
        key, path = self.train_files[order[position]]
        crop = random_crop(read_at_least(path, self.crop_size_px), self.crop_size_px, self.seed, key, draw)
        return Sample(f"{key}/{draw}", crop)

    def eval_sample(self, index: int) -> Sample:
        key, path = self.eval_files[index]
        return Sample(key, center_crop(read_at_least(path, self.eval_crop_size_px), self.eval_crop_size_px))
