"""What does each part of the adapter add when tags and maps are right? Exact tags and exact maps of rendered scenes."""

from __future__ import annotations

from typing import Any

from ablations.registry import Study, change, register
from ablations.studies.prior_selection import NOISE
from megasr.guidance.registry import ORACLE

_ADAPTER = "model.adapter"
_NOTHING: dict[str, Any] = {"text": False, "image": False, "rca": False, "stage1": "v2", "guidance": []}
_MAPS = [ORACLE + name for name in ("edge", "depth", "segmentation")]


def _with(**fields: Any) -> dict[str, Any]:
    return {f"{_ADAPTER}.{name}": value for name, value in fields.items()}


PARTS = register(
    Study(
        name="parts",
        question="What do tags, image tokens and exact maps add to a ControlNet on lq?",
        reference=change("controlnet_only", _with(**_NOTHING), "a ControlNet on lq alone"),
        ablations=(
            change(
                "text", _with(text=True), "the tags of the scene",
                "Better: the prior knows which material to draw.",
            ),
            change(
                "image_tokens", _with(text=True, image=True), "tags and image tokens of lq",
                "Better than tags alone: image tokens say where things are.",
            ),
            change("edge", _with(guidance=_MAPS[:1]), "exact edges", "Better: they show structure that lq has lost."),
            change("depth", _with(guidance=_MAPS[1:2]), "exact depth", "Slightly better: borders of objects only."),
            change(
                "segmentation", _with(guidance=_MAPS[2:]), "exact segmentation",
                "Better: a class per pixel says which texture belongs where.",
            ),
            change(
                "megasr", _with(text=True, image=True, guidance=_MAPS), "the paper's second version, all of it",
                "Better than each part alone.",
            ),
            change(
                "megasr_v1", _with(text=True, image=True, guidance=_MAPS, rca=True, stage1="v1"),
                "the paper's first version: with RCA and the first stage 1",
                "No difference to megasr: its representation is made of the same image tokens.",
            ),
            change(
                NOISE, _with(guidance=[NOISE]), "a map that says nothing of the image",
                "Not better: there is nothing to learn from it.",
            ),
        ),
        primary_metric="fsim",
        controls={NOISE: "negative", "megasr": "positive"},
    )
)  # fmt: skip
