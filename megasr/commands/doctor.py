"""`megasr doctor`: versions, devices, tracking, priors and metrics of this machine; needs no network.

With --config: the memory that training with a recipe needs on each GPU, and what to change so that it fits. Any option
of `megasr fit` may follow (--data.batch_size 4).
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from megasr.commands import memory
from megasr.errors import MegaSRError, UsageError
from megasr.weights import MANIFEST, fetch_command, find_local

PACKAGES = (
    "torch", "torchvision", "lightning", "diffusers", "transformers", "open_clip_torch", "timm", "wandb", "webdataset",
    "torchmetrics", "pyiqa", "jsonargparse", "opencv-python-headless",
)  # fmt: skip


def add_parser(commands: Any) -> None:
    """Declare `doctor`."""
    parser = commands.add_parser("doctor", help="say what this machine has and lacks", description=__doc__)
    memory.add_arguments(parser)
    parser.set_defaults(run=run, passes_options_on=True)


def run(arguments: argparse.Namespace) -> None:
    """Print every finding, one per line; with a recipe, its memory plan instead.

    Raises:
        UsageError: an option is unknown, or the recipe cannot be used.
        MegaSRError: the memory of the recipe cannot be planned.
    """
    if arguments.config:
        memory.run(arguments)
        return
    if arguments.rest:
        raise UsageError(f"unrecognized arguments: {' '.join(arguments.rest)} (see megasr doctor --help)")
    from megasr.tracking import describe_wandb

    sections = {
        "versions": _versions(),
        "devices": _devices(),
        "tracking": [("W&B", describe_wandb())],
        "priors and weights": _weights(),
        "metrics": _metrics(),
    }
    for title, rows in sections.items():
        print(title)
        for name, finding in rows:
            print(f"  {name:<24} {finding}")


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "missing: reinstall megasr"


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield "cpu", f"{cores} cores, {memory_gib:.1f} GiB, {torch.get_num_threads()} torch threads"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        yield f"cuda:{index}", f"{gpu.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if torch.backends.mps.is_available():
        yield "mps", "available"
    elif not torch.cuda.is_available():
        yield "accelerator", "none: training and upscaling run on the processor"


def _weights() -> Iterator[tuple[str, str]]:
    from megasr.weights.local import TINY_FOLDER

    present = (TINY_FOLDER / "model_index.json").is_file()
    yield "tiny", "shipped with the package" if present else "missing: reinstall megasr"
    for name, weight in MANIFEST.items():
        if not weight.place:
            yield name, f"{place_of(name)} ({weight.purpose}; {weight.terms})"


def place_of(name: str) -> str:
    """Where a weight is, how to get it, or what is wrong with the copy that is here."""
    try:
        path = find_local(name)
    except MegaSRError as error:
        return str(error)
    return f"{path}" if path else f"not on this machine: `{fetch_command(name)}`"


def _metrics() -> Iterator[tuple[str, str]]:
    """(metric, the files it lacks) of every metric of the protocols, then where to get these."""
    from megasr.evaluation.metrics import missing_files, source_of
    from megasr.evaluation.protocol import PROTOCOLS

    needed = {metric.name: metric.weights for protocol in PROTOCOLS.values() for metric in protocol.metrics}
    lacking = {name: missing_files(files) for name, files in needed.items()}
    yield "ready", " ".join(name for name, files in lacking.items() if not files)
    for name, files in lacking.items():
        if files:
            yield name, f"lacks {', '.join(files)}"
    for file in dict.fromkeys(file for files in lacking.values() for file in files):
        yield "", f"{file}: {source_of(file)}"
