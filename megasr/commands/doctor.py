"""`megasr doctor`: what is on this machine, and the memory of a training step."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megasr.errors import MegaSRError, UsageError
from megasr.files import at_home
from megasr.weights import MANIFEST, fetch_command, find_local

if TYPE_CHECKING:
    from megasr.training.memory_plan import MemoryPlan
    from megasr.training.memory_setup import Strategy, TrainingSetup


_STRATEGIES = {"DDPStrategy": "ddp", "ShardedStrategy": "fsdp2", "SingleDeviceStrategy": "single"}
_PRECISIONS = {"None": "32-true", "32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the memory plan."""
    parser.add_argument("--config", action="append", default=[], help="recipe whose memory is planned; may be repeated")
    parser.add_argument("--devices", type=int, help="GPUs; the recipe's number without")
    parser.add_argument("--gpu-gib", type=float, default=24.0, help="memory of a GPU that the recipe must fit")
    parser.add_argument(
        "--reserve-gib",
        type=float,
        default=1.0,
        help="of that, what is not counted: CUDA's context, workspaces of cuDNN and NCCL, gaps between blocks",
    )


def plan_memory(arguments: argparse.Namespace) -> None:
    """Print the plan of a recipe, and the first changes with which it fits.

    Raises:
        UsageError: the recipe, an option or the strategy cannot be used.
        MegaSRError: the prior is not on this machine, or the step cannot be planned.
    """
    from megasr.commands.lightning_cli import read_fit
    from megasr.training.memory_plan import Planner, advise

    if arguments.gpu_gib <= arguments.reserve_gib or arguments.reserve_gib < 0:
        raise UsageError(f"--gpu-gib {arguments.gpu_gib} must be more than --reserve-gib {arguments.reserve_gib}")
    with tempfile.TemporaryDirectory() as folder:
        paths = [_without_study(path, Path(folder) / f"{n}.yaml") for n, path in enumerate(arguments.config)]
        options = [word for path in paths for word in ("--config", path)]
        setup = read_setup(read_fit([*options, *arguments.rest]), arguments.devices)
    planner, usable = Planner(), arguments.gpu_gib - arguments.reserve_gib
    plan = planner.plan(setup)
    print("\n".join(describe(plan)))
    limit = f"{arguments.gpu_gib:g} GiB, of which {arguments.reserve_gib:g} GiB are left for what is not counted"
    if plan.total_gib <= usable:
        print(f"fits {limit}")
        return
    print(f"does not fit {limit}")
    advice = advise(planner, setup, usable)
    if advice is None:
        print("no change of the recipe makes it fit: take fewer guidance types, a smaller crop, or a larger GPU")
        return
    print(f"fits with {advice.plan.total_gib:.1f} GiB ({batch_line(advice.plan.setup)}) when you set")
    print("\n".join(f"  {line}" for line in advice.lines))


def _without_study(path: str, copy: Path) -> str:
    """The recipe as `megasr fit` reads it: of a study's, a copy without the section `study`."""
    import yaml

    from megasr.configs import load_yaml

    try:
        raw = load_yaml(Path(at_home(path)).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return path  # the parser says what is wrong
    if not isinstance(raw, dict) or raw.pop("study", None) is None:
        return path
    copy.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return str(copy)


def read_setup(config: Mapping[str, Any], devices: int | None = None) -> TrainingSetup:
    """What a resolved configuration of `megasr fit` says about memory; `devices` replaces trainer.devices.

    Raises:
        UsageError: the number of devices or the size of a batch is not known, or the strategy is not planned for.
    """
    from megasr.training.memory_setup import TrainingSetup

    trainer, data = config["trainer"], config["data"].get("init_args") or {}
    given = trainer.get("strategy", "auto")
    shards_frozen = isinstance(given, Mapping) and bool((given.get("init_args") or {}).get("shard_frozen"))
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    precision = str(trainer.get("precision"))
    count = devices if devices is not None else _count_devices(trainer.get("devices", 1))
    strategy, bucket_view = read_strategy(given, count)
    for name in ("batch_size", "crop_size_px"):
        if not isinstance(data.get(name), int):
            raise UsageError(f"{config['data'].get('class_path')} has no {name}: the size of a batch is not known")
    return TrainingSetup(
        model={**config["model"], "shard_frozen": shards_frozen},
        batch_size=data["batch_size"],
        crop_size_px=data["crop_size_px"],
        devices=count,
        strategy=strategy,
        bucket_view=bucket_view,
        precision=_PRECISIONS.get(precision, precision),
        accumulation=trainer.get("accumulate_grad_batches") or 1,
        clips=bool(trainer.get("gradient_clip_val")),
        ema=any(str(c.get("class_path", "")).rsplit(".", 1)[-1] == "EMA" for c in callbacks),
        on_gpu=trainer.get("accelerator") != "cpu",
        brings_maps=bool(data.get("baked")),
    )


def read_strategy(value: Any, devices: int) -> tuple[Strategy, bool]:
    """Lightning's strategy -> (data parallelism, whether DDP's gradients are views of its buckets).

    Raises:
        UsageError: it is another one than those that are planned for, or cannot use so many devices.
    """
    given = value if isinstance(value, Mapping) else {"class_path": value}
    name = str(given["class_path"]).rsplit(".", 1)[-1]
    if name == "auto":
        return ("ddp" if devices > 1 else "single"), False
    strategy: Any = "ddp" if name.startswith("ddp") else _STRATEGIES.get(name)
    if strategy is None:
        raise UsageError(f"trainer.strategy {name}: memory is planned for auto, ddp, {', '.join(_STRATEGIES)}")
    if strategy == "single" and devices > 1:
        raise UsageError(f"trainer.strategy {name} uses one device, not {devices}")
    settings = given.get("init_args") or {}
    keywords = {**settings, **(settings.get("dict_kwargs") or {}), **(given.get("dict_kwargs") or {})}
    return strategy, bool(keywords.get("gradient_as_bucket_view"))


def describe(plan: MemoryPlan) -> list[str]:
    """The lines of a plan."""
    setup = plan.setup
    recomputes = (setup.model.get("adapter") or {}).get("gradient_checkpointing")
    lines = [
        f"memory of each device ({setup.strategy}, {setup.precision}, {setup.crop_size_px} px, "
        f"gradient checkpointing {'on' if recomputes else 'off'})",
        batch_line(setup),
    ]
    lines += [f"  {name:<18} {value / 2**30:7.2f} GiB" for name, value in plan.parts.items() if value]
    lines.append(f"  {'peak':<18} {plan.total_gib:7.2f} GiB in the phase: {plan.phase}")
    lines.append("peak of each phase")
    lines += [f"  {name:<18} {value / 2**30:7.2f} GiB" for name, value in plan.phases.items() if name != "between"]
    return lines + [f"note: {note}" for note in plan.notes]


def batch_line(setup: TrainingSetup) -> str:
    """The arithmetic of the batch."""
    return (
        f"global batch {setup.global_batch} = micro-batch {setup.batch_size} x {setup.devices} devices x "
        f"{setup.accumulation} accumulated"
    )


def _count_devices(value: Any) -> int:
    if isinstance(value, list):
        return len(value)
    if str(value).isdigit() and int(value) > 0:
        return int(value)
    if value == "auto":
        return 1
    raise UsageError(f"trainer.devices {value} is not a number: say --devices N")


PACKAGES = (
    "torch", "torchvision", "lightning", "diffusers", "transformers", "open_clip_torch", "timm", "wandb", "webdataset",
    "torchmetrics", "pyiqa", "jsonargparse", "opencv-python-headless",
)  # fmt: skip


def add_parser(commands: Any) -> None:
    """Declare `doctor`."""
    parser = commands.add_parser("doctor", help="say what this machine has and lacks", description=__doc__)
    add_arguments(parser)
    parser.set_defaults(run=run, passes_options_on=True)


def run(arguments: argparse.Namespace) -> None:
    """Print every finding, one per line; with a recipe, its memory plan instead.

    Raises:
        UsageError: an option is unknown, or the recipe cannot be used.
        MegaSRError: the memory of the recipe cannot be planned.
    """
    if arguments.config:
        plan_memory(arguments)
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
