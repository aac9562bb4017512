"""Stream shards: order by epoch, split over ranks and workers, resumable."""

from __future__ import annotations

import copy
import hashlib
import sys
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_pipelines.mixture import permuted
from data_pipelines.samples import Sample, UnusableSampleError
from data_pipelines.shards.manifest import MANIFEST, Manifest
from data_pipelines.shards.storage import MissingFileError, PipeStorage, ShortReadError, Storage, open_storage
from data_pipelines.shards.tar import (
    IMAGE_FIELDS,
    TAGS_FIELD,
    DamageError,
    Member,
    check,
    decode_map,
    index_name,
    load_record,
    members_of,
    parts_of,
)
from megasr.errors import MegaSRError, UsageError
from megasr.guidance.registry import is_made_from_lq
from megasr.images import decode_image


class ShardOrder:
    """Draw -> image. Every epoch puts the shards in a new order and permutes the samples inside every `window` shards.

    Nearby draws so come from few shards, which keeps indices and copies few, and a shard meets other neighbours in
    every epoch. A draw costs O(log shards); the shard order of two epochs is kept.

    Args:
        samples: number of samples of every shard.
        window: number of consecutive shards between which samples are shuffled.
    """

    def __init__(self, samples: Sequence[int], window: int) -> None:
        self.samples = tuple(samples)
        self.window = window
        self.firsts = (0, *accumulate(samples))  # the index of every shard's first sample, and the number of all
        self._epoch = lru_cache(2)(self._shuffle_shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.samples, self.window)

    def __call__(self, draw: int, seed: int) -> int:
        """The image of training draw `draw`: each once per epoch, a function of (seed, draw)."""
        epoch, position = divmod(draw, self.firsts[-1])
        shards, starts = self._epoch(epoch, seed)
        window = (bisect_right(starts, position) - 1) // self.window * self.window
        begin, end = starts[window], starts[min(window + self.window, len(shards))]
        place = begin + permuted(position - begin, end - begin, seed, "window", epoch, window)
        slot = bisect_right(starts, place) - 1
        return self.firsts[shards[slot]] + place - starts[slot]

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, position in it) of image `index`."""
        if not 0 <= index < self.firsts[-1]:
            raise IndexError(f"image {index} of {self.firsts[-1]}")
        shard = bisect_right(self.firsts, index) - 1
        return shard, index - self.firsts[shard]

    def _shuffle_shards(self, epoch: int, seed: int) -> tuple[list[int], list[int]]:
        """The shards in the order of an epoch, and the position at which each begins, then the end."""
        count = len(self.samples)
        shards = [permuted(slot, count, seed, "shards", epoch) for slot in range(count)]
        return shards, [0, *accumulate(self.samples[shard] for shard in shards)]


_LEAST_INDICES = 8
_MAP_PREFIX, _MAP_SUFFIX = "map.", ".png"


class _Row(NamedTuple):
    key: str
    members: tuple[Member, ...]


class ShardSource:
    """The images of a shard set, in the order of its manifest (see data_pipelines.samples.Source).

    An image is unusable, and counted by the reason, where the set is damaged: "missing shard", "truncated shard",
    "missing index", "damaged index", "wrong index" (of another tar, or pointing to something else), "damaged content"
    (other bytes than were packed), "no image", "unreadable image", "unreadable tags", "unreadable map". A place that
    cannot be reached stops everything instead: it may be back tomorrow, and what training sees must not depend on it.

    Args:
        url: a folder, http(s):// address or pipe: command (see open_storage).
        cache_dir: where copies are kept of what cannot be read in ranges; None is the user's cache folder.
        cache_gb: size of these copies together, in 1e9 bytes.
        shuffle_shards: number of shards between which samples are shuffled. As many indices are kept in memory.

    Raises:
        UsageError: the URL, the cache's size or shuffle_shards cannot be used.
        MegaSRError: there is no usable manifest at the URL.
    """

    def __init__(self, url: str, cache_dir: Path | None = None, cache_gb: float = 50, shuffle_shards: int = 16) -> None:
        if shuffle_shards < 1:
            raise UsageError(f"shuffle_shards must be at least 1, got {shuffle_shards}")
        self.url = url
        self.storage = open_storage(url, cache_dir, cache_gb)
        self.cache_dir, self.cache_gb = cache_dir, cache_gb
        self.manifest = _read_manifest(self.storage, url)
        self.draws = ShardOrder([shard.samples for shard in self.manifest.shards], shuffle_shards)
        self.starts: list[int] | None = None  # position in every shard from which a part of the set begins
        self._fetched_anew: set[int] = set()
        self._keep_indices()
        _check_cache(self.storage, self.manifest, shuffle_shards)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_index"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._keep_indices()

    def __len__(self) -> int:
        return self.draws.firsts[-1]

    def split(self, count: int) -> tuple[ShardSource, ShardSource]:
        """(the others, `count` images for evaluation): the last of every shard, of each its share."""
        sizes, total = self.draws.samples, len(self)
        kept = [after * count // total - before * count // total for before, after in pairwise(self.draws.firsts)]
        left = [size - own for size, own in zip(sizes, kept, strict=True)]
        parts = copy.copy(self), copy.copy(self)
        for part, samples, starts in zip(parts, (left, kept), ([0] * len(sizes), left), strict=True):
            part.draws, part.starts = ShardOrder(samples, self.draws.window), starts
            part._keep_indices()
        return parts

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of everything that the order depends on: a resumed run needs the same."""
        text = "\n".join(f"{shard.name} {shard.samples} {shard.sha256}" for shard in self.manifest.shards)
        part = "" if self.starts is None else f"\n{self.draws.samples} from {self.starts}"
        return hashlib.sha256(f"{text}\n{self.draws.window}{part}".encode()).hexdigest()[:16]

    def _locate(self, index: int) -> tuple[int, int]:
        """(shard, position in it) of image `index`."""
        number, position = self.draws.locate(index)
        return number, position + (self.starts[number] if self.starts else 0)

    def order(self, draw: int, seed: int) -> int:
        """The image of training draw `draw`; see Source.order and ShardOrder."""
        return self.draws(draw, seed)

    def key(self, index: int) -> str:
        """What image `index` is called, from the index of its shard alone.

        Raises:
            UnusableSampleError: the index is damaged or missing.
            MegaSRError: the place cannot be reached.
        """
        number, position = self._locate(index)
        try:
            return self._index(number)[position].key
        except DamageError as error:
            raise UnusableSampleError(f"{self.manifest.shards[number].name}#{position}", error.reason) from error

    def read(self, index: int) -> Sample:
        """Image `index` with its tags and maps.

        Raises:
            UnusableSampleError: it is damaged or missing.
            MegaSRError: the place cannot be reached.
        """
        key, files = self.files(index)
        try:
            return _decode(key, files)
        except DamageError as error:
            raise UnusableSampleError(key, error.reason, error.detail) from error

    def files(self, index: int) -> tuple[str, dict[str, bytes]]:
        """(key, field -> content) of sample `index`, checked but not decoded.

        Raises:
            UnusableSampleError, MegaSRError: see read.
        """
        number, position = self._locate(index)
        try:
            return self._files(number, position)
        except UnusableSampleError:
            if not self._fetch_anew(number):
                raise
            return self._files(number, position)

    def _fetch_anew(self, number: int) -> bool:
        """Forget the copies of a shard, once: the damage may be theirs, or mended where they come from."""
        shard = self.manifest.shards[number]
        if number in self._fetched_anew:
            return False
        self._fetched_anew.add(number)
        forgotten = [self.storage.forget(name, shard.sha256) for name in (shard.name, index_name(shard.name))]
        self._index.cache_clear()
        return any(forgotten)

    def _files(self, number: int, position: int) -> tuple[str, dict[str, bytes]]:
        shard = self.manifest.shards[number]
        key = f"{shard.name}#{position}"  # what it is called while its name is unknown
        try:
            key, members = self._index(number)[position]
            parts = parts_of(members, shard.bytes)
            blocks = self.storage.read_parts(shard.name, parts, shard.sha256, shard.bytes)
            for member, header, content in zip(members, blocks[::2], blocks[1::2], strict=True):
                check(key, member, header, content)
            return key, dict(zip((member.field for member in members), blocks[1::2], strict=True))
        except DamageError as error:
            raise UnusableSampleError(key, error.reason, error.detail) from error
        except MissingFileError as error:
            raise UnusableSampleError(key, "missing shard", str(error)) from error
        except ShortReadError as error:
            raise UnusableSampleError(key, "truncated shard", str(error)) from error

    def _keep_indices(self) -> None:
        self._index = lru_cache(max(self.draws.window, _LEAST_INDICES))(self._load_index)

    def _load_index(self, number: int) -> tuple[_Row, ...]:
        shard = self.manifest.shards[number]
        name = index_name(shard.name)
        try:
            text = self.storage.read_all(name, shard.sha256).decode()
        except MissingFileError as error:
            raise DamageError("missing index", str(error)) from error
        except UnicodeDecodeError as error:
            raise DamageError("damaged index", f"{name}: {error}") from error
        try:
            samples, sha256 = load_record(text, name)
        except MegaSRError as error:
            raise DamageError("damaged index", str(error)) from error
        if len(samples) != shard.samples or sha256 not in ("", shard.sha256):
            raise DamageError("wrong index", f"{name} does not belong to the {shard.name} of the manifest")
        if len({sample.key for sample in samples}) < len(samples):
            raise DamageError("wrong index", f"{name} lists a sample twice")
        rows = (_Row(sample.key, members_of(sample)) for sample in samples)
        return tuple(row._replace(members=tuple(map(_shared_name, row.members))) for row in rows)


def _shared_name(member: Member) -> Member:
    """One string per field instead of one per sample: a shard has thousands."""
    return member._replace(field=sys.intern(member.field))


def _read_manifest(storage: Storage, url: str) -> Manifest:
    where = f"{url}: {MANIFEST}"
    try:
        manifest = Manifest.from_json(storage.read_all(MANIFEST).decode(), where)
    except MissingFileError as error:
        raise MegaSRError(f"{url}: not a shard set, {error}; `megasr shards pack` makes one") from error
    except UnicodeDecodeError as error:
        raise MegaSRError(f"{where}: not text ({error})") from error
    if not manifest.samples:
        raise MegaSRError(f"{where}: the set is empty")
    return manifest


def _check_cache(storage: Storage, manifest: Manifest, shuffle_shards: int) -> None:
    """A cache that does not hold one window would fetch a whole shard for almost every image."""
    needed = sum(sorted((shard.bytes for shard in manifest.shards), reverse=True)[:shuffle_shards])
    if isinstance(storage, PipeStorage) and not storage.has_ranges and needed > storage.cache.limit_bytes:
        raise UsageError(
            f"cache_gb {storage.cache.limit_bytes / 1e9:g} is less than the {needed / 1e9:.3g} GB of {shuffle_shards} "
            "shards, which are read at a time; raise cache_gb or lower shuffle_shards"
        )


def _decode(key: str, files: dict[str, bytes]) -> Sample:
    image = next((name for name in IMAGE_FIELDS if name in files), None)
    if image is None:
        raise DamageError("no image", f"only {', '.join(files)}")
    try:
        hq = decode_image(files[image], key)
    except MegaSRError as error:
        raise DamageError("unreadable image", str(error)) from error
    try:
        tags = files.get(TAGS_FIELD, b"").decode().strip()
    except UnicodeDecodeError as error:
        raise DamageError("unreadable tags", str(error)) from error
    return Sample(key, hq, tags, _decode_maps(files, *hq.shape[:2]))


def _decode_maps(files: dict[str, bytes], height: int, width: int) -> dict[str, torch.Tensor]:
    """Maps that lie beside hq were made of hq. Types that are to be made of lq are left to the extractors."""
    maps = {}
    for name, content in files.items():
        if name.startswith(_MAP_PREFIX) and name.endswith(_MAP_SUFFIX):
            guidance = name.removeprefix(_MAP_PREFIX).removesuffix(_MAP_SUFFIX)
            if is_made_from_lq(guidance):
                continue
            try:
                maps[guidance] = decode_map(content, height, width)
            except ValueError as error:
                raise DamageError("unreadable map", f"{name}: {error}") from error
    return maps
