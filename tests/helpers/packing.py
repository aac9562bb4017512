"""A small folder of images to pack, and what a packed set consists of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.shards.manifest import MANIFEST
from data_pipelines.shards.pack import PackOptions
from tests.helpers.shard_sets import encoded, pixels

KEYS = ["a", "b/v1.2", "b/é ü", "__c__/d", *(f"c/{n}" for n in range(7))]


def make_photos(folder: Path) -> Path:
    """Eleven small images, KEYS, in subfolders; the first has tags."""
    for number, key in enumerate(KEYS):
        path = photo(folder, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(pixels(number), path.suffix.lower()))
    (folder / "a.txt").write_text("tree, öd")
    (folder / "ignored.mat").write_bytes(b"no image")
    return folder


def photo(folder: Path, key: str) -> Path:
    """The file of a key of make_photos: a JPEG or a PNG."""
    return folder / f"{key}{'.PNG' if KEYS.index(key) % 2 else '.jpg'}"


def pack_options(folder: Path, **changes: Any) -> PackOptions:
    """Three samples per shard, and what is changed."""
    return replace(PackOptions((str(folder),), "CC0", samples_per_shard=3), **changes)


def set_content(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of a set's files, without the date on which it was made."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    lines = files[MANIFEST].splitlines()
    return files | {MANIFEST: b"\n".join(line for line in lines if b'"created"' not in line)}
