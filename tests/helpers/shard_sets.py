"""Small shard sets for tests, made with tarfile alone."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data_pipelines.datamodules import ShardDataModule
from data_pipelines.shards.manifest import MANIFEST, Manifest, ShardEntry
from data_pipelines.shards.tar import IndexedSample, digest, dump_index, encode_key, index_name, scan_tar
from megasr.batch import SRBatch
from megasr.rng import numpy_generator

Files = dict[str, bytes]


def pixels(number: int, height: int = 20, width: int = 24) -> np.ndarray:
    """(H, W, 3) uint8 noise, another for every number."""
    return numpy_generator(0, "test image", number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    """The bytes of an RGB or grey image file."""
    return cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


def sample_files(number: int) -> tuple[str, Files]:
    """Key and files of sample `number`."""
    return f"folder/image {number:03d}", {"png": encoded(pixels(number)), "txt": f"tag {number}".encode()}


def make_shards(
    folder: Path, sizes: Sequence[int], make: Callable[[int], tuple[str, Files]] = sample_files
) -> Manifest:
    """Write a shard set: as many shards as there are sizes, samples numbered through."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, number = [], 0
    for shard, size in enumerate(sizes):
        samples = [make(n) for n in range(number, number + size)]
        number += size
        entries.append(write_shard(folder, f"shard-{shard:06d}.tar", samples))
    manifest = Manifest(tuple(entries), {"png": number}, "none", "make_shards", "0", "2024-01-01", {})
    (folder / MANIFEST).write_text(manifest.to_json())
    return manifest


def write_shard(folder: Path, name: str, samples: Sequence[tuple[str, Files]]) -> ShardEntry:
    """Write one tar and its index."""
    with tarfile.open(folder / name, "w") as tar:
        for key, files in samples:
            for field, content in files.items():
                member = tarfile.TarInfo(f"{encode_key(key)}.{field}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    content = (folder / name).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    indexed = [
        IndexedSample(sample.key, {f: m._replace(digest=digest(files[f])) for f, m in sample.files.items()})
        for sample, (_, files) in zip(scan_tar(io.BytesIO(content), name), samples, strict=True)
    ]
    (folder / index_name(name)).write_text(dump_index(indexed, name, sha256))
    return ShardEntry(name, len(samples), len(content), sha256)


SIZES = (5, 4, 3)


def photo_files(number: int) -> tuple[str, Files]:
    """Key and files of sample `number`: 60x72 px and a tag."""
    return f"photo {number:02d}", {"png": encoded(pixels(number, 60, 72)), "txt": f"tag {number}".encode()}


def train_and_eval(folder: Path) -> Path:
    """Two shard sets beside each other, `shards` of twelve photographs and `eval` of three; the path of the first."""
    make_shards(folder / "shards", SIZES, photo_files)
    make_shards(folder / "eval", [3], photo_files)
    return folder / "shards"


def shard_module(shards: Path, **settings: Any) -> ShardDataModule:
    """A data module over a set of train_and_eval."""
    defaults = {"crop_size_px": 32, "batch_size": 3, "train_samples": 12, "eval_samples": 2, "cache_dir": str(shards)}
    defaults |= {"train_url": str(shards), "eval_url": str(shards.parent / "eval"), "degradation": "bicubic"}
    return ShardDataModule(**{**defaults, **settings})


def image_names(batches: Iterable[SRBatch]) -> list[str]:
    """Keys without the number of the draw."""
    return [key.rsplit("/", 1)[0] for batch in batches for key in batch["keys"]]
