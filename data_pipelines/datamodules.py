"""The data modules that a configuration may name: folders, shards, mixtures of them, real pairs; and those elsewhere.

All give the same batch (megasr.batch.SRBatch).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from data_pipelines.benchmarks import BenchmarkDataModule
from data_pipelines.data_module import CROP_PX, Backend, SRDataModule
from data_pipelines.embedded import PhotoDataModule, SceneDataModule, WorldDataModule
from data_pipelines.encoded import LatentDataModule
from data_pipelines.folder import FolderSource, check_disjoint
from data_pipelines.mixture import EvalMixture, MixtureSource
from data_pipelines.paired import PairedSource
from data_pipelines.samples import NamedSource, Sample, Source
from data_pipelines.scenes.source import SceneSource
from data_pipelines.shards.baked import BakedDraw, BakedSource, BakeOptions
from data_pipelines.shards.manifest import MANIFEST
from data_pipelines.shards.reader import ShardSource
from data_pipelines.workers import read_or_next
from megasr.errors import UsageError
from megasr.rng import numpy_generator

_EVAL_OF = 20  # without an evaluation set, one image of so many is kept for it
AnySource = TypeVar("AnySource", bound=FolderSource | ShardSource | PairedSource)

# What a configuration may name.
__all__ = [
    "BenchmarkDataModule",
    "FolderDataModule",
    "ImagesDataModule",
    "LatentDataModule",
    "MixtureDataModule",
    "PairedDataModule",
    "Part",
    "PhotoDataModule",
    "SceneDataModule",
    "ShardDataModule",
    "WorldDataModule",
]


def open_source(
    location: str, cache_dir: str | None = None, cache_gb: float = 50.0, shuffle_shards: int = 16
) -> FolderSource | ShardSource:
    """A folder of images, or a shard set (see ShardSource): a remote location, or a folder with a manifest.

    Raises:
        UsageError: there is no such folder, or it holds no image.
        MegaSRError: a remote set cannot be reached or is not usable.
    """
    folder = Path(os.path.expanduser(location))
    if location.startswith("pipe:") or "://" in location or (folder / MANIFEST).is_file():
        return ShardSource(location, None if cache_dir is None else Path(cache_dir), cache_gb, shuffle_shards)
    return FolderSource(folder)


def check_apart(train: Source, evaluation: Source) -> None:
    """Raise UsageError when two folders share files, or two shard sets tars."""
    if isinstance(train, FolderSource) and isinstance(evaluation, FolderSource):
        check_disjoint(dict(train.files), dict(evaluation.files))
    if isinstance(train, ShardSource) and isinstance(evaluation, ShardSource):
        shared = {shard.sha256 for shard in train.manifest.shards}
        names = [shard.name for shard in evaluation.manifest.shards if shard.sha256 in shared]
        if names:
            raise UsageError(
                f"{train.url} and {evaluation.url} share {len(names)} shards, the first is {names[0]}; "
                "numbers taken on training images say nothing"
            )


def keep_some(source: AnySource, key: str, place: str, most: int, size_px: int) -> tuple[AnySource, AnySource]:
    """(training, evaluation): keep every twentieth image for evaluation, at least one, at most `most`, and say so.

    Raises:
        UsageError: there are too few images.
    """
    images = len(source)
    count = min(max(images // _EVAL_OF, 1), most)
    train, kept = source.split(count) if isinstance(source, ShardSource) else source.split(count, size_px)
    if not len(kept) or not len(train):
        raise UsageError(
            f"{place}: {images} images, too few or smaller than crops of {size_px} px, so that none can be kept for "
            f"evaluation: set data.{key} or a smaller data.crop_size_px"
        )
    rank_zero_info(
        f"data.{key} is not set: {len(kept)} of the {images} images of {place} are kept for it, not trained on"
    )
    return train, kept  # type: ignore[return-value]


class FolderDataModule(SRDataModule):
    """Folders of images, searched recursively, with the tags that lie beside them.

    Args:
        train_root: folder of the training images.
        eval_root: folder of the evaluation images; no image may be in both. None keeps every twentieth image of
            train_root for it, at most eval_samples, and trains on the others. Name one where images are crops of the
            same photographs.

    Raises:
        UsageError: a folder is missing or empty, or the two share images.
    """

    def __init__(
        self, train_root: str, eval_root: str | None = None, crop_size_px: int | None = None, eval_samples: int = 100,
        eval_crop_size_px: int | None = None, min_sharpness: float = 0.0, max_damaged: float = 0.01,
        degradation: str = "realesrgan_strong", backend: Backend = "cpu", usm_target: bool = False,
        eval_degradation: str | None = None, scale_factor: int = 4, batch_size: int = 8, train_samples: int = 1024,
        num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        crop_size_px = CROP_PX if crop_size_px is None else crop_size_px
        train = FolderSource(train_root)
        if eval_root is None:
            train, evaluation = keep_some(
                train, "eval_root", train_root, eval_samples, eval_crop_size_px or crop_size_px
            )
        else:
            evaluation = FolderSource(eval_root)
            check_apart(train, evaluation)
        super().__init__(
            train, evaluation, degradation=degradation, eval_degradation=eval_degradation, backend=backend,
            usm_target=usm_target, scale_factor=scale_factor, crop_size_px=crop_size_px,
            eval_crop_size_px=eval_crop_size_px, batch_size=batch_size, train_samples=train_samples,
            eval_samples=eval_samples, num_workers=num_workers, seed=seed, min_sharpness=min_sharpness,
            max_damaged=max_damaged,
        )  # fmt: skip


class ShardDataModule(SRDataModule):
    """Shard sets (see `megasr shards`), read from a folder, over HTTP or through a command.

    Args:
        train_url: shard set of the training: a folder, http(s)://..., or pipe:COMMAND with {name} in it.
        eval_url: shard set or folder of images of the evaluation. None keeps every twentieth image of train_url for it,
            the last ones of every shard, at most eval_samples, and trains on the others.
        baked: name of a baked set of the training shards, "" for none; its crop size, scale factor, degradation and
            usm_target must be those that are set here.
        baked_share: share of the draws that show a baked variant. Below 1 it needs backend cpu, and a batch keeps the
            baked maps, tokens and latents only when all of its samples have them; else they are extracted.
        shuffle_shards: number of shards between which samples are shuffled.

    Raises:
        UsageError: a value cannot be used, or the baked set was made with other settings.
        MegaSRError: a set cannot be reached or is not usable.
    """

    def __init__(
        self, train_url: str, eval_url: str | None = None, baked: str = "", baked_share: float = 1.0,
        shuffle_shards: int = 16, cache_dir: str | None = None, cache_gb: float = 50.0, eval_samples: int = 100,
        crop_size_px: int | None = None, eval_crop_size_px: int | None = None, min_sharpness: float = 0.0,
        max_damaged: float = 0.01, degradation: str = "realesrgan_strong", backend: Backend = "cpu",
        usm_target: bool = False, eval_degradation: str | None = None, scale_factor: int = 4, batch_size: int = 8,
        train_samples: int = 1024, num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        crop_size_px = CROP_PX if crop_size_px is None else crop_size_px
        if baked and eval_url is None:
            raise UsageError("data.baked has all images of data.train_url: name others for evaluation in data.eval_url")
        if not 0 <= baked_share <= 1:
            raise UsageError(f"data.baked_share must be in [0, 1], got {baked_share}")
        train = ShardSource(train_url, None if cache_dir is None else Path(cache_dir), cache_gb, shuffle_shards)
        evaluation: NamedSource
        if eval_url is None:
            train, evaluation = keep_some(train, "eval_url", train_url, eval_samples, eval_crop_size_px or crop_size_px)
        else:
            evaluation = open_source(eval_url, cache_dir, cache_gb)
            check_apart(train, evaluation)
        super().__init__(
            train, evaluation, degradation=degradation, eval_degradation=eval_degradation, backend=backend,
            usm_target=usm_target, scale_factor=scale_factor, crop_size_px=crop_size_px,
            eval_crop_size_px=eval_crop_size_px, batch_size=batch_size, train_samples=train_samples,
            eval_samples=eval_samples, num_workers=num_workers, seed=seed, min_sharpness=min_sharpness,
            max_damaged=max_damaged,
        )  # fmt: skip
        self.baked_share = baked_share
        self.baked = BakedSource(train, baked, self.train_source or train) if baked else None
        if self.baked is not None:
            self._check_baked(self.baked.options, baked)

    def _check_baked(self, options: BakeOptions, name: str) -> None:
        ours: dict[str, object] = {"degradation": self.degradation.name if self.degradation else None}
        ours |= {key: getattr(self, key) for key in ("scale_factor", "crop_size_px", "usm_target")}
        differing = [
            f"{key} {getattr(options, key)!r}, data.{key} is {value!r}"
            for key, value in ours.items()
            if getattr(options, key) != value
        ]
        if differing:
            raise UsageError(f"baked set {name!r} was made with {'; '.join(differing)}")
        if self.baked_share < 1 and self.backend == "device":
            raise UsageError("data.baked_share below 1 mixes baked and on-line lq, which needs data.backend cpu")

    def order_fingerprint(self) -> str:
        baked = "" if self.baked is None else f", {self.baked_share} of them baked {self.baked.baked.fingerprint}"
        return super().order_fingerprint() + baked

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


class MixtureDataModule(SRDataModule):
    """Folders, shard sets and scenes, drawn in fixed shares.

    Args:
        parts: what is mixed. Their images are called 0:..., 1:... in the order of the list.
        eval_url: shard set or folder of images of the evaluation. None keeps every twentieth image of every part but
            scenes for it, at most eval_samples of each, numbered without scenes, and trains on the others.
    """

    def __init__(
        self, parts: list[Part], eval_url: str | None = None, crop_size_px: int | None = None, seed: int = 0,
        cache_dir: str | None = None, cache_gb: float = 50.0, eval_samples: int = 100,
        eval_crop_size_px: int | None = None, min_sharpness: float = 0.0, max_damaged: float = 0.01,
        degradation: str = "realesrgan_strong", backend: Backend = "cpu", usm_target: bool = False,
        eval_degradation: str | None = None, scale_factor: int = 4, batch_size: int = 8, train_samples: int = 1024,
        num_workers: int = 0,
    ) -> None:  # fmt: skip
        crop_size_px = CROP_PX if crop_size_px is None else crop_size_px
        finite = {
            number: open_source(part.source, cache_dir, cache_gb, part.shuffle_shards)
            for number, part in enumerate(parts)
            if part.source != "scenes"
        }
        evaluation: NamedSource
        if eval_url is None:
            if not finite:
                raise UsageError("scenes alone have no images to keep for evaluation: set data.eval_url")
            kept: list[NamedSource] = []
            for number, source in finite.items():
                place, size_px = parts[number].source, eval_crop_size_px or crop_size_px
                finite[number], held_out = keep_some(source, "eval_url", place, eval_samples, size_px)
                kept.append(held_out)
            evaluation = EvalMixture(kept)
        else:
            evaluation = open_source(eval_url, cache_dir, cache_gb)
            for source in finite.values():
                check_apart(source, evaluation)
        scenes = SceneSource(crop_size_px, seed)
        train = MixtureSource([finite.get(n, scenes) for n in range(len(parts))], [part.weight for part in parts])
        super().__init__(
            train, evaluation, degradation=degradation, eval_degradation=eval_degradation, backend=backend,
            usm_target=usm_target, scale_factor=scale_factor, crop_size_px=crop_size_px,
            eval_crop_size_px=eval_crop_size_px, batch_size=batch_size, train_samples=train_samples,
            eval_samples=eval_samples, num_workers=num_workers, seed=seed, min_sharpness=min_sharpness,
            max_damaged=max_damaged,
        )  # fmt: skip
        assert self.error_budget is not None
        self.error_budget.samples = sum(len(source) for source in finite.values())  # scenes are never damaged


class PairedDataModule(SRDataModule):
    """Real lq/hq pairs (see data_pipelines.paired for the layouts): nothing is degraded.

    Args:
        train_root: folder of the training pairs, or of their hq when train_lq_root is given.
        eval_root: folder of the evaluation pairs, or of their hq when eval_lq_root is given. None keeps every twentieth
            pair of train_root for it, at most eval_samples, and trains on the others.
        train_lq_root: folder of lq of the training pairs.
        eval_lq_root: folder of lq of the evaluation pairs.

    Raises:
        UsageError: folders, names or sizes do not make pairs; lists those that do not. Or the two sets share images.
    """

    def __init__(
        self, train_root: str, eval_root: str | None = None, train_lq_root: str | None = None,
        eval_lq_root: str | None = None, crop_size_px: int | None = None, eval_samples: int = 100,
        max_damaged: float = 0.01, scale_factor: int = 4, eval_crop_size_px: int | None = None, batch_size: int = 8,
        train_samples: int = 1024, num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        crop_size_px = CROP_PX if crop_size_px is None else crop_size_px
        train = PairedSource(train_root, scale_factor, train_lq_root)
        if eval_root is None:
            train, evaluation = keep_some(
                train, "eval_root", train_root, eval_samples, eval_crop_size_px or crop_size_px
            )
        else:
            evaluation = PairedSource(eval_root, scale_factor, eval_lq_root)
            check_disjoint({key: hq for key, _, hq in train.pairs}, {key: hq for key, _, hq in evaluation.pairs})
        super().__init__(
            train, evaluation, scale_factor=scale_factor, crop_size_px=crop_size_px,
            eval_crop_size_px=eval_crop_size_px, batch_size=batch_size, train_samples=train_samples,
            eval_samples=eval_samples, num_workers=num_workers, seed=seed, max_damaged=max_damaged,
        )  # fmt: skip


class ImagesDataModule(SRDataModule):
    """Images of your own to evaluate on, for `megasr test` and studies: pairs, or hq that a degradation damages.

    Args:
        root: folder of pairs (see data_pipelines.paired), or with lq_root of their hq; with a degradation, a folder or
            shard set of hq.
        lq_root: folder of lq of the pairs.
        degradation: name of the degradation that makes lq; None takes the pairs as they are.
        eval_crop_size_px: height and width of the centre of hq that is taken; None takes whole images.
        batch_size: images per batch; whole images of several sizes need 1.

    Raises:
        UsageError: a folder is missing or empty, images do not make pairs, or a value cannot be used.
        MegaSRError: a shard set cannot be reached or is not usable.
    """

    def __init__(
        self, root: str, lq_root: str | None = None, degradation: str | None = None,
        eval_crop_size_px: int | None = None, scale_factor: int = 4, batch_size: int = 1, num_workers: int = 0,
    ) -> None:  # fmt: skip
        if degradation is None:
            source: NamedSource = PairedSource(root, scale_factor, lq_root)
        elif lq_root is not None:
            raise UsageError("data.lq_root has lq: data.degradation would replace them; leave one of the two out")
        else:
            source = open_source(root)
        self.whole = eval_crop_size_px is None
        super().__init__(
            evaluation=source, degradation=degradation, scale_factor=scale_factor, batch_size=batch_size,
            crop_size_px=eval_crop_size_px or 32 * scale_factor, train_samples=batch_size, eval_samples=len(source),
            num_workers=num_workers,
        )  # fmt: skip

    def setup(self, stage: str) -> None:
        """Refuse to train: there are no training images. Raises UsageError."""
        if stage == "fit":
            raise UsageError("ImagesDataModule has images to evaluate on alone: train with FolderDataModule or others")

    def eval_sample(self, index: int) -> Sample:
        if not self.whole:
            return super().eval_sample(index)
        assert self.eval_source is not None
        sample = self.eval_source.read(index)
        height, width = (side // self.scale_factor * self.scale_factor for side in sample.hq.shape[:2])
        return replace(sample, hq=sample.hq[:height, :width])
