"""Parameters of the high-order degradation, and the blur kernels that they stand for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

# Sum of |kernel - approximation|: no pixel of an image in [0, 1] moves by more, a quarter of an 8-bit level.
TOLERANCE = 1e-3
ANISOTROPIC = ("aniso", "generalized_aniso", "plateau_aniso")


def make_kernel(blur: Mapping[str, Any]) -> np.ndarray:
    """Build a blur kernel, (size, size) float64 with sum 1.

    Args:
        blur: `kernel` and `size`; `cutoff` for sinc; for all others `sigma_x`, `sigma_y`, `theta`, and `beta` for the
            generalised and plateau families.
    """
    radius = blur["size"] // 2
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    if blur["kernel"] == "sinc":
        return _sinc_kernel(np.hypot(x, y), blur["cutoff"])
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


def _sinc_kernel(distance: np.ndarray, cutoff: float) -> np.ndarray:
    """Circular low-pass filter, cutoff * J1(cutoff * r) / (2 pi r), which rings and overshoots (2107.10833, eq. 6)."""
    from scipy.special import j1

    radius = len(distance) // 2
    distance[radius, radius] = 1
    kernel = cutoff * j1(cutoff * distance) / (2 * np.pi * distance)
    kernel[radius, radius] = cutoff**2 / (4 * np.pi)  # the limit at r = 0
    return kernel / kernel.sum()


class Separable(NamedTuple):
    """A kernel as sum over i of outer(columns[i], rows[i]); both (rank, size) float32."""

    rows: np.ndarray
    columns: np.ndarray


def trim(kernel: np.ndarray, tolerance: float = TOLERANCE / 2) -> np.ndarray:
    """Cut off the border that is nearly zero, and renormalise: a Gaussian of 0.5 px does not need 21 px."""
    size = len(kernel)
    for radius in range(size // 2):
        middle = slice(size // 2 - radius, size // 2 + radius + 1)
        inner = kernel[middle, middle]
        # what is cut off, and what the renormalisation adds
        if np.abs(kernel).sum() - np.abs(inner).sum() + abs(1 - inner.sum()) <= tolerance:
            return inner / inner.sum()
    return kernel


def factorise(kernel: np.ndarray, tolerance: float = TOLERANCE / 2) -> Separable:
    """The fewest separable terms within tolerance of the kernel (SVD): each replaces n * n taps by two passes of n."""
    # A kernel is symmetric about its centre, so its terms are even or odd along both axes. Decomposed separately, the
    # taps are exactly symmetric (OpenCV has a faster filter for those), and the matrices half as large.
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
        # what remains, and what the renormalisation below changes
        if np.abs(remainder).sum() + abs(remainder.sum()) * np.abs(kernel).sum() <= tolerance:
            break
    # Sum 1, so that a flat image keeps its level: a later JPEG would round all of it to another one.
    total = (u[:rank].sum(1) * vt[:rank].sum(1)).sum()
    return Separable(rows=vt[:rank].astype(np.float32), columns=(u[:rank] / total).astype(np.float32))


@functools.cache
def _even_and_odd(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases of the even and of the odd vectors of `size` taps, one vector per column."""
    unit = np.eye(size)
    even, odd = (unit + unit[::-1])[:, size // 2 :], (unit - unit[::-1])[:, size // 2 + 1 :]
    return even / np.linalg.norm(even, axis=0), odd / np.linalg.norm(odd, axis=0)


Op = dict[str, Any]
Range = tuple[float, float]
MODES = ("area", "bilinear", "bicubic")
# shares of Real-ESRGAN, section 4.1; StableSR and SeeSR have the same
KERNELS = {
    "iso": 0.45, "aniso": 0.25, "generalized_iso": 0.12, "generalized_aniso": 0.03, "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}  # fmt: skip
KERNEL_SIZES = tuple(range(7, 22, 2))


@dataclass(frozen=True)
class Blur:
    """Blur. `sigma` is in px along each axis; half of the `beta` are drawn below 1, half above.

    Args:
        probability: share of images that are blurred.
        sinc_probability: share of sinc filters among the blurs.
        kernels: kernel -> share among the others.
    """

    sigma: Range
    beta_generalized: Range
    beta_plateau: Range
    probability: float = 1.0
    sinc_probability: float = 0.1
    kernels: dict[str, float] = field(default_factory=lambda: dict(KERNELS))

    def draw(self, rng: np.random.Generator) -> Op | None:
        """One blur, or None."""
        if rng.random() >= self.probability:
            return None
        size = _choice(rng, KERNEL_SIZES)
        if rng.random() < self.sinc_probability:
            lowest = np.pi / 3 if size < 13 else np.pi / 5
            return {"op": "blur", "kernel": "sinc", "size": size, "cutoff": rng.uniform(lowest, np.pi)}
        kernel = str(rng.choice(list(self.kernels), p=list(self.kernels.values())))
        sigma_x = rng.uniform(*self.sigma)
        op = {"op": "blur", "kernel": kernel, "size": size, "sigma_x": sigma_x, "sigma_y": sigma_x, "theta": 0.0}
        if kernel in ANISOTROPIC:
            op |= {"sigma_y": rng.uniform(*self.sigma), "theta": rng.uniform(-np.pi, np.pi)}
        if "_" in kernel:
            low, high = self.beta_plateau if kernel.startswith("plateau") else self.beta_generalized
            op["beta"] = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
        return op


@dataclass(frozen=True)
class Resize:
    """Resize: a share `up` to a scale in [1, scales[1]], a share `down` to one in [scales[0], 1]."""

    up: float
    down: float
    scales: Range

    def draw(self, rng: np.random.Generator, base: float = 1.0) -> Op:
        """One resize; its scale is relative to the size of hq times `base`."""
        kind = rng.random()
        scale = 1.0
        if kind < self.up:
            scale = rng.uniform(1, self.scales[1])
        elif kind < self.up + self.down:
            scale = rng.uniform(self.scales[0], 1)
        return {"op": "resize", "scale": scale * base, "mode": _choice(rng, MODES)}


@dataclass(frozen=True)
class Noise:
    """Noise: Gaussian (`sigma` of 255) or Poisson (`poisson_scale` 1 is a photon count at 256 levels).

    Args:
        gaussian_probability: share of Gaussian noise.
        grey_probability: share of noise that is the same in all three channels.
    """

    sigma: Range
    poisson_scale: Range
    gaussian_probability: float = 0.5
    grey_probability: float = 0.4

    def draw(self, rng: np.random.Generator) -> Op:
        """One noise; `offset` is its place in the noise bank."""
        op: Op
        if rng.random() < self.gaussian_probability:
            op = {"op": "gaussian_noise", "sigma": rng.uniform(*self.sigma)}
        else:
            op = {"op": "poisson_noise", "scale": rng.uniform(*self.poisson_scale)}
        return op | {"grey": bool(rng.random() < self.grey_probability), "offset": int(rng.integers(2**31))}


@dataclass(frozen=True)
class Jpeg:
    """JPEG compression of a quality in [low, high]."""

    quality: tuple[int, int]

    def draw(self, rng: np.random.Generator) -> Op:
        """One compression."""
        return {"op": "jpeg", "quality": int(rng.integers(self.quality[0], self.quality[1] + 1))}


@dataclass(frozen=True)
class Order:
    """One pass of the classical degradation: blur, resize (None: to lq), noise, JPEG (2107.10833, eq. 1)."""

    blur: Blur
    noise: Noise
    jpeg: Jpeg
    resize: Resize | None = None


def draw_final_sinc(rng: np.random.Generator, probability: float) -> Op | None:
    """The sinc filter at the end (2107.10833, section 3.3), or None."""
    if rng.random() >= probability:
        return None
    return {"op": "blur", "kernel": "sinc", "size": _choice(rng, KERNEL_SIZES), "cutoff": rng.uniform(np.pi / 3, np.pi)}


def draw_resize_to(rng: np.random.Generator, scale: float) -> Op:
    """A resize to a fixed scale in a random mode."""
    return {"op": "resize", "scale": scale, "mode": _choice(rng, MODES)}


def _choice(rng: np.random.Generator, values: tuple[Any, ...]) -> Any:
    return values[int(rng.integers(len(values)))]
