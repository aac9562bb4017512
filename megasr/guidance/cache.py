"""Maps of images that never change, on disk: an extractor sees each image once, whoever asks and in which batch.

A map is found by what it was made of: the pixels, the extractor's fingerprint and the guidance type. Nothing is ever
out of date; what is no longer asked for stays until the folder is deleted, which is safe at any time. Images that a
degradation changes at each visit never come back: for those a cache only costs.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from megasr.batch import check_image, check_range, extremes
from megasr.errors import MegaSRError, UsageError
from megasr.files import write_whole

# A file is SHA-256(key, rest), then zlib(shape, values). The number goes into the keys: another format, other files.
_FORMAT = 1
_SHAPE = struct.Struct("<3I")
_DIGEST_BYTES = 32
_LEVEL = 1  # zlib's higher levels take several times as long and save a few per cent of a smooth float map

Make = Callable[[torch.Tensor], torch.Tensor]  # (b, 3, H, W) in [0, 1] -> (b, C, H, W) in [0, 1]


class MapCache:
    """Maps on disk, shared by any number of processes.

    When a map cannot be kept later on (the disk is full), that is said once and the run goes on without keeping more:
    the map is at hand, and a training of days is worth more than a cache.

    Args:
        folder: where; made when it is missing.

    Raises:
        MegaSRError: it cannot be written to from the start.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)
        self._keeps = True
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            reason = error.strerror or error
            raise MegaSRError(f"map cache {folder}: cannot write there: {reason}; choose another folder") from error

    def get_or_make(self, image: torch.Tensor, name: str, fingerprint: str, make: Make) -> torch.Tensor:
        """The map of each sample, as it was made the first time, bit for bit.

        Args:
            image: (B, 3, H, W) float32 in [0, 1].
            name: of the guidance type.
            fingerprint: of the extractor: whatever its maps depend on beside the image (weights, version, dtype).
            make: the extractor; it gets all samples without a map as one batch, each once, or is not called at all.
                Its maps must depend on the pixels alone: `noise`, which is keyed by names, must not come here.

        Returns:
            (B, C, H, W) float32 in [0, 1] on the image's device, without a gradient.

        Raises:
            UsageError: the image is not float32 RGB, what `make` returned is not a map of it, or an extractor changed
                its shape and not its fingerprint.
        """
        check_image(image, f"map cache, {name}")
        if image.dtype != torch.float32:
            raise UsageError(f"map cache, {name}: the image must be float32, got {image.dtype}")
        keys = [_key(sample, name, fingerprint) for sample in image.detach().cpu()]
        maps = {key: self._read(key) for key in keys}
        missing = [key for key, found in maps.items() if found is None]
        if missing:
            given = image[[keys.index(key) for key in missing]]
            for key, made in zip(missing, _checked(make(given), given, name), strict=True):
                maps[key] = made
                self._keep(key, made)
        found = [made for made in (maps[key] for key in keys) if made is not None]
        if len({made.shape for made in found}) > 1:
            raise UsageError(
                f"map cache {self._folder}: the {name} maps of extractor {fingerprint!r} differ in channels; "
                "give a changed extractor another fingerprint, or delete the folder"
            )
        return torch.stack(found).to(image.device)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key[2:4] / f"{key}.map"

    def _read(self, key: str) -> torch.Tensor | None:
        """The map, None when there is none or its file is damaged: it is made again then."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if digest != _digest(key, body):
            return None
        values = zlib.decompress(body)
        shape = _SHAPE.unpack_from(values)
        return torch.from_numpy(np.frombuffer(values, "<f4", offset=_SHAPE.size).reshape(shape).astype(np.float32))

    def _keep(self, key: str, made: torch.Tensor) -> None:
        if not self._keeps:
            return
        body = zlib.compress(_SHAPE.pack(*made.shape) + made.numpy().astype("<f4").tobytes(), _LEVEL)
        try:
            write_whole(self._path(key), _digest(key, body) + body)
        except MegaSRError as error:
            if self._read(key) is None:  # else another machine's process, with the same number, was faster
                self._keeps = False
                warnings.warn(f"map cache: {error}; no more maps are kept, the run goes on", stacklevel=3)


def _key(sample: torch.Tensor, name: str, fingerprint: str) -> str:
    """64 hexadecimal digits of (3, H, W) pixels and what makes a map of them."""
    what = json.dumps([_FORMAT, name, fingerprint, list(sample.shape)]).encode()
    return hashlib.sha256(what + b"\n" + sample.numpy().astype("<f4").tobytes()).hexdigest()


def _digest(key: str, body: bytes) -> bytes:
    """Over the key too: a file that was moved to another's place is not a map of that image."""
    return hashlib.sha256(key.encode() + body).digest()


def _checked(made: torch.Tensor, given: torch.Tensor, name: str) -> torch.Tensor:
    """The maps as float32 on the CPU: a wrong one must not be kept."""
    made = made.detach().float().cpu()
    if made.ndim != 4 or made.shape[0] != len(given) or made.shape[-2:] != given.shape[-2:]:
        expected = f"({len(given)}, C, {given.shape[-2]}, {given.shape[-1]})"
        raise UsageError(f"map {name}: expected (B, C, H, W) = {expected}, got {tuple(made.shape)}")
    check_range(extremes(made), f"map {name}")
    return made
