"""Degradations by name: parameters are drawn per sample, then applied, so that every lq can be made again.

A user's package adds one with register_degradation; `data.degradation` then takes its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from data_pipelines.degradations.sampling import Blur, Jpeg, Noise, Op, Order, Resize, draw_final_sinc, draw_resize_to
from megasr.errors import UsageError
from megasr.images import from_uint8, resize
from megasr.plugins import Registry
from megasr.rng import numpy_generator

Params = dict[str, Any]  # plain data: it goes into batches and logs


class Degradation(Protocol):
    """hq -> lq, in two steps: draw parameters, apply them."""

    @property
    def name(self) -> str:
        """Of the preset."""

    @property
    def scale_factor(self) -> int:
        """Size of hq over size of lq."""

    def sample_params(self, seed: int, keys: Sequence[str], variant: int = 0) -> list[Params]:
        """One parameter set per sample, a function of (seed, key, variant); a variant is another draw for the image."""

    def apply(self, hq: torch.Tensor, params: Sequence[Params]) -> torch.Tensor:
        """The `device` back end: hq (B, 3, H, W) in [0, 1] -> lq (B, 3, H / scale_factor, W / scale_factor)."""

    def apply_image(self, hq: np.ndarray, params: Params) -> torch.Tensor:
        """The `cpu` back end, for loader workers: hq (H, W, 3) uint8 -> lq (3, H / scale_factor, W / scale_factor)."""


class Bicubic:
    """Antialiased bicubic down-sampling, the degradation of classical super-resolution; scale_factor 1 does nothing."""

    def __init__(self, scale_factor: int, name: str = "bicubic") -> None:
        self.scale_factor, self.name = scale_factor, name

    def sample_params(self, seed: int, keys: Sequence[str], variant: int = 0) -> list[Params]:
        """The name and the scale factor: nothing is random."""
        return [{"name": self.name, "scale_factor": self.scale_factor} for _ in keys]

    def apply(self, hq: torch.Tensor, params: Sequence[Params]) -> torch.Tensor:
        """See Degradation.apply.

        Raises:
            UsageError: the size of hq is not a multiple of the scale factor.
        """
        height, width = hq.shape[-2:]
        if height % self.scale_factor or width % self.scale_factor:
            raise UsageError(f"hq of {width}x{height} px is not a multiple of scale_factor {self.scale_factor}")
        if self.scale_factor == 1:
            return hq
        return resize(hq, height // self.scale_factor, width // self.scale_factor)

    def apply_image(self, hq: np.ndarray, params: Params) -> torch.Tensor:
        """See Degradation.apply_image: the same code as on the device."""
        return self.apply(from_uint8(hq)[None], [params])[0]


@dataclass(frozen=True)
class HighOrder:
    """The high-order degradation of Real-ESRGAN (2107.10833): passes of the classical one.

    Every resize but the first is relative to the size of lq. At the end, a resize to lq and a sinc filter come before
    or after the last JPEG; an order without `resize` has no such end.

    Args:
        sinc_probability: share of images with a sinc filter at the end.
        untouched_probability: share of images that are only resized.
    """

    name: str
    scale_factor: int
    orders: tuple[Order, ...]
    sinc_probability: float = 0.8
    untouched_probability: float = 0.0

    def sample_params(self, seed: int, keys: Sequence[str], variant: int = 0) -> list[Params]:
        """See Degradation.sample_params. `ops` has the same slots for every sample; None is left out."""
        return [self._sample(numpy_generator(seed, "degradation", key, variant)) for key in keys]

    def _sample(self, rng: np.random.Generator) -> Params:
        to_lq = 1 / self.scale_factor
        untouched = rng.random() < self.untouched_probability
        ops: list[Op | None] = []
        for number, order in enumerate(self.orders):
            ops.append(order.blur.draw(rng))
            resize = order.resize
            ops.append(resize.draw(rng, to_lq if number else 1.0) if resize else draw_resize_to(rng, to_lq))
            ops.append(order.noise.draw(rng))
            ends_here = resize is not None and number == len(self.orders) - 1
            ops += self._end(rng, order.jpeg) if ends_here else [order.jpeg.draw(rng)]
        if untouched:
            ops = [None] * (len(ops) - 1) + [draw_resize_to(rng, to_lq)]
        return {"name": self.name, "scale_factor": self.scale_factor, "ops": ops}

    def _end(self, rng: np.random.Generator, jpeg: Jpeg) -> list[Op | None]:
        compress = jpeg.draw(rng)
        to_lq = [draw_resize_to(rng, 1 / self.scale_factor), draw_final_sinc(rng, self.sinc_probability)]
        return [None, *to_lq, compress] if rng.random() < 0.5 else [compress, *to_lq, None]

    def apply_image(self, hq: np.ndarray, params: Params) -> torch.Tensor:
        """See Degradation.apply_image."""
        from data_pipelines.degradations.cpu import apply_ops

        return from_uint8(apply_ops(hq, params["ops"]))

    def apply(self, hq: torch.Tensor, params: Sequence[Params]) -> torch.Tensor:
        """See Degradation.apply: batched, on the device of hq."""
        from data_pipelines.degradations.device import apply_ops_batched

        return apply_ops_batched(hq, [sample["ops"] for sample in params])


class AnyOf:
    """One of several degradations for each image, drawn with equal chances.

    Args:
        parts: their names, on which the draws depend, and the degradations; a name that stands twice is drawn twice as
            often.
    """

    def __init__(self, parts: Sequence[tuple[str, Degradation]]) -> None:
        self.name, self.scale_factor = "+".join(name for name, _ in parts), parts[0][1].scale_factor
        self._names, self._parts = [name for name, _ in parts], dict(parts)

    def sample_params(self, seed: int, keys: Sequence[str], variant: int = 0) -> list[Params]:
        """See Degradation.sample_params: those of the part that was drawn, with its name."""
        return [self._sample(seed, key, variant) for key in keys]

    def _sample(self, seed: int, key: str, variant: int) -> Params:
        name = self._names[numpy_generator(seed, "any of", key, variant).integers(len(self._names))]
        return {**self._parts[name].sample_params(seed, [key], variant)[0], "name": name}

    def apply_image(self, hq: np.ndarray, params: Params) -> torch.Tensor:
        """See Degradation.apply_image."""
        return self._parts[params["name"]].apply_image(hq, params)

    def apply(self, hq: torch.Tensor, params: Sequence[Params]) -> torch.Tensor:
        """See Degradation.apply: the images of one part together."""
        images: dict[int, torch.Tensor] = {}
        for name, part in self._parts.items():
            places = [place for place, sample in enumerate(params) if sample["name"] == name]
            if places:
                images |= zip(places, part.apply(hq[places], [params[place] for place in places]), strict=True)
        return torch.stack([images[place] for place in range(len(hq))])


def _realesrgan_strong(scale_factor: int) -> HighOrder:
    """Real-ESRGAN x4plus, section 4.1, with SeeSR's q >= 30 in both orders (utils_data/make_paired_data.py)."""
    blur = Blur(sigma=(0.2, 3.0), beta_generalized=(0.5, 4.0), beta_plateau=(1.0, 2.0))
    weaker = replace(blur, sigma=(0.2, 1.5), probability=0.8)
    first, second = Noise(sigma=(1, 30), poisson_scale=(0.05, 3.0)), Noise(sigma=(1, 25), poisson_scale=(0.05, 2.5))
    orders = (
        Order(blur, first, Jpeg((30, 95)), Resize(up=0.2, down=0.7, scales=(0.15, 1.5))),
        Order(weaker, second, Jpeg((30, 95)), Resize(up=0.3, down=0.4, scales=(0.3, 1.2))),
    )
    return HighOrder("realesrgan_strong", scale_factor, orders)


def _stablesr_mild(scale_factor: int) -> Degradation:
    """StableSR's, which also made DIV2K-Val (its params_realesrgan.yml and configs/stableSRdata)."""
    blur = Blur(sigma=(0.2, 1.5), beta_generalized=(0.5, 2.0), beta_plateau=(1.0, 1.5))
    weaker = replace(blur, sigma=(0.2, 1.0), probability=0.5)
    first, second = Noise(sigma=(1, 15), poisson_scale=(0.05, 2.0)), Noise(sigma=(1, 12), poisson_scale=(0.05, 1.0))
    orders = (
        Order(blur, first, Jpeg((60, 95)), Resize(up=0.2, down=0.7, scales=(0.3, 1.5))),
        Order(weaker, second, Jpeg((60, 100)), Resize(up=0.3, down=0.4, scales=(0.6, 1.2))),
    )
    return HighOrder("stablesr_mild", scale_factor, orders, untouched_probability=0.01)


def _first_order(scale_factor: int) -> Degradation:
    """The classical degradation (2107.10833, eq. 1) with the numbers of realesrgan_strong's first order."""
    return HighOrder("first_order", scale_factor, (replace(_realesrgan_strong(scale_factor).orders[0], resize=None),))


DEGRADATIONS: Registry[Callable[[int], Degradation]] = Registry("degradation")


def register_degradation(name: str, build: Callable[[int], Degradation]) -> None:
    """Add a degradation, built of its scale factor, from a user's package too (see megasr.plugins)."""
    DEGRADATIONS.register(name, build)


def get_degradation(name: str, scale_factor: int) -> Degradation:
    """Build a degradation by its name, for a scale factor of 2, 3, 4 or 8; 1 for `none`.

    Names with a plus between them, `stablesr_mild+realesrgan_strong`, are drawn from anew for each image.

    Raises:
        UsageError: there is no such degradation (shows the nearest names), or it does not do this scale factor.
    """
    if "+" in name and name not in DEGRADATIONS:
        return AnyOf([(part, get_degradation(part, scale_factor)) for part in name.split("+")])
    build = DEGRADATIONS[name]
    factors = (1,) if name == "none" else (2, 3, 4, 8)
    if scale_factor not in factors:
        raise UsageError(f"degradation {name!r} does scale_factor {', '.join(map(str, factors))}, got {scale_factor}")
    return build(scale_factor)


register_degradation("bicubic", Bicubic)
register_degradation("first_order", _first_order)
register_degradation("none", partial(Bicubic, name="none"))
register_degradation("realesrgan_strong", _realesrgan_strong)
register_degradation("stablesr_mild", _stablesr_mild)
