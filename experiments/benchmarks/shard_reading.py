"""How fast shards are read, against nothing but decoding the same JPEGs.

    python -m experiments.benchmarks.shard_reading --folder photos/train --output shard_reading.json

The folder is packed, `repeat` times over, into a temporary shard set. Three readers then take turns in every round,
each with the same loader, workers, batches, crops and order, and the files in the page cache:

    shards  ShardSource through read_or_next: index, checks, decoding
    mapped  cv2.imdecode of the very same bytes in memory-mapped tars, at places known beforehand: bare decoding
    files   cv2.imdecode of the original files

A rate is taken between a reader's first and last batch. `ratio` is shards over the faster of the others, of the medians
of all rounds. `cpu_ratio` compares processor time per image in one process, the least of many rounds over the same
images, which other users of the machine disturb less. Then the time from nothing (no source, no workers) to the first
batch at three places of an epoch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from data_pipelines.samples import DrawSampler, Sample, SampleSet, collate, crop_sample
from data_pipelines.shards.fields import image_field
from data_pipelines.shards.pack import PackOptions, pack
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.tar import index_name, load_index
from data_pipelines.workers import read_or_next
from experiments.benchmarks.record import publish
from megasr.batch import SRBatch
from megasr.image_decoding import list_images

SEED = 0
Make = Callable[[int], Sample]


class Readers:
    """Ways to make training draw d: the same image, cropped the same way.

    Args:
        shards: folder of the shard set.
        images: folder of the images it was made of.
        crop_px: height and width of the crops.
    """

    def __init__(self, shards: Path, images: Path, crop_px: int) -> None:
        self.source = ShardSource(str(shards))
        self.crop_px = crop_px
        self.tars: list[np.memmap] = []
        self.places: list[tuple[str, int, int, int]] = []  # key, tar, begin, end
        paths = {path.relative_to(images).with_suffix("").as_posix(): path for path in list_images(images)}
        for number, shard in enumerate(self.source.manifest.shards):
            self.tars.append(np.memmap(shards / shard.name, np.uint8, "r"))
            for sample in load_index((shards / index_name(shard.name)).read_text(), shard.name)[0]:
                member = sample.files[image_field(sample.files) or ""]
                self.places.append((sample.key, number, member.offset, member.offset + member.size))
        self.paths = [paths[key] for key, *_ in self.places]

    def shards(self, draw: int) -> Sample:
        """Through the project's reader."""
        return read_shards(self.source, self.crop_px, draw)

    def mapped(self, draw: int) -> Sample:
        """Bare decoding from memory."""
        key, tar, begin, end = self.places[self.source.order(draw, SEED)]
        return self._crop(key, cv2.imdecode(self.tars[tar][begin:end], cv2.IMREAD_COLOR_RGB), draw)

    def files(self, draw: int) -> Sample:
        """Bare decoding of files."""
        index = self.source.order(draw, SEED)
        content = np.fromfile(self.paths[index], np.uint8)
        return self._crop(self.places[index][0], cv2.imdecode(content, cv2.IMREAD_COLOR_RGB), draw)

    def _crop(self, key: str, hq: Any, draw: int) -> Sample:
        return crop_sample(Sample(f"{key}/{draw}", hq), self.crop_px, SEED, key, draw)


def loader(make: Make, start: int, draws: int, batch_size: int, workers: int) -> Iterator[SRBatch]:
    """Batches of draws start, start + 1, ..."""
    return iter(
        torch.utils.data.DataLoader(
            SampleSet(make, 2**62),
            batch_size,
            sampler=DrawSampler(lambda: start, draws),
            num_workers=workers,
            collate_fn=collate,
            multiprocessing_context="fork",
        )
    )


def rate(make: Make, start: int, draws: int, batch_size: int, workers: int) -> float:
    """Images per second between the first and the last batch."""
    batches = loader(make, start, draws, batch_size, workers)
    next(batches)
    begin = time.perf_counter()
    images = sum(len(batch["keys"]) for batch in batches)
    return images / (time.perf_counter() - begin)


def cpu_ms(makes: Mapping[str, Make], rounds: int, draws: int = 100) -> dict[str, float]:
    """Processor time per image of every reader, in this process; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in makes}
    for _ in range(rounds):
        for name, make in makes.items():
            begin = time.process_time()
            for draw in range(draws):
                make(draw)
            found[name].append((time.process_time() - begin) * 1000 / draws)
    return {name: round(min(times), 3) for name, times in found.items()}


def read_shards(source: ShardSource, crop_px: int, draw: int) -> Sample:
    """Training draw `draw` of a shard set."""
    sample = read_or_next(source, draw, SEED)
    return crop_sample(Sample(f"{sample.key}/{draw}", sample.hq), crop_px, SEED, sample.key, draw)


def first_batch(shards: Path, start: int, crop_px: int, batch_size: int, workers: int) -> float:
    """Seconds from opening the set to a batch of draws start, start + 1, ..."""
    begin = time.perf_counter()
    make = partial(read_shards, ShardSource(str(shards)), crop_px)
    next(loader(make, start, 2 * batch_size * workers, batch_size, workers))
    return time.perf_counter() - begin


def measure(arguments: argparse.Namespace, images: Path, shards: Path) -> dict[str, Any]:
    """All results."""
    readers = Readers(shards, images, arguments.crop_px)
    total, batch_size, workers = len(readers.source), arguments.batch_size, arguments.workers
    makes: dict[str, Make] = {"shards": readers.shards, "mapped": readers.mapped, "files": readers.files}
    rates: dict[str, list[float]] = {name: [] for name in makes}
    for number in range(arguments.rounds + 1):
        names = [*makes][number % len(makes) :] + [*makes][: number % len(makes)]
        for name in names:
            images_per_s = rate(makes[name], number * total, total, batch_size, workers)
            if number:  # the first round brings the files into the page cache
                rates[name].append(round(images_per_s, 1))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    times = cpu_ms(makes, rounds=15)
    places = {f"{percent} %": total * percent // 100 for percent in (0, 50, 99)}
    starts = {
        name: [first_batch(shards, start, arguments.crop_px, batch_size, workers) for _ in range(arguments.rounds)]
        for name, start in places.items()
    }
    return {
        "images": total,
        "mean_bytes": round(readers.source.manifest.bytes / total),
        "shards": len(readers.source.manifest.shards),
        "images_per_s": medians,
        "images_per_s_of_rounds": rates,
        "ratio": round(medians["shards"] / max(medians["mapped"], medians["files"]), 3),
        "cpu_ms_per_image": times,
        "cpu_ratio": round(min(times["mapped"], times["files"]) / times["shards"], 3),
        "first_batch_s": {name: round(statistics.median(found), 3) for name, found in starts.items()},
    }


def main() -> None:
    """Parse, pack, measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--crop-px", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=10, help="how often every photograph is in the set")
    parser.add_argument("--samples-per-shard", type=int, default=100)
    parser.add_argument("--output", type=Path, help="file for the JSON")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        images, shards = Path(temporary) / "images", Path(temporary) / "shards"
        for number in range(arguments.repeat):
            for path in list_images(arguments.folder):
                copy = images / str(number) / path.relative_to(arguments.folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        options = PackOptions((str(images),), "benchmark", arguments.samples_per_shard)
        pack(options, shards, workers=len(os.sched_getaffinity(0)))
        results = measure(arguments, images, shards)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("folder", "output")}
    publish("shard_reading", settings, results, arguments.output)


if __name__ == "__main__":
    main()
