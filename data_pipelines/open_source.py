"""A source by the place where it lies."""

from __future__ import annotations

import os
from pathlib import Path

from data_pipelines.folder import FolderSource, check_disjoint
from data_pipelines.mixture import MixtureSource
from data_pipelines.samples import NamedSource, Source
from data_pipelines.shards.manifest import MANIFEST
from data_pipelines.shards.reader import ShardSource
from megasr.errors import UsageError


def open_source(
    location: str, cache_dir: Path | None = None, cache_gb: float = 50.0, shuffle_shards: int = 16
) -> NamedSource:
    """A shard set where there is a manifest or the location is no folder of this machine; else a folder of images.

    Args:
        location: folder, http(s):// address or pipe: command.
        cache_dir: of the copies of remote shards; see ShardSource.
        cache_gb: size of these copies together, in 1e9 bytes.
        shuffle_shards: number of shards between which samples are shuffled.

    Raises:
        UsageError: there is no such folder, or it holds no image.
        MegaSRError: a remote set cannot be reached or is not usable.
    """
    remote = location.startswith("pipe:") or "://" in location
    folder = Path(os.path.expanduser(location))
    if remote or (folder / MANIFEST).is_file():
        return ShardSource(location, cache_dir, cache_gb, shuffle_shards)
    return FolderSource(folder)


def check_apart(train: Source, evaluation: Source) -> None:
    """Refuse to evaluate on training images, as far as it can be seen: the same files, or the same tars.

    Raises:
        UsageError: the two share some.
    """
    for part in train.sources if isinstance(train, MixtureSource) else [train]:
        if isinstance(part, FolderSource) and isinstance(evaluation, FolderSource):
            check_disjoint(dict(part.files), dict(evaluation.files))
        if isinstance(part, ShardSource) and isinstance(evaluation, ShardSource) and evaluation.starts is None:
            shared = {shard.sha256 for shard in part.manifest.shards}
            names = [shard.name for shard in evaluation.manifest.shards if shard.sha256 in shared]
            if names:
                raise UsageError(
                    f"{part.url} and {evaluation.url} share {len(names)} shards, the first is {names[0]}; "
                    "numbers taken on training images say nothing"
                )
