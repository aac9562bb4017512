"""Make a prior and what belongs to it from nothing: `python -m experiments.make_prior tiny`, or `world` (256 px).

Part after part, each by the recipe whose lab note says what was tried. What is finished is left as it is, and a
training that was interrupted goes on from its last checkpoint: give the same command again. Before each part it is said
how long the rest will take: the minutes of the parts on two cores, scaled by what trainings have taken here so far.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
LAST = "last.ckpt"  # megasr.training.last_checkpoint.LAST, whose import takes seconds
PHOTOGRAPHS, TEACHERS = "runs/world/photographs", "runs/world/teachers"


@dataclass(frozen=True)
class Part:
    """One step on the way to a prior.

    Attributes:
        name: shown.
        minutes: on two cores, by the times in its lab note.
        made: a file or folder that exists when, and only when, the part is finished.
        commands: words after `python -m`, one after the other.
        run: folder of the training in the first command, whose last checkpoint it goes on from.
    """

    name: str
    minutes: float
    made: Path
    commands: tuple[tuple[str, ...], ...]
    run: Path | None = None


def pretraining(recipe: str, minutes: float) -> Part:
    """The part that a recipe of `megasr pretrain` makes, a path in this folder."""
    path = HERE / recipe
    config = yaml.safe_load(path.read_text())
    command = ("megasr.cli", "pretrain", "--config", str(path))
    made, run = Path(config["export"]["folder"]), Path(config["trainer"]["default_root_dir"])
    return Part(recipe, minutes, made, (command,), run)


def script(module: str, minutes: float, made: str, *words: str) -> Part:
    """A part that a script of this folder makes; it begins anew when it was interrupted."""
    return Part(module, minutes, Path(made), ((f"experiments.{module}", *words),))


def parts_of(prior: str) -> list[Part]:
    """What makes a prior, in order: `tiny`, which ships, or `world`, the one of 256 px."""
    if prior == "tiny":
        run, adapter = Path("runs/tiny/controlnet_only"), "runs/tiny/adapter/adapter.ckpt"
        fit = ("megasr.cli", "fit", "--config", str(HERE / "tiny/controlnet_only.yaml"))
        ship = ("experiments.tiny.ship_adapter", str(run / LAST), "--output", adapter)
        return [
            pretraining("tiny/vae.yaml", 20),
            pretraining("tiny/clip.yaml", 8),
            pretraining("tiny/clip_vision.yaml", 10),
            pretraining("tiny/prior.yaml", 66),
            pretraining("tiny/extractors.yaml", 20),
            pretraining("tiny/pgft_extractors.yaml", 56),
            pretraining("tiny/pgft_clip.yaml", 10),
            Part("tiny/controlnet_only.yaml", 20, Path(adapter), (fit, ship), run),
        ]
    latents = ["--vae", "runs/world/vae", "--photos", PHOTOGRAPHS, "--size", "128", "--scene-size", "128"]
    return [
        script("world.photographs", 3, PHOTOGRAPHS, "--output", PHOTOGRAPHS),
        script("world.teachers", 1, TEACHERS, "--output", TEACHERS),
        pretraining("world/vae.yaml", 108),
        pretraining("world/clip.yaml", 470),
        script("world.encode", 8, "runs/world/latents", *latents, "--count", "40000", "--output", "runs/world/latents"),
        pretraining("world/prior.yaml", 960),
        pretraining("world/extractors.yaml", 78),
        pretraining("world/pgft_extractors.yaml", 26),
        pretraining("world/pgft_clip.yaml", 15),
    ]


def left(parts: Sequence[Part], taken: float, expected: float) -> str:
    """How long these parts will take, in words, when others took so many minutes that were to take `expected`."""
    pace = taken / expected if expected else 1.0
    minutes = pace * sum(part.minutes for part in parts)
    return f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{max(1, round(minutes))} min"


def run(words: Sequence[str]) -> int:
    """The exit code of a command. Ctrl-C and SIGTERM are passed on as SIGTERM, on which a training saves and ends."""
    with subprocess.Popen(words) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    process.terminate()
        finally:
            signal.signal(signal.SIGTERM, before)


def make(parts: Sequence[Part]) -> None:
    """Make what is not there yet.

    Raises:
        SystemExit: a command failed or was interrupted; its own words stand above.
    """
    missing = [part for part in parts if not part.made.exists()]
    taken = expected = 0.0
    for number, part in enumerate(missing):
        resumes = part.run is not None and (part.run / LAST).is_file()
        rest = left(missing[number:], taken, expected)
        print(
            f"{parts.index(part) + 1} of {len(parts)}: {part.name}{', resumed' if resumes else ''}; about {rest} left",
            flush=True,
        )
        begun = time.monotonic()
        for index, command in enumerate(part.commands):
            resume = ["--ckpt_path", "last"] if resumes and index == 0 else []
            if code := run([sys.executable, "-m", *command, *resume]):
                raise SystemExit(f"{part.name} is not finished (exit code {code}): the same command goes on with it")
        if part.run and not resumes:  # neither a download nor a part of a training says anything about the pace
            taken, expected = taken + (time.monotonic() - begun) / 60, expected + part.minutes
    print(f"everything is made: {', '.join(sorted({str(part.made.parent) for part in parts}))}")


def main() -> None:
    """Make the prior that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prior", choices=("tiny", "world"))
    make(parts_of(parser.parse_args().prior))


if __name__ == "__main__":
    main()
