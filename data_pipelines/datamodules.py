"""The LightningDataModules: photographs, scenes, folders, shards, mixtures of them, real pairs and benchmark sets.

All give the same batch (megasr.batch.SRBatch).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from data_pipelines.benchmarks import BenchmarkDataModule
from data_pipelines.data_module import SRDataModule, SyntheticDataModule
from data_pipelines.embedded import PhotoDataModule, SceneDataModule, WorldDataModule
from data_pipelines.encoded import LatentDataModule
from data_pipelines.filters import FilteredSource, ImageFilter
from data_pipelines.folder import FolderSource, check_disjoint
from data_pipelines.mixture import MixtureSource
from data_pipelines.open_source import check_apart, open_source
from data_pipelines.paired import PairedSource
from data_pipelines.samples import NamedSource, Sample, Source, center_crop_sample, crop_sample
from data_pipelines.scenes.source import SceneSource
from data_pipelines.shards.baked import BakedDraw, BakedSource, BakeOptions
from data_pipelines.shards.reader import ShardSource
from data_pipelines.workers import ErrorBudget, read_or_next
from megasr.errors import UsageError
from megasr.rng import numpy_generator

_EVAL_OF = 20  # of so many images one is kept for evaluation where none are named for it

# What a configuration may name.
__all__ = [
    "BenchmarkDataModule",
    "FolderDataModule",
    "LatentDataModule",
    "MixtureDataModule",
    "PairedDataModule",
    "Part",
    "PhotoDataModule",
    "SceneDataModule",
    "ShardDataModule",
    "WorldDataModule",
]


class FromSources(SRDataModule):
    """Whole images by number: random crops for training, centre crops for evaluation; damaged images are left out."""

    train_source: Source
    eval_source: NamedSource
    error_budget: ErrorBudget

    def num_eval(self) -> int:
        return min(self.eval_samples, len(self.eval_source))

    def order_fingerprint(self) -> str:
        return f"{super().order_fingerprint()} over images {self.train_source.fingerprint}"

    def train_sample(self, draw: int) -> Sample:
        sample = read_or_next(self.train_source, draw, self.seed)
        crop = crop_sample(sample, self.crop_size_px, self.seed, sample.key, draw)
        return replace(crop, key=f"{sample.key}/{draw}")

    def eval_sample(self, index: int) -> Sample:
        return center_crop_sample(self.eval_source.read(index), self.eval_crop_size_px)

    def eval_key(self, index: int) -> str:
        return self.eval_source.key(index)


class SourceDataModule(FromSources, SyntheticDataModule):
    """Whole images from anywhere: random crops for training, centre crops for evaluation. See SyntheticDataModule.

    Args:
        train: images of the training.
        evaluation: images of the evaluation, in the order of their numbers.
        crop_size_px: height and width of hq in training; smaller images are left out and counted.
        eval_samples: size of the evaluation set at most.
        min_sharpness: less sharp images are left out of the training and counted (see data_pipelines.filters).
        max_damaged: share of the training images that may be damaged before the run stops; until then they are left out
            and counted.
        settings: see SyntheticDataModule.
    """

    def __init__(
        self,
        train: Source,
        evaluation: NamedSource,
        crop_size_px: int = 512,
        eval_samples: int = 100,
        min_sharpness: float = 0.0,
        max_damaged: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(crop_size_px=crop_size_px, eval_samples=eval_samples, **settings)
        check_apart(train, evaluation)
        self.train_source = FilteredSource(train, ImageFilter(crop_size_px, min_sharpness))
        self.eval_source = evaluation
        self.error_budget = ErrorBudget(max_damaged, len(train))


class FolderDataModule(SourceDataModule):
    """Folders of images, searched recursively, with the tags that lie beside them. See SourceDataModule.

    Args:
        train_root: folder of the training images.
        eval_root: folder of the evaluation images; no image may be in both. None keeps every twentieth image of
            train_root for it, at most eval_samples, and trains on the others. Name one where images are crops of the
            same photographs.
        crop_size_px: height and width of hq in training; smaller images are left out and counted.
        eval_samples: size of the evaluation set at most.
        eval_crop_size_px: height and width of hq in evaluation; None takes crop_size_px.
        settings: see SourceDataModule.

    Raises:
        UsageError: a folder is missing or empty, or the two share images.
    """

    def __init__(
        self,
        train_root: str,
        eval_root: str | None = None,
        crop_size_px: int = 512,
        eval_samples: int = 100,
        eval_crop_size_px: int | None = None,
        **settings: Any,
    ) -> None:
        train = FolderSource(train_root)
        if eval_root is None:
            train, evaluation = train.split(_share(len(train), eval_samples), eval_crop_size_px or crop_size_px)
            _tell_split("eval_root", train_root, train, evaluation)
        else:
            evaluation = FolderSource(eval_root)
        settings |= {"crop_size_px": crop_size_px, "eval_samples": eval_samples, "eval_crop_size_px": eval_crop_size_px}
        super().__init__(train=train, evaluation=evaluation, **settings)


def _share(images: int, most: int) -> int:
    """How many images are kept for evaluation: one of twenty, at least one, at most `most`."""
    return min(max(images // _EVAL_OF, 1), most)


def _tell_split(key: str, place: str, train: Source, evaluation: Source) -> None:
    kept, images = len(evaluation), len(evaluation) + len(train)
    if not kept or kept == images:
        raise UsageError(f"{place}: {images} images, too few or too small to keep one for evaluation: set data.{key}")
    rank_zero_info(f"data.{key} is not set: {kept} of the {images} images of {place} are kept for it, not trained on")


class ShardDataModule(SourceDataModule):
    """Shard sets (see `megasr shards`), read from a folder, over HTTP or through a command. See SourceDataModule.

    Args:
        train_url: shard set of the training: a folder, http(s)://..., or pipe:COMMAND with {name} in it.
        eval_url: shard set or folder of images of the evaluation. None keeps every twentieth image of train_url for it,
            the last ones of every shard, at most eval_samples, and trains on the others.
        baked: name of a baked set of the training shards, "" for none; its crop size, scale factor, degradation and
            usm_target must be those that are set here.
        baked_share: share of the draws that show a baked variant. Below 1 it needs backend cpu, and a batch keeps the
            baked maps, tokens and latents only when all of its samples have them; else they are extracted.
        shuffle_shards: number of shards between which samples are shuffled.
        cache_dir: where copies are kept of what cannot be read in ranges; None is the user's cache folder.
        cache_gb: size of these copies together, in 1e9 bytes.
        eval_samples: size of the evaluation set at most.
        settings: see SourceDataModule.

    Raises:
        UsageError: a value cannot be used, or the baked set was made with other settings.
        MegaSRError: a set cannot be reached or is not usable.
    """

    def __init__(
        self,
        train_url: str,
        eval_url: str | None = None,
        baked: str = "",
        baked_share: float = 1.0,
        shuffle_shards: int = 16,
        cache_dir: str | None = None,
        cache_gb: float = 50.0,
        eval_samples: int = 100,
        **settings: Any,
    ) -> None:
        if baked and eval_url is None:
            raise UsageError("data.baked has all images of data.train_url: name others for evaluation in data.eval_url")
        cache = None if cache_dir is None else Path(cache_dir)
        train = ShardSource(train_url, cache, cache_gb, shuffle_shards)
        evaluation: NamedSource
        if eval_url is None:
            train, evaluation = train.split(_share(len(train), eval_samples))
            _tell_split("eval_url", train_url, train, evaluation)
        else:
            evaluation = open_source(eval_url, cache, cache_gb)
        super().__init__(train=train, evaluation=evaluation, eval_samples=eval_samples, **settings)
        if not 0 <= baked_share <= 1:
            raise UsageError(f"data.baked_share must be in [0, 1], got {baked_share}")
        self.baked_share = baked_share
        self.baked = BakedSource(train, baked, self.train_source) if baked else None
        if self.baked is not None:
            self._check_baked(self.baked.options, baked)

    def order_fingerprint(self) -> str:
        baked = "" if self.baked is None else f", {self.baked_share} of them baked {self.baked.baked.fingerprint}"
        return super().order_fingerprint() + baked

    def _check_baked(self, options: BakeOptions, name: str) -> None:
        ours = {
            "degradation": self.degradation.name,
            "scale_factor": self.scale_factor,
            "crop_size_px": self.crop_size_px,
            "usm_target": self.usm_target,
        }
        differing = [
            f"{key} {getattr(options, key)!r}, data.{key} is {value!r}"
            for key, value in ours.items()
            if getattr(options, key) != value
        ]
        if differing:
            raise UsageError(f"baked set {name!r} was made with {'; '.join(differing)}")
        if self.baked_share < 1 and self.backend == "device":
            raise UsageError("data.baked_share below 1 mixes baked and on-line lq, which needs data.backend cpu")

    def train_sample(self, draw: int) -> Sample:
        if self.baked is None or numpy_generator(self.seed, "baked", draw).random() >= self.baked_share:
            return super().train_sample(draw)
        sample = read_or_next(BakedDraw(self.baked, draw, self.seed), draw, self.seed)
        return replace(sample, key=f"{sample.key}/{draw}")


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Args:
        source: a folder of images, a shard set, or `scenes` for rendered ones.
        weight: its share of the draws, relative to the other parts.
        shuffle_shards: number of shards between which the samples of a shard set are shuffled.
    """

    source: str
    weight: float = 1.0
    shuffle_shards: int = 16


class MixtureDataModule(SourceDataModule):
    """Folders, shard sets and scenes, drawn in fixed shares. See SourceDataModule.

    Args:
        parts: what is mixed. Their images are called 0:..., 1:... in the order of the list.
        eval_url: shard set or folder of images of the evaluation.
        crop_size_px: height and width of hq in training.
        seed: of every draw.
        cache_dir: where copies are kept of what cannot be read in ranges; None is the user's cache folder.
        cache_gb: size of the copies of one shard set, in 1e9 bytes.
        settings: see SourceDataModule.
    """

    def __init__(
        self,
        parts: list[Part],
        eval_url: str,
        crop_size_px: int = 512,
        seed: int = 0,
        cache_dir: str | None = None,
        cache_gb: float = 50.0,
        **settings: Any,
    ) -> None:
        cache = None if cache_dir is None else Path(cache_dir)
        sources = [
            SceneSource(crop_size_px, seed)
            if part.source == "scenes"
            else open_source(part.source, cache, cache_gb, part.shuffle_shards)
            for part in parts
        ]
        train = MixtureSource(sources, [part.weight for part in parts])
        evaluation = open_source(eval_url, cache, cache_gb)
        super().__init__(train=train, evaluation=evaluation, crop_size_px=crop_size_px, seed=seed, **settings)
        # Scenes have no end and no damage: the budget is a share of the others.
        finite = sum(len(source) for source in sources if not isinstance(source, SceneSource))
        self.error_budget.samples = finite


class PairedDataModule(FromSources):
    """Real lq/hq pairs (see data_pipelines.paired for the layouts): nothing is degraded. See SRDataModule.

    Args:
        train_root: folder of the training pairs, or of their hq when train_lq_root is given.
        eval_root: folder of the evaluation pairs, or of their hq when eval_lq_root is given.
        train_lq_root: folder of lq of the training pairs.
        eval_lq_root: folder of lq of the evaluation pairs.
        crop_size_px: height and width of hq in training.
        eval_samples: size of the evaluation set at most.
        max_damaged: share of the training pairs that may be damaged before the run stops.
        settings: see SRDataModule.

    Raises:
        UsageError: folders, names or sizes do not make pairs; lists all that do not. Or the two sets share images.
    """

    def __init__(
        self,
        train_root: str,
        eval_root: str,
        train_lq_root: str | None = None,
        eval_lq_root: str | None = None,
        crop_size_px: int = 512,
        eval_samples: int = 100,
        max_damaged: float = 0.01,
        **settings: Any,
    ) -> None:
        super().__init__(crop_size_px=crop_size_px, eval_samples=eval_samples, **settings)
        train = PairedSource(train_root, self.scale_factor, train_lq_root)
        self.eval_source = PairedSource(eval_root, self.scale_factor, eval_lq_root)
        check_disjoint({key: hq for key, _, hq in train.pairs}, {key: hq for key, _, hq in self.eval_source.pairs})
        self.train_source = FilteredSource(train, ImageFilter(crop_size_px))
        self.error_budget = ErrorBudget(max_damaged, len(train))
