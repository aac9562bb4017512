"""The shard loader at 10^8 images and 256 ranks: every image once per epoch, exact resume, seconds and memory per rank.

    python -m experiments.benchmarks.shard_order --output shard_order.json

A set of 10,000 shards of 10,000 images is described by its manifest and the index of one shard; there are no images.
For one rank after another the data module makes the loader that a training would have, and its draws are counted. The
draws of a window of shards show the images of these shards: in some windows all of them are looked up (--windows 625
looks up those of all windows, which takes a core twelve minutes).

    drawn       how often every draw of an epoch came, of all ranks together, and how many each rank and worker had
    shown       how often every shard came in an epoch, and every image of the windows that were looked up
    resumed     after half an epoch: the next batches of all ranks, on as many ranks and on others
    rank        what every process of the training spends: opening the set, the order of the next epoch, a draw
    index       what every worker spends on one window: indices whose samples are parsed when they are asked for
                (as training does) against all at once
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from data_pipelines.datamodules import ShardDataModule
from data_pipelines.shards.manifest import MANIFEST, ShardEntry, write_manifest
from data_pipelines.shards.reader import ShardSource
from data_pipelines.shards.tar import IndexedSample, Member, digest, dump_index, index_name, load_index, open_index
from experiments.benchmarks.record import publish

IMAGE_BYTES = 100_000  # of the members that indices name; only the number of its digits matters
TAGS_BYTES = 100
Trainer = SimpleNamespace


def describe_set(folder: Path, shards: int, samples_per_shard: int, indices: int) -> str:
    """Write the manifest of a set and the indices of its first shards, without tars; the folder as a URL."""
    folder.mkdir(parents=True)
    size = samples_per_shard * 2 * IMAGE_BYTES
    entries = [
        ShardEntry(f"shard-{n:06d}.tar", samples_per_shard, size, digest(f"{folder.name} {n}".encode()) * 4)
        for n in range(shards)
    ]
    for number, entry in enumerate(entries[:indices]):
        samples = (_described(number, position) for position in range(samples_per_shard))
        (folder / index_name(entry.name)).write_text(dump_index(samples, entry.name, entry.sha256))
    total = shards * samples_per_shard
    write_manifest(folder, entries, {"jpg": total, "txt": total}, "none", "described")
    return str(folder)


def _described(shard: int, position: int) -> IndexedSample:
    """A sample as `megasr shards pack` would have indexed it: an image and its tags."""
    key, begin = f"photos/{shard:05d}/{position:08d}", position * 2 * IMAGE_BYTES
    mark = digest(key.encode())
    files = {"jpg": Member(begin, IMAGE_BYTES, mark), "txt": Member(begin + IMAGE_BYTES, TAGS_BYTES, mark)}
    return IndexedSample(key, files)


def make_data(folder: Path, **settings: Any) -> ShardDataModule:
    """The data module of a training on the set described in `folder`/train, with an epoch of all its images."""
    train = str(folder / "train")
    samples = len(ShardSource(train))
    return ShardDataModule(train, str(folder / "eval"), train_samples=samples, **settings)


def trainer(rank: int, ranks: int, steps: int = 0) -> Any:
    """What a data module asks Lightning's Trainer: the rank, the number of ranks, and the steps that are done."""
    loop = Trainer(epoch_loop=Trainer(batch_progress=Trainer(total=Trainer(processed=steps))))
    return Trainer(global_rank=rank, world_size=ranks, fit_loop=loop)


def batches(data: ShardDataModule, rank: int, ranks: int, steps: int = 0) -> Iterator[list[int]]:
    """The draws of every batch of a rank in the epoch that begins, or resumes, after `steps` steps."""
    data.trainer = trainer(rank, ranks, steps)
    return iter(data.train_dataloader().batch_sampler)


def draw_all(data: ShardDataModule, ranks: int, workers: int) -> dict[str, Any]:
    """The draws of one pass over the set, by all ranks: an epoch, then the step in which the last images come.

    torch gives batch b of a rank to worker b modulo the number of workers.
    """
    assert data.train_source is not None
    total = len(data.train_source)
    steps = total // (data.batch_size * ranks)
    times, of_ranks, of_workers = np.zeros((steps + 1) * data.batch_size * ranks, np.uint8), [], []
    for rank in range(ranks):
        epoch = [*batches(data, rank, ranks)]
        of_workers += [sum(map(len, epoch[worker::workers])) for worker in range(workers)]
        of_ranks.append(sum(map(len, epoch)))
        np.add.at(times, [*itertools.chain.from_iterable(epoch), *next(batches(data, rank, ranks, steps))], 1)
    return {
        "draws_by_times": _by_times(times[:total]),
        "draws_of_a_rank": _ends(of_ranks),
        "draws_of_a_worker": _ends(of_workers),
    }


def show_some(source: ShardSource, seed: int, windows: int, epoch: int = 1) -> dict[str, Any]:
    """The images of all draws of some windows of an epoch, evenly spaced."""
    order, total = source.draws, len(source)
    shards, starts = order.shards(epoch, seed)
    count = -(-len(shards) // order.window)
    chosen = np.unique(np.linspace(0, count - 1, min(windows, count)).round().astype(int)).tolist()
    times, inside = np.zeros(total, np.uint8), np.zeros(total, bool)
    for first in (number * order.window for number in chosen):
        end = min(first + order.window, len(shards))
        for shard in shards[first:end]:
            inside[order.firsts[shard] : order.firsts[shard + 1]] = True
        draws = range(epoch * total + starts[first], epoch * total + starts[end])
        np.add.at(times, [order(draw, seed) for draw in draws], 1)
    return {
        "shards_by_times": _by_times(np.bincount(shards, minlength=len(order.samples))),
        "windows": count,
        "windows_looked_up": len(chosen),
        "images_by_times": _by_times(times[inside]),
        "images_of_other_windows": int(times[~inside].sum()),
    }


def _by_times(times: np.ndarray) -> dict[str, int]:
    """How many came never, once, twice, ..."""
    return {str(n): int(count) for n, count in enumerate(np.bincount(times)) if count}


def _ends(numbers: list[int]) -> dict[str, int]:
    return {"least": min(numbers), "most": max(numbers)}


def resume(data: ShardDataModule, again: ShardDataModule, ranks: int, others: int, steps: int) -> dict[str, Any]:
    """Stop after `steps` steps of the epoch and go on in `again`, which has opened the set anew: three more steps.

    On as many ranks every batch is compared with that of the training that was not stopped. On another number of ranks
    all their draws together should be the next ones, each once.
    """
    whole = [list(itertools.islice(batches(data, rank, ranks), steps, steps + 3)) for rank in range(ranks)]
    data.trainer = trainer(0, ranks, steps)
    again.load_state_dict(data.state_dict())
    same = [list(itertools.islice(batches(again, rank, ranks, steps), 3)) for rank in range(ranks)]
    moved = [list(itertools.islice(batches(again, rank, others, steps), 3)) for rank in range(others)]
    draws = sorted(draw for of_rank in moved for batch in of_rank for draw in batch)
    first = steps * ranks * data.batch_size
    begin = time.process_time()
    next(batches(again, 0, ranks, steps))
    assert again.train_source is not None
    again.train_source.order(first, again.seed)
    return {
        "steps": steps,
        "first_draw": first,
        "same_ranks_bit_equal": same == whole,
        "other_ranks": others,
        "other_ranks_next_draws_once": draws == list(range(first, first + 3 * others * data.batch_size)),
        "first_draw_cpu_s": round(time.process_time() - begin, 3),
    }


def of_a_rank(url: str, rounds: int) -> dict[str, float]:
    """What every process spends on the set as a whole."""
    source = ShardSource(url)
    order, total, epochs = source.order, len(source), itertools.count(1)
    draws = range(total // 2, total // 2 + 10_000)
    order(draws[0], 0)
    return {
        "open_cpu_s": _cpu_s(lambda: ShardSource(url), rounds),
        "open_mib": _mib(lambda: ShardSource(url)),
        "next_epoch_cpu_s": _cpu_s(lambda: order(next(epochs) * total, 0), rounds),
        "fingerprint_cpu_s": _cpu_s(lambda: source.fingerprint, rounds),
        "draw_cpu_us": _cpu_s(lambda: [order(draw, 0) for draw in draws], rounds) / len(draws) * 1e6,
        "manifest_bytes": Path(url, MANIFEST).stat().st_size,
    }


def of_an_index(url: str, window: int, rounds: int) -> dict[str, float]:
    """What a worker spends on the index of a shard, and holds of a window of them."""
    name = index_name(ShardSource(url).manifest.shards[0].name)
    text = Path(url, name).read_text()
    samples = len(load_index(text, name)[0])
    return {
        "samples": samples,
        "bytes_per_sample": len(text) / samples,
        "open_cpu_ms": _cpu_s(lambda: open_index(text, name), rounds) * 1e3,
        "parse_all_cpu_ms": _cpu_s(lambda: load_index(text, name), rounds) * 1e3,
        "window_mib": _mib(lambda: [open_index(text, name) for _ in range(window)]),
        "window_parsed_mib": _mib(lambda: [load_index(text, name) for _ in range(window)]),
    }


def _cpu_s(action: Callable[[], object], rounds: int) -> float:
    """Median processor seconds."""
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        action()
        found.append(time.process_time() - begin)
    return statistics.median(found)


def _mib(action: Callable[[], object]) -> float:
    """MiB of the Python objects that an action returns."""
    tracemalloc.start()
    kept = action()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return size / 2**20


def main() -> None:
    """Describe the set, count, measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--samples-per-shard", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--other-ranks", type=int, default=192, help="on which the training is resumed")
    parser.add_argument("--workers", type=int, default=12, help="of a rank")
    parser.add_argument("--batch-size", type=int, default=8, help="of a rank")
    parser.add_argument("--shuffle-shards", type=int, default=16)
    parser.add_argument("--windows", type=int, default=20, help="of shards, whose images are all looked up")
    parser.add_argument("--output", type=Path, help="file for the JSON")
    arguments = parser.parse_args()
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    with tempfile.TemporaryDirectory() as temporary:
        folder, window = Path(temporary), arguments.shuffle_shards
        url = describe_set(folder / "train", arguments.shards, arguments.samples_per_shard, 1)
        describe_set(folder / "eval", 1, 100, 0)
        results: dict[str, Any] = {"rank": of_a_rank(url, 5), "index": of_an_index(url, window, 5)}
        results = {name: {key: round(value, 4) for key, value in part.items()} for name, part in results.items()}
        data, again = (make_data(folder, batch_size=arguments.batch_size, shuffle_shards=window) for _ in range(2))
        half = len(ShardSource(url)) // (2 * arguments.batch_size * arguments.ranks)
        results["resumed"] = resume(data, again, arguments.ranks, arguments.other_ranks, half)
        results["drawn"] = draw_all(data, arguments.ranks, arguments.workers)
        results["shown"] = show_some(ShardSource(url, shuffle_shards=window), data.seed, arguments.windows)
    publish("shard_order", settings, results, arguments.output)


if __name__ == "__main__":
    main()
