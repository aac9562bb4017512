"""Which extractors a run uses, and where their weights are."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from megasr.errors import UsageError
from megasr.files import file_sha256, identify_folder
from megasr.guidance.extractors import MapNetwork, find_checkpoint
from megasr.guidance.registry import GuidanceType, Loader, get_guidance
from megasr.guidance.tiny import CONFIG, FOLDERS, load_tiny


@dataclass(frozen=True)
class ExtractorConfig:
    """Which extractors make the guidance maps, and how.

    Args:
        sources: guidance type -> `tiny`, `tiny_lq`, a name that `megasr weights list` shows, a hub id or a folder. A
            type that is not named takes the first of its registered weights: `tiny_lq` where there is one. A positive
            control (oracle_*) takes what its type is given, unless it is named itself.
        dtype: in which extractors compute; maps are float32 always.
        cache: has no effect any more; accepted because saved configs name it.

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
        if self.cache is not None:
            warnings.warn("extractors.cache has no effect any more: leave it out", stacklevel=2)

    def source_of(self, guidance: GuidanceType) -> str:
        """Where the weights of a type come from."""
        return self.sources.get(guidance.name) or self.sources.get(guidance.base) or guidance.weights[0]

    def check_used(self, types: Iterable[GuidanceType]) -> None:
        """Refuse settings that would do nothing.

        Raises:
            UsageError: a source is given for a type that is not among these.
        """
        used = {name for guidance in types for name in (guidance.name, guidance.base)}
        if idle := [name for name in self.sources if name not in used]:
            raise UsageError(f"extractors.sources names {', '.join(idle)}, which adapter.guidance does not use")


class Networks:
    """Loads an extractor when the first map of it is asked for: baked maps need none. Not a part of any model's state.

    Args:
        config: which extractors.
    """

    def __init__(self, config: ExtractorConfig | None = None) -> None:
        self.config = config or ExtractorConfig()
        self._loaded: dict[tuple[object, str], MapNetwork] = {}

    def get(self, guidance: GuidanceType, device: torch.device) -> MapNetwork:
        """The extractor of a type on the device: the same object for types that share one.

        Raises:
            MegaSRError: its weights are missing or damaged.
            UsageError: it does not make maps of this type.
        """
        source = self.config.source_of(guidance)
        loader = _loader(guidance, source)
        if (loader, source) not in self._loaded:
            self._loaded[loader, source] = loader(source).to(getattr(torch, self.config.dtype))
        network = self._loaded[loader, source]
        if guidance.base not in network.gives:
            raise UsageError(f"extractor {source!r} makes {', '.join(network.gives)}, not {guidance.base}")
        return network.to(device)


def identify_source(source: str) -> str:
    """12 hexadecimal digits of the files of a source, without loading them.

    Raises:
        MegaSRError: it is not on this machine.
    """
    place = FOLDERS.get(source) or find_checkpoint(source)
    return identify_folder(place) if place.is_dir() else file_sha256(place)[:12]


def is_tiny(source: str) -> bool:
    """The shipped extractors, and folders in their format."""
    config = Path(source) / CONFIG
    return source in FOLDERS or (config.is_file() and '"pyramid_width"' in config.read_text())


def load_network(guidance: GuidanceType, source: str) -> MapNetwork:
    """The extractor of a type from a source (see ExtractorConfig), frozen, in float32.

    Raises:
        MegaSRError: its weights are missing or damaged.
        UsageError: the type needs no network, or has none of this name.
    """
    return _loader(guidance, source)(source)


def _loader(guidance: GuidanceType, source: str) -> Loader:
    if guidance.load is None:
        raise UsageError(f"guidance {guidance.name} needs no network")
    if source in FOLDERS and source not in guidance.weights:
        raise UsageError(f"guidance {guidance.name} has no extractor {source!r}: {', '.join(guidance.weights)}")
    return load_tiny if is_tiny(source) else guidance.load
