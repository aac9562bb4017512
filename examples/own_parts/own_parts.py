"""Parts of one's own: a guidance type, a metric, a degradation, and a study of the type. Nothing in megasr is edited.

pip install -e examples/own_parts
megasr params --guidance gradient
megasr study run gradient --config examples/own_parts/gradient.yaml --output runs/gradient
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ablations.registry import Ablation, Study, register
from data_pipelines.degradations.presets import get_degradation, register_degradation
from megasr.evaluation.protocol import MetricSpec, get_protocol, register_metric, register_protocol
from megasr.guidance.registry import GuidanceType, register_guidance


def extract_gradient(image: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> magnitude of the grey image's gradient (B, 1, H, W) in [0, 1]."""
    grey = image.mean(1, keepdim=True)
    dx, dy = (torch.diff(grey, dim=d, prepend=grey.narrow(d, 0, 1)) for d in (-1, -2))
    return (dx.square() + dy.square()).sqrt().clamp(0, 1)


register_guidance(GuidanceType("gradient", "edge", 1, "lq", "gradient magnitude", formula=extract_gradient))


def mean_error(sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of two images in [0, 1]."""
    return (sr - hq).abs().mean()


mae = register_metric(MetricSpec("mae", higher_is_better=False, function=mean_error, value_range=(0, 1)))
weight_free = get_protocol("weight-free-v1")
register_protocol(replace(weight_free, name="with-mae-v1", metrics=(*weight_free.metrics, mae)))

register_degradation(
    "own_mild", lambda scale_factor: replace(get_degradation("stablesr_mild", scale_factor), name="own_mild")
)


def _guided_by(guidance: tuple[str, ...], description: str, hypothesis: str = "") -> Ablation:
    path = "model.adapter.guidance"
    return Ablation("+".join(guidance) or "none", {path: guidance}, (path,), description, guidance, hypothesis)


register(
    Study(
        name="gradient",
        question="Does the gradient of lq help, as Canny's edges of lq do or do not?",
        reference=_guided_by((), "no guidance"),
        ablations=(
            _guided_by(("gradient",), "gradient magnitude of lq", "Slightly better: it is strong where edges are."),
            _guided_by(("canny",), "Canny's edges of lq", "No better than the gradient: it has less to say."),
            _guided_by(("oracle_gradient",), "gradient of hq", "Better: it shows what lq has lost."),
            _guided_by(("noise",), "a random map", "No better than none."),
        ),
        primary_metric="fsim",
        controls={"oracle_gradient": "positive", "noise": "negative"},
    )
)
