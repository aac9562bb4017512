"""Folders of images, searched recursively, with tags in files beside them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_pipelines.mixture import shuffled
from data_pipelines.samples import Sample, UnusableSampleError, names_fingerprint
from megasr.errors import MegaSRError, UsageError
from megasr.image_decoding import list_images
from megasr.images import read_image, read_size
from megasr.rng import derive_seed

Result = TypeVar("Result")


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


def check_disjoint(train: dict[str, Path], evaluation: dict[str, Path]) -> None:
    """Raise UsageError when training and evaluation share files."""
    shared = sorted({p.resolve() for p in train.values()} & {p.resolve() for p in evaluation.values()})
    if shared:
        raise UsageError(
            f"{len(shared)} images are in both train_root and eval_root, the first is {shared[0]}; "
            "numbers taken on training images say nothing"
        )


def read_tags(image: Path) -> str:
    """Tags of an image from the file beside it: "" or phrases separated by ", ".

    Of PHOTO.jpg that is PHOTO.txt, with tags or a caption, separated by commas or lines; or else PHOTO.json, an object
    with "tags" (a list of strings, or one string) or else "caption" (a string).

    Raises:
        MegaSRError: the file is not UTF-8, not JSON, or its tags are not strings.
    """
    text, record = image.with_suffix(".txt"), image.with_suffix(".json")
    try:
        if text.is_file():
            return _normalised(text.read_text(encoding="utf-8-sig"))
        if record.is_file():
            return _normalised(_tags_of(json.loads(record.read_text(encoding="utf-8-sig"))))
    except (OSError, ValueError, RecursionError) as error:
        raise MegaSRError(f"cannot read the tags in {text if text.is_file() else record}: {error}") from error
    return ""


def _tags_of(record: object) -> str:
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    tags = record.get("tags") or record.get("caption") or ""
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        return "\n".join(tags)
    if not isinstance(tags, str):
        raise ValueError(f"expected a string or a list of strings, got {tags!r:.80}")
    return tags


def _normalised(tags: str) -> str:
    return ", ".join(words for line in tags.splitlines() for part in line.split(",") if (words := part.strip()))


class FolderSource:
    """The images below a folder, shuffled, with the tags beside them.

    Every worker holds the list of files: above some hundred thousand images, pack shards.

    Args:
        root: folder, searched recursively.

    Raises:
        UsageError: the folder is missing or empty, or two files would have one key.
    """

    def __init__(self, root: str | Path) -> None:
        self.files = list(index_folder(root).items())

    def split(self, count: int, size_px: int) -> tuple[FolderSource, FolderSource]:
        """(the others, the images that hold_out takes for evaluation)."""
        chosen = hold_out(self.files, count, size_px)
        parts = copy.copy(self), copy.copy(self)
        parts[0].files = [file for file in self.files if file[0] not in chosen]
        parts[1].files = [file for file in self.files if file[0] in chosen]
        return parts

    @property
    def fingerprint(self) -> str:
        """Of the names of all images."""
        return names_fingerprint(key for key, _ in self.files)

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        """Key of image `index`."""
        return self.files[index][0]

    def read(self, index: int) -> Sample:
        """Image `index`, whole, with its tags.

        Raises:
            UnusableSampleError: it is unreadable, or its tags are.
        """
        key, path = self.files[index]
        return Sample(key, read_or_drop(key, path), tags_or_drop(key, path))

    def tags(self, index: int) -> str:
        """The tags of read(index), without its image. Raises UnusableSampleError when they cannot be read."""
        return tags_or_drop(*self.files[index])

    def order(self, draw: int, seed: int) -> int:
        """The image of training draw `draw`: each once before any comes again."""
        return shuffled(draw, len(self.files), seed)


def hold_out(files: Iterable[tuple[str, Path]], count: int, size_px: int) -> set[str]:
    """Keys of at most `count` images for evaluation, of at least size_px; they depend on the names alone.

    They are taken in the order of the hashes of their names: a larger count takes more, and none that is taken changes.
    """
    chosen: set[str] = set()
    for key, path in sorted(files, key=lambda file: derive_seed(0, "evaluation", file[0])):
        if len(chosen) < count and _is_as_large(path, size_px):
            chosen.add(key)
    return chosen


def _is_as_large(path: Path, size_px: int) -> bool:
    try:
        return min(read_size(path)) >= size_px
    except MegaSRError:
        return False


def read_or_drop(key: str, path: Path) -> np.ndarray:
    """read_image; raises UnusableSampleError when it cannot be read."""
    return _or_drop(read_image, key, path, "unreadable")


def tags_or_drop(key: str, path: Path) -> str:
    """read_tags; raises UnusableSampleError when they cannot be read."""
    return _or_drop(read_tags, key, path, "unreadable tags")


def _or_drop(read: Callable[[Path], Result], key: str, path: Path, reason: str) -> Result:
    try:
        return read(path)
    except MegaSRError as error:
        raise UnusableSampleError(key, reason, str(error)) from error
