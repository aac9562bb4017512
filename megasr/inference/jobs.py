"""What is to be upscaled to where: files, folders and globs on one side, files on the other."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megasr.errors import UsageError
from megasr.image_decoding import IMAGE_SUFFIXES, list_images


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
