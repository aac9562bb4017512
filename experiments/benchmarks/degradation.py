"""Images per second of the second-order degradation: Real-ESRGAN's own pipeline, and this project's two back ends.

    python -m experiments.benchmarks.degradation
    BASICSR_DIR=... REALESRGAN_DIR=... python -m experiments.benchmarks.degradation --output degradation.json

All contenders take turns in every round, in one run, on one 512 px photograph (realesrgan_strong against theirs, batch
8, two threads or two worker processes with one thread each), so that their ratios hold on a machine that does other
things too. Ours are timed with the drawing of parameters and the making of kernels; theirs without, their loader makes
them. With a GPU, both run on it too. Without the checkouts theirs is left out.

Where other programs want the same cores, set OMP_WAIT_POLICY=PASSIVE: otherwise torch's threads wait for one another
busily, and the many short steps of the `device` back end wait most.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import torch

from data_pipelines.degradations import cpu
from data_pipelines.degradations.device import sharpen_batched
from data_pipelines.degradations.presets import get_degradation
from data_pipelines.photos import load_photo
from experiments.benchmarks.realesrgan_pipeline import RealESRGAN, missing_checkouts, seed_theirs
from experiments.benchmarks.record import publish
from megasr.images import from_uint8

PHOTO = "astronaut"  # 512 x 512 px
PRESET, SCALE_FACTOR, BATCH_SIZE, THREADS = "realesrgan_strong", 4, 8, 2
GPU_BATCH_SIZES = (8, 16, 32)
Contender = Callable[[int], int]  # number of a round -> how many images it degraded


def keys_of(number: int, count: int) -> list[str]:
    """Other keys, and so other parameters, in every round."""
    return [f"{number}/{i}" for i in range(count)]


def use_one_thread() -> None:
    """Begin a worker as the loader does, and draw the noise bank before the clock runs."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    degrade_share(keys_of(-1, 4), False)


def degrade_share(keys: list[str], sharpened: bool) -> int:
    """A worker's share of a round: images through the `cpu` back end, one by one."""
    degradation, hq = get_degradation(PRESET, SCALE_FACTOR), load_photo(PHOTO)
    for params in degradation.sample_params(0, keys):
        degradation.apply_image(hq, params)
        if sharpened:
            cpu.sharpen(hq)
    return len(keys)


def on_workers(pool: ProcessPoolExecutor, images: int, sharpened: bool) -> Contender:
    """The `cpu` back end in two processes."""

    def run(number: int) -> int:
        keys = keys_of(number, images)
        return sum(pool.map(degrade_share, [keys[::THREADS], keys[1::THREADS]], [sharpened] * THREADS))

    return run


def on_tensors(device: torch.device, batch_size: int, images: int, sharpened: bool) -> Contender:
    """The `device` back end."""
    degradation = get_degradation(PRESET, SCALE_FACTOR)
    hq = from_uint8(load_photo(PHOTO))[None].repeat(batch_size, 1, 1, 1).to(device)
    batches = max(1, images // batch_size)

    def run(number: int) -> int:
        for i in range(batches):
            degradation.apply(hq, degradation.sample_params(i, keys_of(number, batch_size)))
            if sharpened:
                sharpen_batched(hq)
        _wait(device)
        return batches * batch_size

    return run


def on_theirs(theirs: RealESRGAN, batch_size: int, images: int, sharpened: bool) -> Contender:
    """Real-ESRGAN's feed_data."""
    feed, batches = theirs.degrade(batch_size, sharpened), max(1, images // batch_size)

    def run(number: int) -> int:
        seed_theirs(number + 1)
        for i in range(batches):
            feed(theirs.batch(number * batches + i, batch_size))
        _wait(theirs.device)
        return batches * batch_size

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def contenders(pool: ProcessPoolExecutor, images: int) -> dict[str, Contender]:
    """Who takes turns. Names end in the target that is made: as it is, or sharpened."""
    devices: list[tuple[torch.device, tuple[int, ...]]] = [(torch.device("cpu"), (BATCH_SIZE,))]
    if torch.cuda.is_available():
        devices.append((torch.device("cuda"), GPU_BATCH_SIZES))
    theirs = None if missing_checkouts() else {device: RealESRGAN(load_photo(PHOTO), device) for device, _ in devices}
    found: dict[str, Contender] = {}
    for sharpened in (False, True):
        end = " usm" if sharpened else ""
        found["cpu back end, 2 workers" + end] = on_workers(pool, 2 * images, sharpened)
        for device, batch_sizes in devices:
            for size in batch_sizes:
                place = f"{device.type}, batch {size}"
                found[f"device back end on {place}{end}"] = on_tensors(device, size, images, sharpened)
                if theirs:
                    found[f"Real-ESRGAN on {place}{end}"] = on_theirs(theirs[device], size, images, sharpened)
    return found


def take_turns(runs: dict[str, Contender], rounds: int) -> dict[str, dict[str, float]]:
    """Images per second: over all rounds together, and the median and range of single rounds."""
    done: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number in range(-1, rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            images = run(number)
            if number >= 0:  # the first warms up
                done[name].append((images, time.perf_counter() - begin))
    results = {}
    for name, parts in done.items():
        rates = [images / seconds for images, seconds in parts]
        overall = sum(images for images, _ in parts) / sum(seconds for _, seconds in parts)
        numbers = (overall, statistics.median(rates), min(rates), max(rates))
        results[name] = {
            k: round(v, 2) for k, v in zip(("overall", "median", "lowest", "highest"), numbers, strict=True)
        }
    return results


def ratios(rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """Ours over theirs, the same target and device; the two workers and two threads stand on the same cores."""
    found = {}
    for name, rate in rates.items():
        for theirs, reference in rates.items():
            place = theirs.removeprefix("Real-ESRGAN on ")
            end = " usm" if place.endswith(" usm") else ""
            ours = (f"device back end on {place}", f"cpu back end, 2 workers{end}" if place.startswith("cpu") else "")
            if place != theirs and name in ours:
                found[f"{name} / {theirs}"] = round(rate["overall"] / reference["overall"], 2)
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often everybody takes a turn")
    parser.add_argument("--images", type=int, default=16, help="images per turn, in batches of 8")
    parser.add_argument("--output", type=Path, help="file for the JSON that is printed")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # those of Real-ESRGAN's imports
    torch.set_num_threads(THREADS)
    if missing := missing_checkouts():
        print(f"without Real-ESRGAN's own pipeline: {' and '.join(missing)} name no folder", file=sys.stderr)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(THREADS, mp_context=spawn, initializer=use_one_thread) as pool:
        rates = take_turns(contenders(pool, arguments.images), arguments.rounds)
    settings: dict[str, Any] = {"preset": PRESET, "scale_factor": SCALE_FACTOR, "threads": THREADS, "photo": PHOTO}
    settings["omp_wait_policy"] = os.environ.get("OMP_WAIT_POLICY", "default")
    if torch.cuda.is_available():
        settings["gpu"] = torch.cuda.get_device_name()
    settings |= {"rounds": arguments.rounds, "images": arguments.images}
    publish("degradation", settings, {"images_per_s": rates, "ratios": ratios(rates)}, arguments.output)


if __name__ == "__main__":
    main()
