"""Kill an epoch that several processes read, go on with another number of them, and count what training saw.

    python -m experiments.benchmarks.resume_drill
    python -m experiments.benchmarks.resume_drill --folder photos/shards --seed 7

Three processes ("ranks") with two loader workers each read an epoch of a shard set in batches, all taking a step at
a time as in distributed training. In the middle of a random step everything is killed (SIGKILL). Two ranks with one
worker each go on from the number of samples that had been consumed, to the end of the epoch.

Consumed is what training has taken a step on: the position is what the last checkpoint says, here one is written after
every step. What was read ahead, or in the step that was not finished, was never trained on and is read again by
design. With a checkpoint every n steps a kill repeats up to n steps of reading, because their weights are lost too.

Exit status 1 when an image was seen more than once or not at all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import cv2
import torch

from data_pipelines.samples import DrawSampler, Sample, SampleSet
from data_pipelines.shards.pack import PackOptions, pack
from data_pipelines.shards.reader import ShardSource
from data_pipelines.workers import read_or_next
from megasr.images import write_png
from megasr.rng import derive_seed, numpy_generator


class World(NamedTuple):
    """Who reads."""

    ranks: int
    workers: int

    def __str__(self) -> str:
        return f"{self.ranks} ranks x {self.workers} workers"


def names_of(samples: list[Sample]) -> list[str]:
    """The collate function: nothing but names."""
    return [sample.key for sample in samples]


def run_rank(url: str, seed: int, batch_size: int, start: int, world: World, rank: int, pipe: Connection) -> None:
    """One process of training: at every word takes a step, then tells the draws and keys that were in its batch."""
    os.setsid()  # killing its group kills its workers too
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    source = ShardSource(url, shuffle_shards=3)

    def make(draw: int) -> Sample:
        sample = read_or_next(source, draw, seed)
        return Sample(f"{draw} {sample.key}", sample.hq)

    per_step = batch_size * world.ranks
    whole_steps = -(-(len(source) - start) // per_step) * per_step
    loader = torch.utils.data.DataLoader(
        SampleSet(make, 2**62),
        batch_size,
        sampler=DrawSampler(lambda: start, whole_steps, rank, world.ranks),
        num_workers=world.workers,
        collate_fn=names_of,
    )
    for names in loader:
        pipe.recv()
        pipe.send(names)


def train(
    url: str, seed: int, batch_size: int, start: int, world: World, steps: int, killed: bool, checkpoint: Path
) -> list[str]:
    """Take steps from draw `start` on, writing a checkpoint after each.

    Args:
        url: of the shard set.
        seed: of the order.
        batch_size: of each rank.
        start: draws that were consumed before.
        world: who reads.
        steps: how many are finished.
        killed: begin one more and kill everybody in the middle of it.
        checkpoint: file.

    Returns:
        "draw key" of everything that a finished step saw.
    """
    context = multiprocessing.get_context("fork")
    ranks: list[BaseProcess] = []
    pipes: list[Connection] = []
    for rank in range(world.ranks):
        here, there = context.Pipe()
        ranks.append(context.Process(target=run_rank, args=(url, seed, batch_size, start, world, rank, there)))
        ranks[-1].start()
        pipes.append(here)
    seen: list[str] = []
    try:
        for step in range(1, steps + 1):
            for pipe in pipes:
                pipe.send("step")
            seen += [name for pipe in pipes for name in pipe.recv()]
            checkpoint.write_text(json.dumps({"consumed_samples": start + step * batch_size * world.ranks}))
        if killed:
            pipes[0].send("step")  # one rank is through with its batch, the others are not
            pipes[0].recv()
    finally:
        kill(ranks)
    return seen


def kill(ranks: list[BaseProcess]) -> None:
    """SIGKILL for every rank and its workers."""
    for process in ranks:
        if process.pid is not None and process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def make_set(folder: Path, samples: int, seed: int) -> str:
    """A small set of noise images, in shards of several sizes."""
    for number in range(samples):
        image = numpy_generator(seed, "drill", number).integers(0, 256, (32, 32, 3), dtype="uint8")
        write_png(image, folder / "images" / f"{number:03d}.png")
    pack(PackOptions((str(folder / "images"),), "none", samples_per_shard=13), folder / "shards")
    return str(folder / "shards")


def drill(url: str, seed: int, batch_size: int, folder: Path) -> bool:
    """Read, kill, resume, compare; prints what happened. True when every image was seen once."""
    before, after = World(3, 2), World(2, 1)
    source = ShardSource(url, shuffle_shards=3)
    keys = Counter(source.files(index)[0] for index in range(len(source)))
    per_step = batch_size * before.ranks
    finished = 1 + derive_seed(seed, "kill") % max(1, len(source) // per_step - 1)
    checkpoint = folder / "checkpoint.json"
    print(f"{len(source)} images in {len(source.manifest.shards)} shards, batches of {batch_size}, seed {seed}")
    first = train(url, seed, batch_size, 0, before, finished, True, checkpoint)
    consumed: int = json.loads(checkpoint.read_text())["consumed_samples"]
    print(f"{before}: SIGKILL to every process in step {finished + 1}; the checkpoint says {consumed} samples consumed")
    steps = -(-(len(source) - consumed) // (batch_size * after.ranks))
    second = train(url, seed, batch_size, consumed, after, steps, False, checkpoint)
    print(f"{after}: {steps} steps more, to the end of the epoch")
    return report(keys, *(Counter(keys_of_epoch(names, len(source))) for names in (first, second)))


def keys_of_epoch(names: list[str], draws: int) -> list[str]:
    """The keys of an epoch's draws; the last step may reach into the next epoch."""
    pairs = (name.split(" ", 1) for name in names)
    return [key for draw, key in pairs if int(draw) < draws]


def report(expected: Counter[str], first: Counter[str], second: Counter[str]) -> bool:
    """Print both multisets and where they differ."""
    seen = first + second
    print(f"\n{'image':12} expected seen (before the kill + after)")
    for key in sorted(expected | seen):
        note = "" if seen[key] == expected[key] else "   <-- WRONG"
        print(f"{key:12} {expected[key]:8} {seen[key]:4} ({first[key]} + {second[key]}){note}")
    wrong = sum(seen[key] != expected[key] for key in expected | seen)
    times = ", ".join(f"{number} images {count} times" for count, number in sorted(Counter(seen.values()).items()))
    print(f"\nexpected: {expected.total()} images once; seen: {times}; {wrong} differ")
    return wrong == 0


def main() -> None:
    """Parse, make a set unless one is given, and drill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="URL of a shard set; a small one is made when nothing is given")
    parser.add_argument("--seed", type=int, default=4, help="of the order and the place of the kill")
    parser.add_argument("--batch-size", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        url = arguments.folder or make_set(folder, 120, arguments.seed)
        sys.exit(0 if drill(url, arguments.seed, arguments.batch_size, folder) else 1)


if __name__ == "__main__":
    main()
