"""Is it worth while to tune the extractors for lq (PGFT)? The paper's types, plain, tuned and perfect."""

from __future__ import annotations

from typing import Any

from ablations.registry import Study, change, register
from ablations.studies.prior_selection import NOISE, PAPERS
from megasr.guidance.registry import ORACLE

_GUIDANCE, _EXTRACTORS, _SHOWN = "model.adapter.guidance", "model.extractors", "model.sampler.shown_guidance"
_OF_HQ = [ORACLE + name for name in PAPERS]


def _made_by(network: str) -> dict[str, Any]:
    return {_EXTRACTORS: {"sources": dict.fromkeys(PAPERS, network)}}


_REFERENCE = {_GUIDANCE: list(PAPERS), **_made_by("tiny"), _SHOWN: None}

EXTRACTORS = register(
    Study(
        name="extractors",
        question="Do edges, depth and segmentation by extractors tuned for lq restore better than by plain ones?",
        reference=change("plain", _REFERENCE, "maps of lq, by networks trained on clean images"),
        ablations=(
            change(
                "pgft", _made_by("tiny_lq"), "maps of lq, by the same networks tuned for lq",
                "Better: a third of the maps' error is gone, and wrong guidance is worse than none.",
            ),
            change(
                "oracle", {_GUIDANCE: _OF_HQ}, "maps of hq, exact ones where the data bring them",
                "Better, by far more than tuning brings: this is what any extractor could reach.",
            ),
            change(
                "oracle_shown", {_SHOWN: _OF_HQ}, "trained with plain maps, restored with those of hq",
                "Better, by less than oracle: an adapter that has learnt to distrust its maps uses good ones less.",
            ),
            change(
                "nothing_shown", {_SHOWN: []}, "trained with plain maps, restored without any",
                "Slightly worse: what an adapter has learnt to use it misses, but maps of lq were of little use.",
            ),
            change(
                "none", {_GUIDANCE: [], _EXTRACTORS: None}, "no guidance",
                "No difference: what plain extractors get right is about cancelled by what they get wrong.",
            ),
            change(
                NOISE, {_GUIDANCE: [NOISE], _EXTRACTORS: None}, "a map that says nothing of the image",
                "Not better than plain maps, which say at least something.",
            ),
        ),
        primary_metric="ssim_y",
        controls={NOISE: "negative", "oracle": "positive"},
    )
)  # fmt: skip
