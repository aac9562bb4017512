"""Which networks make the maps, and the store that loads each of them once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from megasr.errors import UsageError
from megasr.files import file_sha256, identify_folder
from megasr.fingerprints import weights_digest
from megasr.guidance.cache import MapCache
from megasr.guidance.checkpoints import find_checkpoint
from megasr.guidance.network import MapNetwork
from megasr.guidance.registry import GuidanceType, get_guidance
from megasr.guidance.tiny import CONFIG, FOLDERS, load_tiny


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
