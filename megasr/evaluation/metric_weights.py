"""The weights that pyiqa's metrics need: what the files are called, where they can be had, and how they are found.

pyiqa downloads what it misses in the middle of an evaluation. Here a metric is built only when every file is on this
machine, so nothing is ever downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

from megasr.files import file_sha256
from megasr.weights import MANIFEST, Weight, find_local
from megasr.weights.manifest import METRIC_WEIGHTS, Place


@dataclass(frozen=True)
class WeightFile:
    """One file of weights.

    Attributes:
        name: of the file, or the hub id of a repository.
        place: folder of the torch hub cache where pyiqa looks for it, or "hub" for the Hugging Face cache.
        source: where it can be had.
    """

    name: str
    place: Place
    source: str


def _source(weight: Weight) -> str:
    return f"`hf download {weight.name}`" if weight.place == "hub" else weight.mirrors[0]


FILES: Mapping[str, WeightFile] = MappingProxyType(
    {weight.name: WeightFile(weight.name, weight.place, _source(weight)) for weight in METRIC_WEIGHTS}
)


def find_weight(name: str, weights_dir: Path | None = None) -> Path | None:
    """The local copy of a file of FILES: below `weights_dir`, else where `find_local` finds it; None when absent.

    A repository is looked for in the Hugging Face cache only: that is where timm reads it.
    """
    is_file = FILES[name].place != "hub"
    if is_file and weights_dir is not None and (found := sorted(weights_dir.rglob(name))):
        return found[0]
    return find_local(name)


def missing_files(names: Sequence[str], weights_dir: Path | None = None) -> list[WeightFile]:
    """Those of these files that are not on this machine."""
    return [FILES[name] for name in names if find_weight(name, weights_dir) is None]


def describe_missing(names: Sequence[str], weights_dir: Path | None = None) -> str:
    """Which of these files are missing and where each can be had; empty when all are here. Names no local folder."""
    missing = missing_files(names, weights_dir)
    return "lacks " + ", ".join(f"{file.name} ({file.source})" for file in missing) if missing else ""


def where_weights_go(names: Sequence[str]) -> str:
    """The folders where pyiqa and torchvision look for these files."""
    from torch.hub import get_dir

    places = dict.fromkeys(FILES[name].place for name in names)
    return ", ".join(str(Path(get_dir()) / place) for place in places if place != "hub")


@contextmanager
def found_weights(names: tuple[str, ...], weights_dir: Path | None = None) -> Iterator[None]:
    """Inside, pyiqa and torchvision find exactly these files. All of them must be on this machine."""
    import torch.hub
    from pyiqa.utils import download_util

    with TemporaryDirectory(prefix="megasr-weights-") as folder:
        for name in names:
            found, place = find_weight(name, weights_dir), FILES[name].place
            if place != "hub" and found is not None:
                (Path(folder) / place).mkdir(exist_ok=True)
                os.symlink(found.resolve(), Path(folder) / place / name)
        # pyiqa fixes its folder when it is imported, and most of its networks take no path of their weights.
        before = torch.hub.get_dir(), download_util.DEFAULT_CACHE_DIR
        torch.hub.set_dir(folder)
        download_util.DEFAULT_CACHE_DIR = str(Path(folder) / "pyiqa")
        try:
            yield
        finally:
            torch.hub.set_dir(before[0])
            download_util.DEFAULT_CACHE_DIR = before[1]


def weight_hashes(names: Sequence[str], weights_dir: Path | None = None) -> dict[str, str]:
    """The beginning of the sha256 of every file, or the revision of a repository; for the provenance of numbers."""
    hashes = {}
    for name in names:
        found = find_weight(name, weights_dir)
        if found is not None:
            hashes[name] = found.name[:16] if FILES[name].place == "hub" else file_sha256(found)[:16]
    return hashes


def altered_files(hashes: Mapping[str, str]) -> list[str]:
    """Files of `weight_hashes` that are not the published ones, as far as their names or addresses tell the sha256."""
    altered = []
    for name, found in hashes.items():
        told = MANIFEST[name].files[0].sha256 if name in FILES and MANIFEST[name].files else ""
        if told and not told.startswith(found[:8]):
            altered.append(name)
    return altered
