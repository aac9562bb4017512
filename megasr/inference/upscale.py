"""`megasr upscale`: a queue of photographs over one or several devices."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megasr.errors import MegaSRError, UsageError
from megasr.files import file_sha256, remove_parts, write_whole
from megasr.guidance.extract import check_strengths
from megasr.image_decoding import IMAGE_SUFFIXES, MAX_PIXELS, list_images
from megasr.inference.color import check_color_fix
from megasr.inference.photographs import Photograph, check_fits, encode, read_photograph
from megasr.inference.pipeline import change_sampler, choose_tile, choose_tiling, spread_prompts

if TYPE_CHECKING:
    from megasr.inference.pipeline import MegaSRPipeline


@dataclass(frozen=True)
class Job:
    """One image to upscale.

    Attributes:
        source: the photograph.
        target: the file of sr; its ending says the format.
    """

    source: Path
    target: Path

    @property
    def key(self) -> str:
        """Names the image; its sampling noise is keyed by it, alone or among others."""
        return self.source.stem


def list_jobs(inputs: Sequence[str], output: Path, ending: str | None = None) -> list[Job]:
    """What the inputs are, and where each goes.

    The tree of a folder is kept, and an output folder inside it is left alone; files and what a glob finds go directly
    into the folder `output`. Every file keeps its format, or becomes a PNG where it is of one that cannot be written.

    Args:
        inputs: files, folders and globs (with ** for folders in folders).
        output: a folder; or a file, when the input is one file.
        ending: `.png` or another of IMAGE_SUFFIXES to write all files as that; None keeps the formats.

    Raises:
        UsageError: nothing to read, an output of an unknown format, one output of two inputs, or one that is an input.
    """
    found = [pair for text in inputs for pair in _expand(text, output)]
    if is_one_file(inputs, output):
        if output.suffix.lower() not in IMAGE_SUFFIXES:
            raise UsageError(f"{output}: must end in one of {' '.join(IMAGE_SUFFIXES)}, or be a folder that is there")
        jobs = [Job(found[0][0], output)]
    elif output.is_file():
        raise UsageError(f"{output} is a file; to upscale more than one image, name a folder")
    else:
        jobs = [Job(source, output / _with_ending(inside, ending)) for source, inside in found]
    _check_targets(jobs)
    return jobs


def is_one_file(inputs: Sequence[str], output: Path) -> bool:
    """True when one file is to become one file; else the output is a folder."""
    return len(inputs) == 1 and Path(inputs[0]).is_file() and bool(output.suffix) and not output.is_dir()


def _expand(text: str, output: Path) -> list[tuple[Path, Path]]:
    """(file, its path inside the output) of what was typed. An output inside a folder is none of its images."""
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
    found = [Path(name) for name in sorted(glob.glob(text, recursive=True))]
    images = [image for image in found if image.suffix.lower() in IMAGE_SUFFIXES and image.is_file()]
    if not images:
        raise UsageError(f"{text}: matches no image ({' '.join(IMAGE_SUFFIXES)})")
    return [(image, Path(image.name)) for image in images]


def _with_ending(inside: Path, ending: str | None) -> Path:
    if ending is not None:
        return inside.with_suffix(ending)
    return inside if inside.suffix.lower() in IMAGE_SUFFIXES else inside.with_suffix(".png")


def _check_targets(jobs: Sequence[Job]) -> None:
    sources = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in sources:
            raise UsageError(f"{job.target} would be written over an image that is to be upscaled: name another output")
        if target in taken:
            raise UsageError(f"{taken[target]} and {job.source} would both be written to {job.target}: rename one")
        taken[target] = job.source


MADE_FILE = "upscale.jsonl"


@dataclass(frozen=True)
class Made:
    """One file of sr.

    Attributes:
        name: its path in the folder.
        content: sha256 of it.
        source: sha256 of the photograph.
        settings: what decides how it comes out.
    """

    name: str
    content: str
    source: str
    settings: dict[str, Any]


class MadeFiles:
    """The record of a folder.

    Args:
        folder: holds the files of sr.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._path = folder, folder / MADE_FILE

    @cached_property
    def _known(self) -> dict[str, list[Made]]:
        known: dict[str, list[Made]] = {}
        for line in self._path.read_text().splitlines() if self._path.is_file() else []:
            try:
                made = Made(**json.loads(line))
            except (ValueError, TypeError):
                continue  # cut short by a crash
            known.setdefault(made.name, []).append(made)
        return known

    def add(self, target: Path, content: str, source: str, settings: dict[str, Any]) -> None:
        """Write down a file that is about to be written.

        Raises:
            MegaSRError: the record cannot be written to.
        """
        made = Made(self._name(target), content, source, settings)
        try:
            with self._path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # the processes of several devices write to it
                file.write(json.dumps(asdict(made)) + "\n")
        except OSError as error:
            raise MegaSRError(f"cannot write {self._path}: {error.strerror or error}") from error

    def find(self, target: Path) -> Made | None:
        """How the file came about that is there now; None for one that this program did not make, or that changed."""
        candidates = self._known.get(self._name(target))
        if not candidates or not target.is_file():
            return None
        content = file_sha256(target)
        return next((made for made in reversed(candidates) if made.content == content), None)

    def is_done(self, target: Path, source: Path, settings: dict[str, Any]) -> bool:
        """True when the target was made from this very photograph with the same settings."""
        made = self.find(target)
        return made is not None and made.settings == settings and made.source == file_sha256(source)

    def _name(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()


Progress = Callable[[float], None]  # the share of the steps that is done, from 0 to 1


def no_progress(share: float) -> None:
    """Nobody wants to know."""


def tell_share(progress: Progress) -> Callable[..., None]:
    """A callback_on_step_end that tells `progress`. Timesteps fall to 0: it need not know how many there are."""
    first = 0

    def callback(pipeline: Any, step: int, timestep: int, latents: dict[str, Any]) -> None:
        nonlocal first
        first = first or timestep
        progress(1 - timestep / max(first, 1))

    return callback


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


Batch = Sequence[Job]
OnShare = Callable[[Batch, float], None]  # a batch, and the share of it that is done
_PATIENCE_S = 10.0
_ERRORS = {"UsageError": UsageError, "MegaSRError": MegaSRError}


def restore_all(
    batches: Sequence[Batch], settings: Settings, devices: Sequence[str], on_share: OnShare
) -> Iterator[Outcome]:
    """Restore all batches on all devices and yield what becomes of every file, as it happens.

    Args:
        batches: what is restored together.
        settings: how.
        devices: as torch names them; one is used in this process. cpu may be named more than once.
        on_share: called as a batch goes on.

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
    for batch in batches:

        def progress(share: float, batch: Batch = batch) -> None:
            on_share(batch, share)

        yield from restore_files(pipeline, batch, settings, progress)


@dataclass
class _Worker:
    device: str
    process: Any
    line: Connection
    batch: Batch | None = None


def _restore_in_processes(
    waiting: list[Batch], settings: Settings, devices: Sequence[str], on_share: OnShare
) -> Iterator[Outcome]:
    import megasr.inference.pipeline  # noqa: F401  once, before the forks

    workers: list[_Worker] = []
    try:
        for device in devices:
            workers.append(_start(device, settings, len(devices), [worker.line for worker in workers]))
        while workers:
            for worker in _heard_of(workers):
                try:
                    kind, content = worker.line.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    yield from _lost(worker)
                    continue
                if kind == "share":
                    on_share(worker.batch or (), content)
                    continue
                if kind == "failed":
                    raise _ERRORS[content[0]](content[1])
                if kind == "done":
                    yield from content
                worker.batch = waiting.pop(0) if waiting else None
                worker.line.send(worker.batch)
                if worker.batch is None:
                    workers.remove(worker)
                    worker.process.join()
        for batch in waiting:  # nobody is left
            yield from (Outcome(job, "no device is left: all processes died") for job in batch)
    finally:
        _stop(workers)


def _start(device: str, settings: Settings, sharing: int, others: Sequence[Connection]) -> _Worker:
    context: Any = multiprocessing.get_context("fork")
    line, far = context.Pipe()
    process = context.Process(target=_work, args=(device, settings, sharing, far, [line, *others]), daemon=True)
    sys.stdout.flush()
    process.start()
    far.close()
    return _Worker(device, process, line)


def _heard_of(workers: Sequence[_Worker]) -> list[_Worker]:
    ready = wait([worker.line for worker in workers])
    return [worker for worker in workers if worker.line in ready]


def _lost(worker: _Worker) -> Iterator[Outcome]:
    worker.process.join()
    code = worker.process.exitcode
    how = f"was killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"
    for job in worker.batch or ():
        yield Outcome(job, f"the process of {worker.device} {how}")


def _stop(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_PATIENCE_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(device: str, settings: Settings, sharing: int, line: Connection, others: Sequence[Connection]) -> None:
    for other in others:  # copies of the parent's ends: with these open, nobody would notice that it died
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair, which then terminates
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once: an exception would wait for what torch computes
    if device == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // sharing))
    try:
        pipeline = load_pipeline(settings, device)
        line.send(("ready", None))
        with suppress(EOFError):  # the parent died
            while (batch := line.recv()) is not None:
                line.send(("done", restore_files(pipeline, batch, settings, _share_through(line))))
    except (UsageError, MegaSRError) as error:
        line.send(("failed", (type(error).__name__, str(error))))
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        line.send(("failed", ("UsageError", f"--devices: {device} cannot be used: {str(error).splitlines()[0]}")))


def _share_through(line: Connection) -> Progress:
    return lambda share: line.send(("share", share))
