"""`megasr upscale`: photographs in files, restored on one or several devices."""

from __future__ import annotations

import glob
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megasr.errors import MegaSRError, UsageError
from megasr.files import file_sha256, remove_parts, write_whole
from megasr.guidance.extract import check_strengths
from megasr.image_decoding import IMAGE_SUFFIXES, MAX_PIXELS, list_images
from megasr.inference.photographs import Photograph, check_fits, encode, read_photograph
from megasr.inference.pipeline import change_sampler, choose_tiling, spread_prompts, tiling_of
from megasr.inference.tiling import Grid, Tiling
from megasr.training.config import SamplerConfig

if TYPE_CHECKING:
    from megasr.inference.pipeline import MegaSRPipeline

MADE_FILE = "upscale.jsonl"
Progress = Callable[[float], None]  # share of the steps that are done, from 0 to 1


@dataclass(frozen=True)
class Job:
    """One image to upscale: the photograph, and the file of sr, whose ending says the format."""

    source: Path
    target: Path

    @property
    def key(self) -> str:
        """Name of the image, to which its sampling noise is keyed, alone or among others."""
        return self.source.stem


@dataclass(frozen=True)
class Outcome:
    """A job that is done, or failed with an error."""

    job: Job
    error: str | None = None


@dataclass(frozen=True)
class Settings:
    """How images are restored.

    Attributes:
        checkpoint: that `megasr fit` wrote, a folder that `megasr export` wrote, or tiny.
        prior: where the prior lies; None takes the one of the training.
        options: arguments of the pipeline's call.
        max_pixels: of a photograph, above which it is refused.
        described: settings that decide how files come out, for the record of the folder.
        folder: that has a record; None keeps none.
    """

    checkpoint: str
    prior: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    max_pixels: int = MAX_PIXELS
    described: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None


def list_jobs(inputs: Sequence[str], output: Path, ending: str | None = None) -> list[Job]:
    """Input files and where each goes.

    The tree of a folder is kept, and an output folder inside it is left alone; files and matches of a glob go directly
    into the folder `output`. Every file keeps its format, or becomes a PNG where it is of one that cannot be written.

    Args:
        inputs: files, folders and globs (with ** for folders in folders).
        output: a folder; or a file, when the input is one file.
        ending: `.png` or another of IMAGE_SUFFIXES to write all files as that; None keeps the formats.

    Raises:
        UsageError: nothing to read, an output of an unknown format, one output of two inputs, or one that is an input.
    """
    files = [pair for text in inputs for pair in _expand(text, output)]
    if is_one_file(inputs, output):
        if output.suffix.lower() not in IMAGE_SUFFIXES:
            raise UsageError(f"{output}: must end in one of {' '.join(IMAGE_SUFFIXES)}, or be a folder that is there")
        jobs = [Job(files[0][0], output)]
    elif output.is_file():
        raise UsageError(f"{output} is a file; to upscale more than one image, name a folder")
    else:
        jobs = []
        for source, inside in files:
            kept = inside.suffix if inside.suffix.lower() in IMAGE_SUFFIXES else ".png"
            jobs.append(Job(source, output / inside.with_suffix(ending or kept)))
    sources, taken = {job.source.resolve() for job in jobs}, dict[Path, Path]()
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise UsageError(f"{job.target} would be written over an image that is to be upscaled: name another output")
        if taken.get(target) == job.source:
            raise UsageError(f"{job.source} is named twice")
        if target in taken:
            raise UsageError(f"{taken[target]} and {job.source} would both be written to {job.target}: rename one")
        taken[target] = job.source
    return jobs


def is_one_file(inputs: Sequence[str], output: Path) -> bool:
    """True when one file is to become one file; else the output is a folder."""
    return len(inputs) == 1 and Path(inputs[0]).is_file() and bool(output.suffix) and not output.is_dir()


def _expand(text: str, output: Path) -> list[tuple[Path, Path]]:
    """(file, its path inside the output) of an input; images inside the output folder are left out."""
    path = Path(text)
    if path.is_dir():
        images = list_images(path)
        if path.resolve() in output.resolve().parents:
            images = [image for image in images if output.resolve() not in image.resolve().parents]
        return [(image, image.relative_to(path)) for image in images]
    if path.exists():
        return [(path, Path(path.name))]
    if not glob.has_magic(text):
        raise UsageError(f"{text}: no such file or folder")
    matches = [Path(name) for name in sorted(glob.glob(text, recursive=True))]
    images = [image for image in matches if image.suffix.lower() in IMAGE_SUFFIXES and image.is_file()]
    if not images:
        raise UsageError(f"{text}: matches no image ({' '.join(IMAGE_SUFFIXES)})")
    return [(image, Path(image.name)) for image in images]


_MADE = {"name", "content", "source", "settings"}


class MadeFiles:
    """The record of a folder, a JSON line per file of sr: interrupted runs go on, foreign files are not overwritten.

    A line holds the file's name, the sha256 of its content and of its photograph (source), and the settings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / MADE_FILE

    @cached_property
    def _known(self) -> list[dict[str, Any]]:
        lines = self._path.read_text(errors="replace").splitlines() if self._path.is_file() else []
        known = []
        for line in lines:
            with suppress(ValueError):  # cut short by a crash
                known.append(json.loads(line))
        return [line for line in known if isinstance(line, dict) and line.keys() >= _MADE]

    def add(self, target: Path, content: bytes, source: bytes, settings: dict[str, Any]) -> None:
        """Record a file that is about to be written.

        Raises:
            MegaSRError: the record cannot be written to.
        """
        record = {
            "name": target.relative_to(self.folder).as_posix(),
            "content": hashlib.sha256(content).hexdigest(),
            "source": hashlib.sha256(source).hexdigest(),
            "settings": settings,
        }
        try:
            with self._path.open("a") as file:  # one short write: processes of several devices do not mix
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise MegaSRError(f"cannot write {self._path}: {error.strerror or error}") from error

    def find(self, target: Path) -> dict[str, Any] | None:
        """The line of the file that is there now; None for one that this program did not make, or that changed."""
        name = target.relative_to(self.folder).as_posix()
        lines = [line for line in self._known if line["name"] == name] if target.is_file() else []
        content = file_sha256(target) if lines else None
        return next((line for line in reversed(lines) if line["content"] == content), None)

    def is_done(self, target: Path, source: Path, settings: dict[str, Any]) -> bool:
        """True when the target was made from this very photograph with the same settings."""
        line = self.find(target)
        return line is not None and line["settings"] == settings and line["source"] == file_sha256(source)


def no_progress(share: float) -> None:
    """Report nothing."""


def step_callback(progress: Progress) -> Callable[..., None]:
    """A callback_on_step_end that reports to `progress`; the share follows from the timesteps, which fall to 0."""
    first = 0

    def callback(pipeline: Any, step: int, timestep: int, latents: dict[str, Any]) -> None:
        nonlocal first
        first = first or timestep
        progress(1 - timestep / max(first, 1))

    return callback


def load_pipeline(settings: Settings, device: str) -> MegaSRPipeline:
    """The pipeline of a checkpoint or of an exported folder, and a check of the options that every image shares.

    Raises:
        UsageError: an option cannot be used with this adapter.
        MegaSRError: the adapter or the prior is missing, or they do not belong together.
    """
    from megasr.inference.pipeline import MegaSRPipeline

    if Path(settings.checkpoint).is_dir():
        pipeline = MegaSRPipeline.from_pretrained(settings.checkpoint, prior=settings.prior).to(device)
    else:
        pipeline = MegaSRPipeline.from_checkpoint(settings.checkpoint, prior=settings.prior, device=device)
    options, module = settings.options, pipeline.module
    _sampler_of(pipeline, settings)
    check_strengths(options.get("guidance") or {}, dict.fromkeys(pipeline.guidance, 1.0))
    spread_prompts(options.get("prompt", ""), 1, module.adapter.text)
    choose_tiling(options.get("tile"), None, module.prior.native_px)
    return pipeline


def sr_size(pipeline: MegaSRPipeline, settings: Settings, size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of sr of a photograph of that size."""
    scale = settings.options.get("scale_factor") or pipeline.scale_factor
    return round(size[0] * scale), round(size[1] * scale)


def tile_grid(pipeline: MegaSRPipeline, settings: Settings, size: Sequence[int]) -> Grid:
    """The tiles of sr of a photograph of a size (height, width)."""
    multiple = pipeline.module.prior.size_multiple
    height, width = (side + -side % multiple for side in sr_size(pipeline, settings, size))
    tiling = tiling_for(pipeline, settings, size)
    return Grid.whole(height, width) if tiling is None else tiling.grid(height, width, multiple)


def _sampler_of(pipeline: MegaSRPipeline, settings: Settings) -> SamplerConfig:
    """The sampler with the options. Raises as change_sampler."""
    names = ("num_inference_steps", "preset", "guidance_scale", "negative_prompt", "color_fix")
    return change_sampler(pipeline.module, *(settings.options.get(name) for name in names))


def seconds_of(pipeline: MegaSRPipeline, settings: Settings, size: Sequence[int], speed: float) -> float:
    """About how long the steps of a photograph take, by what OnSpeed is given."""
    sampler = _sampler_of(pipeline, settings)
    low, high = sampler.guidance_interval or (0.0, 1.0)
    halves = 1 + (high - low) * (sampler.guidance_scale != 1)  # of classifier-free guidance
    grid = tile_grid(pipeline, settings, size)
    px = grid.rows.extent * grid.columns.extent * len(grid.rows.starts) * len(grid.columns.starts)
    return speed * px * halves * sampler.num_steps


def tiling_for(pipeline: MegaSRPipeline, settings: Settings, size: Sequence[int]) -> Tiling | None:
    """The tiles of sr of a photograph of a size (height, width); None where it is restored as a whole."""
    tiling = choose_tiling(settings.options.get("tile"), None, pipeline.module.prior.native_px)
    return tiling_of(tiling, size, settings.options.get("scale_factor") or pipeline.scale_factor)


def restore_files(
    pipeline: MegaSRPipeline, jobs: Sequence[Job], settings: Settings, progress: Progress = no_progress
) -> list[Outcome]:
    """Restore a batch of files of one size. An image that fails is an outcome with an error; the rest goes on."""
    outcomes, read = [], []
    for job in jobs:
        try:
            photograph = read_photograph(job.source, settings.max_pixels)
            check_fits(job.target, *sr_size(pipeline, settings, photograph.pixels.shape[:2]))
            read.append((job, photograph))
        except MegaSRError as error:
            outcomes.append(Outcome(job, str(error)))
    if not read:
        return outcomes
    size = read[0][1].pixels.shape[:2]
    tiling = tiling_for(pipeline, settings, size)
    images: Sequence[torch.Tensor] | None = None
    if len(read) == 1 or tiling is None:  # many tiles: one by one, each written as soon as it is done
        try:
            at_once = tiling.size if tiling else max(sr_size(pipeline, settings, size))
            images = _restore(pipeline, read, settings.options, at_once, progress)
        except Exception as error:  # whatever it is: there may be thousands of images left
            if len(read) == 1:
                return [*outcomes, Outcome(read[0][0], _message(error))]
    if images is not None:
        return outcomes + [_write(job, sr, image, settings) for (job, image), sr in zip(read, images, strict=True)]
    for number, (job, _) in enumerate(read):

        def of_all(share: float, number: int = number) -> None:
            progress((number + share) / len(read))

        outcomes += restore_files(pipeline, [job], settings, of_all)
    return outcomes


def _restore(
    pipeline: MegaSRPipeline,
    read: list[tuple[Job, Photograph]],
    options: dict[str, Any],
    at_once: int,
    progress: Progress,
) -> Sequence[torch.Tensor]:
    """sr of photographs; a single one that does not fit into memory is restored in smaller and smaller tiles.

    Args:
        at_once: px of the longer side of what is restored at once.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    lq = [photograph.tensor() for _, photograph in read]
    while True:
        try:
            return pipeline(
                lq,
                keys=[job.key for job, _ in read],
                output_type="pt",
                callback_on_step_end=step_callback(progress),
                **options,
            ).images
        except Exception as error:
            at_once //= 2
            no_memory = isinstance(error, MemoryError) or should_reduce_batch_size(error)
            if not no_memory or len(read) > 1 or at_once < _SMALLEST_TILE_PX:
                raise
        clear_device_cache(garbage_collection=True)
        warnings.warn(f"{read[0][0].source}: not enough memory, going on with --tile {at_once}", stacklevel=2)
        options = {**options, "tile": at_once}


_SMALLEST_TILE_PX = 128


def _write(job: Job, sr: torch.Tensor, photograph: Photograph, settings: Settings) -> Outcome:
    try:
        content = encode(sr, photograph, job.target)
        if settings.folder is not None:
            MadeFiles(settings.folder).add(job.target, content, job.source.read_bytes(), settings.described)
        write_whole(job.target, content)
    except (MegaSRError, OSError) as error:
        return Outcome(job, str(error))
    return Outcome(job)


def _message(error: Exception) -> str:
    if isinstance(error, MegaSRError | UsageError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "not enough memory, even in small tiles"
    return f"{type(error).__name__}: {error}"


Batch = Sequence[Job]
OnSpeed = Callable[["MegaSRPipeline", float], None]  # a pipeline, and its seconds per step and px of sr in tiles
OnShare = Callable[[Batch, float], None]  # a batch, and the share of it that is done


def restore_all(
    batches: Sequence[Batch],
    settings: Settings,
    devices: Sequence[str],
    on_share: OnShare,
    on_speed: OnSpeed | None = None,
) -> Iterator[Outcome]:
    """Restore all batches on all devices and yield the outcome of every file, as it happens.

    One device is used in this process; several, as torch names them, have a process each, and then `on_share` is called
    only when a batch begins. On one CPU `on_speed` is called once, after the first tiles.

    Raises:
        UsageError, MegaSRError: the pipeline cannot be loaded.
    """
    if len(devices) > 1 and len(batches) > 1:
        try:
            yield from _restore_in_processes(list(batches), settings, devices[: len(batches)], on_share)
        finally:
            for folder in {job.target.parent for batch in batches for job in batch}:
                remove_parts(folder)  # of processes that were stopped
        return
    pipeline = load_pipeline(settings, devices[0])
    if on_speed is not None and devices[0] == "cpu":
        _measure_speed(pipeline, on_speed)
    for batch in batches:
        yield from restore_files(pipeline, batch, settings, partial(on_share, batch))


def _measure_speed(pipeline: MegaSRPipeline, on_speed: OnSpeed) -> None:
    """Call `on_speed` with the time from the end of the network's first call, which warms up, to that of the second."""
    ends: list[float] = []
    area = pipeline.module.prior.downsampling**2

    def on_call(network: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        ends.append(time.perf_counter())
        if len(ends) == 2:
            hook.remove()
            px = len(output) * output.shape[-2] * output.shape[-1] * area
            on_speed(pipeline, (ends[1] - ends[0]) / px)

    hook = pipeline.module.network.register_forward_hook(on_call)


def _restore_in_processes(
    waiting: list[Batch], settings: Settings, devices: Sequence[str], on_share: OnShare
) -> Iterator[Outcome]:
    """One process per device, each a pool of its own: one that dies takes its batch and its device, no other."""
    import megasr.inference.pipeline  # noqa: F401  once, before the forks

    sys.stdout.flush()
    others, context = set(multiprocessing.active_children()), multiprocessing.get_context("fork")
    pools = {ProcessPoolExecutor(1, context, _start, (settings, d, len(devices))): d for d in devices}
    idle, running = list(pools), dict[Future[list[Outcome]], tuple[ProcessPoolExecutor, Batch]]()
    try:
        while (waiting and idle) or running:
            while waiting and idle:
                pool, batch = idle.pop(0), waiting.pop(0)
                running[pool.submit(_work, batch)] = pool, batch
                on_share(batch, 0.0)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                pool, batch = running.pop(future)
                try:
                    yield from future.result()
                    idle.append(pool)
                except BrokenProcessPool:
                    yield from (Outcome(job, f"the process of {pools[pool]} died (out of memory?)") for job in batch)
        yield from (Outcome(job, "no device is left: all processes died") for batch in waiting for job in batch)
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}  # of a worker process: settings, device, pipeline


def _start(settings: Settings, device: str, sharing: int) -> None:
    _worker.update(settings=settings, device=device)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's affair, which then terminates
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once: an exception would wait for what torch computes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // sharing))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(batch: Batch) -> list[Outcome]:
    if "pipeline" not in _worker:
        _worker["pipeline"] = load_pipeline(_worker["settings"], _worker["device"])
    return restore_files(_worker["pipeline"], batch, _worker["settings"])
