"""High-order degradation (Real-ESRGAN, 2107.10833, section 3): the classical one repeated, then sinc and JPEG.

Differs from Real-ESRGAN's code, where one batch shares the kind and scale of resizes, the kind of noise, the modes and
the order of the end: here every sample draws all of its own. JPEG is libjpeg's with integer quality, not a
differentiable imitation; Poisson noise counts photons at 256 levels, not at as many as the image has grey values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipelines.degradations.pipeline import Params
from data_pipelines.degradations.sampling import Jpeg, Op, Order, draw_final_sinc, draw_resize_to
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
