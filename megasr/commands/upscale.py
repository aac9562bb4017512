"""`megasr upscale`: restore photographs."""

from __future__ import annotations

import argparse
import glob
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.errors import MegaSRError, UsageError, printable
from megasr.files import check_page, locked_folder
from megasr.training.folders import SHIPPED, find_checkpoint

if TYPE_CHECKING:
    from megasr.inference.pipeline import MegaSRPipeline
    from megasr.inference.upscale import Job, Outcome, Settings


def add_parser(commands: Any) -> None:
    """Declare `upscale`."""
    parser = commands.add_parser("upscale", help="upscale photographs, folders and globs", description=__doc__)
    parser.add_argument("inputs", nargs="+", metavar="IN", help="a file, a folder or a glob in quotes")
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder; or a file, when IN is one file")
    add_options(parser)
    parser.set_defaults(run=run, passes_options_on=False)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model_options(parser)
    devices = "as torch names them, a process each; default: cuda where there is one, else cpu"
    parser.add_argument("--device", "--devices", metavar="DEVICE[,DEVICE]", help=devices)
    how = parser.add_argument_group("how images are restored")
    preset = "50, 20 or 8 sampling steps; default: the training's sampler"
    how.add_argument("--preset", choices=("quality", "balanced", "fast"), help=preset)
    how.add_argument("--steps", type=int, help="sampling steps; default: the preset's or the training's")
    how.add_argument("--guidance-scale", type=float, help="classifier-free guidance; default: the training's")
    strength = "of guidance types: 1 is as trained, 0 is off; hed=0.5,depth=0"
    how.add_argument("--strength", default="", metavar="TYPE=S[,...]", help=strength)
    how.add_argument("--prompt", "--tags", default="", help="comma-separated words for what the images show")
    how.add_argument("--negative-prompt", help="what they do not; used with a guidance scale that is not 1")
    how.add_argument("--seed", type=int, help="seed of the sampling noise; default: the training's")
    how.add_argument("--scale-factor", type=float, help="size of sr over that of the image; default: the training's")
    colors = "what sr takes from the colours of the image; default: the training's"
    how.add_argument("--color-fix", choices=("none", "adain", "wavelet"), help=colors)
    add_tile_option(how)
    batch = "images of one size at once, tiled ones aside (default: 1)"
    how.add_argument("--batch-size", type=int, default=1, help=batch)
    files = parser.add_argument_group("files")
    formats = "of all outputs; default: each input's own"
    files.add_argument("--format", choices=("png", "jpg", "webp", "tif", "bmp"), help=formats)
    files.add_argument("--overwrite", action="store_true", help="make again what is there, whoever made it")
    files.add_argument("--max-pixels", type=int, help="larger photographs are refused (default: 178956970)")
    files.add_argument("--compare", type=Path, metavar="FILE.html", help="also write a page with a divider for each")
    files.add_argument("--dry-run", action="store_true", help="print what would be done")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Declare which adapter restores, on which prior."""
    checkpoint = f"that `megasr fit` wrote, a folder that `megasr export` wrote, or shipped: {', '.join(SHIPPED)}"
    parser.add_argument("--checkpoint", required=True, help=checkpoint)
    parser.add_argument("--prior", help="`tiny`, `sd21-base`, a diffusers folder or a hub id; default: the training's")


def add_tile_option(parser: Any) -> None:
    """Declare --tile; see MegaSRPipeline.__call__."""
    text = "restore sr that is larger in tiles of so many px; 0: never; default: the size that the prior was trained on"
    parser.add_argument("--tile", type=int, metavar="PX", help=text)


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Check numbers before anything is loaded; --tile may be 0, for whole images.

    Raises:
        UsageError: one is out of range.
    """
    if arguments.tile is not None and arguments.tile < 0:
        raise UsageError(f"--tile is {arguments.tile}, must be greater than 0, or 0 for whole images")
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name.replace('_', '-')} is {value}, must be a number greater than 0")


def run(arguments: argparse.Namespace) -> None:
    """Upscale what is to be done.

    Raises:
        UsageError: an option cannot be used, or an output cannot take its place.
        MegaSRError: the checkpoint or the prior cannot be read, or an image failed; the others are done.
    """
    check_positive(arguments, "steps", "batch_size", "max_pixels", "scale_factor")
    if arguments.compare is not None:
        check_page("--compare", arguments.compare)
    strengths = _strengths(arguments.strength)
    _check_inputs(arguments.inputs)
    find_checkpoint(arguments.checkpoint)
    from megasr.inference.upscale import is_one_file, list_jobs, load_pipeline

    jobs = list_jobs(arguments.inputs, arguments.output, arguments.format and f".{arguments.format}")
    folder = None if is_one_file(arguments.inputs, arguments.output) else arguments.output
    settings = _settings(arguments, strengths, folder)
    if arguments.dry_run:
        plan = _plan(jobs, settings, arguments.overwrite)
        _show_plan(plan, load_pipeline(settings, arguments.device[0]), settings)
        return
    _check_writable(arguments.output.parent if folder is None else folder)
    if arguments.compare is not None:
        _check_writable(arguments.compare.parent)
    with locked_folder(folder) if folder else nullcontext():
        plan = _plan(jobs, settings, arguments.overwrite)
        failed = {outcome.job: outcome.error for outcome in _upscale(plan, settings, arguments) if outcome.error}
    for job, error in failed.items():
        print(printable(f"failed: {job.source}: {error}"), file=sys.stderr)
    if arguments.compare:
        _compare([job for job in jobs if job not in failed], arguments)
    if failed:
        raise MegaSRError(f"{len(failed)} of {len(jobs)} images failed; they are listed above")


def _strengths(text: str) -> dict[str, float]:
    """`hed=0.5,depth=0` -> {"hed": 0.5, "depth": 0.0}; raises UsageError."""
    strengths = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.strip().partition("=")
        if name in strengths:
            raise UsageError(f"--strength names {name} twice")
        try:
            strengths[name] = float(value)
        except ValueError as error:
            raise UsageError(f"--strength {item}: write TYPE=NUMBER, such as hed=0.5") from error
    return strengths


def _check_inputs(inputs: Sequence[str]) -> None:
    """Name inputs that are not there before torch is imported; raises UsageError."""
    from megasr.image_decoding import list_images

    for text in inputs:
        if Path(text).is_dir():
            list_images(text)
        elif not Path(text).exists() and not glob.has_magic(text):
            raise UsageError(f"{text}: no such file or folder")


def _check_writable(folder: Path) -> None:
    """Before hours of work, not after."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MegaSRError(f"cannot write to {folder}: {error.strerror or error}") from error


def _settings(arguments: argparse.Namespace, strengths: dict[str, float], folder: Path | None) -> Settings:
    """How images are restored. Makes a list of arguments.device; raises UsageError when it cannot be used."""
    from megasr import __version__
    from megasr.commands.evaluate import usable_device
    from megasr.files import file_sha256, identify_folder
    from megasr.image_decoding import MAX_PIXELS
    from megasr.inference.upscale import Settings

    names = arguments.device.split(",") if arguments.device else [None]
    # Several are tried by their processes: CUDA, once used here, could not be used in a fork.
    arguments.device = [usable_device(names[0])] if len(names) == 1 else names
    options: dict[str, Any] = {"num_inference_steps": arguments.steps, "guidance": strengths or None}
    for name in ("guidance_scale", "prompt", "negative_prompt", "seed", "tile", "color_fix", "scale_factor", "preset"):
        options[name] = getattr(arguments, name)
    options = {name: value for name, value in options.items() if value is not None}
    checkpoint, identity = Path(arguments.checkpoint), arguments.checkpoint
    if checkpoint.exists():
        identity = identify_folder(checkpoint) if checkpoint.is_dir() else file_sha256(checkpoint)
    described = {"checkpoint": identity, "prior": arguments.prior, "megasr": __version__, **options}
    most = min(arguments.max_pixels or MAX_PIXELS, MAX_PIXELS)
    return Settings(arguments.checkpoint, arguments.prior, options, most, described, folder)


@dataclass(frozen=True)
class _Planned:
    """A job, and what is known before it is done.

    Attributes:
        job: source and target.
        is_done: its output is there, made from the same photograph with the same settings.
        size: (height, width) of the photograph; (0, 0) when its header cannot be read, which its turn will say.
    """

    job: Job
    is_done: bool
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        """Of the photograph: how much work it is."""
        return math.prod(self.size)


def _plan(jobs: Sequence[Job], settings: Settings, overwrite: bool) -> list[_Planned]:
    """Look at every photograph and at what is there already.

    Raises:
        UsageError: a file that something else made is where an output is to go.
    """
    from megasr.images import read_size
    from megasr.inference.upscale import MadeFiles

    record = MadeFiles(settings.folder) if settings.folder and not overwrite else None
    plan, foreign = [], []
    for job in jobs:
        try:
            size = read_size(job.source)
        except MegaSRError:
            size = (0, 0)
        is_done = bool(record and any(size) and record.is_done(job.target, job.source, settings.described))
        plan.append(_Planned(job, is_done, size))
        if record is not None and not is_done and job.target.exists() and record.find(job.target) is None:
            foreign.append(str(job.target))
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise UsageError(
            f"{', '.join(foreign[:3])}{more}: there already, and not as this command made it; "
            "--overwrite replaces it, another output folder keeps it"
        )
    return plan


def _show_plan(plan: Sequence[_Planned], pipeline: MegaSRPipeline, settings: Settings) -> None:
    """Print sizes, tiles and outputs of all files, and the memory of the weights."""
    from megasr.inference.photographs import check_fits
    from megasr.inference.upscale import sr_size, tile_grid

    for planned in plan:
        what = "is done"
        if not planned.pixels:
            what = "cannot be read"
        elif planned.pixels > settings.max_pixels:
            what = f"{_px(planned.size)} px, more than --max-pixels {settings.max_pixels}: refused"
        elif not planned.is_done:
            enlarged = sr_size(pipeline, settings, planned.size)
            try:
                check_fits(planned.job.target, *enlarged)
            except MegaSRError as error:
                print(printable(f"{planned.job.source}: {error}: refused"))
                continue
            tiles = sum(map(len, tile_grid(pipeline, settings, planned.size).groups))
            what = f"{_px(planned.size)} to {_px(enlarged)} px, {tiles} tile{'s' * (tiles > 1)}"
        print(printable(f"{planned.job.source}: {what}; {planned.job.target}"))
    print(f"{len(plan)} images, {sum(not planned.is_done for planned in plan)} to do")
    weights = sum(p.numel() * p.element_size() for p in pipeline.module.parameters())
    print(f"Memory: {weights / 2**30:.2f} GiB for the weights; tiles are halved where the rest does not fit.")


def _px(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _upscale(plan: Sequence[_Planned], settings: Settings, arguments: argparse.Namespace) -> list[Outcome]:
    """Restore what the plan has left, with a bar of its pixels and the time left."""
    from rich.progress import BarColumn, TextColumn

    from megasr.console import progress_bars
    from megasr.files import remove_parts
    from megasr.inference.upscale import restore_all

    left = [planned for planned in plan if not planned.is_done]
    if len(left) < len(plan):
        print(f"{len(plan) - len(left)} of {len(plan)} images are done already", file=sys.stderr)
    for folder in {planned.job.target.parent for planned in left} if settings.folder else ():
        remove_parts(folder)
    if not left:
        return []
    pixels = {planned.job: planned.pixels for planned in left}
    shares: dict[Job, float] = {}  # of the work on every image
    outcomes: list[Outcome] = []
    with progress_bars(BarColumn(), TextColumn("{task.fields[files]} of {task.fields[all]} images")) as advance:

        def on_share(batch: Sequence[Job], share: float) -> None:
            shares.update(dict.fromkeys(batch, share))
            done = int(sum(share * pixels[job] for job, share in shares.items()))
            advance("upscaling", done, sum(pixels.values()), files=len(outcomes), all=len(left))

        def on_speed(pipeline: MegaSRPipeline, speed: float) -> None:
            _say_time([planned.size for planned in left], pipeline, settings, speed)

        batches = _batches(left, arguments.batch_size)
        for outcome in restore_all(batches, settings, arguments.device, on_share, on_speed):
            outcomes.append(outcome)
            on_share([outcome.job], 1.0)
            if outcome.error is None:
                print(printable(str(outcome.job.target)))
    return outcomes


def _say_time(sizes: Sequence[tuple[int, int]], pipeline: MegaSRPipeline, settings: Settings, speed: float) -> None:
    """Say how long a CPU takes, and what is faster."""
    from megasr.inference.pipeline import fixed_steps
    from megasr.inference.upscale import seconds_of

    def total(settings: Settings) -> float:
        return sum(seconds_of(pipeline, settings, size, speed) for size in sizes if all(size))

    seconds, hint = total(settings), ""
    if seconds > 60 and fixed_steps(pipeline.module) is None:
        fast = replace(settings, options={**settings.options, "num_inference_steps": None, "preset": "fast"})
        faster = total(fast)
        hint = f"; with --preset fast about {_duration(faster)}" if faster < seconds else ""
    if seconds >= 10:
        print(f"this takes about {_duration(seconds)} on the CPU{hint}", file=sys.stderr)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _batches(plan: Sequence[_Planned], size: int) -> list[list[Job]]:
    """Images of one size together, at most `size` of them."""
    by_size: dict[object, list[Job]] = {}
    for planned in plan:
        by_size.setdefault(planned.size, []).append(planned.job)
    return [jobs[i : i + size] for jobs in by_size.values() for i in range(0, len(jobs), size)]


def _compare(jobs: Sequence[Job], arguments: argparse.Namespace) -> None:
    """Write the page with a divider between every photograph and its sr."""
    from megasr.evaluation.comparison import Method, write_page
    from megasr.evaluation.evaluator import Evaluation
    from megasr.evaluation.protocol import get_protocol

    if not jobs:
        return
    root = None if arguments.output.is_file() else arguments.output
    keys = [job.target.relative_to(root).as_posix() if root else job.target.name for job in jobs]
    protocol = get_protocol("weight-free-v1")  # nothing is measured: there is no hq
    nothing = Evaluation(protocol.name, protocol.fingerprint, tuple({"key": key} for key in keys), {})
    sr = {key: job.target for key, job in zip(keys, jobs, strict=True)}
    lq = {key: job.source for key, job in zip(keys, jobs, strict=True)}
    try:
        write_page(arguments.compare, [Method("restored", nothing, sr)], lq=lq, webp_quality=90)
    except UsageError as error:
        raise MegaSRError(f"the comparison page could not be made: {error}") from error
    print(arguments.compare)
