"""Guidance maps of a batch: which extractors a run uses, and maps from the batch, extracted, or mixed by strengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Literal

import torch

from megasr.batch import SRBatch, check_range
from megasr.errors import UsageError
from megasr.files import file_sha256, identify_folder
from megasr.guidance.extractors import MapNetwork, Views, find_checkpoint
from megasr.guidance.registry import ORACLE, GuidanceType, Loader, get_guidance
from megasr.guidance.tiny import CONFIG, FOLDERS, load_tiny
from megasr.images import upsample_lq


@dataclass(frozen=True)
class ExtractorConfig:
    """Which extractors make the guidance maps, and how.

    Args:
        sources: guidance type -> `tiny`, `tiny_lq`, a name that `megasr weights list` shows, a hub id or a folder. A
            type that is not named takes the first of its registered weights: `tiny_lq` where there is one. A positive
            control (oracle_*) takes what its type is given, unless it is named itself.
        dtype: in which extractors compute; maps are float32 always.
        cache: was removed; None only, which saved configs name.

    Raises:
        UsageError: a type is unknown or needs no network, or a cache is set.
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
            raise UsageError(f"extractors.cache {self.cache!r}: maps are no longer cached; leave it out")

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


@torch.no_grad()
def extract_guidance(
    batch: SRBatch, types: Sequence[GuidanceType], scale_factor: int, networks: Networks | None = None
) -> dict[str, torch.Tensor]:
    """Maps of every type, name -> (B, C, H, W) float32 in [0, 1] at the size of hq.

    Args:
        batch: needs lq, hq for the positive controls, and the maps that only the data can know.
        types: resolved guidance types.
        scale_factor: size of hq over size of lq.
        networks: the extractors; None loads the default ones for this call.

    Raises:
        UsageError: a map or image that a type needs is missing, or a map has a wrong shape or range.
        MegaSRError: weights that a type needs are missing or damaged.
    """
    networks = networks or Networks()
    given = batch.get("maps") or {}
    maps = {g.name: given[g.name] for g in types if g.name in given}
    views: dict[str, Views] = {}
    groups: dict[tuple[str, MapNetwork], list[GuidanceType]] = {}
    for guidance in types:
        if guidance.name in maps:
            continue
        if guidance.source not in views:
            views[guidance.source] = Views(_image(batch, guidance, scale_factor))
        image = views[guidance.source].image
        if guidance.formula is not None:
            maps[guidance.name] = guidance.formula(image, batch["keys"])
        else:
            groups.setdefault((guidance.source, networks.get(guidance, image.device)), []).append(guidance)
    for (source, network), group in groups.items():  # one pass for all types of an extractor
        extracted = network(views[source], tuple(g.base for g in group))
        maps |= {guidance.name: extracted[guidance.base] for guidance in group}
    maps = {g.name: maps[g.name].to(batch["lq"].device).float() for g in types}
    _check(maps, batch, types, scale_factor)
    return maps


def _image(batch: SRBatch, guidance: GuidanceType, scale_factor: int) -> torch.Tensor:
    if guidance.source == "batch":
        raise UsageError(
            f"guidance {guidance.name} comes with the data: only rendered scenes (SceneDataModule) have it"
        )
    if guidance.source == "lq":
        return upsample_lq(batch["lq"], scale_factor)
    if "hq" not in batch:
        raise UsageError(f"guidance {guidance.name} is a control made from hq, and this batch has none")
    return batch["hq"]


def _check(maps: dict[str, torch.Tensor], batch: SRBatch, types: Sequence[GuidanceType], scale_factor: int) -> None:
    height, width = (side * scale_factor for side in batch["lq"].shape[-2:])
    for guidance in types:
        shape, expected = tuple(maps[guidance.name].shape), (len(batch["keys"]), guidance.channels, height, width)
        if shape != expected:
            raise UsageError(f"map {guidance.name}: expected (B, C, H, W) = {expected}, got {shape}")
    # All at once: on a GPU every look at a value waits for the device.
    ends = torch.stack([torch.stack(image.aminmax()) for image in maps.values()]).tolist() if maps else []
    for name, (low, high) in zip(maps, ends, strict=True):
        check_range((low, high), f"map {name}")


Shown = Mapping[GuidanceType, GuidanceType | None]  # type of the adapter -> whose map it sees, None for zeros


def shown_guidance(types: Sequence[GuidanceType], names: Iterable[str] | None) -> Shown:
    """Whose map each of the adapter's types sees.

    Args:
        types: the adapter's.
        names: of the types that are shown; "oracle_depth" shows the map of hq, in the place of depth where the
            adapter has no such type of its own. None shows all.

    Raises:
        UsageError: a name is none of the adapter's types, or a type is shown twice.
    """
    if names is None:
        return {own: own for own in types}
    shown: dict[GuidanceType, GuidanceType | None] = dict.fromkeys(types)
    for name in names:
        source = get_guidance(name)
        places = [own for own in types if name == own.name] or [own for own in types if name == ORACLE + own.name]
        if not places:
            known = ", ".join(own.name for own in types) or "none"
            raise UsageError(f"sampler.shown_guidance: {name} is not in model.adapter.guidance: {known}")
        if shown[places[0]] is not None:
            raise UsageError(f"sampler.shown_guidance shows {places[0].name} twice")
        shown[places[0]] = source
    return shown


def extract_shown(batch: SRBatch, shown: Shown, scale_factor: int, networks: Networks) -> dict[str, torch.Tensor]:
    """The maps of all of the adapter's types; what is not shown is zero, and not extracted. See extract_guidance."""
    sources = [source for source in shown.values() if source is not None]
    maps = extract_guidance(batch, sources, scale_factor, networks)
    lq = batch["lq"]
    size = (lq.shape[-2] * scale_factor, lq.shape[-1] * scale_factor)
    return {
        own.name: maps[source.name] if source else torch.zeros(len(lq), own.channels, *size, device=lq.device)
        for own, source in shown.items()
    }


MAX_STRENGTH = 2.0  # beyond 1 it extrapolates: more than training ever showed


def check_strengths(strengths: Mapping[str, float], default: Mapping[str, float]) -> dict[str, float]:
    """The strength of every type of an adapter.

    Args:
        strengths: of some of its types.
        default: of all of them, where nothing is said.

    Raises:
        UsageError: a type is none of the adapter's, or a strength is out of range.
    """
    if not isinstance(strengths, Mapping):
        raise UsageError(f"guidance must be strengths by type, such as {{'hed': 0.5}}, got {strengths!r}")
    for name, strength in strengths.items():
        if name not in default:
            known = ", ".join(default) or "no guidance"
            raise UsageError(f"guidance strength of {name}: the adapter was trained with {known}")
        if not isinstance(strength, Real) or not 0 <= strength <= MAX_STRENGTH:
            raise UsageError(f"guidance strength of {name} must be from 0 to {MAX_STRENGTH:g}, got {strength}")
    return {**default, **{name: float(strength) for name, strength in strengths.items()}}


def mix_subsets(strengths: Mapping[str, float]) -> list[tuple[float, frozenset[str]]]:
    """Weights, which sum to 1, and the subsets of types whose modulations they weigh.

    Subsets are what training has shown (dropout of types); a single type of strength s is s times its modulation.
    """
    levels = sorted({strength for strength in strengths.values() if strength > 0})
    mixed = [
        (level - lower, frozenset(name for name, strength in strengths.items() if strength >= level))
        for lower, level in zip([0.0, *levels], levels, strict=False)
    ]
    rest = 1 - (levels[-1] if levels else 0.0)
    return mixed + ([(rest, frozenset[str]())] if rest else [])
