"""Every metric of every protocol: direction, best value, and the field's published numbers."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from megasr.evaluation.evaluator import Evaluator
from megasr.evaluation.protocol import PROTOCOLS, MetricSpec, Protocol
from megasr.images import from_uint8, read_image, resize
from megasr.rng import torch_generator

CASES = [pytest.param(p, m, id=f"{p.name}-{m.name}") for p in PROTOCOLS.values() for m in p.metrics]


@pytest.fixture(scope="module")
def hq() -> torch.Tensor:
    coarse = torch.rand(1, 3, 12, 12, generator=torch_generator(0, "coarse"))
    fine = torch.rand(1, 3, 96, 96, generator=torch_generator(0, "fine"))
    return (resize(coarse, 96, 96) * 0.8 + fine * 0.2).clamp(0, 1)


def _measure(protocol: Protocol, metric: MetricSpec, sr: torch.Tensor, hq: torch.Tensor) -> float:
    only = Protocol(protocol.name, protocol.version, (metric,), protocol.color_space, protocol.border_px)
    return Evaluator(only).rows(sr, hq, ["image"])[0][metric.name]


@pytest.mark.parametrize(("protocol", "metric"), CASES)
def test_direction_is_pyiqas(protocol: Protocol, metric: MetricSpec) -> None:
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    assert metric.higher_is_better != DEFAULT_CONFIGS[metric.pyiqa_name].get("lower_better", False)
    assert metric.needs_hq == (DEFAULT_CONFIGS[metric.pyiqa_name]["metric_mode"] == "FR")


@pytest.mark.parametrize(("protocol", "metric"), CASES)
def test_perfect_beats_blurred_beats_shuffled(protocol: Protocol, metric: MetricSpec, hq: torch.Tensor) -> None:
    blurred = resize(resize(hq, 24, 24), 96, 96)
    order = torch.randperm(96 * 96, generator=torch_generator(0, "order"))
    shuffled = hq.flatten(2)[:, :, order].view_as(hq)
    sign = 1 if metric.higher_is_better else -1
    scores = [sign * _measure(protocol, metric, image, hq) for image in (hq, blurred, shuffled)]
    assert scores[0] > scores[1] > scores[2]


def _shared_data(root: Path) -> Path:
    named = os.environ.get("MEGASR_SHARED_DATA")
    return Path(named) if named else root.parent / "shared" / "data"


@pytest.mark.golden
def test_psnr_and_ssim_match_the_published_scores_of_drealsr(root: Path) -> None:
    """OSEDiff's published sr of DRealSR crops, measured again (field.md, finding 6)."""
    folder = _shared_data(root) / "drealsr"
    if not (folder / "metrics.csv").is_file():
        pytest.skip(f"no DRealSR reference data at {folder}; set MEGASR_SHARED_DATA to the folder that holds drealsr/")
    protocol = PROTOCOLS["weight-free-v1"]
    evaluator = Evaluator(Protocol("published", 1, protocol.metrics[:2], protocol.color_space, protocol.border_px))
    with (folder / "metrics.csv").open() as file:
        published = {row["image"]: row for row in csv.DictReader(file)}
    # Images of 512 x 512 take a second each: four of them, of four cameras.
    for name in sorted(published)[::10]:
        sr = from_uint8(read_image(folder / "osediff_sr" / name))[None]
        hq = from_uint8(read_image(folder / "hq" / name))[None]
        row = evaluator.rows(sr, hq, [name])[0]
        assert row["psnr_y"] == pytest.approx(float(published[name]["psnr"]), abs=1e-3), name
        assert row["ssim_y"] == pytest.approx(float(published[name]["ssim"]), abs=1e-4), name


def test_measuring_does_not_touch_the_global_generators(hq: torch.Tensor) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    Evaluator(PROTOCOLS["weight-free-v1"]).rows(hq, hq, ["image"])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
