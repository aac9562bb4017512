"""Evaluation of folders of images, by one process or several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from megasr.errors import MegaSRError, UsageError
from megasr.evaluation.evaluator import Evaluation, Evaluator, Images
from megasr.evaluation.metrics import weight_hashes
from megasr.evaluation.pairing import Pair, pair_by_name
from megasr.evaluation.protocol import Protocol
from megasr.images import from_uint8, read_image, read_size
from megasr.provenance import provenance

_CHUNK = 2  # images per task of a worker process
Progress = Callable[[int, int], None]  # images done, images in all


def evaluate_folder(
    sr: Path,
    hq: Path | None,
    evaluator: Evaluator,
    *,
    strip: Sequence[str] = (),
    data: str | None = None,
    devices: int = 1,
    progress: Progress | None = None,
    more: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measure every image of a folder against the one of the same name.

    Args:
        sr: folder of restored images.
        hq: folder of ground truth; None for sets that have none.
        evaluator: what is measured.
        strip: endings of names that are taken off before names are compared.
        data: name of the benchmark set.
        devices: processes; with CUDA each takes a GPU of its own.
        progress: is called with the images done and the images in all.
        more: goes into the provenance.

    Raises:
        UsageError: names do not pair, or an image does not fit the protocol.
        MegaSRError: an image cannot be read or measured; it is named.
    """
    if devices < 1:
        raise UsageError(f"devices is {devices}, must be at least 1")
    pairs = pair_by_name(sr, hq, strip)
    check_sizes(pairs, evaluator.protocol)
    if not evaluator.width:
        skipped = "; ".join(f"{name}: {why}" for name, why in evaluator.skipped.items())
        raise UsageError(f"no metric of {evaluator.protocol.name} can be taken: {skipped}")
    vectors = []
    for vector in _vectors(pairs, evaluator, devices):
        vectors.append(vector)
        if progress is not None:
            progress(len(vectors), len(pairs))
    about = provenance(str(evaluator.device), weights=weight_hashes(evaluator.weights, evaluator.weights_dir))
    keys = [pair.key for pair in pairs]
    return evaluator.evaluation(torch.stack(vectors), keys, data=data, provenance={**about, **(more or {})})


def check_sizes(pairs: Sequence[Pair], protocol: Protocol) -> None:
    """Check the sizes that the headers tell, before hours of measuring.

    Raises:
        UsageError: a protocol measures another size, or sr and hq differ; the file is named.
        MegaSRError: a file is not an image.
    """
    for pair in pairs:
        height, width = read_size(pair.sr)
        protocol.check_size((height, width), str(pair.sr))
        if pair.hq is not None and (of_hq := read_size(pair.hq)) != (height, width):
            raise UsageError(
                f"{pair.sr} is {width}x{height} px, {pair.hq} {of_hq[1]}x{of_hq[0]} px: metrics compare equal sizes"
            )


def load_pair(pair: Pair) -> Images:
    """Read the files of a pair. Raises MegaSRError when one cannot be read."""
    hq = None if pair.hq is None else from_uint8(read_image(pair.hq))[None]
    return Images(pair.key, from_uint8(read_image(pair.sr))[None], hq)


def _vectors(pairs: Sequence[Pair], evaluator: Evaluator, devices: int) -> Iterator[torch.Tensor]:
    if devices == 1:
        yield from evaluator.measure(pairs, load_pair)
        return
    if evaluator.device.index is not None and evaluator.device.type == "cuda":
        raise UsageError(f"{devices} processes take a GPU each: name the device cuda, not {evaluator.device}")
    chunks = [pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK)]
    spawn = multiprocessing.get_context("spawn")  # a fork would share the threads' locks, and CUDA cannot be forked
    rank = spawn.Value("i", 0)
    arguments = (evaluator.recipe, str(evaluator.device), rank)
    with ProcessPoolExecutor(min(devices, len(chunks)), spawn, _start_worker, arguments) as pool:
        try:
            for measured in pool.map(_measure_chunk, chunks):
                yield from measured
        except BrokenProcessPool as error:
            raise MegaSRError(
                "a process that measured was killed, perhaps for want of memory: take fewer devices"
            ) from error


_worker: Evaluator | None = None


def _start_worker(recipe: Mapping[str, Any], device: str, rank: Any) -> None:
    """Make the evaluator of a worker process."""
    global _worker
    with rank.get_lock():
        mine, rank.value = rank.value, rank.value + 1
    if device.startswith("cuda"):
        device = f"cuda:{mine % torch.cuda.device_count()}"
    _worker = Evaluator(device=device, **recipe)


def _measure_chunk(pairs: Sequence[Pair]) -> list[torch.Tensor]:
    assert _worker is not None
    return list(_worker.measure(pairs, load_pair))
