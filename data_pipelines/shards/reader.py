"""A shard set as a source: any image by number, and an order that is exact on any number of ranks and workers."""

from __future__ import annotations

import copy
import hashlib
from bisect import bisect_right
from collections.abc import Container, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from data_pipelines.mixture import permuted
from data_pipelines.samples import Sample, UnusableSampleError
from data_pipelines.shards.fields import TAGS_FIELD, decode_sample, decode_tags
from data_pipelines.shards.manifest import MANIFEST, Manifest, ShardEntry
from data_pipelines.shards.storage import MissingFileError, ShortReadError, open_storage
from data_pipelines.shards.tar import IndexedSample, Samples, digest, index_name, open_index
from megasr.errors import MegaSRError, UsageError

_MIN_INDICES = 8  # kept in memory
_MAX_SAMPLE_BYTES = 2**31


class ShardOrder:
    """Draw -> image. Every epoch puts the shards in a new order and permutes the samples inside every `window` shards.

    Nearby draws so come from few shards, and a shard has other neighbours in every epoch. A draw costs O(log shards).

    Args:
        samples: number of samples of every shard.
        window: number of consecutive shards between which samples are shuffled.
    """

    def __init__(self, samples: Sequence[int], window: int) -> None:
        self.samples = tuple(samples)
        self.window = window
        self.firsts = (0, *accumulate(samples))  # the index of every shard's first sample, and the number of all
        self.shards = lru_cache(2)(self._shuffle_shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.samples, self.window)

    def __call__(self, draw: int, seed: int) -> int:
        """The image of training draw `draw`: each once per epoch, a function of (seed, draw)."""
        epoch, position = divmod(draw, self.firsts[-1])
        shards, starts = self.shards(epoch, seed)
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


class _IndexError(MegaSRError):
    """The index of a shard cannot be used: the reason that its samples are counted by, and a detail."""


class ShardSource:
    """The images of a shard set, in the order of its manifest (see data_pipelines.samples.Source).

    An image is unusable, and counted by the reason, where the set is damaged: "missing shard", "truncated shard",
    "missing index", "damaged index", "wrong index" (of another tar, or pointing outside it), "damaged content" (other
    bytes than were packed), "no image", "unreadable image", "unreadable tags", "unreadable map". A place that cannot
    be reached stops everything instead: it may be back tomorrow, and what training sees must not depend on it.

    Args:
        url: a folder, a pipe: command, or a URL that fsspec reads (see open_storage).
        cache_dir: where copies are kept of remote indices and of what cannot be read in ranges; None is the user's
            cache folder.
        cache_gb: size of these copies together, in 1e9 bytes.
        shuffle_shards: number of shards between which samples are shuffled. As many indices are kept in memory.

    Raises:
        UsageError: the URL, the cache's size or shuffle_shards cannot be used.
        MegaSRError: there is no usable manifest at the URL.
    """

    def __init__(self, url: str, cache_dir: Path | None = None, cache_gb: float = 50, shuffle_shards: int = 16) -> None:
        if shuffle_shards < 1:
            raise UsageError(f"shuffle_shards must be at least 1, got {shuffle_shards}")
        self.url, self.cache_dir, self.cache_gb = url, cache_dir, cache_gb
        try:
            self.storage = open_storage(url, cache_dir, cache_gb)
            text = self.storage.read_all(MANIFEST).decode()
        except MissingFileError as error:
            raise MegaSRError(
                f"{url}: not a shard set, {error}; `megasr shards pack` makes one, `index` one of tars of others"
            ) from error
        except UnicodeDecodeError as error:
            raise MegaSRError(f"{url}: {MANIFEST}: not text ({error})") from error
        self.manifest = Manifest.from_json(text, f"{url}: {MANIFEST}")
        if not self.manifest.samples:
            raise MegaSRError(f"{url}: the set is empty")
        self.draws = ShardOrder([shard.samples for shard in self.manifest.shards], shuffle_shards)
        self.starts: list[int] | None = None  # position in every shard from which a part of the set begins
        self._keep_indices()
        # A cache that does not hold one window would fetch a whole shard for almost every image.
        sizes = sorted((shard.bytes for shard in self.manifest.shards), reverse=True)[:shuffle_shards]
        if not self.storage.has_ranges and sum(sizes) > cache_gb * 1e9:
            raise UsageError(
                f"cache_gb {cache_gb:g} is less than the {sum(sizes) / 1e9:.3g} GB of {len(sizes)} shards, which "
                "are read at a time; raise cache_gb or lower shuffle_shards"
            )

    def _keep_indices(self) -> None:
        self._index = lru_cache(max(self.draws.window, _MIN_INDICES))(self._load_index)

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

    def order(self, draw: int, seed: int) -> int:
        """The image of training draw `draw`; see Source.order and ShardOrder."""
        return self.draws(draw, seed)

    def key(self, index: int) -> str:
        """What image `index` is called, from the index of its shard alone.

        Raises:
            UnusableSampleError: the index is damaged or missing.
            MegaSRError: the place cannot be reached.
        """
        return self._find(index)[1].key

    def read(self, index: int) -> Sample:
        """Image `index` with its tags and maps.

        Raises:
            UnusableSampleError: it is damaged or missing.
            MegaSRError: the place cannot be reached.
        """
        return decode_sample(*self.files(index))

    def tags(self, index: int) -> str:
        """The tags of image `index`, without the rest of the sample. Raises as read."""
        return decode_tags(*self.files(index, (TAGS_FIELD,)))

    def files(self, index: int, fields: Container[str] | None = None) -> tuple[str, dict[str, bytes]]:
        """(key, field -> content) of sample `index`, checked but not decoded; those of `fields` that it has, None: all.

        Raises:
            UnusableSampleError, MegaSRError: see read.
        """
        shard, sample = self._find(index)
        wanted = {field: member for field, member in sample.files.items() if fields is None or field in fields}
        if fields is not None and not wanted:
            return sample.key, {}
        members = wanted.values()
        start = min((member.offset for member in members), default=0)
        end = max((member.offset + member.size for member in members), default=0)
        if not members or end > shard.bytes or end - start >= _MAX_SAMPLE_BYTES:
            raise UnusableSampleError(sample.key, "wrong index", f"bytes {start} to {end} of {shard.bytes}")
        try:
            block = self.storage.read(shard.name, start, end, shard.sha256)
        except MissingFileError as error:
            raise UnusableSampleError(sample.key, "missing shard", str(error)) from error
        except ShortReadError as error:
            raise UnusableSampleError(sample.key, "truncated shard", str(error)) from error
        files = {field: block[m.offset - start : m.offset - start + m.size] for field, m in wanted.items()}
        for field, member in wanted.items():
            if member.digest and digest(files[field]) != member.digest:
                raise UnusableSampleError(sample.key, "damaged content", f"{field!r} is not what was packed")
        return sample.key, files

    def _find(self, index: int) -> tuple[ShardEntry, IndexedSample]:
        """The shard that image `index` lies in, and where."""
        number, position = self.draws.locate(index)
        position += self.starts[number] if self.starts else 0
        shard = self.manifest.shards[number]
        name = f"{shard.name}#{position}"  # without its index a sample has no key
        try:
            samples = self._index(number)
        except _IndexError as error:
            raise UnusableSampleError(name, *error.args) from error
        try:
            return shard, samples[position]
        except MegaSRError as error:
            raise UnusableSampleError(name, "damaged index", str(error)) from error

    def _load_index(self, number: int) -> Samples:
        shard = self.manifest.shards[number]
        name = index_name(shard.name)
        try:
            content = self.storage.read_all(name, shard.sha256)
        except MissingFileError as error:
            raise _IndexError("missing index", str(error)) from error
        try:
            samples, sha256 = open_index(content.decode(), name)
        except (UnicodeDecodeError, MegaSRError) as error:
            raise _IndexError("damaged index", str(error)) from error
        if len(samples) != shard.samples or sha256 not in ("", shard.sha256):
            raise _IndexError("wrong index", f"{name} does not belong to the {shard.name} of the manifest")
        return samples
