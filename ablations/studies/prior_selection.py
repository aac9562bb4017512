"""Which guidance types help? The selection study of the paper ("pair-wise comparisons"), on what needs no weights.

For now the pool is what can be extracted without external weights. An oracle (the map taken from hq), which a study
needs as its positive control, is not in the pool yet; the report says so.
"""

from __future__ import annotations

from ablations.registry import Ablation, Study, register

_GUIDANCE = "model.adapter.guidance"


def _combination(*guidance: str, description: str) -> Ablation:
    """The adapter with exactly these guidance types."""
    return Ablation("+".join(guidance) or "none", {_GUIDANCE: guidance}, (_GUIDANCE,), description)


PRIOR_SELECTION = register(
    Study(
        name="prior_selection",
        question="Which guidance types, taken from lq, improve the restoration over no guidance at equal steps?",
        reference=_combination(description="no guidance: MSFM is absent"),
        ablations=(
            _combination("canny", description="edges"),
            _combination("superpixel", description="regions of mean colour"),
            _combination("canny", "superpixel", description="edges and regions"),
            _combination("noise", description="a fixed random map keyed by the image: it carries no information"),
        ),
        primary_metric="ssim_y",  # guidance is about structure, and this is the field's structural fidelity measure
        controls={"noise": "negative"},
    )
)
