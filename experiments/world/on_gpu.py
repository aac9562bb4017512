"""The world of 256 px on one GPU: what the recipes of this folder train for days on a processor. No GPU has run it yet.

    python -m experiments.world.photographs --output runs/world/photographs
    python -m experiments.world.teachers --output runs/world/teachers
    python -m experiments.world.on_gpu --output runs/world

Trainings that do not wait for each other run at the same time, each in a process of its own: first the U-Net (whole
pictures of 128 px, then crops of 256 px, as Stable Diffusion grew), beside it the decoder alone, CLIP's vision tower,
and the map network with its tuning for lq; then adapters in one step, with maps of lq, of hq, and without maps.
Learning rates follow the clock, so every training ends in time with a rate of zero; how many steps it made is in its
log. The autoencoder's encoder and CLIP's text tower are those of experiments/world/weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning

from data_pipelines.embedded import load_photos
from data_pipelines.scenes.source import prepare_pool
from experiments.world.teachers import HED
from megasr.training.module import trapezoid

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"
_ENDLESS = 10**8


class TimeBudget(lightning.Callback):
    """End a training after so many seconds, its learning rate falling to zero over the last part of them.

    Args:
        seconds: from the first step on.
        decay_share: of them, in which the learning rate falls; 0 leaves it at its peak.
    """

    def __init__(self, seconds: float, decay_share: float = 0.25) -> None:
        self.seconds, self.decay_share = seconds, decay_share
        self._begun = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._begun = time.monotonic()

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        passed = min(1.0, (time.monotonic() - self._begun) / self.seconds)
        share = trapezoid(int(1000 * passed), 1000, 0, self.decay_share) if self.decay_share else 1.0
        warm = min(1.0, (trainer.global_step + 1) / 100)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share * warm

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if time.monotonic() - self._begun > self.seconds:
            trainer.should_stop = True

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        taken = time.monotonic() - self._begun
        print(f"{trainer.global_step} steps in {taken:.0f} s", flush=True)


@dataclass(frozen=True)
class World:
    """Where everything lies, and how much there is of it.

    Attributes:
        photos: folder of photographs.
        teachers: folder of LPIPS, VGG16 and HED; without HED edges are learned from scenes alone.
        output: folder of all results.
        pool: scenes that are rendered, of 256 px and of 128 px each.
        latents: pictures that are encoded, of 128 px and a third as many of 256 px.
        device: gpu or cpu.
        workers: processes of loaders, of all trainings together.
        fast: batches as small as they can be, to try every part.
    """

    photos: Path
    teachers: Path
    output: Path
    pool: int
    latents: int
    device: str
    workers: int
    fast: bool = False

    def batch(self, size: int) -> str:
        return str(2 if self.fast else size)

    def train(self, command: str, name: str, recipe: Path, seconds: float, workers: int, *changes: Any) -> list[str]:
        """The command line of a training for so many seconds."""
        return [
            command, "--config", str(recipe), "--trainer.default_root_dir", str(self.output / f"{name}_run"),
            "--trainer.accelerator", self.device, "--trainer.devices", "1", "--trainer.strategy", "auto",
            "--trainer.precision", "bf16-mixed", "--trainer.limit_val_batches", "0",
            "--trainer.callbacks+", "experiments.world.on_gpu.TimeBudget", "--trainer.callbacks.seconds", str(seconds),
            "--data.train_samples", str(_ENDLESS), "--data.num_workers", str(workers), *map(str, changes),
        ]  # fmt: skip

    def pictures(self) -> list[str]:
        return ["--data.photos", str(self.photos), "--data.pool", str(self.pool)]


def run_megasr(arguments: list[str]) -> None:
    """Run a megasr command in this process."""
    from megasr.cli import main

    code = main(arguments)
    if code:
        raise SystemExit(code)


def _import_once() -> None:
    """What every training imports, before this process is forked. Nothing here may touch the GPU."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import open_clip.transformer  # noqa: F401
    from diffusers import AutoencoderDC, DDPMScheduler, UNet2DConditionModel  # noqa: F401
    from pyiqa.archs import lpips_arch  # noqa: F401

    import megasr.commands.lightning_cli  # noqa: F401


def _in_log(log: Path, steps: Sequence[Callable[[], None]]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", buffering=1) as file:
        sys.stdout = sys.stderr = file
        for step in steps:
            step()


def start(world: World, name: str, *steps: Callable[[], None]) -> Any:
    """A process of its own that does one step after another. It shares scenes and photographs with this one."""
    # From a thread-less parent that has not touched the GPU.
    arguments = (world.output / "logs" / f"{name}.log", steps)
    process = multiprocessing.get_context("fork").Process(target=_in_log, args=arguments, name=name)
    process.start()
    return process


def train_together(world: World, trainings: dict[str, list[Callable[[], None]]]) -> list[str]:
    """Every training in a process of its own, until all have ended. Returns the names of those that failed."""
    begun, failed = time.monotonic(), []
    for process in [start(world, name, *steps) for name, steps in trainings.items()]:
        process.join()
        state = "done" if process.exitcode == 0 else f"FAILED with {process.exitcode}"
        print(f"{time.monotonic() - begun:5.0f} s  {process.name}: {state}", flush=True)
        failed += [process.name] if process.exitcode else []
    return failed


def prepare(world: World, latents: bool) -> None:
    """Photographs and scenes in memory, for all processes that are started from this one."""
    _import_once()
    begun = time.monotonic()
    load_photos(str(world.photos))
    for size in (256, 128) if latents else (256,):
        prepare_pool(world.pool, 0, size, world.workers)
    print(f"{time.monotonic() - begun:5.0f} s  scenes are rendered", flush=True)


def encode_all(world: World) -> list[str]:
    """Latents of pictures of 128 px, and of a third as many of 256 px."""
    counts = {128: world.latents, 256: world.latents // 3}
    return train_together(world, {f"latents_{size}": [partial(encode, world, size, n)] for size, n in counts.items()})


def use_tuned_decoder(world: World) -> None:
    """Put the tuned decoder into the prior. Its latents stay valid: the encoder was locked."""
    shutil.copytree(world.output / "vae", world.output / "prior" / "vae", dirs_exist_ok=True)


def encode(world: World, size: int, count: int) -> None:
    """Latents of crops of size px; those of 128 px are whole scenes."""
    from experiments.world.encode import main

    scenes = 256 if size == 256 else size
    sys.argv = [
        "encode", "--vae", str(WEIGHTS / "prior" / "vae"), "--photos", str(world.photos), "--pool", str(world.pool),
        "--size", str(size), "--scene-size", str(scenes), "--count", str(count), "--photo-share", "0.6",
        "--workers", str(max(1, world.workers // 2)), "--output", str(world.output / f"latents_{size}"),
    ]  # fmt: skip
    main()


def train_prior(world: World, seconds: float, workers: int) -> list[Callable[[], None]]:
    """The U-Net on 128 px for three fifths of the time, on 256 px for the rest."""
    common = ["--model.vae", WEIGHTS / "prior" / "vae", "--model.clip", WEIGHTS / "clip"]
    first, second = world.output / "unet_128", world.output / "prior"
    small = world.train(
        "pretrain", "unet_128", HERE / "prior.yaml", 0.6 * seconds, workers, *common,
        "--data.folder", world.output / "latents_128", "--data.batch_size", world.batch(512),
        "--trainer.callbacks.decay_share", "0", "--export.folder", first,
    )  # fmt: skip
    large = world.train(
        "pretrain", "unet_256", HERE / "prior.yaml", 0.4 * seconds, workers, *common, "--model.init", first / "unet",
        "--data.folder", world.output / "latents_256", "--data.batch_size", world.batch(192),
        "--trainer.callbacks.decay_share", "0.5", "--export.folder", second,
    )  # fmt: skip
    return [partial(run_megasr, small), partial(run_megasr, large)]


def train_parts(world: World, seconds: float) -> dict[str, list[Callable[[], None]]]:
    """Everything that adapters need."""
    share, hed = max(1, world.workers // 4), world.teachers / HED
    decoder = world.train(
        "pretrain", "vae", HERE / "vae.yaml", seconds, share, *world.pictures(),
        "--model.init", WEIGHTS / "prior" / "vae", "--model.lock_encoder", "true",
        "--model.latent_noise", "0.15", "--model.weights_dir", world.teachers,
        "--model.lpips_weight", "0.05", "--data.batch_size", world.batch(24), "--data.crop_size_px", "128",
        "--export.folder", world.output / "vae",
    )  # fmt: skip
    clip = world.train(
        "pretrain", "clip", HERE / "clip.yaml", seconds, share, *world.pictures(), "--model.init", WEIGHTS / "clip",
        "--model.lock_text", "true", "--data.batch_size", world.batch(32), "--export.folder", world.output / "clip",
    )  # fmt: skip
    maps = world.train(
        "pretrain", "extractors", HERE / "extractors.yaml", 0.6 * seconds, share, *world.pictures(),
        "--model.edge_teacher", hed if hed.is_file() else "null", "--data.batch_size", world.batch(24),
        "--export.folder", world.output / "extractors",
    )  # fmt: skip
    tuned = world.train(
        "pretrain", "extractors_lq", HERE / "pgft_extractors.yaml", 0.4 * seconds, share, *world.pictures(),
        "--model.source", world.output / "extractors", "--data.batch_size", world.batch(24),
        "--export.folder", world.output / "extractors_lq",
    )  # fmt: skip
    return {
        "prior": train_prior(world, seconds, share + 1),
        "vae": [partial(run_megasr, decoder)],
        "clip": [partial(run_megasr, clip)],
        "extractors": [partial(run_megasr, maps), partial(run_megasr, tuned)],
    }


def train_adapters(world: World, seconds: float) -> dict[str, list[Callable[[], None]]]:
    """Adapters that restore in one step: all maps of lq, with a GAN, of hq, and none."""
    lq, share = world.output / "extractors_lq", max(1, world.workers // 5)
    sources = {name: str(lq) for name in ("hed", "depth", "segmentation")}
    oracle = {f"oracle_{name}": str(world.output / "extractors") for name in ("hed", "depth", "segmentation")}
    variants: dict[str, list[Any]] = {
        "adapter_all": ["--model.extractors.sources", sources],
        "adapter_gan": [
            "--model.extractors.sources", sources,
            "--model.objective.terms", {"l1": 1.0, "lpips_vgg": 2.0, "latent_mean": 4.0, "gan": 0.1},
            "--model.objective.term_starts", {"gan": 1 if world.fast else 600},
        ],
        "adapter_all_seed1": ["--model.extractors.sources", sources, "--model.seed", 1],
        "adapter_oracle": ["--model.adapter.guidance", list(oracle), "--model.extractors.sources", oracle],
        "adapter_none": [
            "--model.adapter.guidance", "[]", "--model.extractors", "null",
            "--model.objective.guidance_dropout", "0", "--model.objective.type_dropout", "null",
        ],
    }  # fmt: skip
    return {
        name: [
            partial(
                run_megasr,
                world.train(
                    "fit", name, HERE / "adapter.yaml", seconds, share, *world.pictures(), "--model.prior",
                    world.output / "prior", "--model.vision.model", world.output / "clip",
                    "--model.objective.weights_dir", world.teachers, "--data.batch_size", world.batch(16),
                    "--monitor.every_n_steps", 0, *changes,
                ),
            )
        ]
        for name, changes in variants.items()
    }  # fmt: skip


def main() -> None:
    """Run the stages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("runs/world/photographs"))
    parser.add_argument("--teachers", type=Path, default=Path("runs/world/teachers"))
    parser.add_argument("--output", type=Path, default=Path("runs/world"))
    parser.add_argument("--stages", nargs="+", choices=("latents", "parts", "adapters"))
    parser.add_argument("--parts-seconds", type=float, default=180, help="of the U-Net and what trains beside it")
    parser.add_argument("--adapters-seconds", type=float, default=240)
    parser.add_argument("--pool", type=int, default=2000, help="scenes that are rendered, in each of two sizes")
    parser.add_argument("--latents", type=int, default=150_000, help="pictures that are encoded")
    parser.add_argument("--workers", type=int, default=16, help="processes that load data")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--fast", action="store_true", help="batches of 2: to try every part")
    options = parser.parse_args()
    world = World(
        options.photos.absolute(), options.teachers.absolute(), options.output.absolute(), options.pool,
        options.latents, options.device, options.workers, options.fast,
    )  # fmt: skip
    stages = options.stages or ("latents", "parts", "adapters")
    prepare(world, latents="latents" in stages)
    work: dict[str, Callable[[], list[str]]] = {
        "latents": lambda: encode_all(world),
        "parts": lambda: train_together(world, train_parts(world, options.parts_seconds)),
        "adapters": lambda: train_together(world, train_adapters(world, options.adapters_seconds)),
    }
    for stage, run in work.items():
        if stage in stages and (failed := run()):
            raise SystemExit(f"{', '.join(failed)} failed: see {world.output / 'logs'}")
        if stage == "parts" and stage in stages:
            use_tuned_decoder(world)


if __name__ == "__main__":
    main()
