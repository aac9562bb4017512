"""The images on which guidance is measured: held-out scenes, photographs, and their lq."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.progress import track

from data_pipelines.data_module import EVAL_SEED
from data_pipelines.degradations.presets import get_degradation
from data_pipelines.embedded import PhotoDataModule, SceneDataModule
from data_pipelines.folder import FolderSource
from data_pipelines.samples import Sample, SampleSet, center_crop_sample, collate, degrade
from megasr.batch import SRBatch

SCALE_FACTOR = 4


def scenes(count: int, degradation: str, size_px: int = 128) -> SampleSet:
    """Scenes that no training draws, with lq."""
    data = SceneDataModule(degradation=degradation, scale_factor=SCALE_FACTOR, crop_size_px=size_px, eval_samples=count)
    return SampleSet(data.eval_item, data.num_eval())


def photographs(folder: Path | None, count: int, degradation: str, size_px: int = 128) -> SampleSet:
    """Centre crops of the photographs in a folder, or of the shipped ones that no training sees; with lq.

    Raises:
        UsageError: the folder does not exist or holds no image.
    """
    if folder is None:
        settings = {"scale_factor": SCALE_FACTOR, "crop_size_px": size_px, "eval_samples": count}
        data = PhotoDataModule(degradation=degradation, **settings)
        return SampleSet(data.eval_item, data.num_eval())
    source, preset = FolderSource(str(folder)), get_degradation(degradation, SCALE_FACTOR)

    def item(index: int) -> Sample:
        return degrade(center_crop_sample(source.read(index), size_px), preset, EVAL_SEED)

    return SampleSet(item, min(count, len(source)))


def batches(images: SampleSet, title: str) -> Iterator[SRBatch]:
    """One image at a time, with a progress bar. Raises the UsageError or MegaSRError of an image that is unusable."""
    for index in track(range(len(images)), title):
        sample = images[index]
        if isinstance(sample, Exception):
            raise sample
        assert isinstance(sample, Sample)
        yield collate([sample])
