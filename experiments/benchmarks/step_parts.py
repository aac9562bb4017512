"""Where the time of a whole training step of the tiny prior goes: data, extraction, encoders, network, optimizer.

Part of train_step.py. A stopwatch stands around the real calls of `MegaSRModule.training_step` on batches of the real
loader, with the shipped prior, extractors and vision tower; each part is the median of all steps but the first.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from data_pipelines.embedded import SceneDataModule
from megasr.networks.config import AdapterConfig
from megasr.semantics.clip import VisionConfig
from megasr.training.module import MegaSRModule

BATCH, CROP_PX = 8, 128
_SCENES = {"degradation": "realesrgan_strong", "crop_size_px": CROP_PX, "batch_size": BATCH}


class Laps:
    """Seconds of named calls, summed over one step."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def call(self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Call, and count its time."""
        begin = time.perf_counter()
        result = function(*arguments, **named)
        self.seconds[name] += time.perf_counter() - begin
        return result

    def watch(self, name: str, owner: Any, method: str) -> None:
        """Count every call of a method of this one object."""
        function = getattr(owner, method)
        setattr(owner, method, lambda *arguments, **named: self.call(name, function, *arguments, **named))

    def finish(self) -> dict[str, float]:
        """What one step took; the next begins at zero."""
        done, self.seconds = dict(self.seconds), defaultdict(float)
        return done


def build_module(guidance: tuple[str, ...]) -> MegaSRModule:
    """The full adapter on the shipped prior, with the shipped extractors and vision tower."""
    adapter = AdapterConfig(guidance=guidance, image=True, image_width=128, saft_width=32)
    return MegaSRModule(adapter=adapter, vision=VisionConfig(model="tiny_lq")).train()


def measure_parts(guidance: tuple[str, ...], steps: int) -> dict[str, Any]:
    """Seconds of the parts of a step, of the whole step, and of one item of the loader."""
    warnings.filterwarnings("ignore", message=".*self.trainer. reference is not registered.*")
    module, laps = build_module(guidance), Laps()
    network = module.network
    laps.watch("guidance_extraction_s", module, "guidance_maps")
    laps.watch("image_tokens_s", module.vision, "forward")
    laps.watch("text_encoder_s", module.prior.text_encoder, "forward")
    laps.watch("vae_encode_s", module.prior, "encode")
    laps.watch("conditions_s", network, "conditions")
    laps.watch("controlnet_forward_s", network.controlnet, "forward")
    laps.watch("unet_forward_s", network.unet, "forward")
    optimizer = module.configure_optimizers()["optimizer"]
    found: list[dict[str, float]] = []
    batches = iter(SceneDataModule(pool=2 * BATCH, eval_crop_size_px=CROP_PX, **_SCENES).train_dataloader())
    for number in range(steps + 1):
        batch = next(batches)
        begin = time.perf_counter()
        loss = module.training_step(batch, number)["loss"]
        forward_s = time.perf_counter() - begin
        parts = laps.finish()
        parts["rest_of_forward_s"] = forward_s - sum(parts.values())
        laps.call("backward_s", loss.backward)
        laps.call("optimizer_s", optimizer.step)
        optimizer.zero_grad()
        found.append(parts | laps.finish() | {"step_s": time.perf_counter() - begin})
    medians = {name: round(statistics.median(step[name] for step in found[1:]), 4) for name in found[1]}
    return {"batch": BATCH, "crop_px": CROP_PX, "steps": steps} | medians | _loader_item(steps)


def _loader_item(count: int) -> dict[str, float]:
    """Median seconds of one item: a new scene or a crop from the pool, and its degradation in both."""
    sources = {
        "loader_item_rendered_s": SceneDataModule(**_SCENES),
        "loader_item_pool_s": SceneDataModule(pool=2 * BATCH, eval_crop_size_px=CROP_PX, **_SCENES),
    }
    found = {}
    for name, data in sources.items():
        laps, seconds = Laps(), []
        for draw in range(count * BATCH + 1):
            laps.call(name, data.train_item, draw)
            seconds.append(laps.finish()[name])
        found[name] = round(statistics.median(seconds[1:]), 4)
    return found
