"""What inference costs: a step, guidance, tiles and memory.

    python -m experiments.benchmarks.inference --output inference.json

    step       a denoising step of the full adapter, with what depends on the image made beforehand, against diffusers'
               plain U-Net and ControlNet: contenders, sizes and turns of train_step.py, which see (with SeeSR's, where
               its variables are set). `time_embedding_share` is the part of the step that embeds the timestep.
    guidance   restoring one image with the tiny prior, with all three maps and by an adapter without any. The maps are
               there already (the pipeline keeps those of the last image), so extraction is not counted.
    tiles      an image that fits the memory, whole, in tiles of a half of it, and in tiles of the size that the prior
               was trained on, by the shipped adapter. PSNR to the whole one, and of a whole one with other noise: what
               randomness explains; PSNR to hq. `seam` is the energy of the horizontal gradient within 2 px of the
               borders of tiles over that elsewhere, divided by the same ratio of the whole image: 1 is no seam.
    memory     peak of the resident memory of a process that restores to 1024 and to 4096 px in tiles, one step each.

Ratios are of medians of rounds in which the contenders take turns; the first round is not counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.record import publish
from experiments.benchmarks.seesr_pair import missing_peer
from experiments.benchmarks.step_contenders import GUIDANCE, SIZES, build_network, random_inputs
from experiments.benchmarks.train_step import start
from megasr.images import resize
from megasr.inference.pipeline import MegaSRPipeline
from megasr.inference.tiling import Tiling
from megasr.networks.config import AdapterConfig
from megasr.networks.sites import embed_time
from megasr.semantics.clip import VisionConfig
from megasr.training.module import MegaSRModule

GOALS = {"step": 1.10, "step_seesr": 0.65, "guidance": 1.05, "seam": 0.02, "memory": 1.3}


def photograph(side_px: int) -> torch.Tensor:
    """A photograph that comes with scikit-image, (3, side_px, side_px) in [0, 1]."""
    import skimage.data

    whole = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float() / 255
    return resize(whole, side_px, side_px)[0]


def take_turns(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call in every round but the first."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            found[name].append(call())
    return {name: seconds[1:] for name, seconds in found.items()}


def clocked(call: Callable[[], Any]) -> Callable[[], float]:
    """The call, returning its processor time in seconds."""

    def timed() -> float:
        begin = time.process_time()
        call()
        return time.process_time() - begin

    return timed


def summarise(found: dict[str, list[float]], base: str) -> dict[str, Any]:
    """Medians, their ratios to the one of `base`, and all rounds."""
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    return {
        "median_cpu_s": {name: round(value, 3) for name, value in medians.items()},
        "ratio": {
            f"{name} / {base}": round(value / medians[base], 3) for name, value in medians.items() if name != base
        },
        "rounds_cpu_s": {name: [round(value, 3) for value in seconds] for name, seconds in found.items()},
    }


def measure_step(rounds: int, threads: int) -> dict[str, Any]:
    """A denoising step of every contender, each in a process of its own."""
    names = ["megasr", "plain", *([] if missing_peer() else ["seesr"])]
    with ExitStack() as stack:
        workers = {name: start(name, threads, 600) for name in names}
        for worker in workers.values():
            stack.callback(worker.close)
        calls = {name: (lambda w=worker: w.step("denoise").cpu_s) for name, worker in workers.items()}  # type: ignore[misc]
        result = summarise(take_turns(calls, rounds), "plain")
    return result | {"time_embedding_share": _time_embedding_share(result["median_cpu_s"]["megasr"])}


@torch.no_grad()
def _time_embedding_share(step_s: float) -> float:
    network, given = build_network(), random_inputs()
    unet, repeats = network.unet.unet, 100
    embed = clocked(lambda: [embed_time(unet, given["timesteps"], torch.float32) for _ in range(2 * repeats)])
    embed()
    return round(embed() / repeats / step_s, 5)  # twice in a step: in the U-Net and in the ControlNet


def measure_guidance(rounds: int, side_px: int, steps: int) -> dict[str, Any]:
    """Restoring one image with and without the maps."""
    calls = {}
    for name, guidance in (("with maps", GUIDANCE), ("without", ())):
        adapter = AdapterConfig(guidance=guidance, image=True, image_width=128)
        pipeline = MegaSRPipeline(MegaSRModule(adapter=adapter, vision=VisionConfig(model="tiny_lq")))
        lq = photograph(side_px // pipeline.scale_factor)
        pipeline(lq, num_inference_steps=1, tile=0)
        calls[name] = clocked(lambda p=pipeline, i=lq: p(i, num_inference_steps=steps, tile=0))  # type: ignore[misc]
    return {"side_px": side_px, "steps": steps} | summarise(take_turns(calls, rounds), "without")


def measure_tiles(side_px: int, steps: int) -> dict[str, Any]:
    """The same image whole and in tiles."""
    pipeline = MegaSRPipeline.from_checkpoint("tiny")
    prior, hq = pipeline.module.prior, photograph(side_px)[None]
    lq = photograph(side_px // pipeline.scale_factor)

    def restored(**changes: Any) -> torch.Tensor:
        return pipeline(lq, num_inference_steps=steps, output_type="pt", **changes).images

    whole, other = restored(tile=0), restored(tile=0, seed=1)
    found: dict[str, dict[str, float]] = {
        "whole": {"psnr_hq_db": _psnr(whole, hq)},
        "other noise": {"psnr_whole_db": _psnr(whole, other), "psnr_hq_db": _psnr(other, hq)},
    }
    for tile in (side_px // 2, prior.native_px):
        tiled = restored(tile=tile)
        axis = Tiling(tile).grid(side_px, side_px, prior.size_multiple).columns
        edges = sorted({e for s in axis.starts for e in (s, s + axis.extent)} - {0, side_px})
        seam = _border_energy(tiled, edges) / _border_energy(whole, edges)
        found[f"{tile} px"] = {"psnr_whole_db": _psnr(whole, tiled), "psnr_hq_db": _psnr(tiled, hq), "seam": seam}
    rounded = {name: {key: round(value, 3) for key, value in row.items()} for name, row in found.items()}
    return {"side_px": side_px, "steps": steps} | rounded


def _psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(-10 * (first - second).square().mean().log10())


def _border_energy(image: torch.Tensor, edges: Sequence[int]) -> float:
    energy = image.diff(dim=-1).square().mean(dim=(0, 1, 2))
    near = torch.zeros_like(energy, dtype=torch.bool)
    for edge in edges:
        near[edge - 2 : edge + 2] = True
    return float(energy[near].mean() / energy[~near].mean())


def measure_memory(sides_px: Sequence[int], tile_px: int) -> dict[str, Any]:
    """Peak memory of a process per size."""
    peaks = {}
    for side in sides_px:
        command = [sys.executable, "-m", "experiments.benchmarks.inference", "--restore-once", str(side), str(tile_px)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[side] = json.loads(done.stdout.splitlines()[-1])
    first, *_, last = (peaks[side]["peak_mib"] for side in sides_px)
    return {"tile_px": tile_px, "by_side_px": peaks, "ratio": round(last / first, 3)}


def restore_once(side_px: int, tile_px: int) -> None:
    """Restore one image in one step and print what it took."""
    pipeline = MegaSRPipeline.from_checkpoint("tiny")
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.process_time()
    pipeline(photograph(side_px // pipeline.scale_factor), num_inference_steps=1, tile=tile_px, output_type="np")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpu_s = time.process_time() - begin
    print(json.dumps({"peak_mib": round(peak_mib), "loaded_mib": round(before_mib), "cpu_s": round(cpu_s, 1)}))


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every contender; torch's own")
    parser.add_argument("--side", type=int, default=512, help="px of sr in guidance and tiles")
    parser.add_argument("--steps", type=int, default=20, help="of guidance and tiles")
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 4096], help="px of sr in memory")
    parser.add_argument("--tile", type=int, default=256, help="px of a tile in memory")
    parser.add_argument("--parts", nargs="+", default=["step", "guidance", "tiles", "memory"])
    parser.add_argument("--restore-once", type=int, nargs=2, metavar=("SIDE", "TILE"), help="used by memory")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.restore_once:
        restore_once(*arguments.restore_once)
    else:
        measure(arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Measure the parts that are asked for, and publish."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: measure_step(arguments.rounds, arguments.threads),
        "guidance": lambda: measure_guidance(arguments.rounds, arguments.side, arguments.steps),
        "tiles": lambda: measure_tiles(arguments.side, arguments.steps),
        "memory": lambda: measure_memory(arguments.sides, arguments.tile),
    }
    settings = {n: getattr(arguments, n) for n in ("rounds", "threads", "side", "steps", "sides", "tile")}
    results: dict[str, Any] = {"goal": GOALS} | {name: parts[name]() for name in arguments.parts}
    publish("inference", settings | {"sizes": SIZES}, results, arguments.output)


if __name__ == "__main__":
    main()
