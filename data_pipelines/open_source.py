"""A source by the place where it lies."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.folder import FolderSource
from data_pipelines.samples import Source
from data_pipelines.shards.manifest import MANIFEST
from data_pipelines.shards.reader import ShardSource


def open_source(location: str, cache_dir: Path | None = None, cache_gb: float = 50.0) -> Source:
    """A shard set where there is a manifest or the location is no folder of this machine; else a folder of images.

    Args:
        location: folder, http(s):// address or pipe: command.
        cache_dir: of the copies of remote shards; see ShardSource.
        cache_gb: size of these copies together, in 1e9 bytes.

    Raises:
        UsageError: there is no such folder, or it holds no image.
        MegaSRError: a remote set cannot be reached or is not usable.
    """
    remote = location.startswith("pipe:") or "://" in location
    if remote or (Path(location) / MANIFEST).is_file():
        return ShardSource(location, cache_dir, cache_gb)
    return FolderSource(location)
