"""The guidance types an adapter may use. To add one: write its extractor in a file of its own, register it below.

A map is (B, C, H, W) float32 in [0, 1] at the size of hq. Its role decides where MSFM takes it in: every `edge` map has
its own SAFT, all `region` maps are aggregated first (2503.08096 v2, figure 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from megasr.errors import UsageError, unknown_name
from megasr.guidance.canny import extract_canny
from megasr.guidance.noise import extract_noise
from megasr.guidance.superpixel import extract_superpixel

# (image (B, 3, H, W) in [0, 1], B sample keys) -> map (B, C, H, W) in [0, 1]
Extractor = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]


@dataclass(frozen=True)
class GuidanceType:
    """One kind of structural map.

    Attributes:
        name: what configs call it.
        role: where MSFM takes it in.
        channels: C of the map.
        source: what the map is made from: `lq` (as in real use), `hq` (a positive control) or `batch` (it comes with
            the data).
        extractor: makes the map from lq_up or hq; None when it comes with the data.
        description: one line for people.
    """

    name: str
    role: Literal["edge", "region"]
    channels: int
    source: Literal["lq", "hq", "batch"]
    extractor: Extractor | None
    description: str

    def __post_init__(self) -> None:
        if (self.extractor is None) != (self.source == "batch"):
            raise ValueError(
                f"guidance type {self.name}: source {self.source!r} contradicts extractor {self.extractor}"
            )


_REGISTRY: dict[str, GuidanceType] = {}


def register(guidance: GuidanceType) -> None:
    """Add a type; one that reads lq also gets its positive control `oracle_<name>`, the same extractor on hq.

    Raises:
        ValueError: the name is taken.
    """
    if guidance.name in _REGISTRY:
        raise ValueError(f"guidance type {guidance.name!r} is registered twice")
    _REGISTRY[guidance.name] = guidance
    if guidance.source == "lq" and guidance.name != "noise":
        oracle = f"positive control: {guidance.name} of hq"
        register(replace(guidance, name=f"oracle_{guidance.name}", source="hq", description=oracle))


def get_guidance(name: str) -> GuidanceType:
    """The registered type of this name.

    Raises:
        UsageError: there is none; shows the nearest names.
    """
    if name not in _REGISTRY:
        raise unknown_name("guidance type", name, _REGISTRY)
    return _REGISTRY[name]


def is_made_from_lq(name: str) -> bool:
    """Whether a type of this name is registered and extracted from lq: a map of it that was made of hq would cheat."""
    return name in _REGISTRY and _REGISTRY[name].source == "lq"


def list_guidance() -> list[str]:
    """All names, sorted."""
    return sorted(_REGISTRY)


def resolve_guidance(names: Iterable[str]) -> list[GuidanceType]:
    """Types of a config, sorted by name: the set identifies a network, not the order in which it was typed.

    Raises:
        UsageError: a name is unknown or given twice.
    """
    names = list(names)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"guidance type given twice: {', '.join(repeated)}")
    return sorted((get_guidance(name) for name in names), key=lambda guidance: guidance.name)


def _from_scenes(name: str, role: Literal["edge", "region"], channels: int, what: str) -> GuidanceType:
    return GuidanceType(name, role, channels, "batch", None, f"positive control: {what}, exact; rendered scenes only")


for _guidance in (
    GuidanceType("canny", "edge", 1, "lq", extract_canny, "Canny edges (OpenCV)"),
    GuidanceType("superpixel", "region", 3, "lq", extract_superpixel, "SLIC superpixels in their mean colours"),
    GuidanceType("noise", "region", 1, "lq", extract_noise, "negative control: a random map keyed by the image's name"),
    _from_scenes("oracle_depth", "region", 1, "depth, near = bright"),
    _from_scenes("oracle_normal", "region", 3, "surface normals"),
    _from_scenes("oracle_segmentation", "region", 3, "material classes in their colours"),
    _from_scenes("oracle_edge", "edge", 1, "borders and creases of objects"),
):
    register(_guidance)
