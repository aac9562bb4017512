"""How far the memory plan is from what a training step takes.

    python -m experiments.benchmarks.memory_plan --output memory_plan.json

On any machine: the shipped tiny prior on the processor, against torch's allocator (its profiler). With a CUDA device
also SD 2.1-base's network with random weights in bf16, against torch.cuda.max_memory_allocated, for several batches,
with and without gradient checkpointing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.record import publish
from megasr.guidance.extract import ExtractorConfig, Networks
from megasr.networks.parameters import build_sd21
from megasr.training.memory_plan import GIB, Planner, load_extractors
from megasr.training.memory_setup import (
    Tokens,
    TrainingSetup,
    WeightlessParts,
    WeightlessPrior,
    build_batch,
    module_arguments,
)
from megasr.training.module import MegaSRModule
from tests.helpers.measured_memory import measure_step

_GUIDANCE = ["hed", "depth", "segmentation"]
TINY = TrainingSetup(
    {"prior": "tiny", "adapter": {"guidance": _GUIDANCE}}, batch_size=4, crop_size_px=128, on_gpu=False
)
SD21 = TrainingSetup(
    {"prior": "sd21-base", "adapter": {"guidance": _GUIDANCE, "image": True}},
    batch_size=1, crop_size_px=512, precision="bf16-mixed",
)  # fmt: skip


def on_processor(setup: TrainingSetup) -> dict[str, float]:
    """Predicted and measured MiB of a step of the tiny prior."""
    predicted, allocated = Planner().plan(setup).total_gib * 1024, measure_step(setup)[0] / 2**20
    return {"predicted_mib": predicted, "allocated_mib": allocated, "predicted_over_allocated": predicted / allocated}


def on_cuda(setup: TrainingSetup) -> dict[str, float]:
    """Predicted and measured GiB of a step at SD 2.1's size."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step = build_step(setup, "cuda")
    for _ in range(2):
        step()
    measured = torch.cuda.max_memory_allocated() / GIB
    predicted = Planner().plan(setup).total_gib
    return {"predicted_gib": predicted, "allocated_gib": measured, "predicted_over_allocated": predicted / measured}


class _RandomParts(WeightlessParts):
    """SD 2.1-base with random weights; everything else is as on this machine."""

    def prior(self, source: str, text_states: str | None = None) -> Any:
        """Built on torch's default device."""
        if source != "sd21-base":
            return super(WeightlessParts, self).prior(source, text_states)
        built = build_sd21()
        built.text_encoder.tokenizer = Tokens(77)
        return WeightlessPrior(built.vae, built.unet, built.text_encoder, built.scheduler).freeze()

    def networks(self, config: ExtractorConfig | None) -> Networks:
        """The real extractors."""
        return Networks(config)


class _RandomModule(MegaSRModule):
    parts = _RandomParts()


def build_module(setup: TrainingSetup, device: str) -> MegaSRModule:
    """The module with random weights, on a device."""
    with torch.device(device):
        return _RandomModule(**module_arguments(setup.model)).to(device)


def build_step(setup: TrainingSetup, device: str) -> Callable[[], None]:
    """A training step with its optimizer, on a device."""
    module = build_module(setup, device).train()
    with torch.device(device):
        batch: Any = build_batch(setup, module)
        load_extractors(module, batch)
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=setup.precision == "bf16-mixed"):
            loss = module.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def variants(setup: TrainingSetup, sizes: tuple[int, ...]) -> dict[str, TrainingSetup]:
    """Setups of every batch size, with and without gradient checkpointing."""
    return {
        f"batch_{size}{'_checkpointing' if recomputes else ''}": replace(
            setup.with_model("adapter.gradient_checkpointing", recomputes), batch_size=size
        )
        for size in sizes
        for recomputes in (False, True)
    }


def main() -> None:
    """Measure, and publish the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the record")
    options = parser.parse_args()
    results: dict[str, Any] = {"tiny": {n: on_processor(s) for n, s in variants(TINY, (2, 4)).items()}}
    if torch.cuda.is_available():
        results["gpu"] = torch.cuda.get_device_name()
        results["sd21"] = {name: on_cuda(s) for name, s in variants(SD21, (1, 2, 4, 8)).items()}
    publish("memory_plan", {"tiny": asdict(TINY), "sd21": asdict(SD21)}, results, options.output)


if __name__ == "__main__":
    main()
