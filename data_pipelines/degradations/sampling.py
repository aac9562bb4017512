"""What is random in a degradation: the distributions, and one draw of each as plain data.

An operation is a dict with `op` and its numbers, so that it can travel in a batch, be logged and be replayed. Sizes are
given as a scale of hq, which makes parameters independent of the image.

op               | numbers
blur             | kernel, size (odd, px), and cutoff (sinc) or sigma_x, sigma_y (px), theta (radians), beta
resize           | scale (output size over the size of hq), mode (area, bilinear, bicubic)
gaussian_noise   | sigma (of 255), grey (one noise for all channels), offset (into the noise bank)
poisson_noise    | scale (1: a photon count at 256 levels), grey, offset
jpeg             | quality (1 to 100, an integer as libjpeg has it)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.degradations.kernels import ANISOTROPIC

Op = dict[str, Any]
Range = tuple[float, float]
MODES = ("area", "bilinear", "bicubic")
# Real-ESRGAN, table of section 4.1: the same in every setting that the field uses.
KERNELS = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}
KERNEL_SIZES = tuple(range(7, 22, 2))


@dataclass(frozen=True)
class Blur:
    """Which blurs there are.

    Args:
        sigma: standard deviation of the kernel along each axis, px.
        beta_generalized: shape of the generalised Gaussians; half of the draws are below 1, half above.
        beta_plateau: shape of the plateau kernels, likewise.
        probability: share of images that are blurred.
        sinc_probability: share of the blurs that are a sinc filter.
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
    """How large the image becomes.

    Args:
        up: share of images that grow.
        down: share of images that shrink; the others keep the size.
        scales: the smallest and the largest scale; growing draws from [1, largest], shrinking from [smallest, 1].
    """

    up: float
    down: float
    scales: Range

    def draw(self, rng: np.random.Generator, base: float = 1.0) -> Op:
        """One resize to a scale that is relative to `base` (a share of the size of hq)."""
        kind = rng.random()
        scale = 1.0
        if kind < self.up:
            scale = rng.uniform(1, self.scales[1])
        elif kind < self.up + self.down:
            scale = rng.uniform(self.scales[0], 1)
        return {"op": "resize", "scale": scale * base, "mode": _choice(rng, MODES)}


@dataclass(frozen=True)
class Noise:
    """Which noise there is.

    Args:
        sigma: of Gaussian noise, of 255.
        poisson_scale: strength of Poisson noise, 1 being a photon count at 256 levels.
        gaussian_probability: share of Gaussian noise; the other images get Poisson noise.
        grey_probability: share of noise that is the same in all three channels.
    """

    sigma: Range
    poisson_scale: Range
    gaussian_probability: float = 0.5
    grey_probability: float = 0.4

    def draw(self, rng: np.random.Generator) -> Op:
        """One noise. The offset says where in the noise bank it begins."""
        op: Op
        if rng.random() < self.gaussian_probability:
            op = {"op": "gaussian_noise", "sigma": rng.uniform(*self.sigma)}
        else:
            op = {"op": "poisson_noise", "scale": rng.uniform(*self.poisson_scale)}
        return op | {"grey": bool(rng.random() < self.grey_probability), "offset": int(rng.integers(2**31))}


@dataclass(frozen=True)
class Jpeg:
    """JPEG compression.

    Args:
        quality: lowest and highest quality, both included.
    """

    quality: tuple[int, int]

    def draw(self, rng: np.random.Generator) -> Op:
        """One compression."""
        return {"op": "jpeg", "quality": int(rng.integers(self.quality[0], self.quality[1] + 1))}


@dataclass(frozen=True)
class Order:
    """One pass of the classical degradation: blur, resize, noise, JPEG (2107.10833, eq. 1).

    Args:
        blur: see Blur.
        noise: see Noise.
        jpeg: see Jpeg.
        resize: see Resize; None goes straight to the size of lq.
    """

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
