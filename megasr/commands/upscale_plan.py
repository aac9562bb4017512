"""What `megasr upscale` is going to do with every image, and what `--dry-run` prints of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megasr.errors import MegaSRError, UsageError, printable

if TYPE_CHECKING:
    from megasr.inference.jobs import Job
    from megasr.inference.pipeline import MegaSRPipeline
    from megasr.inference.restoring import Settings


@dataclass(frozen=True)
class Planned:
    """A job, and what is known before it is done.

    Attributes:
        job: source and target.
        is_done: its output is there, made from the same photograph with the same settings.
        size: (height, width) of the photograph; None when its header cannot be read, which its turn will say.
    """

    job: Job
    is_done: bool
    size: tuple[int, int] | None

    @property
    def pixels(self) -> int:
        """Of the photograph: how much work it is."""
        return self.size[0] * self.size[1] if self.size else 0


def make_plan(jobs: Sequence[Job], settings: Settings, overwrite: bool) -> list[Planned]:
    """Look at every photograph and at what is there already.

    Raises:
        UsageError: a file that something else made is where an output is to go.
    """
    from megasr.images import read_size
    from megasr.inference.made import MadeFiles

    record = MadeFiles(settings.folder) if settings.folder and not overwrite else None
    plan, foreign = [], []
    for job in jobs:
        try:
            size = read_size(job.source)
        except MegaSRError:
            size = None
        is_done = record is not None and size is not None and record.is_done(job.target, job.source, settings.described)
        plan.append(Planned(job, is_done, size))
        if record is not None and not is_done and job.target.exists() and record.find(job.target) is None:
            foreign.append(str(job.target))
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise UsageError(
            f"{', '.join(foreign[:3])}{more}: there already, and not as this command made it; "
            "--overwrite replaces it, another output folder keeps it"
        )
    return plan


def show_plan(plan: Sequence[Planned], pipeline: MegaSRPipeline, settings: Settings, batch_size: int) -> None:
    """Print sizes, tiles and outputs of all files, and the memory of the largest."""
    from megasr.inference.encoding import check_fits
    from megasr.inference.restoring import sr_size

    largest = None
    for planned in plan:
        what = "is done"
        if planned.size is None:
            what = "cannot be read"
        elif planned.pixels > settings.max_pixels:
            what = f"{_text(planned.size)} px, more than --max-pixels {settings.max_pixels}: refused"
        elif not planned.is_done:
            enlarged = sr_size(pipeline, settings, planned.size)
            try:
                check_fits(planned.job.target, *enlarged)
            except MegaSRError as error:
                print(printable(f"{planned.job.source}: {error}: refused"))
                continue
            tiles = _count_tiles(pipeline, settings, planned.size, enlarged)
            what = f"{_text(planned.size)} to {_text(enlarged)} px, {tiles} tile{'s' * (tiles > 1)}"
            largest = planned if largest is None or planned.pixels > largest.pixels else largest
        print(printable(f"{planned.job.source}: {what}; {planned.job.target}"))
    left = sum(not planned.is_done for planned in plan)
    print(f"{len(plan)} images, {left} to do. Time: unknown before the first is done.")
    if largest is not None and largest.size is not None:
        alike = sum(planned.size == largest.size and not planned.is_done for planned in plan)
        print(_memory(pipeline, settings, largest.size, min(alike, batch_size)))


def _memory(pipeline: MegaSRPipeline, settings: Settings, size: tuple[int, int], count: int) -> str:
    from megasr.inference.memory import restoring_bytes
    from megasr.inference.restoring import options_for, sr_size

    weights = sum(p.numel() * p.element_size() for p in pipeline.module.parameters())
    encoding = math.prod(sr_size(pipeline, settings, size)) * _BYTES_PER_PIXEL
    try:
        restoring = restoring_bytes(pipeline, size, count, **options_for(pipeline, settings, size))
    except MegaSRError as error:
        return f"Memory: {_gib(weights)} for the weights; {error}"
    return (
        f"Memory: {_gib(max(restoring, weights + encoding))} for the largest {_text(size)} px, {_gib(weights)} of it "
        "for the weights; what torch works in and keeps, and the process itself, come on top."
    )


# Per pixel of sr, measured from enlarging to encoding 4096x4096 px: 37 for 8-bit RGB, 44 for 16 bits, 65 with alpha.
_BYTES_PER_PIXEL = 65


def _count_tiles(pipeline: MegaSRPipeline, settings: Settings, size: tuple[int, int], sr_size: tuple[int, int]) -> int:
    from megasr.inference.restoring import options_for
    from megasr.inference.tiling import Tiling

    if (tile := options_for(pipeline, settings, size).get("tile")) is None:
        return 1
    multiple = pipeline.module.prior.size_multiple
    height, width = (side + -side % multiple for side in sr_size)
    return sum(len(group) for group in Tiling(tile).grid(height, width, multiple).groups)


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
