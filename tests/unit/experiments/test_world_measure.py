"""Measures of the world's prior: KID sees a shift and no other, and takes as many of both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.photos import EVAL_PHOTOS, load_photo
from experiments.world import measure
from megasr.evaluation.protocol import DISTS, LPIPS
from megasr.images import center_crop, write_png
from megasr.prior import load_prior
from tests.helpers.metric_weights import write_metric_weights


def test_kid_is_zero_of_one_distribution_and_grows_with_the_distance() -> None:
    real, same, far = (torch.randn(200, 16, generator=torch.Generator().manual_seed(n)) for n in range(3))
    found = [measure.kid(real, other)["mean"] for other in (same, far + 0.3, far + 0.6)]
    assert abs(found[0]) < 0.05 < found[1] < found[2]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    write_metric_weights(folder, {*LPIPS.weights, *DISTS.weights})
    return folder


def test_noise_of_latents_makes_reconstructions_worse(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "SIZE_PX", 64)
    for photo in EVAL_PHOTOS[:3]:
        write_png(center_crop(load_photo(photo.name), 80), tmp_path / "photos" / f"{photo.name}.png")
    found = measure.measure_autoencoder(load_prior("tiny"), tmp_path / "photos", weights)
    assert found["photographs"] == 3
    clean, noisy = (found[f"latent noise {noise}"]["psnr"]["mean"] for noise in ("0", "0.3"))
    assert clean > noisy + 3


def test_samples_are_drawn_for_tags_and_shown(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "STEPS", 2)
    latents = tmp_path / "latents"
    latents.mkdir()
    shape = (40, *load_prior("tiny").encode(torch.zeros(1, 3, 32, 32)).shape[1:])
    np.save(latents / "train.npy", np.random.default_rng(0).normal(size=shape).astype(np.float16))
    (latents / "tags.json").write_text(json.dumps({"train": ["grass ground"] * 40}))
    found = measure.measure_samples(load_prior("tiny"), latents, 8, weights, tmp_path / "samples.png")
    assert found["kid"]["mean"] > found["kid_of_training_latents"]["mean"]
    assert (tmp_path / "samples.png").is_file()
