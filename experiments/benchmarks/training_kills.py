"""Kill one training again and again, at random, and compare its last checkpoint with that of an undisturbed one.

    python -m experiments.benchmarks.training_kills --kills 50
    python -m experiments.benchmarks.training_kills --kills 10 --processes 2 --strategy fsdp2

The training is a small one on the tiny prior with all that a resume must bring back: the middle of an epoch, two
loader workers, EMA, dropout of guidance and text, on-line degradation, a learning rate that rises and falls. After each
SIGKILL the same command is given again with --ckpt_path last. Steps since the last checkpoint are trained again; every
loss that was ever written down is compared with that of the undisturbed run as well. Exit status 1 when one bit of the
trained weights, of their average, or of the optimizer's state differs, or one loss.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import torch

from experiments.benchmarks.record import publish
from megasr import cli
from megasr.prior import load_prior
from megasr.rng import numpy_generator
from megasr.training.checkpoint import read_checkpoint
from megasr.training.last_checkpoint import LAST
from tests.helpers.ranks import free_port, rank_environment

_SHARDED = "{class_path: megasr.training.sharding.ShardedStrategy, init_args: {single_file: %s}}"
STRATEGIES = {"single": "auto", "ddp": "ddp", "fsdp2": _SHARDED % "true", "fsdp": _SHARDED % "false"}
OPTIONS = {
    "model.adapter.guidance": "[canny, superpixel]",
    "model.adapter.saft_width": 8,
    "model.adapter.controlnet": "false",
    "model.objective.text_dropout": 0.3,
    "model.objective.guidance_dropout": 0.3,
    "model.optimizer.learning_rate": 1e-3,
    "model.optimizer.warmup_steps": 10,
    "model.optimizer.decay_share": 0.5,
    "data": "PhotoDataModule",
    "data.degradation": "realesrgan_strong",
    "data.crop_size_px": 32,
    "data.eval_samples": 1,
    "data.num_workers": 2,
    "trainer.gradient_clip_val": 1.0,
    "trainer.limit_val_batches": 0,
    "trainer.num_sanity_val_steps": 0,
    "trainer.log_every_n_steps": 50,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "monitor.every_n_steps": 0,
}


class Losses(lightning.Callback):
    """Writes the loss of every step of this process down at once, with all its digits."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *unused: Any) -> None:
        with Path(f"{self.path}.{trainer.global_rank}").open("a") as file:
            file.write(f"{trainer.global_step} {float(outputs['loss']).hex()}\n")


class Training:
    """One training in a folder, in as many processes as it has, forked from this one, which has imported everything."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.processes = folder, arguments.processes
        self.losses, self.log = (folder.with_name(f"{folder.name}.{kind}") for kind in ("losses", "log"))
        sizes = {"max_steps": arguments.steps, "devices": arguments.processes, "default_root_dir": folder}
        options = OPTIONS | {"data.batch_size": 4 // self.processes, "data.train_samples": 4 * 17}
        options |= {f"trainer.{name}": value for name, value in sizes.items()}
        callbacks = {
            "megasr.training.callbacks.EMA": {"decay": 0.9},
            "megasr.training.last_checkpoint.LastCheckpoint": {"folder": str(folder), "every_n_steps": arguments.every},
            "experiments.benchmarks.training_kills.Losses": {"path": str(self.losses)},
        }
        options["trainer.strategy"] = STRATEGIES[arguments.strategy]
        options["trainer.callbacks"] = json.dumps([{"class_path": c, "init_args": a} for c, a in callbacks.items()])
        self.options = [f"--{name}={value}" for name, value in options.items()]
        self.ranks: list[Any] = []

    def start(self) -> None:
        """Begin, or go on from the last checkpoint if there is one."""
        more = ["--ckpt_path=last"] if (self.folder / LAST).exists() else []
        port = free_port()
        context = multiprocessing.get_context("fork")
        self.ranks = [context.Process(target=self._run, args=(rank, port, more)) for rank in range(self.processes)]
        for process in self.ranks:
            process.start()

    def _run(self, rank: int, port: int, more: list[str]) -> None:
        os.setsid()  # killing its group kills its workers too
        with self.log.open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if self.processes > 1:
            os.environ |= rank_environment(rank, self.processes, port)
        torch.set_num_threads(1)
        os._exit(cli.main(["fit", *self.options, *more]))

    def ended(self) -> bool:
        """Whether all processes have ended by themselves; the end of one with an error ends the drill."""
        codes = [process.exitcode for process in self.ranks]
        if any(codes):
            self.kill()
            sys.exit(f"a process ended with {codes}; its last words: {self.log.read_text()[-500:]}")
        return all(code == 0 for code in codes)

    def kill(self) -> None:
        """SIGKILL to every process and its workers."""
        for process in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()

    def steps(self) -> int:
        """How many steps the first process has written down, those that were trained twice included."""
        path = Path(f"{self.losses}.0")
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def logged(self) -> dict[tuple[int, str], set[str]]:
        """(process, step) -> every loss that was ever written down for it."""
        found: dict[tuple[int, str], set[str]] = {}
        for rank in range(self.processes):
            for line in Path(f"{self.losses}.{rank}").read_text().splitlines():
                step, loss = line.split()
                found.setdefault((rank, step), set()).add(loss)
        return found


def disturb(training: Training, kills: int, every: int, seed: int) -> dict[str, int]:
    """Train to the end through `kills` kills: most after some more steps, some while the processes are starting."""
    generator, killed = numpy_generator(seed, "training_kills"), {"starting": 0, "training": 0}
    training.start()
    while sum(killed.values()) < kills:
        what = "starting" if generator.random() < 0.1 else "training"
        until = training.steps() + int(generator.integers(1, 2 * every)) if what == "training" else 0
        while training.steps() < until and not training.ended():
            time.sleep(0.02)
        time.sleep(generator.uniform(0, 0.3 if what == "training" else 2))
        if training.ended():
            sys.exit(f"the training ended after {killed} kills: give it more --steps")
        training.kill()
        killed[what] += 1
        print(f"kill {sum(killed.values())}: {what}, {training.steps()} steps written down", flush=True)
        training.start()
    finish(training)
    return killed


def finish(training: Training) -> float:
    """Wait for the end. Returns seconds."""
    started = time.monotonic()
    while not training.ended():
        time.sleep(0.05)
    return time.monotonic() - started


def differences(expected: Any, found: Any, path: str = "") -> list[str]:
    """Where two nested structures differ, tensors by a single bit."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return [line for key in expected for line in differences(expected[key], found[key], f"{path}.{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, f"{path}.{i}")]
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        return [] if torch.equal(expected, found) else [path]
    return [] if expected == found else [path]


def compare(calm: Training, killed: Training) -> dict[str, Any]:
    """What the last checkpoints and the losses of two trainings have in common."""
    parts = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
    ends = [read_checkpoint(training.folder / LAST) for training in (calm, killed)]
    kept = [{part: end[part] for part in parts} | {"EMA": end["callbacks"]["EMA"]} for end in ends]
    expected, found = calm.logged(), killed.logged()
    return {
        "tensors_that_differ": differences(*kept),
        "losses_compared": len(expected),
        "losses_that_differ": sum(expected.get(key) != found.get(key) for key in expected.keys() | found.keys()),
    }


def main() -> None:
    """Parse, train undisturbed and through the kills, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=240, help="of the training (default: 240)")
    parser.add_argument("--every", type=int, default=4, help="steps between two checkpoints (default: 4)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", choices=STRATEGIES, default="single")
    parser.add_argument("--seed", type=int, default=0, help="of when to kill")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    if arguments.processes > 1 and arguments.strategy == "single":
        parser.error("--processes needs --strategy ddp, fsdp2 or fsdp")
    import megasr.commands.lightning_cli  # noqa: F401

    os.environ["WANDB_MODE"] = "disabled"
    load_prior("tiny")  # what is imported here, and above, is imported once: the trainings are forked from this process
    with tempfile.TemporaryDirectory() as temporary:
        calm, killed = (Training(Path(temporary) / name, arguments) for name in ("calm", "killed"))
        calm.start()
        calm_s = finish(calm)
        counts = disturb(killed, arguments.kills, arguments.every, arguments.seed)
        results: dict[str, Any] = {"kills": counts, "undisturbed_s": round(calm_s, 1)}
        results |= {"steps_trained": killed.steps(), "steps_kept": calm.steps()} | compare(calm, killed)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("training_kills", settings, results, arguments.output)
    sys.exit(1 if results["tensors_that_differ"] or results["losses_that_differ"] else 0)


if __name__ == "__main__":
    main()
