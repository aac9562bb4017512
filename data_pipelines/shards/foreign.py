"""Index and manifest for webdataset tars that others have made, so that they can be read as a shard set."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from data_pipelines.shards.fields import IMAGE_FIELDS
from data_pipelines.shards.manifest import Manifest, ShardEntry, write_manifest
from data_pipelines.shards.pack import PLAN
from data_pipelines.shards.parallel import Progress, map_ordered, no_progress
from data_pipelines.shards.tar import IndexedSample, Member, digest, dump_index, index_name, scan_tar
from megasr.errors import MegaSRError, UsageError
from megasr.files import locked_folder, write_whole


def index_shards(folder: Path, licence: str, workers: int = 1, progress: Progress = no_progress) -> Manifest:
    """Write an index beside every tar of a folder, then the manifest. The tars are left as they are.

    Raises:
        UsageError: the folder holds no tar, or a set that was packed here.
        MegaSRError: a tar is damaged, two samples have one key, or no sample has an image.
    """
    # macOS puts a ._shard.tar beside a shard.tar
    tars = sorted(path for path in folder.glob("[!.]*.tar") if path.is_file())
    if not tars:
        raise UsageError(f"{folder}: holds no .tar; compressed tars must be unpacked first, they cannot be seeked in")
    if (folder / PLAN).is_file():
        raise UsageError(f"{folder} was packed by megasr and has its index; `megasr shards verify {folder}` checks it")
    shards: list[ShardEntry] = []
    fields = Counter[str]()
    places: dict[str, str] = {}
    with locked_folder(folder):
        for tar, (entry, samples) in zip(tars, map_ordered(_index_tar, tars, workers), strict=True):
            for sample in samples:
                if (other := places.setdefault(sample.key, tar.name)) != tar.name:
                    raise MegaSRError(f"{sample.key!r} is in {other} and in {tar.name}: keys must be unique")
                fields.update(sample.files.keys())
            shards.append(entry)
            index = dump_index(samples, tar.name, entry.sha256)
            write_whole(folder / index_name(tar.name), index.encode(), durable=True)
            progress("indexing shards", len(shards), len(tars), sum(shard.bytes for shard in shards))
        if not fields.keys() & set(IMAGE_FIELDS):
            raise MegaSRError(
                f"{folder}: no sample has an image ({' '.join(IMAGE_FIELDS)}), only {', '.join(sorted(fields)[:5])}; "
                "in webdataset the first dot of a name ends the key: of 22.05.png that is 22, and 05.png the field"
            )
        command = shlex.join(["megasr", "shards", "index", folder.name, "--licence", licence])
        return write_manifest(folder, shards, fields, licence, command)


def _index_tar(path: Path) -> tuple[ShardEntry, list[IndexedSample]]:
    with path.open("rb") as file:
        samples = [
            IndexedSample(sample.key, {name: _with_digest(file, member) for name, member in sample.files.items()})
            for sample in scan_tar(file, str(path))
        ]
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return ShardEntry(path.name, len(samples), file.tell(), sha256), samples


def _with_digest(file: BinaryIO, member: Member) -> Member:
    file.seek(member.offset)
    return member._replace(digest=digest(file.read(member.size)))
