"""What a shard set is, in words and numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.shards.local_storage import open_plain
from data_pipelines.shards.manifest import MANIFEST, Manifest
from data_pipelines.shards.members import DamageError, members_of, parts_of
from data_pipelines.shards.tar_index import image_field, index_name, load_index
from megasr.errors import MegaSRError
from megasr.images import decode_image

_MEASURED = 32  # images that are decoded for their size


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a local shard set.

    Raises:
        MegaSRError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        with open_plain(path) as file:
            return Manifest.from_json(file.read().decode(), str(path))
    except FileNotFoundError as error:
        raise MegaSRError(
            f"{path}: no such file; a set that was interrupted is finished by running its command again, "
            "and `megasr shards index` makes one for tars of others"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise MegaSRError(f"{path}: cannot be read: {error}") from error


def describe(folder: Path) -> Iterator[tuple[str, str]]:
    """(name, value) of everything worth knowing of a shard set.

    Raises:
        MegaSRError: the manifest, an index or an image that is looked at cannot be read.
    """
    manifest = read_manifest(folder)
    yield "samples", f"{manifest.samples}"
    yield "shards", f"{len(manifest.shards)}"
    yield "bytes", f"{manifest.bytes} ({manifest.bytes / 2**20:.1f} MiB)"
    for name, count in manifest.fields.items():
        yield f"field {name}", f"{count}"
    sizes = list(_image_sizes(folder, manifest))
    if sizes:
        width, height = (sum(side) / len(sizes) for side in zip(*sizes, strict=True))
        yield "mean image size", f"{width:.0f}x{height:.0f} px (of {len(sizes)} images)"
    yield "licence", manifest.licence
    yield "command", manifest.command
    yield "made", f"{manifest.created} by megasr {manifest.version}"
    yield "dropped", f"{sum(manifest.dropped.values())}"
    for reason, count in manifest.dropped.items():
        yield f"  {reason}", f"{count}"


def _image_sizes(folder: Path, manifest: Manifest) -> Iterator[tuple[int, int]]:
    """(width, height) of images from the beginnings of shards all over the set."""
    shards = manifest.shards[:: max(1, len(manifest.shards) // _MEASURED)]
    each = max(1, _MEASURED // max(1, len(shards)))
    for shard in shards[:_MEASURED]:
        path = folder / index_name(shard.name)
        try:
            with open_plain(path) as file:
                samples = load_index(file.read().decode(), str(path))[:each]
            with open_plain(folder / shard.name) as file:
                for sample in samples:
                    parts_of(members_of(sample), os.fstat(file.fileno()).st_size)  # lies inside the tar
                    if (name := image_field(sample)) is not None:
                        offset, size = sample.files[name]
                        file.seek(offset)
                        height, width = decode_image(file.read(size), f"{sample.key} of {shard.name}").shape[:2]
                        yield width, height
        except (OSError, UnicodeDecodeError, DamageError) as error:
            raise MegaSRError(f"{folder}, {shard.name}: {error}; `megasr shards verify` says more") from error
