"""A study that is killed again and again ends with the same numbers as one that is left alone, to the bit.

    python -m experiments.benchmarks.kill_drill --output runs/kill_drill

Two combinations and two seeds on the tiny prior, one of the combinations trained by two processes (DDP), and two
evaluation sets. It is run once untouched; then again in another folder, where the whole process group is killed
(SIGKILL) after times that are drawn, and started again until it ends. Then a third set is added and `study evaluate` is
killed in the same way. This goes on in further folders until so many kills are done. Compared are all bytes of
scores.csv and results.csv.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from experiments.benchmarks.record import publish

_SET = {"data": "PhotoDataModule", "degradation": "realesrgan_strong", "eval_crop_size_px": 64, "eval_samples": 4}
_PATIENCE_S = 45
TABLES = ("scores.csv", "results.csv")


def study(steps: int, *more: str) -> dict[str, Any]:
    """The study's file; `more` are names of further evaluation sets."""
    sets = {"scenes": {}, "photographs": _SET}
    sets |= {name: {**_SET, "degradation": "stablesr_mild"} for name in more}
    return {
        "study": {
            "name": "kill_drill",
            "question": "Does a kill change a number?",
            "primary_metric": "scenes/fsim",
            "evaluation": sets,
            "seeds": [0, 1],
            "reference": {"name": "none", "changes": {"model.adapter.guidance": []}},
            "ablations": {
                "hed": {
                    "changes": {"model.adapter.guidance": ["hed"], "trainer.devices": 2, "trainer.strategy": "ddp"},
                    "expected": "The same after every kill.",
                }
            },
        },
        "model": {
            "prior": "tiny", "init": "tiny", "adapter": {"text": False, "saft_width": 8},
            "sampler": {"num_steps": 1, "start_fraction": 0.5},
        },
        "data": {
            "class_path": "SceneDataModule",
            "init_args": {
                "degradation": "realesrgan_strong", "pool": 16, "crop_size_px": 32, "eval_crop_size_px": 64,
                "batch_size": 2, "train_samples": 64, "eval_samples": 6,
            },
        },
        "trainer": {"max_steps": steps, "accelerator": "cpu", "devices": 1},
    }  # fmt: skip


def command(action: str, file: Path, output: Path) -> list[str]:
    """Of a study in one process at a time."""
    words = [sys.executable, "-m", "megasr.cli", "study", action, str(file), "--output", str(output)]
    return [*words, "--per-device", "1"]


def run(words: list[str], log: Path, limit_s: float | None = None) -> bool:
    """Run to the end, or kill the whole group after limit_s. Returns whether it came to its end.

    Raises:
        SystemExit: it ended by itself, and badly.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
    if code:
        raise SystemExit(f"{' '.join(words)} ended with {code}: see {log}")
    return True


def main() -> None:
    """Run, kill, compare and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=6, help="of every training")
    parser.add_argument("--record", type=Path, help="file for the record")
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    log, draw = options.output / "log.txt", random.Random(0)
    stages = {"run": study(options.steps), "evaluate": study(options.steps, "mild")}
    files = {action: options.output / f"{action}.yaml" for action in stages}
    for action, content in stages.items():
        files[action].write_text(yaml.safe_dump(content, sort_keys=False))
    untouched, took, kills = options.output / "untouched", {}, dict.fromkeys(stages, 0)
    same: list[dict[str, bool]] = []
    for action, file in files.items():
        begun = time.monotonic()
        run(command(action, file, untouched), log)
        took[action] = time.monotonic() - begun
        print(f"{action}, untouched: {took[action]:.0f} s", flush=True)
    while sum(kills.values()) < options.kills:
        killed = options.output / f"killed_{len(same)}"
        for action, file in files.items():
            left = options.kills - sum(kills.values())
            for _ in range(left - left // 3 if action == "run" else left):
                # Not too early: most of a start is imports.
                if run(command(action, file, killed), log, draw.uniform(0.3, 1.0) * min(took[action], _PATIENCE_S)):
                    break
                kills[action] += 1
                print(f"{action}: killed {kills[action]} times", flush=True)
            run(command(action, file, killed), log)
        same.append({name: (untouched / name).read_bytes() == (killed / name).read_bytes() for name in TABLES})
        print(f"{killed.name}: equal to the bit: {same[-1]}", flush=True)
    results = {"kills": kills, "bit_equal": same, "untouched_s": took}
    publish("kill_drill", {"steps": options.steps}, results, options.record)
    if not all(all(tables.values()) for tables in same):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
