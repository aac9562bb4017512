"""What one GPU does with this project, in at most eight minutes: training, extraction, degradation, inference, memory.

    python -m experiments.benchmarks.gpu --output gpu.json
    python -m experiments.benchmarks.gpu --dry-run            (the same parts on the tiny prior, on the processor)

Stable Diffusion 2.1-base's sizes with random weights, images of 512 px, TF32 off. The record is written after every
part, and a part that fails says why: what was measured before it is kept. Seconds are medians of calls after a warm-up,
with the device synchronised.

    roof         a product of two square matrices in bf16, and a copy in memory: what this device can do
    train        a step of full MegaSR (three maps with the data, image tokens, ControlNet, AdamW, bf16-mixed) for
                 several batches, with and without checkpointing. `mfu` is the operations that torch's counter sees over
                 time and the measured roof. `predicted_gib` is what `megasr memory` says.
    extraction   HED, Depth Anything V2, UperNet and ViT-H-14 in bf16; `share` is their time, with depth_small, over
                 theirs and the training step's, at the same batch
    degradation  realesrgan_strong on the device, and how far it is from the processor's
    inference    20 steps and one step of 512 px, for one and several images and for every dtype; an image of 4 K in
                 tiles; with offloading. Guidance is extracted by the shipped small networks.
    compiled     a step of the middle batch with compiled blocks
    sharded      a training by Lightning on the tiny prior with FSDP2 on this one device, against none
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks import degradation, scaling
from experiments.benchmarks.extraction_cost import count, extractors
from experiments.benchmarks.memory_plan import SD21, TINY, build_module, build_step, variants
from experiments.benchmarks.record import publish
from megasr.console import quiet_lightning, quiet_warnings
from megasr.inference.pipeline import MegaSRPipeline
from megasr.training.memory_plan import GIB, Planner
from megasr.training.memory_setup import TrainingSetup

_EXTRACTED = ("hed", "depth_small", "segmentation", "clip_vit_h14")


def plan_gib(setup: TrainingSetup) -> float:
    """Peak memory as `megasr memory` predicts it."""
    return Planner().plan(setup).total_gib


class Bench:
    """The parts, for one device.

    Args:
        device: `cuda` or `cpu`.
        setup: the training whose steps are measured.
        batches: of the training.
        calls: of which the median is taken.
        deadline: of time.monotonic(), after which nothing is begun.
    """

    def __init__(
        self, device: str, setup: TrainingSetup, batches: tuple[int, ...], calls: int, deadline: float
    ) -> None:
        self.device, self.setup, self.batches, self.calls, self.deadline = device, setup, batches, calls, deadline
        self.cuda = device == "cuda"
        self.roof_flops = 0.0
        self.step_s: dict[int, float] = {}
        self.operations = 0.0  # of a training step of one image

    def check_time(self) -> None:
        """Raises TimeoutError after the deadline."""
        if time.monotonic() > self.deadline:
            raise TimeoutError("not begun: the time was up")

    def seconds(self, call: Callable[[], Any], calls: int | None = None) -> float:
        """Median of the calls after a first one."""
        taken = []
        for _ in range((calls or self.calls) + 1):
            self._wait()
            begin = time.perf_counter()
            call()
            self._wait()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken[1:])

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _start_memory(self) -> None:
        gc.collect()  # modules of the last measurement
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _peak_gib(self) -> float | None:
        return torch.cuda.max_memory_allocated() / GIB if self.cuda else None

    def roof(self) -> dict[str, float]:
        """Operations and bytes per second."""
        side = 8192 if self.cuda else 512
        matrix = torch.rand(side, side, device=self.device, dtype=torch.bfloat16)
        self.roof_flops = 2 * side**3 / self.seconds(lambda: matrix @ matrix, 20)
        block = torch.empty(2**30 if self.cuda else 2**26, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(block)
        copied = 2 * block.numel() / self.seconds(lambda: target.copy_(block), 20)
        return {"matmul_bf16_tflops": self.roof_flops / 1e12, "copy_gb_per_s": copied / 1e9}

    def train(self) -> dict[str, Any]:
        """Steps of every batch."""
        setups = variants(self.setup, self.batches)
        # Plans take a core ten seconds each, so the GPU does not wait for them.
        with ProcessPoolExecutor(min(4, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as planners:
            planned = {name: planners.submit(plan_gib, setup) for name, setup in setups.items()} if self.cuda else {}
            found = self._train_all(setups)
            for name, setup in setups.items():
                found[name]["predicted_gib"] = planned[name].result() if planned else plan_gib(setup)
        return {"gflop_per_image": self.operations / 1e9, **found}

    def _train_all(self, setups: dict[str, TrainingSetup]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        self.operations = 1e9 * count(build_step(replace(self.setup, batch_size=1), self.device))
        for name, setup in setups.items():
            try:
                self.check_time()
                found[name] = self._train(setup)
            except (torch.OutOfMemoryError, TimeoutError) as error:
                found[name] = {"error": "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error)}
            if "images_per_s" in found[name] and name == f"batch_{setup.batch_size}":
                self.step_s[setup.batch_size] = setup.batch_size / found[name]["images_per_s"]
        return found

    def compiled(self) -> dict[str, Any]:
        """A step with compiled blocks; the first one, which compiles, is not counted."""
        if not self.cuda:
            return {}
        model = {**self.setup.model, "compile": "blocks"}
        return self._train(replace(self.setup, model=model, batch_size=self.batches[len(self.batches) // 2]))

    def _train(self, setup: TrainingSetup) -> dict[str, Any]:
        self._start_memory()
        taken = self.seconds(build_step(setup, self.device))
        return {
            "images_per_s": setup.batch_size / taken,
            "mfu": self.operations * setup.batch_size / taken / self.roof_flops if self.roof_flops else None,
            "peak_gib": self._peak_gib(),
        }

    @torch.no_grad()
    def extraction(self) -> dict[str, Any]:
        """Images per second of every extractor."""
        size = max((b for b in self.step_s if b <= 8), default=1)
        with torch.device(self.device):
            runs = extractors(size)
        taken = {}
        for name, run in runs.items() if self.cuda else [("hed", runs["hed"])]:  # minutes on a processor
            with torch.autocast(self.device, torch.bfloat16):
                taken[name] = self.seconds(run)
        found: dict[str, Any] = {"batch": size, "images_per_s": {n: size / t for n, t in taken.items()}}
        if self.cuda and size in self.step_s:
            together = sum(taken[name] for name in _EXTRACTED)
            found["share"] = together / (together + self.step_s[size])
        return found

    def degradation(self) -> dict[str, Any]:
        """Images per second, and the distance to the processor's lq in levels of 255."""
        sizes = degradation.GPU_BATCH_SIZES if self.cuda else (2,)
        rates = {}
        for size in sizes:
            run = degradation.on_tensors(torch.device(self.device), size, size, sharpened=False)
            rates[f"batch_{size}"] = size / self.seconds(lambda run=run: run(0))  # type: ignore[misc]
        return {"images_per_s": rates, "difference_levels": self._difference(sizes[0])}

    def _difference(self, size: int) -> dict[str, float]:
        preset = degradation.get_degradation(degradation.PRESET, degradation.SCALE_FACTOR)
        hq = degradation.from_uint8(degradation.load_photo(degradation.PHOTO))[None].repeat(size, 1, 1, 1)
        params = preset.sample_params(0, degradation.keys_of(0, size))
        levels = (preset.apply(hq.to(self.device), params).cpu() - preset.apply(hq, params)).abs() * 255
        return {"mean": levels.mean().item(), "largest": levels.max().item()}

    def inference(self) -> dict[str, Any]:
        """Seconds per image, and the peak of the memory."""
        pipeline = MegaSRPipeline(build_module(self.setup, self.device), self.device)
        side = self.setup.crop_size_px // pipeline.scale_factor
        width, height = (960, 540) if self.cuda else (48, 32)
        tile = pipeline.module.prior.native_px
        found: dict[str, Any] = {}

        def restore(count: int, steps: int, h: int = side, w: int = side, tile: int = 0) -> dict[str, Any]:
            self.check_time()
            lq = torch.rand(count, 3, h, w)
            self._start_memory()
            call = lambda: pipeline(lq, num_inference_steps=steps, tile=tile, output_type="pt")  # noqa: E731
            taken = self.seconds(call, max(1, self.calls // 3)) / count
            return {"s_per_image": taken, "peak_gib": self._peak_gib()}

        for dtype in (torch.float32, torch.bfloat16, torch.float16) if self.cuda else (torch.float32,):
            pipeline.to(dtype=dtype)
            name = str(dtype).removeprefix("torch.")
            found[f"{name}, 20 steps"] = restore(1, 20)
            found[f"{name}, 1 step"] = restore(1, 1)
        found[f"{name}, 20 steps, batch 8"] = restore(8 if self.cuda else 2, 20 if self.cuda else 2)
        found[f"{name}, 1 step, {4 * width} x {4 * height} in tiles of {tile} px"] = restore(1, 1, height, width, tile)
        if self.cuda:
            pipeline.enable_model_cpu_offload()
            found[f"{name}, 20 steps, offloaded"] = restore(1, 20)
        return found

    def sharded(self) -> dict[str, Any]:
        """Seconds of a step on the tiny prior, sharded over one device and not."""
        accelerator, steps = ("gpu", 10) if self.cuda else ("cpu", 2)
        taken = {n: statistics.median(scaling.train(n, 1, steps, 4, accelerator)[0]) for n in ("single", "fsdp2")}
        return {"step_s": taken, "ratio": taken["fsdp2"] / taken["single"]}


def main() -> None:
    """Measure part after part, and publish after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="nothing begins after these")
    parser.add_argument("--batches", type=int, nargs="+", help="of the training (1 2 4 8 16 32)")
    parser.add_argument("--dry-run", action="store_true", help="the tiny prior on the processor")
    parser.add_argument("--output", type=Path, help="file for the record")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --dry-run runs the parts on the processor")
    quiet_warnings()
    quiet_lightning()
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    begin, sizes = time.monotonic(), options.batches and tuple(options.batches)
    deadline = begin + 60 * options.minutes
    bench = (
        Bench("cpu", replace(TINY, crop_size_px=64), sizes or (1, 2), 2, deadline)
        if options.dry_run
        else Bench("cuda", SD21, sizes or (1, 2, 4, 8, 16, 32), 5, deadline)
    )
    settings = {"device": torch.cuda.get_device_name() if bench.cuda else "cpu", "setup": asdict(bench.setup)}
    results: dict[str, dict[str, Any]] = {}
    parts: list[Callable[[], dict[str, Any]]] = [
        bench.roof, bench.train, bench.inference, bench.extraction, bench.degradation, bench.compiled, bench.sharded,
    ]  # fmt: skip
    for part in parts:
        started = time.monotonic()
        try:
            bench.check_time()
            found = part()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        results[part.__name__] = found | {"took_s": time.monotonic() - started}
        print(f"{part.__name__}: {found}", file=sys.stderr, flush=True)
        publish("gpu", settings, _rounded(results), options.output)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(content) for name, content in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
