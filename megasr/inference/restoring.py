"""Files in, files out: reads photographs, restores them with a pipeline and writes sr; one bad file harms no other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megasr.errors import MegaSRError, UsageError
from megasr.files import write_whole
from megasr.guidance.strengths import check_strengths
from megasr.image_decoding import MAX_PIXELS
from megasr.inference.arguments import change_sampler, choose_tile, choose_tiling, spread_prompts
from megasr.inference.color import check_color_fix
from megasr.inference.encoding import check_fits, encode
from megasr.inference.jobs import Job
from megasr.inference.made import MadeFiles
from megasr.inference.photograph import Photograph, read_photograph
from megasr.inference.progress import Progress, no_progress, tell_share

if TYPE_CHECKING:
    from megasr.inference.pipeline import MegaSRPipeline


@dataclass(frozen=True)
class Settings:
    """How images are restored.

    Attributes:
        checkpoint: that `megasr fit` wrote, a folder that `megasr export` wrote, or tiny.
        prior: where the prior lies; None takes the one of the training.
        options: arguments of the pipeline's call.
        max_pixels: of a photograph, above which it is refused.
        described: what decides how files come out, for the record of the folder.
        folder: that has a record; None keeps none.
    """

    checkpoint: str
    prior: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS
    described: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: done when there is no error."""

    job: Job
    error: str | None = None


def load_pipeline(settings: Settings, device: str) -> MegaSRPipeline:
    """The pipeline of a checkpoint or of an exported folder.

    Raises:
        UsageError: an option cannot be used with this adapter.
        MegaSRError: the adapter or the prior is missing, or they do not belong together.
    """
    from megasr.inference.pipeline import MegaSRPipeline

    if Path(settings.checkpoint).is_dir():
        pipeline = MegaSRPipeline.from_pretrained(settings.checkpoint, prior=settings.prior).to(device)
    else:
        pipeline = MegaSRPipeline.from_checkpoint(settings.checkpoint, prior=settings.prior, device=device)
    _check_options(pipeline, settings.options)
    return pipeline


def _check_options(pipeline: MegaSRPipeline, options: dict[str, Any]) -> None:
    """Refuse once, before anything is restored, what every image would fail for."""
    names = ("num_inference_steps", "preset", "guidance_scale", "negative_prompt")
    change_sampler(pipeline.module.sampler, *(options.get(name) for name in names))
    check_strengths(options.get("guidance") or {}, dict.fromkeys(pipeline.guidance, 1.0))
    check_color_fix(options.get("color_fix"))
    spread_prompts(options.get("prompt", ""), 1, pipeline.module.adapter.text)
    choose_tiling(options.get("tile") or None, None)


def restore_files(
    pipeline: MegaSRPipeline, jobs: Sequence[Job], settings: Settings, progress: Progress = no_progress
) -> list[Outcome]:
    """Restore a batch of files. What goes wrong with one is said in its outcome; the rest goes on."""
    outcomes, read = [], []
    for job in jobs:
        try:
            photograph = read_photograph(job.source, settings.max_pixels)
            check_fits(job.target, *sr_size(pipeline, settings, photograph.pixels.shape[:2]))
            read.append((job, photograph))
        except MegaSRError as error:
            outcomes.append(Outcome(job, str(error)))
    return outcomes + (_restore_read(pipeline, read, settings, progress) if read else [])


def _restore_read(
    pipeline: MegaSRPipeline, read: list[tuple[Job, Photograph]], settings: Settings, progress: Progress
) -> list[Outcome]:
    options = options_for(pipeline, settings, read[0][1].pixels.shape[:2])
    if len(read) > 1 and "tile" in options:  # each is many tiles, and is to be there as soon as it is done
        return _restore_one_by_one(pipeline, read, settings, progress)
    try:
        images = _restore(pipeline, read, options, progress)
    except Exception as error:  # whatever it is: there may be thousands of images left
        if len(read) > 1:  # one of them may be at fault
            return _restore_one_by_one(pipeline, read, settings, progress)
        return [Outcome(read[0][0], _say(error))]
    return [_write(job, sr, photograph, settings) for (job, photograph), sr in zip(read, images, strict=True)]


def _restore_one_by_one(
    pipeline: MegaSRPipeline, read: list[tuple[Job, Photograph]], settings: Settings, progress: Progress
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for number, pair in enumerate(read):

        def of_all(share: float, number: int = number) -> None:
            progress((number + share) / len(read))

        outcomes += _restore_read(pipeline, [pair], settings, of_all)
    return outcomes


def sr_size(pipeline: MegaSRPipeline, settings: Settings, size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of sr of a photograph of that size."""
    scale = settings.options.get("scale_factor") or pipeline.scale_factor
    height, width = (round(side * scale) for side in size)
    return height, width


def options_for(pipeline: MegaSRPipeline, settings: Settings, size: Sequence[int]) -> dict[str, Any]:
    """The pipeline's options for photographs of a size (height, width): only what is larger than a tile is in tiles."""
    options = dict(settings.options)
    scale = options.get("scale_factor", pipeline.scale_factor)
    tile = choose_tile(options.pop("tile", None), pipeline.module.prior.native_px)
    if tile is not None and max(size) * scale > tile:
        options["tile"] = tile
    return options


def _restore(
    pipeline: MegaSRPipeline, read: list[tuple[Job, Photograph]], options: dict[str, Any], progress: Progress
) -> Sequence[torch.Tensor]:
    return pipeline(
        [photograph.tensor() for _, photograph in read],
        keys=[job.key for job, _ in read],
        output_type="pt",
        callback_on_step_end=tell_share(progress),
        **options,
    ).images


def _write(job: Job, sr: torch.Tensor, photograph: Photograph, settings: Settings) -> Outcome:
    try:
        content = encode(sr, photograph, job.target)
        if settings.folder is not None:
            source = hashlib.sha256(job.source.read_bytes()).hexdigest()
            digest = hashlib.sha256(content).hexdigest()
            MadeFiles(settings.folder).add(job.target, digest, source, settings.described)
        write_whole(job.target, content)
    except (MegaSRError, OSError) as error:
        return Outcome(job, str(error))
    return Outcome(job)


def _say(error: Exception) -> str:
    if isinstance(error, MegaSRError | UsageError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "not enough memory: lower --batch-size, or restore in tiles with --tile"
    return f"{type(error).__name__}: {error}"
