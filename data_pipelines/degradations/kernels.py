"""Blur kernels (Real-ESRGAN, 2107.10833, sections 3.1 and 3.3) and their separable form.

A kernel is (size, size) float64 with sum 1, size odd, centred. Lengths are in pixels, theta and cutoff in radians.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# Sum of |kernel - approximation|: no pixel of an image in [0, 1] moves by more, a quarter of an 8-bit level.
TOLERANCE = 1e-3
ANISOTROPIC = ("aniso", "generalized_aniso", "plateau_aniso")


def make_kernel(blur: Mapping[str, Any]) -> np.ndarray:
    """The kernel of a blur's parameters.

    Args:
        blur: `kernel` and `size`; `cutoff` for sinc; for all others `sigma_x`, `sigma_y`, `theta`, and `beta` for the
            generalised and plateau families.
    """
    if blur["kernel"] == "sinc":
        return sinc_kernel(blur["size"], blur["cutoff"])
    radius = blur["size"] // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    cos, sin = np.cos(blur["theta"]), np.sin(blur["theta"])
    along, across = (cos * x + sin * y) / blur["sigma_x"], (cos * y - sin * x) / blur["sigma_y"]
    distance = along**2 + across**2  # x^T Sigma^-1 x
    if blur["kernel"].startswith("plateau"):
        kernel = 1 / (1 + distance ** blur["beta"])
    elif blur["kernel"].startswith("generalized"):
        kernel = np.exp(-0.5 * distance ** blur["beta"])
    else:
        kernel = np.exp(-0.5 * distance)
    return kernel / kernel.sum()


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """Circular low-pass filter, cutoff * J1(cutoff * r) / (2 pi r), which leaves rings and overshoots (eq. 6).

    Args:
        size: odd.
        cutoff: in (0, pi]; pi keeps every frequency.
    """
    from scipy.special import j1

    radius = size // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    distance = np.hypot(x, y)
    distance[radius, radius] = 1
    kernel = cutoff * j1(cutoff * distance) / (2 * np.pi * distance)
    kernel[radius, radius] = cutoff**2 / (4 * np.pi)  # the limit at r = 0
    return kernel / kernel.sum()


class Separable(NamedTuple):
    """A kernel as sum over i of outer(columns[i], rows[i]); both (rank, size) float32."""

    columns: np.ndarray
    rows: np.ndarray


def trim(kernel: np.ndarray, tolerance: float = TOLERANCE / 2) -> np.ndarray:
    """Cut away the border that holds next to nothing: a Gaussian of 0.5 px is not 21 px wide. Sum 1 again."""
    size = len(kernel)
    for radius in range(size // 2):
        middle = slice(size // 2 - radius, size // 2 + radius + 1)
        inner = kernel[middle, middle]
        # What is cut off, and what the renormalisation adds again.
        if np.abs(kernel).sum() - np.abs(inner).sum() + abs(1 - inner.sum()) <= tolerance:
            return inner / inner.sum()
    return kernel


def factorise(kernel: np.ndarray, tolerance: float = TOLERANCE / 2) -> Separable:
    """The fewest separable terms that are within tolerance of the kernel (singular value decomposition).

    Two passes of n taps replace n * n taps. A Gaussian along the axes needs one term; rotated, generalised, plateau and
    sinc kernels need a few, because they are smooth.
    """
    # A kernel is symmetric about its centre, so its terms are either even or odd along both axes. Taken apart
    # beforehand, the taps come out exactly symmetric (OpenCV has a faster filter for those) from half-size matrices.
    halves = []
    for basis in _even_and_odd(len(kernel)):
        u, s, vt = np.linalg.svd(basis.T @ kernel @ basis)
        halves.append((s, (basis @ u).T, vt @ basis.T))
    s, u, vt = (np.concatenate(part) for part in zip(*halves, strict=True))
    order = np.argsort(-s)
    s, u, vt = s[order], u[order] * np.sqrt(s[order, None]), vt[order] * np.sqrt(s[order, None])
    remainder = kernel.astype(np.float64)
    for rank in range(1, len(s) + 1):
        remainder = remainder - np.outer(u[rank - 1], vt[rank - 1])
        # What is left over, and what bringing the sum back to 1 moves.
        if np.abs(remainder).sum() + abs(remainder.sum()) * np.abs(kernel).sum() <= tolerance:
            break
    # The sum stays 1: a flat image keeps its level, or a later JPEG would round all of it to another one.
    total = (u[:rank].sum(1) * vt[:rank].sum(1)).sum()
    return Separable((u[:rank] / total).astype(np.float32), vt[:rank].astype(np.float32))


@functools.cache
def _even_and_odd(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases, one vector per column, of what is even and what is odd about the middle of `size` taps."""
    unit = np.eye(size)
    even, odd = (unit + unit[::-1])[:, size // 2 :], (unit - unit[::-1])[:, size // 2 + 1 :]
    return even / np.linalg.norm(even, axis=0), odd / np.linalg.norm(odd, axis=0)
