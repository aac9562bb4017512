"""A pipeline that enlarges by two: what is around a pipeline is tested in milliseconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from megasr.errors import MegaSRError
from megasr.images import upsample_lq
from megasr.training.config import SamplerConfig

# What an image asks for by its first pixel.
CRASH, DIE, INTERRUPT = (1, 2, 3), (4, 5, 6), (7, 8, 9)


class BicubicPipeline:
    guidance = ("hed", "depth")
    scale_factor = 2
    calls: ClassVar[list[dict[str, Any]]] = []
    module = SimpleNamespace(
        prior=SimpleNamespace(size_multiple=8, native_px=64, downsampling=8),
        network=torch.nn.Identity(),
        sampler=SamplerConfig(),
        settings={},
        adapter=SimpleNamespace(text=False),
    )

    @classmethod
    def from_checkpoint(cls, path: str, prior: str | None = None, device: str = "cpu") -> BicubicPipeline:
        if device == "bad":
            raise MegaSRError("this device has no prior")
        return cls()

    def __call__(
        self,
        image: Sequence[torch.Tensor],
        *,
        keys: Sequence[str],
        output_type: str,
        callback_on_step_end: Callable[..., Any],
        **options: Any,
    ) -> SimpleNamespace:
        self.calls.append({"keys": list(keys), **options})
        for one in image:
            asked = tuple((one[:, 0, 0] * 255).round().int().tolist())
            if asked == CRASH:
                raise ZeroDivisionError("division by zero")
            if asked == DIE:
                os.kill(os.getpid(), signal.SIGKILL)
            if asked == INTERRUPT:
                raise KeyboardInterrupt
        for step, timestep in enumerate((999, 666, 333)):
            callback_on_step_end(self, step, timestep, {})
        assert output_type == "pt"
        return SimpleNamespace(images=[upsample_lq(one[None], 2)[0] for one in image])
