"""The guidance types an adapter may use, by name. A user's own module adds one with `register_guidance`.

A map is (B, C, H, W) float32 in [0, 1] at the size of hq. Its role decides where MSFM takes it in: every `edge` map has
its own SAFT, all `region` maps are aggregated first (2503.08096 v2, figure 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from megasr.errors import UsageError
from megasr.guidance.edges import extract_canny, extract_lsd, load_hed, load_sketch
from megasr.guidance.extractors import MapNetwork
from megasr.guidance.mlsd import load_mlsd
from megasr.guidance.pidinet import load_pidinet
from megasr.guidance.regions import extract_noise, extract_saliency, extract_superpixel, load_depth, load_segmentation
from megasr.guidance.tiny import FOLDERS as TINY
from megasr.images import from_uint8
from megasr.plugins import Registry

# (image (B, 3, H, W) in [0, 1], B sample keys) -> map (B, C, H, W) in [0, 1]
Formula = Callable[[torch.Tensor, Sequence[str]], torch.Tensor]
Loader = Callable[[str], MapNetwork]  # source of the weights -> extractor
ORACLE = "oracle_"


def render_grey(image: torch.Tensor) -> torch.Tensor:
    """A picture of a map: (1, H, W) in [0, 1] -> (3, H, W), the same in grey."""
    return image.detach().float().expand(3, -1, -1).clone()


def render_edge(image: torch.Tensor) -> torch.Tensor:
    """(1, H, W), 1 at an edge -> (3, H, W), dark lines on white: faint edges stay visible."""
    return 1 - render_grey(image)


def render_depth(image: torch.Tensor) -> torch.Tensor:
    """(1, H, W), near = 1 -> (3, H, W) in the perceptually uniform colours of `inferno`, near = bright."""
    import cv2

    levels = (image[0].detach().float() * 255).round().byte().cpu().numpy()
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]  # from BGR
    return from_uint8(np.ascontiguousarray(colours)).to(image.device)


def render_colours(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) whose channels are colours already (segmentation, normals, superpixels) -> the same."""
    return image.detach().float().clone()


@dataclass(frozen=True)
class GuidanceType:
    """One kind of structural map.

    Attributes:
        name: what configs call it.
        role: where MSFM takes it in.
        channels: C of the map.
        source: what the map is made from: `lq` (as in real use), `hq` (a positive control) or `batch` (it comes with
            the data).
        description: one line for people.
        formula: makes the map without weights.
        load: loads the extractor that makes it.
        weights: names by which `load` knows its weights (megasr.weights); the first is the default.
        render: (C, H, W) -> a picture of it, (3, H, W) in [0, 1].

    Raises:
        ValueError: formula, load and weights do not fit the source.
    """

    name: str
    role: Literal["edge", "region"]
    channels: int
    source: Literal["lq", "hq", "batch"]
    description: str
    formula: Formula | None = None
    load: Loader | None = None
    weights: tuple[str, ...] = ()
    render: Callable[[torch.Tensor], torch.Tensor] = render_edge

    def __post_init__(self) -> None:
        ways = (self.formula is not None) + (self.load is not None)
        if ways != (self.source != "batch") or bool(self.weights) != (self.load is not None):
            raise ValueError(
                f"guidance type {self.name}: give a formula, or load and weights; neither with source 'batch'"
            )

    @property
    def base(self) -> str:
        """The type whose extractor it uses: its own name without the mark of a positive control."""
        return self.name.removeprefix(ORACLE)

    @property
    def needs(self) -> str:
        """What must be there, for people."""
        if self.source == "batch":
            return "exact maps of rendered scenes"
        extractor = f"a network: {', '.join(self.weights)}, or a folder" if self.load else ""
        parts = ["hq"] * (self.source == "hq") + [extractor] * bool(extractor)
        return ", and ".join(parts) or "nothing"


GUIDANCE: Registry[GuidanceType] = Registry("guidance type")


def register_guidance(guidance: GuidanceType) -> None:
    """Add a type; one that reads lq also gets its positive control `oracle_<name>`, the same extractor on hq.

    Where the data bring a map of that name, as rendered scenes do with exact ones, it is taken instead.

    Raises:
        UsageError: the name is taken.
    """
    GUIDANCE.register(guidance.name, guidance)
    if guidance.source == "lq" and guidance.name != "noise":
        # An extractor that was tuned for lq is not the best one for hq.
        weights = tuple(sorted(guidance.weights, key=lambda name: name == "tiny_lq"))
        oracle = f"positive control: {guidance.name} of hq"
        register_guidance(
            replace(guidance, name=ORACLE + guidance.name, source="hq", weights=weights, description=oracle)
        )


register = register_guidance


def get_guidance(name: str) -> GuidanceType:
    """The registered type of this name. Raises UsageError with the nearest names when there is none."""
    return GUIDANCE[name]


def is_made_from_lq(name: str) -> bool:
    """Whether a type of this name is registered and extracted from lq: a map of it that was made of hq would cheat."""
    return name in GUIDANCE and GUIDANCE[name].source == "lq"


def list_guidance() -> list[str]:
    """All names, sorted."""
    return sorted(GUIDANCE)


def guidance_switches(model: Mapping[str, Any]) -> dict[str, bool]:
    """Whether a run restores with a type: of every type that is made of lq, and of the others that it uses.

    Args:
        model: the config's section; one without an adapter has no switches.
    """
    if (trained := (model.get("adapter") or {}).get("guidance")) is None:
        return {}
    shown = (model.get("sampler") or {}).get("shown_guidance")
    used = set(trained if shown is None else shown)
    return {name: name in used for name in sorted({*filter(is_made_from_lq, GUIDANCE), *used})}


def resolve_guidance(names: Iterable[str]) -> list[GuidanceType]:
    """Types of a config, sorted by name: the set identifies an adapter, not the order in which it was typed.

    Raises:
        UsageError: a name is unknown or given twice.
    """
    names = sorted(names)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"guidance type given twice: {', '.join(repeated)}")
    return [get_guidance(name) for name in names]


_SMALL = tuple(reversed(TINY))  # tiny_lq first: maps are made of lq
_DEPTH = tuple(f"depth-anything-v2-{size}" for size in ("small", "base", "large"))
_ADE20K = ("segformer-b5-ade", "upernet-convnext-small-ade", "mask2former-swin-large-ade")

for _guidance in (
    GuidanceType(
        "hed", "edge", 1, "lq", "soft edges of objects (HED, 1504.06375)",
        load=load_hed, weights=(*_SMALL, "controlnet-hed"),
    ),
    GuidanceType(
        "pidinet", "edge", 1, "lq", "soft edges by pixel differences (PiDiNet, 2108.07009)",
        load=load_pidinet, weights=("pidinet",),
    ),
    GuidanceType("canny", "edge", 1, "lq", "Canny edges (OpenCV)", formula=extract_canny),
    GuidanceType(
        "sketch", "edge", 1, "lq", "line drawing (informative drawings, 2203.12691)",
        load=load_sketch, weights=("lineart-sketch",),
    ),
    GuidanceType("lsd", "edge", 1, "lq", "straight line segments by a formula (OpenCV's LSD)", formula=extract_lsd),
    GuidanceType(
        "mlsd", "edge", 1, "lq", "straight line segments by a network (M-LSD, 2106.00186)",
        load=load_mlsd, weights=("mlsd-tiny",),
    ),
    GuidanceType(
        "depth", "region", 1, "lq", "inverse depth, near = bright (Depth Anything V2, 2406.09414)",
        load=load_depth, weights=(*_SMALL, *_DEPTH), render=render_depth,
    ),
    GuidanceType(
        "normal", "region", 3, "lq", "surface normals: a head of the small extractor, else from depth",
        load=load_depth, weights=(*_SMALL, *_DEPTH), render=render_colours,
    ),
    GuidanceType(
        "segmentation", "region", 3, "lq", "classes in their colours (ADE20K's; the small network's are materials)",
        load=load_segmentation, weights=(*_SMALL, *_ADE20K), render=render_colours,
    ),
    GuidanceType(
        "superpixel", "region", 3, "lq", "SLIC superpixels in their mean colours",
        formula=extract_superpixel, render=render_colours,
    ),
    GuidanceType(
        "saliency", "region", 1, "lq", "spectral residual saliency (Hou and Zhang 2007)",
        formula=extract_saliency, render=render_grey,
    ),
    GuidanceType(
        "noise", "region", 1, "lq", "negative control: a random map keyed by the image's name",
        formula=extract_noise, render=render_grey,
    ),
    GuidanceType("oracle_edge", "edge", 1, "batch", "positive control: borders and creases of objects, exact"),
):  # fmt: skip
    register_guidance(_guidance)
