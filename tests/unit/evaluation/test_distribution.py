"""Distances of sets against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from megasr.evaluation.metrics import caveat, frechet_distance, kernel_distance
from megasr.rng import numpy_generator


def _features(key: str, count: int, dimensions: int = 6, shift: float = 0.0) -> torch.Tensor:
    generator = numpy_generator(0, key)
    return torch.from_numpy(
        generator.normal(size=(count, dimensions)) @ generator.normal(size=(dimensions,) * 2) + shift
    )


def test_frechet_distance_is_the_formula_with_a_matrix_root() -> None:
    x, y = _features("x", 40), _features("y", 30, shift=0.5)
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    expected = gap + np.trace(cov_x + cov_y - 2 * sqrtm(cov_x @ cov_y).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x.float(), y.float()) == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_of_one_dimension_is_the_closed_form_also_with_fewer_images_than_features() -> None:
    x, y = torch.zeros(3, 50), torch.zeros(3, 50)
    x[:, 0], y[:, 0] = torch.tensor([-1.0, 0, 1]), torch.tensor([8.0, 10, 12])
    assert frechet_distance(x, y) == pytest.approx(10**2 + (2 - 1) ** 2)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_kernel_distance_is_the_sum_over_pairs_and_unbiased() -> None:
    x, y = _features("x", 5, 3), _features("y", 4, 3)

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (x, y)]
    across = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(sum(within) - 2 * across)
    repeats = [
        kernel_distance(torch.from_numpy(g.normal(size=(6, 3))), torch.from_numpy(g.normal(size=(6, 3))))
        for g in (numpy_generator(i, "unbiased") for i in range(2000))
    ]
    assert abs(np.mean(repeats)) < 4 * np.std(repeats) / 2000**0.5
    assert min(repeats) < 0


def test_the_caveat_names_the_number_of_images() -> None:
    assert "fid of 93 images is biased upwards" in caveat(93)
    assert caveat(2048) != "" == caveat(2049)
