"""The predicted memory of a restoration is what torch's tensors really take."""

from __future__ import annotations

import pytest
import torch

from megasr.inference.memory import restoring_bytes
from megasr.inference.pipeline import MegaSRPipeline
from megasr.training.live_bytes import LiveBytes
from tests.helpers.inference import loud_pipeline, photograph


@pytest.fixture(scope="module")
def pipeline() -> MegaSRPipeline:
    return loud_pipeline()


def measured(pipeline: MegaSRPipeline, images: list[torch.Tensor], **options: object) -> int:
    tracker = LiveBytes()
    for tensor in (*pipeline.module.parameters(), *pipeline.module.buffers(), *images):
        tracker.see(tensor, "frozen")
    with tracker:
        pipeline(images, num_inference_steps=1, output_type="pt", **options)
    return max(sum(row[1:]) for row in tracker.rows)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, {}),
        (3, {}),
        (1, {"tile": 32}),  # 4 tiles
        (1, {"tile": 32, "scale_factor": 8}),  # 25 tiles, not all of which are looked at
        (1, {"guidance": {"canny": 0.5}, "color_fix": "wavelet", "scale_factor": 3}),
        (1, {"guidance_scale": 3.0}),
    ],
    ids=["one", "three", "tiles", "many", "options", "guidance"],
)
def test_the_prediction_is_what_is_measured(pipeline: MegaSRPipeline, count: int, options: dict[str, object]) -> None:
    images = [photograph(12, 12, seed=number) for number in range(count)]
    predicted = restoring_bytes(pipeline, (12, 12), count, **options)
    assert predicted == pytest.approx(measured(pipeline, images, **options), rel=0.02)


def test_half_precision_takes_less() -> None:
    pipeline = loud_pipeline()
    whole = restoring_bytes(pipeline, (12, 12))
    assert restoring_bytes(pipeline.to(dtype=torch.bfloat16), (12, 12)) < 0.8 * whole
