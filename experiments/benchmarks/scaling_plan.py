"""What a pass over 10^8 images on 256 GPUs takes: arithmetic on what was measured, counted and assumed.

    python -m experiments.benchmarks.scaling_plan --folder photographs_512px --output scaling_plan.json
    python -m experiments.benchmarks.scaling_plan --table scaling_plan.json

The second prints the table; experiments/benchmarks/results/scaling_plan.md keeps it.

Every row of the table says how it is known:

    assumed   an option of this command: what was not measured yet, and what a cluster is
    measured  bytes of the photographs in `folder` as JPEG and WebP, and the processor time of decoding and degrading
              them on one core; the loader's order and indices, by the record of experiments.benchmarks.shard_order
    counted   parameters, operations and bytes of the recipes' training step, traced on fake tensors by the memory
              plan; operations of the extractors, by the record of experiments.benchmarks.extraction_cost
    computed  from the rows above it

A step's seconds are its operations over the assumed rate, plus the all-reduce of the gradients as if none of it ran
during the backward pass. The two all-reduces are bounds: one ring over all GPUs that waits for the network everywhere,
and reduce-scatter in every node, rings between nodes of an equal share each, all-gather in every node.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pandas as pd
from torch.utils.flop_counter import FlopCounterMode

from data_pipelines.degradations.presets import get_degradation
from data_pipelines.samples import Sample, degrade
from data_pipelines.workers import use_one_thread
from experiments.benchmarks.record import publish, read_record
from experiments.benchmarks.shard_order import TAGS_BYTES
from megasr.commands.doctor import read_setup
from megasr.commands.lightning_cli import read_fit
from megasr.errors import UsageError
from megasr.image_decoding import list_images
from megasr.images import decode_image, read_image
from megasr.training.memory_plan import Planner
from megasr.training.memory_setup import TrainingSetup

Amount = TypeVar("Amount", float, pd.Series)
RECIPES = {"SD 2.1": "experiments/sd21/megasr.yaml", "SD 3.5 medium": "experiments/sd35/megasr.yaml"}
_SIZE_PX = 512
_TAR_BLOCK = 512  # bytes; a member has a header of one block and is padded to whole blocks
_EXTRACTED = ("hed", "depth_small", "segmentation")  # the recipes'; the vision tower is in the traced step
_ENCODINGS = {"jpeg_95": (".jpg", cv2.IMWRITE_JPEG_QUALITY, 95), "webp_90": (".webp", cv2.IMWRITE_WEBP_QUALITY, 90)}


@dataclass(frozen=True)
class Assumed:
    """What the plan takes as given.

    Attributes:
        gpus: of the training.
        gpus_per_node: that NVLink connects.
        workers: loader processes of every GPU.
        batch_size: images of a GPU in a step.
        sustained_tflops: bf16 operations of a GPU in a training step, in 1e12 per second.
        nvlink_gb_per_s: of a GPU in each direction, in 1e9 bytes.
        network_gbit_per_s: of a GPU to other nodes in each direction, in 1e9 bits.
        disk_gb_per_s: at which one process writes a checkpoint, in 1e9 bytes.
        steps_between_checkpoints: as the trainer saves.
    """

    gpus: int = 256
    gpus_per_node: int = 8
    workers: int = 12
    batch_size: int = 8
    sustained_tflops: float = 200.0
    nvlink_gb_per_s: float = 450.0
    network_gbit_per_s: float = 400.0
    disk_gb_per_s: float = 2.0
    steps_between_checkpoints: int = 500

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise UsageError(f"{name} must be positive, got {value}")
        if self.gpus % self.gpus_per_node:
            raise UsageError(f"gpus {self.gpus} is not a multiple of gpus_per_node {self.gpus_per_node}")


def ring_bytes(count: int, size: Amount) -> Amount:
    """Bytes that each of `count` devices sends to all-reduce `size` bytes in a ring."""
    return 2 * (count - 1) / count * size


def one_ring_s(assumed: Assumed, size: Amount) -> Amount:
    """Seconds of an all-reduce in one ring whose slowest links are the network's."""
    return ring_bytes(assumed.gpus, size) / (assumed.network_gbit_per_s / 8 * 1e9)


def two_levels_s(assumed: Assumed, size: Amount) -> Amount:
    """Seconds of an all-reduce inside the nodes and, of every GPU's share, between them."""
    inside, nodes = assumed.gpus_per_node, assumed.gpus // assumed.gpus_per_node
    between = ring_bytes(nodes, size / inside) / (assumed.network_gbit_per_s / 8 * 1e9)
    return ring_bytes(inside, size) / (assumed.nvlink_gb_per_s * 1e9) + between


def opened_per_image(window: int, samples_per_shard: int, readers: int) -> float:
    """Indices that a reader opens for every image that it reads, when `readers` share the images of a window."""
    images = window * samples_per_shard / readers
    return window * (1 - (1 - 1 / window) ** images) / images


def measure(folder: Path, rounds: int = 3) -> dict[str, Any]:
    """Mean bytes and processor milliseconds per image of 512 px, on one core; the least of the rounds.

    Raises:
        UsageError: no image of the folder is large enough.
    """
    use_one_thread()
    images = [cv2.cvtColor(image, cv2.COLOR_RGB2BGR) for path in list_images(folder) for image in _crops(path)]
    if not images:
        raise UsageError(f"{folder}: no image of {_SIZE_PX} px or more")
    preset, found = get_degradation("realesrgan_strong", 4), dict[str, Any](images=len(images))
    for name, (suffix, quality, value) in _ENCODINGS.items():
        coded = [cv2.imencode(suffix, image, [quality, value])[1].tobytes() for image in images]
        found[f"{name}_bytes"] = round(float(np.mean([len(content) for content in coded])))
        found[f"{name}_decode_ms"] = _cpu_ms(lambda content: decode_image(content, "image"), coded, rounds)
    samples = [Sample(f"{n}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB)) for n, image in enumerate(images)]
    found["degrade_ms"] = _cpu_ms(lambda sample: degrade(sample, preset, 0), samples, rounds)
    found["degrade_usm_ms"] = _cpu_ms(lambda sample: degrade(sample, preset, 0, usm_target=True), samples, rounds)
    return found


def _crops(path: Path) -> list[np.ndarray]:
    image = read_image(path)
    top, left = ((length - _SIZE_PX) // 2 for length in image.shape[:2])
    return [image[top : top + _SIZE_PX, left : left + _SIZE_PX]] if min(top, left) >= 0 else []


def _cpu_ms(action: Callable[[Any], object], inputs: Sequence[Any], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        for value in inputs:
            action(value)
        found.append((time.process_time() - begin) * 1000 / len(inputs))
    return round(min(found), 3)


def count(setup: TrainingSetup, assumed: Assumed) -> dict[str, float]:
    """Parameters, operations per image, bytes and peak memory of a step as DDP runs it, with EMA and given maps."""
    ddp = replace(
        setup, devices=assumed.gpus, strategy="ddp", bucket_view=True, ema=True, accumulation=1, brings_maps=True,
        batch_size=assumed.batch_size,
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        memory = Planner().plan(ddp)
    parts = memory.parts
    kept = parts["trained weights"] + parts["optimizer state"] + parts["EMA"]
    return {
        "trained_bytes": parts["trained weights"],
        "gradient_bytes": parts["gradient buckets"],
        "checkpoint_bytes": kept,
        "gflop_per_image": counter.get_total_flops() / assumed.batch_size / 1e9,
        "peak_gib": memory.total_gib,
    }


@dataclass(frozen=True)
class Loading:
    """What an image costs a loader.

    Attributes:
        images: of an epoch.
        jpeg_bytes: of an image with its tags in a shard.
        webp_bytes: likewise.
        opened: indices that a worker opens per image.
        core_ms: opening of indices, decoding of a JPEG and degradation with a sharpened target.
    """

    images: int
    jpeg_bytes: float
    webp_bytes: float
    opened: float
    core_ms: float


def loading(assumed: Assumed, measured: Mapping[str, Any], order: Mapping[str, Any]) -> Loading:
    """From the measurements of `measure` and the record of shard_order."""
    described, tags = order["settings"], _in_tar(TAGS_BYTES)
    jpeg, webp = (_in_tar(measured[f"{name}_bytes"]) + tags for name in _ENCODINGS)
    readers = assumed.gpus * assumed.workers
    opened = opened_per_image(described["shuffle_shards"], described["samples_per_shard"], readers)
    core_ms = opened * order["results"]["index"]["open_cpu_ms"]
    core_ms += measured["jpeg_95_decode_ms"] + measured["degrade_usm_ms"]
    return Loading(described["shards"] * described["samples_per_shard"], jpeg, webp, opened, core_ms)


Row = dict[str, Any]


def plan(
    assumed: Assumed,
    measured: Mapping[str, Any],
    counted: Mapping[str, Any],
    order: Mapping[str, Any],
    extracted: float,
) -> list[Row]:
    """The rows of the table: what, one value for all priors or one for each, unit, how it is known.

    Args:
        assumed: options.
        measured: of `measure`.
        counted: prior -> of `count`.
        order: record of shard_order.
        extracted: operations of the extractors, in 1e9 per image.
    """
    load = loading(assumed, measured, order)
    return [*_data_rows(load, measured, order), *_training_rows(assumed, load, counted, extracted)]


def _row(what: str, unit: str, how: str, *values: float) -> Row:
    return {"what": what, "values": [float(f"{value:.4g}") for value in values], "unit": unit, "how": how}


def _data_rows(load: Loading, measured: Mapping[str, Any], order: Mapping[str, Any]) -> list[Row]:
    rank, index, images = order["results"]["rank"], order["results"]["index"], load.images
    return [
        _row("images", "", "assumed", images),
        _row("shards", "", "assumed", order["settings"]["shards"]),
        _row("an image and its tags in a shard, JPEG of quality 95", "kB", "measured", load.jpeg_bytes / 1e3),
        _row("the same, WebP of quality 90", "kB", "measured", load.webp_bytes / 1e3),
        _row("all shards, JPEG", "TB", "computed", images * load.jpeg_bytes / 1e12),
        _row("all shards, WebP", "TB", "computed", images * load.webp_bytes / 1e12),
        _row("all indices", "GB", "computed", images * index["bytes_per_sample"] / 1e9),
        _row("the manifest", "MB", "measured", rank["manifest_bytes"] / 1e6),
        _row("opening the set, every process", "core s", "measured", rank["open_cpu_s"]),
        _row("memory of the opened set, every process", "MiB", "measured", rank["open_mib"]),
        _row("order of the next epoch, every process", "core s", "measured", rank["next_epoch_cpu_s"]),
        _row("memory of a window's indices, every worker", "MiB", "measured", index["window_mib"]),
        _row("the same with all samples parsed", "MiB", "measured", index["window_parsed_mib"]),
        _row("opening indices, per image", "core ms", "computed", load.opened * index["open_cpu_ms"]),
        _row("the same with all samples parsed", "core ms", "computed", load.opened * index["parse_all_cpu_ms"]),
        _row("decoding a JPEG of 512 px", "core ms", "measured", measured["jpeg_95_decode_ms"]),
        _row("decoding a WebP of 512 px", "core ms", "measured", measured["webp_90_decode_ms"]),
        _row("realesrgan_strong with a sharpened target", "core ms", "measured", measured["degrade_usm_ms"]),
        _row("images of one core, JPEG", "1/s", "computed", 1000 / load.core_ms),
    ]


def _training_rows(assumed: Assumed, load: Loading, counted: Mapping[str, Any], extracted: float) -> list[Row]:
    nodes, global_batch = assumed.gpus // assumed.gpus_per_node, assumed.gpus * assumed.batch_size
    slow = replace(assumed, network_gbit_per_s=assumed.network_gbit_per_s / 4)
    priors = pd.DataFrame(counted).T  # a row for each
    gradients, saved = priors.gradient_bytes, priors.checkpoint_bytes
    operations = (priors.gflop_per_image + extracted) * 1e9
    step_s = operations * assumed.batch_size / (assumed.sustained_tflops * 1e12)
    images_per_s = global_batch / (step_s + two_levels_s(assumed, gradients))
    per_node, save_s = images_per_s / nodes, saved / (assumed.disk_gb_per_s * 1e9)
    between_saves_s = assumed.steps_between_checkpoints * global_batch / images_per_s
    memory = f"memory of a GPU, DDP and EMA, batch {assumed.batch_size}, without extractors"
    return [
        _row("trained parameters", "1e6", "counted", *priors.trained_bytes / 4e6),
        _row("operations of an image, extractors included", "TFLOP", "counted", *operations / 1e12),
        _row(memory, "GiB", "counted", *priors.peak_gib),
        _row("gradients that are reduced in a step", "GB", "counted", *gradients / 1e9),
        _row("of them sent by a GPU in a ring", "GB", "computed", *ring_bytes(assumed.gpus, gradients) / 1e9),
        _row("step without communication", "s", "computed", *step_s),
        _row("all-reduce, two levels", "s", "computed", *two_levels_s(assumed, gradients)),
        _row("all-reduce, one ring", "s", "computed", *one_ring_s(assumed, gradients)),
        _row(
            f"all-reduce, one ring at {slow.network_gbit_per_s:g} Gbit/s", "s", "computed", *one_ring_s(slow, gradients)
        ),
        _row("images of all GPUs", "1/s", "computed", *images_per_s),
        _row("an epoch", "h", "computed", *load.images / images_per_s / 3600),
        _row("reading of a node, JPEG", "MB/s", "computed", *per_node * load.jpeg_bytes / 1e6),
        _row("cores of a node that decode and degrade", "", "computed", *per_node * load.core_ms / 1000),
        _row("checkpoint: weights, moments, average", "GB", "counted", *saved / 1e9),
        _row("writing it in one process", "s", "computed", *save_s),
        _row("share of the time, if training waits", "%", "computed", *100 * save_s / (save_s + between_saves_s)),
    ]


def _in_tar(size: float) -> float:
    """Bytes of a member with its header, padded."""
    return _TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK


def table(record: Mapping[str, Any]) -> str:
    """The rows of a record as Markdown, and where they come from."""
    results, settings = record["results"], record["settings"]
    priors = list(results["counted"])
    cells = []
    for row in results["rows"]:
        values = [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in row["values"]]
        values += [""] * (len(priors) - len(values))
        cells.append([f"{row['what']}{', ' + row['unit'] if row['unit'] else ''}", *values, row["how"]])
    frame = pd.DataFrame(cells, columns=["", *priors, "how"])
    given = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    used = "; ".join(f"{name} on {words}" for name, words in results["records"].items())
    where = f"{record['hardware']['cpu']}, {record['date']}"
    return (
        f"{frame.to_markdown(index=False, disable_numparse=True)}\n\n"
        f"Assumed: {given}. Measured on {results['measured']['images']} photographs of {_SIZE_PX} px and one core "
        f"({where}); records of other benchmarks: {used}."
    )


def main() -> None:
    """Measure, count, plan and publish; or print the table of a record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help=f"photographs of at least {_SIZE_PX} px")
    parser.add_argument("--output", type=Path, help="file for the JSON")
    parser.add_argument("--table", type=Path, metavar="RECORD", help="print the table of a record instead")
    for field in fields(Assumed):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help="%(default)s")
    options = vars(parser.parse_args())
    if options["table"] is not None:
        print(table(json.loads(options["table"].read_text())))
        return
    if options["folder"] is None:
        parser.error("--folder or --table is needed")
    assumed = Assumed(**{field.name: options[field.name] for field in fields(Assumed)})
    order, extraction = read_record("shard_order"), read_record("extraction_cost")
    measured = measure(options["folder"])
    counted = {prior: count(read_setup(read_fit(["--config", recipe])), assumed) for prior, recipe in RECIPES.items()}
    extracted = sum(extraction["results"]["extraction_gflop"][name] for name in _EXTRACTED)
    results = {
        "measured": measured,
        "counted": counted,
        "extracted_gflop": extracted,
        "records": {r["benchmark"]: f"{r['hardware']['cpu']}, {r['date']}" for r in (order, extraction)},
        "rows": plan(assumed, measured, counted, order, extracted),
    }
    publish("scaling_plan", asdict(assumed), results, options["output"])


if __name__ == "__main__":
    main()
