"""The predicted memory of a restoration is what torch's tensors really take."""

from __future__ import annotations

import pytest
import torch

from megasr.inference.memory import restoring_bytes
from megasr.inference.pipeline import MegaSRPipeline
from megasr.training.memory_plan import LiveBytes
from tests.helpers.inference import loud_pipeline, photograph

pytestmark = pytest.mark.slow


@pytest.fixture
def pipeline() -> MegaSRPipeline:
    return loud_pipeline()


def measured(pipeline: MegaSRPipeline, images: list[torch.Tensor], **options: object) -> int:
    tracker = LiveBytes()
    for tensor in (*pipeline.module.parameters(), *pipeline.module.buffers(), *images):
        tracker.see(tensor, "frozen")
    with tracker:
        pipeline(images, num_inference_steps=1, output_type="pt", **options)
    return max(sum(row[1:]) for row in tracker.rows)


def test_the_prediction_is_what_is_measured_and_half_precision_takes_less(pipeline: MegaSRPipeline) -> None:
    options = {"guidance": {"canny": 0.5}, "color_fix": "wavelet", "scale_factor": 3}
    images = [photograph(12, 12, seed=number) for number in range(3)]
    predicted = restoring_bytes(pipeline, (12, 12), 3, **options)
    assert predicted == pytest.approx(measured(pipeline, images, **options), rel=0.02)
    assert restoring_bytes(pipeline.to(dtype=torch.bfloat16), (12, 12), 3, **options) < 0.8 * predicted


def test_of_many_tiles_a_few_tell(pipeline: MegaSRPipeline) -> None:
    options = {"tile": 32, "scale_factor": 8, "guidance_scale": 1.0}  # 25 tiles in 7 groups, of which 5 are looked at
    predicted = restoring_bytes(pipeline, (12, 12), **options)
    assert predicted == pytest.approx(measured(pipeline, [photograph(12, 12)], **options), rel=0.02)
