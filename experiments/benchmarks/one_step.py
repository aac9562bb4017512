"""What a one-step training step costs, against a denoising one: operations at SD 2.1's size, seconds on the tiny prior.

    python -m experiments.benchmarks.one_step --output one_step.json

`counted` are the floating-point operations of one image of 512 px, forward and backward, in 1e9 (torch's counter:
matrix products, convolutions, attention; a multiply-add is two), of the whole MegaSR with tags, image tokens and three
maps that come with the data. Perceptual terms are counted as VGG16 (see megasr.training.memory_setup). `decode` is one
forward pass of the VAE's decoder.

`measured_s` are medians of the processor's time for a step of four images of 128 px on the tiny prior with random
images, without an optimizer. All arms take turns in one process, on one thread; the first round is not counted.
`ratio` is one_step / (denoise + decode); `share_of_goal` is one_step / (1.6 denoise + decode), at most 1 where the goal
is met.

`restored_s` are the same medians for restoring these images, whose maps are there already, in one step and in four;
`coded` is their VAE alone, which both need: one encoding of lq and one decoding. `restored` is one step over four,
whole and without `coded`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.extraction_cost import count
from experiments.benchmarks.record import publish
from megasr.batch import SRBatch
from megasr.images import upsample_lq
from megasr.networks.config import AdapterConfig
from megasr.training.config import CriticConfig, ObjectiveConfig, SamplerConfig
from megasr.training.memory_plan import FakeAnswers
from megasr.training.memory_setup import TrainingSetup, build_batch, build_weightless, without_bytes
from megasr.training.module import MegaSRModule

_GOAL = 1.6
_MAPS = ("hed", "depth", "segmentation")
# Terms that need no weights, so that the measurement needs no download; LPIPS is counted.
_MEASURED: dict[str, dict[str, float]] = {
    "one_step_l1": {"l1": 1.0},
    "one_step_csd": {"l1": 1.0, "csd": 1.0},
    "one_step_vsd": {"l1": 1.0, "vsd": 1.0},
    "one_step_gan": {"l1": 1.0, "gan": 0.1},
}
_COUNTED = {
    "one_step_l1": {"l1": 1.0},
    "one_step_lpips": {"l1": 1.0, "lpips_vgg": 2.0},
    "one_step_lpips_gan": {"l1": 1.0, "lpips_vgg": 2.0, "gan": 0.1},
    **_MEASURED,
}
_ONE_STEP = {"num_steps": 1, "start": "noiseless_lq", "start_fraction": 0.25}


def _objective(terms: dict[str, float], features: str) -> ObjectiveConfig:
    critic = CriticConfig(features=features) if "gan" in terms else None
    return ObjectiveConfig(kind="one_step", terms=terms, critic=critic)


def counted() -> dict[str, float]:
    """Operations of each arm at SD 2.1's size."""
    adapter = {"guidance": list(_MAPS), "image": True}
    arms: dict[str, dict[str, Any]] = {"denoise": {}}
    for name, terms in _COUNTED.items():
        arms[name] = {"objective": asdict(_objective(terms, "vgg16")), "sampler": _ONE_STEP}
    found = {}
    with without_bytes():
        for name, settings in arms.items():
            model = {"prior": "sd21-base", "adapter": adapter, **settings}
            with FakeAnswers(truth=False):
                module, _ = build_weightless(model)
                batch = build_batch(TrainingSetup(model, 1, 512, brings_maps=True), module)
            with FakeAnswers(truth=True):
                found[name] = count(lambda module=module, batch=batch: _step(module, batch))  # type: ignore[misc]
                if "decode" not in found:
                    z = torch.zeros(1, 4, 64, 64)
                    with torch.no_grad():
                        found["decode"] = count(lambda z=z, prior=module.prior: prior.decode_unclipped(z))  # type: ignore[misc]
    return found


def _step(module: MegaSRModule, batch: SRBatch) -> None:
    module.train()
    for parameter in module.parameters():
        parameter.grad = None
    module.training_step(batch, 0)["loss"].backward()


def measured(rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of each arm's training step and of restoring, on the tiny prior."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batch = SRBatch(
        keys=[f"image-{i}" for i in range(4)],
        hq=torch.rand(4, 3, 128, 128, generator=generator),
        lq=torch.rand(4, 3, 32, 32, generator=generator),
        tags=["brick wall"] * 4,
        maps={name: torch.rand(4, 1 if name != "segmentation" else 3, 128, 128, generator=generator) for name in _MAPS},
    )
    adapter = AdapterConfig(guidance=_MAPS)
    modules = {"denoise": MegaSRModule(adapter=adapter)}
    for name, terms in _MEASURED.items():
        objective, sampler = _objective(terms, "tiny"), SamplerConfig(**_ONE_STEP)  # type: ignore[arg-type]
        modules[name] = MegaSRModule(adapter=adapter, objective=objective, sampler=sampler)
    trained: dict[str, Callable[[], Any]] = {name: partial(_step, module, batch) for name, module in modules.items()}
    one, four = modules["one_step_l1"], MegaSRModule(adapter=adapter, sampler=SamplerConfig(num_steps=4))
    prior, lq_up, z = one.prior, upsample_lq(batch["lq"], 4), one.latents(batch)
    restored: dict[str, Callable[[], Any]] = {
        "one_step": lambda: one.eval().restore(batch),
        "four_steps": lambda: four.eval().restore(batch),
        "coded": torch.no_grad()(lambda: (prior.encode(lq_up), prior.decode_unclipped(z))),
    }
    decoding = {"decode": torch.no_grad()(lambda: prior.decode_unclipped(z))}
    return _take_turns(trained | decoding, rounds), _take_turns(restored, rounds)


def _take_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(taken[1:]) for name, taken in seconds.items()}


def _ratios(costs: dict[str, float]) -> dict[str, dict[str, float]]:
    """Of every one-step arm, against what a denoising step and a decoding cost."""
    bases = {
        "ratio": costs["denoise"] + costs["decode"], "share_of_goal": _GOAL * costs["denoise"] + costs["decode"],
    }  # fmt: skip
    arms = {name: cost for name, cost in costs.items() if name.startswith("one_step")}
    return {name: {arm: round(cost / base, 3) for arm, cost in arms.items()} for name, base in bases.items()}


def main() -> None:
    """Read the arguments, count, measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=7, help="rounds that are counted")
    parser.add_argument("--output", type=Path, help="file for the record")
    arguments = parser.parse_args()
    operations, (seconds, restored) = counted(), measured(arguments.rounds)
    one, four, coded = (restored[name] for name in ("one_step", "four_steps", "coded"))
    results = {
        "counted_gflop": {name: round(value, 1) for name, value in operations.items()},
        "measured_s": {name: round(value, 3) for name, value in seconds.items()},
        "restored_s": {name: round(value, 3) for name, value in restored.items()},
        "counted": _ratios(operations),
        "measured": _ratios(seconds),
        "restored": {"whole": round(one / four, 3), "without_coded": round((one - coded) / (four - coded), 3)},
    }
    publish("one_step", {"rounds": arguments.rounds, "threads": 1, "terms": _COUNTED}, results, arguments.output)


if __name__ == "__main__":
    main()
