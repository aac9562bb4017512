"""`megasr upscale IN [IN ...] OUT`: photographs, folders and globs, upscaled with a trained adapter.

Every file keeps its format, metadata, alpha and depth. A folder that was interrupted goes on where it was; what was
made from the same photograph with the same settings is not made again. Files that fail are listed at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.commands.upscale_options import add_options, check_options, make_settings
from megasr.errors import MegaSRError, UsageError, printable
from megasr.training.folders import find_checkpoint

if TYPE_CHECKING:
    from megasr.commands.upscale_plan import Planned
    from megasr.inference.jobs import Job
    from megasr.inference.restoring import Outcome, Settings


def add_parser(commands: Any) -> None:
    """Declare `upscale`."""
    parser = commands.add_parser("upscale", help="upscale photographs, folders and globs", description=__doc__)
    parser.add_argument("inputs", nargs="+", metavar="IN", help="a file, a folder or a glob in quotes")
    parser.add_argument("output", type=Path, metavar="OUT", help="a folder; or a file, when IN is one file")
    add_options(parser)
    parser.set_defaults(run=run, passes_options_on=False)


def run(arguments: argparse.Namespace) -> None:
    """Upscale what is to be done.

    Raises:
        UsageError: an option cannot be used, or an output cannot take its place.
        MegaSRError: the checkpoint or the prior cannot be read, or an image failed; the others are done.
    """
    check_options(arguments)
    from megasr.inference.jobs import is_one_file, list_jobs

    jobs = list_jobs(arguments.inputs, arguments.output, arguments.format and f".{arguments.format}")
    find_checkpoint(arguments.checkpoint)
    from megasr.commands.upscale_plan import make_plan, show_plan
    from megasr.files import locked_folder
    from megasr.inference.restoring import load_pipeline

    folder = None if is_one_file(arguments.inputs, arguments.output) else arguments.output
    settings = make_settings(arguments, folder)
    if arguments.dry_run:
        plan = make_plan(jobs, settings, arguments.overwrite)
        show_plan(plan, load_pipeline(settings, arguments.device[0]), settings, arguments.batch_size)
        return
    _check_writable(arguments.output.parent if folder is None else folder)
    with locked_folder(folder) if folder else nullcontext():
        plan = make_plan(jobs, settings, arguments.overwrite)
        outcomes = _upscale(plan, settings, arguments)
    failed = {outcome.job: outcome.error for outcome in outcomes if outcome.error}
    if arguments.compare:
        _compare([job for job in jobs if job not in failed], arguments)
    for job, error in failed.items():
        print(printable(f"failed: {job.source}: {error}"), file=sys.stderr)
    if failed:
        raise MegaSRError(f"{len(failed)} of {len(jobs)} images failed; they are listed above")


def _check_writable(folder: Path) -> None:
    """Before hours of work, not after."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MegaSRError(f"cannot write to {folder}: {error.strerror or error}") from error


def _upscale(plan: Sequence[Planned], settings: Settings, arguments: argparse.Namespace) -> list[Outcome]:
    """Restore what the plan has left, with a bar of its pixels and the time left."""
    from rich.progress import BarColumn, TextColumn

    from megasr.files import remove_parts
    from megasr.inference.workers import restore_all
    from megasr.progress import progress_bars

    left = [planned for planned in plan if not planned.is_done]
    if len(left) < len(plan):
        print(f"{len(plan) - len(left)} of {len(plan)} images are done already", file=sys.stderr)
    for folder in {planned.job.target.parent for planned in left} if settings.folder else ():
        remove_parts(folder)
    if not left:
        return []
    pixels = {planned.job: planned.pixels for planned in left}
    batches = _batches(left, arguments.batch_size)
    done = 0.0
    outcomes: list[Outcome] = []
    going: dict[Job, float] = {}  # pixels of what is being restored, on any device
    count = TextColumn("{task.fields[files]} of {task.fields[all]} images")
    with progress_bars(BarColumn(), count) as advance:

        def show() -> None:
            so_far = int(done + sum(going.values()))
            advance("upscaling", so_far, sum(pixels.values()), files=len(outcomes), all=len(left))

        def on_share(batch: Sequence[Job], share: float) -> None:
            going.update({job: share * pixels[job] for job in batch})
            show()

        for outcome in restore_all(batches, settings, arguments.device, on_share):
            outcomes.append(outcome)
            going.pop(outcome.job, None)
            done += pixels[outcome.job]
            show()
            if outcome.error is None:
                print(printable(str(outcome.job.target)))
    return outcomes


def _batches(plan: Sequence[Planned], size: int) -> list[list[Job]]:
    """Images of one size together, at most `size` of them."""
    by_size: dict[object, list[Job]] = {}
    for planned in plan:
        by_size.setdefault(planned.size, []).append(planned.job)
    return [jobs[i : i + size] for jobs in by_size.values() for i in range(0, len(jobs), size)]


def _compare(jobs: Sequence[Job], arguments: argparse.Namespace) -> None:
    """The page with a divider between every photograph and its sr."""
    from megasr.evaluation.comparison.page import Method, write_page
    from megasr.evaluation.protocol import get_protocol
    from megasr.evaluation.result import Evaluation

    if not jobs:
        return
    root = None if arguments.output.is_file() else arguments.output
    keys = {job: job.target.relative_to(root).as_posix() if root else job.target.name for job in jobs}
    protocol = get_protocol("weight-free-v1")  # nothing is measured: there is no hq
    nothing = Evaluation(protocol.name, protocol.fingerprint, tuple({"key": key} for key in keys.values()), {})
    sr, lq = ({keys[job]: path for job, path in pairs} for pairs in _files(jobs))
    try:
        write_page(arguments.compare, [Method("restored", nothing, sr)], lq=lq, webp_quality=90)
    except UsageError as error:
        raise MegaSRError(f"the comparison page could not be made: {error}") from error
    print(arguments.compare)


def _files(jobs: Sequence[Job]) -> tuple[list[tuple[Job, Path]], list[tuple[Job, Path]]]:
    return [(job, job.target) for job in jobs], [(job, job.source) for job in jobs]
