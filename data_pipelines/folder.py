"""Folders of images: found recursively, named by their path, read when they are needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megasr.errors import UsageError
from megasr.images import list_images, read_image


def index_folder(root: str | Path) -> dict[str, Path]:
    """Key -> file for every image below a folder; the key is the relative path without suffix.

    Raises:
        UsageError: the folder is missing or empty, or two files would have one key.
    """
    files: dict[str, Path] = {}
    for path in list_images(root):
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in files:
            raise UsageError(f"{files[key]} and {path} would both be called {key!r}; rename one")
        files[key] = path
    return files


def read_at_least(path: Path, size_px: int) -> np.ndarray:
    """Read an image that must hold a crop of size_px: (H, W, 3) uint8 RGB.

    Raises:
        UsageError: it is smaller than the crop.
        MegaSRError: it cannot be read.
    """
    image = read_image(path)
    if min(image.shape[:2]) < size_px:
        height, width = image.shape[:2]
        raise UsageError(f"{path}: {width}x{height} px is smaller than crop_size_px {size_px}")
    return image


def check_disjoint(train: dict[str, Path], evaluation: dict[str, Path]) -> None:
    """Refuse to evaluate on training images.

    Raises:
        UsageError: the two sets share files; lists the first.
    """
    shared = sorted({p.resolve() for p in train.values()} & {p.resolve() for p in evaluation.values()})
    if shared:
        raise UsageError(
            f"{len(shared)} images are in both train_root and eval_root, the first is {shared[0]}; "
            "numbers taken on training images say nothing"
        )
