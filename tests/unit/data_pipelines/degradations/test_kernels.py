"""Blur kernels against formulas written another way, and their separable form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import j0
from scipy.stats import multivariate_normal

from data_pipelines.degradations.presets import get_degradation
from data_pipelines.degradations.sampling import TOLERANCE, factorise, make_kernel, trim


def blur(kernel: str, size: int = 11, sigma_x: float = 2.0, sigma_y: float = 2.0, theta: float = 0.0, **more: float):
    return {"kernel": kernel, "size": size, "sigma_x": sigma_x, "sigma_y": sigma_y, "theta": theta, **more}


def covariance(op: dict) -> np.ndarray:
    cos, sin = np.cos(op["theta"]), np.sin(op["theta"])
    rotation = np.array([[cos, -sin], [sin, cos]])
    return rotation @ np.diag([op["sigma_x"] ** 2, op["sigma_y"] ** 2]) @ rotation.T


def positions(size: int) -> np.ndarray:
    """(size, size, 2) of (x, y), x to the right."""
    steps = np.arange(size) - size // 2
    return np.stack(np.meshgrid(steps, steps), axis=2).astype(float)


@pytest.mark.parametrize("op", [blur("iso", sigma_x=1.3, sigma_y=1.3), blur("aniso", 15, 2.5, 0.7, 0.6)])
def test_gaussians_are_scipys(op: dict) -> None:
    density = multivariate_normal([0, 0], covariance(op)).pdf(positions(op["size"]))
    np.testing.assert_allclose(make_kernel(op), density / density.sum(), atol=1e-12)


@pytest.mark.parametrize("beta", [0.6, 1.0, 3.0])
def test_generalised_and_plateau_kernels(beta: float) -> None:
    """2107.10833, section 3.1: exp(-(d^2)^beta / 2) and 1 / (1 + (d^2)^beta) of the Mahalanobis distance d."""
    op = blur("generalized_aniso", 13, 2.0, 0.9, -1.1, beta=beta)
    x = positions(13)
    distance = np.einsum("ijk,kl,ijl->ij", x, np.linalg.inv(covariance(op)), x)
    expected = {"generalized_aniso": np.exp(-0.5 * distance**beta), "plateau_aniso": 1 / (1 + distance**beta)}
    for kernel, value in expected.items():
        np.testing.assert_allclose(make_kernel({**op, "kernel": kernel}), value / value.sum(), atol=1e-12)
    gaussian = make_kernel(blur("aniso", 13, 2.0, 0.9, -1.1))
    assert np.allclose(make_kernel(op), gaussian) == (beta == 1.0)


def test_sinc_is_the_inverse_transform_of_a_disc() -> None:
    """A circular low-pass of cutoff w has the impulse response 1/(2 pi) * integral of k J0(k r) dk from 0 to w."""
    cutoff, size = 1.7, 9
    distance = np.hypot(*np.moveaxis(positions(size), 2, 0))
    response = np.vectorize(lambda r: quad(lambda k: k * j0(k * r), 0, cutoff)[0] / (2 * np.pi))(distance)
    kernel = make_kernel({"kernel": "sinc", "size": size, "cutoff": cutoff})
    np.testing.assert_allclose(kernel, response / response.sum(), atol=1e-9)
    assert kernel.min() < 0, "it rings"


def test_the_separable_form_is_within_tolerance_and_short() -> None:
    params = get_degradation("realesrgan_strong", 4).sample_params(5, [f"k{i}" for i in range(150)])
    ranks: dict[str, list[int]] = {}
    for op in (p["ops"][slot] for p in params for slot in (0, 4, 9)):
        if op is None:
            continue
        kernel, trimmed = make_kernel(op), trim(make_kernel(op))
        assert abs(trimmed.sum() - 1) < 1e-9
        terms = factorise(trimmed)
        rebuilt = np.pad(terms.columns.T.astype(float) @ terms.rows, (len(kernel) - len(trimmed)) // 2)
        assert np.abs(rebuilt - kernel).sum() <= TOLERANCE
        assert abs(rebuilt.sum() - 1) < 1e-6, "a flat image keeps its level"
        flipped = terms.rows[:, ::-1]
        assert ((flipped == terms.rows) | (flipped == -terms.rows)).all(), "exactly odd or even"
        ranks.setdefault(op["kernel"], []).append(len(terms.rows))
    assert max(ranks["iso"]) == 1
    assert max(max(r) for r in ranks.values()) <= 12


def test_a_narrow_kernel_is_trimmed() -> None:
    assert trim(make_kernel(blur("iso", 21, 0.2, 0.2))).shape == (1, 1)
    assert len(trim(make_kernel(blur("iso", 21, 0.5, 0.5)))) == 5
    assert len(trim(make_kernel(blur("plateau_iso", 21, 3, 3, beta=1)))) == 21
