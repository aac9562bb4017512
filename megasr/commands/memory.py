"""`megasr doctor --config`: what a recipe will need of each GPU's memory, and what to change so that it fits."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megasr.errors import UsageError

if TYPE_CHECKING:
    from megasr.training.memory_plan import MemoryPlan
    from megasr.training.memory_setup import Strategy, TrainingSetup

_STRATEGIES = {"ddp": "ddp", "DDPStrategy": "ddp", "ShardedStrategy": "fsdp2", "SingleDeviceStrategy": "single"}


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


def run(arguments: argparse.Namespace) -> None:
    """Print the plan of a recipe, and the first changes with which it fits.

    Raises:
        UsageError: the recipe, an option or the strategy cannot be used.
        MegaSRError: the prior is not on this machine, or the step cannot be planned.
    """
    from megasr.commands.lightning_cli import read_fit
    from megasr.training.memory_plan import Planner, advise

    if arguments.gpu_gib <= arguments.reserve_gib or arguments.reserve_gib < 0:
        raise UsageError(f"--gpu-gib {arguments.gpu_gib} must be more than --reserve-gib {arguments.reserve_gib}")
    options = [word for path in arguments.config for word in ("--config", path)]
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


def read_setup(config: Mapping[str, Any], devices: int | None = None) -> TrainingSetup:
    """What a resolved configuration says about memory.

    Args:
        config: of `megasr fit`, with all defaults filled in.
        devices: in the place of trainer.devices.

    Raises:
        UsageError: the number of devices or the size of a batch is not known, or the strategy is not planned for.
    """
    from megasr.training.memory_setup import TrainingSetup

    trainer, data = config["trainer"], config["data"].get("init_args") or {}
    count = devices if devices is not None else _count_devices(trainer.get("devices", 1))
    strategy, bucket_view = read_strategy(trainer.get("strategy", "auto"), count)
    for name in ("batch_size", "crop_size_px"):
        if not isinstance(data.get(name), int):
            raise UsageError(f"{config['data'].get('class_path')} has no {name}: the size of a batch is not known")
    return TrainingSetup(
        model={**config["model"], "shard_frozen": _shards_frozen(trainer.get("strategy"))},
        batch_size=data["batch_size"],
        crop_size_px=data["crop_size_px"],
        devices=count,
        strategy=strategy,
        bucket_view=bucket_view,
        precision=_precision(trainer.get("precision")),
        accumulation=trainer.get("accumulate_grad_batches") or 1,
        clips=bool(trainer.get("gradient_clip_val")),
        ema=any(str(c.get("class_path", "")).rsplit(".", 1)[-1] == "EMA" for c in _callbacks(trainer)),
        on_gpu=trainer.get("accelerator") != "cpu",
        brings_maps=bool(data.get("baked")),
    )


def read_strategy(value: Any, devices: int) -> tuple[Strategy, bool]:
    """Lightning's strategy -> (how devices share the work, whether DDP's gradients live in its buckets).

    Raises:
        UsageError: it is another one than those that are planned for, or cannot use so many devices.
    """
    settings = (value.get("init_args") or {}) if isinstance(value, Mapping) else {}
    name = str(value.get("class_path") if isinstance(value, Mapping) else value).rsplit(".", 1)[-1]
    if name == "auto":
        return ("ddp" if devices > 1 else "single"), False
    family = "ddp" if name.startswith("ddp") else name
    if family not in _STRATEGIES:
        raise UsageError(f"trainer.strategy {name}: memory is planned for auto, {', '.join(_STRATEGIES)}")
    found: Any = _STRATEGIES[family]
    if found == "single" and devices > 1:
        raise UsageError(f"trainer.strategy {name} uses one device, not {devices}")
    keywords = {**settings, **(settings.get("dict_kwargs") or {}), **(_dict_kwargs(value))}
    return found, bool(keywords.get("gradient_as_bucket_view"))


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


def _shards_frozen(strategy: Any) -> bool:
    return isinstance(strategy, Mapping) and bool((strategy.get("init_args") or {}).get("shard_frozen"))


def _dict_kwargs(value: Any) -> Mapping[str, Any]:
    return (value.get("dict_kwargs") or {}) if isinstance(value, Mapping) else {}


def _callbacks(trainer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    given = trainer.get("callbacks") or []
    return given if isinstance(given, list) else [given]


def _precision(value: Any) -> str:
    return {"None": "32-true", "32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}.get(str(value), str(value))


def _count_devices(value: Any) -> int:
    if isinstance(value, list):
        return len(value)
    if str(value).isdigit() and int(value) > 0:
        return int(value)
    if value == "auto":
        return 1
    raise UsageError(f"trainer.devices {value} is not a number: say --devices N")
