"""Which extractors a run uses, and a cache of their maps."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from megasr.batch import check_image, check_range, extremes
from megasr.errors import MegaSRError, UsageError
from megasr.files import file_sha256, identify_folder, write_whole
from megasr.guidance.extractors import MapNetwork, find_checkpoint
from megasr.guidance.registry import GuidanceType, get_guidance
from megasr.guidance.tiny import CONFIG, FOLDERS, load_tiny
from megasr.provenance import weights_digest

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


@dataclass(frozen=True)
class ExtractorConfig:
    """Which networks make the guidance maps, and how.

    Args:
        sources: guidance type -> `tiny`, `tiny_lq`, a name that `megasr weights list` shows, a hub id or a folder. A
            type that is not named takes the first of its registered weights: `tiny_lq` where there is one. A positive
            control (oracle_*) takes what its type is given, unless it is named itself.
        dtype: in which networks compute; maps are float32 always.
        cache: folder in which maps of fixed images (evaluation, never training) are kept between runs; None keeps none.

    Raises:
        UsageError: a type is unknown or needs no network.
    """

    sources: Mapping[str, str] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"
    cache: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", dict(self.sources))
        for name in self.sources:
            if get_guidance(name).load is None:
                raise UsageError(f"extractors.sources: {name} needs no network; leave it out")

    def source_of(self, guidance: GuidanceType) -> str:
        """Where the weights of a type come from."""
        return self.sources.get(guidance.name) or self.sources.get(guidance.base) or guidance.weights[0]

    def check_used(self, types: Iterable[GuidanceType]) -> None:
        """Refuse settings that would do nothing.

        Raises:
            UsageError: a source is given for a type that is not among these.
        """
        types = list(types)
        used = {guidance.name for guidance in types} | {guidance.base for guidance in types}
        idle = [name for name in self.sources if name not in used]
        if idle:
            raise UsageError(f"extractors.sources names {', '.join(idle)}, which adapter.guidance does not use")


class Networks:
    """Loads a network when the first map of it is asked for: baked maps need none. Not a part of any model's state.

    Args:
        config: which networks.
    """

    def __init__(self, config: ExtractorConfig | None = None) -> None:
        self.config = config or ExtractorConfig()
        self._loaded: dict[tuple[object, str], tuple[MapNetwork, str]] = {}
        self._of_type: dict[str, tuple[MapNetwork, str]] = {}

    def get(self, guidance: GuidanceType, device: torch.device) -> tuple[MapNetwork, str]:
        """(network on the device, fingerprint of its weights): the same object for types that share a network.

        Raises:
            MegaSRError: its weights are missing or damaged.
            UsageError: it does not make maps of this type.
        """
        if guidance.name not in self._of_type:
            self._of_type[guidance.name] = self._load(guidance)
        network, fingerprint = self._of_type[guidance.name]
        return network.to(device), fingerprint

    @cached_property
    def cache(self) -> MapCache | None:
        """Where maps of fixed images are kept, None when nowhere.

        Raises:
            MegaSRError: the folder cannot be written to.
        """
        return MapCache(Path(self.config.cache)) if self.config.cache else None

    def _load(self, guidance: GuidanceType) -> tuple[MapNetwork, str]:
        source = self.config.source_of(guidance)
        loader = _loader(guidance, source)
        if (loader, source) not in self._loaded:
            network = loader(source)
            digest = weights_digest(network)[:16] + f"-{self.config.dtype}"
            self._loaded[loader, source] = network.to(getattr(torch, self.config.dtype)), digest
        network, fingerprint = self._loaded[loader, source]
        if guidance.base not in network.gives:
            raise UsageError(f"extractor {source!r} makes {', '.join(network.gives)}, not {guidance.base}")
        return network, fingerprint


def identify_source(source: str) -> str:
    """12 hexadecimal digits of the files of a source, without loading them.

    Raises:
        MegaSRError: it is not on this machine.
    """
    place = FOLDERS.get(source) or find_checkpoint(source)
    return identify_folder(place) if place.is_dir() else file_sha256(place)[:12]


def is_tiny(source: str) -> bool:
    """The shipped networks, and folders in their format."""
    folder = Path(source)
    return source in FOLDERS or ((folder / CONFIG).is_file() and '"pyramid_width"' in (folder / CONFIG).read_text())


def load_network(guidance: GuidanceType, source: str) -> MapNetwork:
    """The network of a type from a source (see ExtractorConfig), frozen, in float32.

    Raises:
        MegaSRError: its weights are missing or damaged.
        UsageError: the type needs no network, or has none of this name.
    """
    return _loader(guidance, source)(source)


def _loader(guidance: GuidanceType, source: str) -> Callable[[str], MapNetwork]:
    if guidance.load is None:
        raise UsageError(f"guidance {guidance.name} needs no network")
    if source in FOLDERS and source not in guidance.weights:
        raise UsageError(f"guidance {guidance.name} has no extractor {source!r}: {', '.join(guidance.weights)}")
    return load_tiny if is_tiny(source) else guidance.load
