"""Degradations with a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from data_pipelines.degradations.pipeline import Bicubic, Degradation, Params
from data_pipelines.degradations.sampling import Blur, Jpeg, Noise, Op, Order, Resize, draw_final_sinc, draw_resize_to
from megasr.errors import UsageError, unknown_name
from megasr.images import from_uint8
from megasr.rng import numpy_generator


@dataclass(frozen=True)
class HighOrder:
    """Orders of the classical degradation, and what brings the image to the size of lq.

    Every resize but the first is relative to the size of lq. The end is a resize to lq with a sinc filter, before or
    after the last JPEG; an order that goes straight to the size of lq has no such end.

    Args:
        name: of the preset; it stands in every parameter set.
        scale_factor: size of hq over size of lq.
        orders: first, second...
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


SCALE_FACTORS = (2, 3, 4, 8)


def _none(scale_factor: int) -> Degradation:
    if scale_factor != 1:
        raise UsageError(f"degradation 'none' leaves the size as it is: it needs scale_factor 1, got {scale_factor}")
    return Bicubic(1, name="none")


def _realesrgan_strong(scale_factor: int) -> Degradation:
    """Real-ESRGAN x4plus, section 4.1, with SeeSR's q >= 30 in both orders (utils_data/make_paired_data.py)."""
    first = Order(
        Blur(sigma=(0.2, 3.0), beta_generalized=(0.5, 4.0), beta_plateau=(1.0, 2.0)),
        Noise(sigma=(1, 30), poisson_scale=(0.05, 3.0)),
        Jpeg((30, 95)),
        Resize(up=0.2, down=0.7, scales=(0.15, 1.5)),
    )
    second = Order(
        replace(first.blur, sigma=(0.2, 1.5), probability=0.8),
        Noise(sigma=(1, 25), poisson_scale=(0.05, 2.5)),
        Jpeg((30, 95)),
        Resize(up=0.3, down=0.4, scales=(0.3, 1.2)),
    )
    return HighOrder("realesrgan_strong", scale_factor, (first, second))


def _stablesr_mild(scale_factor: int) -> Degradation:
    """StableSR's, which also made DIV2K-Val (its params_realesrgan.yml and configs/stableSRdata)."""
    first = Order(
        Blur(sigma=(0.2, 1.5), beta_generalized=(0.5, 2.0), beta_plateau=(1.0, 1.5)),
        Noise(sigma=(1, 15), poisson_scale=(0.05, 2.0)),
        Jpeg((60, 95)),
        Resize(up=0.2, down=0.7, scales=(0.3, 1.5)),
    )
    second = Order(
        replace(first.blur, sigma=(0.2, 1.0), probability=0.5),
        Noise(sigma=(1, 12), poisson_scale=(0.05, 1.0)),
        Jpeg((60, 100)),
        Resize(up=0.3, down=0.4, scales=(0.6, 1.2)),
    )
    return HighOrder("stablesr_mild", scale_factor, (first, second), untouched_probability=0.01)


def _first_order(scale_factor: int) -> Degradation:
    """The classical degradation (2107.10833, eq. 1) with the numbers of realesrgan_strong's first order."""
    order = Order(
        Blur(sigma=(0.2, 3.0), beta_generalized=(0.5, 4.0), beta_plateau=(1.0, 2.0)),
        Noise(sigma=(1, 30), poisson_scale=(0.05, 3.0)),
        Jpeg((30, 95)),
    )
    return HighOrder("first_order", scale_factor, (order,))


PRESETS: dict[str, Callable[[int], Degradation]] = {
    "bicubic": Bicubic,
    "first_order": _first_order,
    "none": _none,
    "realesrgan_strong": _realesrgan_strong,
    "stablesr_mild": _stablesr_mild,
}


def get_degradation(name: str, scale_factor: int) -> Degradation:
    """Build a preset.

    Args:
        name: name of the preset.
        scale_factor: size of hq over size of lq: 2, 3, 4 or 8; 1 for `none`.

    Raises:
        UsageError: there is no such preset (shows the nearest names), or it does not do this scale factor.
    """
    if name not in PRESETS:
        raise unknown_name("degradation", name, PRESETS)
    if name != "none" and scale_factor not in SCALE_FACTORS:
        raise UsageError(
            f"degradation {name!r} does scale_factor {', '.join(map(str, SCALE_FACTORS))}, got {scale_factor}"
        )
    return PRESETS[name](scale_factor)
