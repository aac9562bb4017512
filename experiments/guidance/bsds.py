"""BSDS500 (Arbelaez et al. 2011): photographs of 481 x 321 px and the outlines that four to nine people drew in each.

A split is a folder with <name>.jpg and <name>.mat side by side: the official archive's images/<split> and
groundTruth/<split> in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import loadmat

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


def list_bsds(folder: Path, split: str, count: int | None = None) -> list[Path]:
    """The photographs of a split, sorted by name, or `count` of them in equal steps.

    Raises:
        UsageError: there is no such split, or it holds fewer photographs.
        MegaSRError: a photograph has no drawings.
    """
    place = folder / split
    if not place.is_dir():
        raise UsageError(f"BSDS500 in {folder}: no folder {split!r}; give the folder that holds train, val or test")
    paths = sorted(place.glob("*.jpg"))
    if lonely := [path.stem for path in paths if not path.with_suffix(".mat").is_file()]:
        raise MegaSRError(f"BSDS500 in {place}: no .mat for {', '.join(lonely[:5])}; put it beside the photograph")
    count = len(paths) if count is None else count
    if not 1 <= count <= len(paths):
        raise UsageError(f"BSDS500 in {place}: {count} images: give a number from 1 to {len(paths)}")
    return [paths[index * len(paths) // count] for index in range(count)]


def read_drawn(path: Path, multiple: int = 1) -> DrawnImage:
    """A photograph and the drawings beside it, cropped at the bottom and right to sides that are multiples.

    Raises:
        MegaSRError: one of the two files is damaged, or they do not fit together.
    """
    hq, matlab = read_image(path), path.with_suffix(".mat")
    try:
        truths = [drawing["Boundaries"][0, 0] > 0 for drawing in loadmat(matlab)["groundTruth"].ravel()]
    except Exception as error:  # a damaged file makes SciPy raise nearly anything
        raise MegaSRError(f"cannot read the boundaries in {matlab}: {type(error).__name__}: {error}") from error
    if not truths or any(truth.shape != hq.shape[:2] for truth in truths):
        raise MegaSRError(f"the boundaries in {matlab} do not fit the {hq.shape[:2]} pixels of {path}")
    height, width = (side // multiple * multiple for side in hq.shape[:2])
    return DrawnImage(
        path.stem, np.ascontiguousarray(hq[:height, :width]), tuple(truth[:height, :width] for truth in truths)
    )
