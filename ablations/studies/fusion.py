"""How are the maps fused? The figure's MSFM, started at the identity, against how else it could be built.

Behind the default of `fusion_init`, and behind the claim that two stages in both halves of the network are needed.
"""

from __future__ import annotations

from typing import Any

from ablations.registry import Ablation, Study, change, register

_ADAPTER = "model.adapter"
_FIGURE: dict[str, Any] = {"fusion_init": "residual", "fusion": None, "fusion_in": None, "stage1": "v2", "map_patch": 1}


def _changed(name: str, field: str, value: str | int, description: str, hypothesis: str) -> Ablation:
    return change(name, {f"{_ADAPTER}.{field}": value}, description, hypothesis)


FUSION = register(
    Study(
        name="fusion",
        question="Does MSFM in two stages, in both halves and from the identity, restore better than its alternatives?",
        reference=change(
            "residual",
            {f"{_ADAPTER}.{field}": value for field, value in _FIGURE.items()},
            "F' = F + sum of SAFTs, zero at step 0: the prior is left as it was",
        ),
        ablations=(
            _changed(
                "as_drawn", "fusion_init", "as_drawn",
                "F' = sum of SAFTs of GroupNorm(F): the prior's features are replaced",
                "Worse at few steps: the frozen prior is handed about 2 GroupNorm(F) at every site from step 0, and "
                "the SAFTs must first learn to undo that.",
            ),
            _changed(
                "sum", "fusion", "sum", "every map has a SAFT of its own, without stage 1",
                "No difference: region maps that contradict each other are rare, so that there is little for stage 1 "
                "to weigh.",
            ),
            _changed(
                "concat", "fusion", "concat", "one SAFT over all maps stacked",
                "Slightly worse: an MLP of the same width has to serve all maps, where two stages have one for each "
                "edge map and one for the regions.",
            ),
            _changed(
                "patches", "map_patch", 4, "a site sees 4 x 4 pixels of a map at each place, not their mean",
                "Better where maps are exact: the mean loses where in its cell an edge runs.",
            ),
            _changed(
                "unet_only", "fusion_in", "unet", "no MSFM in the ControlNet",
                "No difference: the U-Net's 16 sites see the same maps, and the ControlNet has lq itself.",
            ),
            _changed(
                "controlnet_only", "fusion_in", "controlnet", "no MSFM in the U-Net",
                "Worse: what the maps say reaches the decoder through the ControlNet's residuals only, at the sizes of "
                "its encoder.",
            ),
            _changed(
                "stage1_v1", "stage1", "v1", "stage 1 as the first version has it: no activation, no product",
                "No difference: a convolution and a SAFT follow each other either way, and can learn the same.",
            ),
        ),
        primary_metric="ssim_y",
    )
)  # fmt: skip
