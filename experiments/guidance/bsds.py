"""BSDS500 (Arbelaez et al. 2011): photographs of 481 x 321 px and the outlines that four to nine people drew in each.

A split is a folder with <name>.jpg and <name>.mat side by side, as images/<split> and groundTruth/<split> of the
official archive poured together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megasr.errors import MegaSRError, UsageError
from megasr.images import read_image


@dataclass(frozen=True)
class DrawnImage:
    """A photograph and its drawings.

    Attributes:
        key: its name.
        hq: (H, W, 3) uint8.
        truths: every annotator's boundaries, (H, W) bool.
    """

    key: str
    hq: np.ndarray
    truths: tuple[np.ndarray, ...]


def list_bsds(folder: Path, split: str) -> list[Path]:
    """The photographs of a split, sorted by name.

    Raises:
        UsageError: there is no such split, or it holds no photograph.
        MegaSRError: a photograph has no drawings.
    """
    place = folder / split
    if not place.is_dir():
        raise UsageError(f"BSDS500 in {folder}: no folder {split!r}; give the folder that holds train, val or test")
    paths = sorted(place.glob("*.jpg"))
    if not paths:
        raise UsageError(f"BSDS500 in {place}: no .jpg")
    lonely = [path.stem for path in paths if not path.with_suffix(".mat").is_file()]
    if lonely:
        shown = ", ".join(lonely[:5]) + (f" and {len(lonely) - 5} more" if len(lonely) > 5 else "")
        raise MegaSRError(f"BSDS500 in {place}: no .mat for {shown}; put the groundTruth files beside the photographs")
    return paths


def choose(paths: Sequence[Path], count: int | None) -> list[Path]:
    """`count` of them in equal steps (numbers in the names run by photographer and subject), or all.

    Raises:
        UsageError: there are fewer, or count is not positive.
    """
    if count is None:
        return list(paths)
    if not 1 <= count <= len(paths):
        raise UsageError(f"{count} images: give a number from 1 to {len(paths)}")
    return [paths[index * len(paths) // count] for index in range(count)]


def read_drawn(path: Path) -> DrawnImage:
    """A photograph and the drawings beside it.

    Raises:
        MegaSRError: one of the two files is missing or damaged, or they do not fit together.
    """
    hq, truths = read_image(path), _read_truths(path.with_suffix(".mat"))
    for truth in truths:
        if truth.shape != hq.shape[:2]:
            raise MegaSRError(f"BSDS500 image {path}: boundaries of {truth.shape} do not fit {hq.shape[:2]} pixels")
    return DrawnImage(path.stem, hq, truths)


def _read_truths(path: Path) -> tuple[np.ndarray, ...]:
    from scipy.io import loadmat

    try:
        drawings = loadmat(path)["groundTruth"].ravel()
        truths = tuple(drawing["Boundaries"][0, 0] > 0 for drawing in drawings)
    except Exception as error:  # a damaged file makes SciPy raise nearly anything
        raise MegaSRError(f"cannot read the boundaries in {path}: {type(error).__name__}: {error}") from error
    if not truths:
        raise MegaSRError(f"the boundaries in {path} are of no annotator; get the file anew")
    return truths


def crop_to_multiple(image: DrawnImage, multiple: int) -> DrawnImage:
    """Leave away pixels at the bottom and right, of the drawings as well, so that the sides are multiples.

    Raises:
        UsageError: nothing would be left.
    """
    height, width = (side // multiple * multiple for side in image.hq.shape[:2])
    if not height or not width:
        raise UsageError(
            f"image {image.key} of {image.hq.shape[1]}x{image.hq.shape[0]} px: no multiple of {multiple} px"
        )
    truths = tuple(truth[:height, :width] for truth in image.truths)
    return replace(image, hq=np.ascontiguousarray(image.hq[:height, :width]), truths=truths)
