"""What do maps of lq keep of the gain of exact ones, and does tuning (PGFT) help? Plain, tuned, perfect extractors."""

from __future__ import annotations

from typing import Any

from ablations.registry import Study, change, register
from ablations.studies.prior_selection import NOISE, PAPERS
from megasr.guidance.registry import ORACLE

_GUIDANCE, _EXTRACTORS, _SHOWN = "model.adapter.guidance", "model.extractors", "model.sampler.shown_guidance"
_OF_HQ = [ORACLE + name for name in PAPERS]


def _made_by(network: str) -> dict[str, Any]:
    return {_EXTRACTORS: {"sources": dict.fromkeys(PAPERS, network)}}


_PLAIN = {_GUIDANCE: list(PAPERS), **_made_by("tiny")}

EXTRACTORS = register(
    Study(
        name="extractors",
        question="How much of what exact edges, depth and segmentation add is left when extractors draw them from lq?",
        reference=change("none", {_GUIDANCE: [], _EXTRACTORS: None, _SHOWN: None}, "no guidance"),
        ablations=(
            change(
                "plain", _PLAIN, "maps of lq, by networks trained on clean images",
                "No difference: what they get right is about cancelled by what they get wrong.",
            ),
            change(
                "pgft", {**_PLAIN, **_made_by("tiny_lq")}, "maps of lq, by the same networks tuned for lq",
                "Slightly better: a third of the maps' error is gone.",
            ),
            change(
                "oracle", {**_PLAIN, _GUIDANCE: _OF_HQ}, "maps of hq, exact ones where the data bring them",
                "Better, by far more than tuning brings: this is what any extractor could reach.",
            ),
            change(
                "oracle_shown", {**_PLAIN, _SHOWN: _OF_HQ}, "trained with plain maps, restored with those of hq",
                "Better, by less than oracle: an adapter that has learnt to distrust its maps uses good ones less.",
            ),
            change(
                "nothing_shown", {**_PLAIN, _SHOWN: []}, "trained with plain maps, restored without any",
                "Slightly worse: what an adapter has learnt to use it misses.",
            ),
            change(
                NOISE, {_GUIDANCE: [NOISE]}, "a map that says nothing of the image",
                "Not better: there is nothing to learn from it.",
            ),
        ),
        primary_metric="fsim",
        controls={NOISE: "negative", "oracle": "positive"},
    )
)  # fmt: skip
