"""The LightningDataModule of the benchmark sets: evaluation only, every image once, in the order of the names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from data_pipelines.benchmarks import check_layout
from data_pipelines.data_module import SRDataModule
from data_pipelines.folder import read_or_drop, tags_or_drop
from data_pipelines.samples import Sample, SampleLoader, SampleSet
from data_pipelines.workers import start_worker
from megasr.batch import SRBatch
from megasr.errors import UsageError
from megasr.images import center_crop, from_uint8


@dataclass(frozen=True)
class LqSample:
    """An image without ground truth.

    Args:
        key: its name.
        lq: (3, h, w) float32 in [0, 1].
        tags: comma-separated, "" when unknown.
    """

    key: str
    lq: torch.Tensor
    tags: str


class BenchmarkDataModule(SRDataModule):
    """One of the field's benchmark sets (see data_pipelines.benchmarks), for `megasr test` and `validate`.

    Tags are those that lie beside lq: what was said of hq would tell an adapter that uses text what to restore.

    Args:
        benchmark: name of the set.
        root: the folder of the set, the folder it lies in, or what StableSR's zip was unpacked to.
        allow_subset: take fewer images than the set has; results then say how many.
        batch_size: images per batch; a set of images of several sizes needs 1.
        num_workers: loader processes; 0 loads in the main process.

    Raises:
        UsageError: the folder does not hold the set, or the images of a batch would differ in size.
        MegaSRError: a file is not an image.
    """

    def __init__(
        self, benchmark: str, root: str, allow_subset: bool = False, batch_size: int = 1, num_workers: int = 0
    ) -> None:
        self.files = check_layout(benchmark, root, allow_subset)
        found, whole = len(self.files.lq), self.files.benchmark
        super().__init__(
            scale_factor=whole.scale_factor,
            batch_size=batch_size,
            train_samples=batch_size,
            eval_samples=found,
            num_workers=num_workers,
        )
        if batch_size > 1 and len(set(self.files.sizes)) > 1:
            raise UsageError(f"the images of {benchmark} differ in size: set data.batch_size to 1, not {batch_size}")
        self.has_hq = self.files.pairs is not None
        self.benchmark = benchmark
        self.benchmark_images = (found, whole.count)

    def setup(self, stage: str) -> None:
        """Refuse what a benchmark is not for.

        Raises:
            UsageError: to train, or to take the validation loss of images without hq.
        """
        if stage == "fit":
            raise UsageError(f"{self.benchmark} is a benchmark: it is not for training, nor for choosing checkpoints")
        if stage == "validate" and self.files.pairs is None:
            raise UsageError(f"{self.benchmark} has no hq, which the validation loss needs: use `megasr test`")

    def eval_sample(self, index: int) -> Sample:
        """Pair `index` of a set that has hq, whole, with the tags that lie beside lq."""
        if self.files.pairs is None:
            raise UsageError(f"{self.benchmark} has no hq")
        key, lq, _ = self.files.pairs.pairs[index]
        return replace(self.files.pairs.read_images(index), tags=tags_or_drop(key, lq))

    def eval_key(self, index: int) -> str:
        return self.files.lq[index][0]

    def lq_sample(self, index: int) -> LqSample:
        """Image `index` of a set without hq, with the tags that lie beside it."""
        key, path = self.files.lq[index]
        pixels, crop_px = read_or_drop(key, path), self.files.benchmark.crop_px
        lq = from_uint8(pixels if crop_px is None else center_crop(pixels, crop_px))
        return LqSample(key, lq, tags_or_drop(key, path))

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        """The whole set, in order; batches of a set without hq hold keys, lq and tags."""
        if self.files.pairs is not None:
            return super().val_dataloader()
        return SampleLoader(
            SampleSet(self._for_workers().lq_sample, self.num_eval()),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=collate_lq_or_error,
            worker_init_fn=start_worker,
        )


def collate_lq_or_error(samples: Sequence[LqSample | Exception]) -> SRBatch | Exception:
    """Samples of one size without hq -> batch; or the first error, which SampleLoader raises."""
    read: list[LqSample] = []
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
        read.append(sample)
    return SRBatch(
        keys=[sample.key for sample in read],
        lq=torch.stack([sample.lq for sample in read]),
        tags=[sample.tags for sample in read],
    )
