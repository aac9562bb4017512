"""What a recipe says about memory, and the module and batch that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from megasr.batch import SRBatch
from megasr.training.checkpoint import typed_arguments
from megasr.training.module import MegaSRModule

Strategy = Literal["single", "ddp", "fsdp2"]
_TOKENS = 256  # image tokens that come with the data: ViT-H-14's
# Options of the module that the step itself need not know: they are arithmetic, or done by `cast`.
_NOT_PASSED = ("frozen_dtype", "shard_frozen", "init", "compile")


@dataclass(frozen=True)
class TrainingSetup:
    """What a recipe says about memory.

    Attributes:
        model: arguments of MegaSRModule as plain data.
        batch_size: samples per device and micro-batch.
        crop_size_px: height and width of hq.
        devices: N.
        strategy: how the devices share the work.
        bucket_view: DDP's gradients live in its buckets.
        precision: Lightning's.
        accumulation: micro-batches per optimizer step.
        clips: the norm of the gradients is clipped.
        ema: the trained weights are averaged.
        on_gpu: count as CUDA does it (see StepSettings).
        brings_maps: the guidance maps come with the data.
    """

    model: Mapping[str, Any]
    batch_size: int
    crop_size_px: int
    devices: int = 1
    strategy: Strategy = "single"
    bucket_view: bool = False
    precision: str = "32-true"
    accumulation: int = 1
    clips: bool = False
    ema: bool = False
    on_gpu: bool = True
    brings_maps: bool = False

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step."""
        return self.batch_size * self.devices * self.accumulation

    @property
    def frozen_dtype(self) -> torch.dtype:
        """In which frozen weights are held."""
        return getattr(torch, str(self.model.get("frozen_dtype") or "float32"))

    @property
    def eight_bit(self) -> bool:
        """The optimizer's moments take a byte each."""
        return (self.model.get("optimizer") or {}).get("state_bits") == 8

    def with_model(self, path: str, value: object) -> TrainingSetup:
        """The same with another value of a dotted key of the model."""
        section, _, name = path.rpartition(".")
        changes = {section: {**(self.model.get(section) or {}), name: value}} if section else {name: value}
        return replace(self, model={**self.model, **changes})


def build_batch(setup: TrainingSetup, scale_factor: int, module: MegaSRModule) -> SRBatch:
    """A batch of zeros with everything that the data bring."""
    size, side, small = setup.batch_size, setup.crop_size_px, setup.crop_size_px // scale_factor
    dtype = torch.bfloat16 if setup.precision == "bf16-true" else torch.float32
    keys = [f"image-{i}" for i in range(size)]
    batch = SRBatch(
        keys=keys,
        hq=torch.zeros(size, 3, side, side, dtype=dtype),
        lq=torch.zeros(size, 3, small, small, dtype=dtype),
        tags=list(keys),  # distinct, as equal prompts are embedded once
        text_dropped=[False] * size,  # type: ignore[typeddict-item]
    )
    if setup.brings_maps:
        batch["maps"] = {
            g.name: torch.zeros(size, g.channels, side, side, dtype=dtype) for g in module.network.guidance
        }
    if module.vision is None:
        batch["image_tokens"] = torch.zeros(size, _TOKENS, module.adapter.image_width, dtype=dtype)
        batch["representation"] = torch.zeros(size, _TOKENS, module.adapter.representation_width, dtype=dtype)
    return batch


def module_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data -> arguments of MegaSRModule, without what a plan does by itself or must not do."""
    optimizer = {**(model.get("optimizer") or {}), "decay_share": 0.0}  # a decay asks the trainer for its steps
    optimizer.pop("state_bits", None)
    passed = {name: value for name, value in model.items() if name not in _NOT_PASSED}
    return typed_arguments(MegaSRModule, passed | {"optimizer": optimizer})
