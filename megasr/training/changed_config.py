"""A training goes on with the configuration that it began with, but for what leaves its steps as they are.

A checkpoint holds the resolved configuration and the global batch of the training that wrote it; one that was written
without a command line holds the module's arguments, and only those are compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from megasr.errors import UsageError
from megasr.training.checkpoint import read_settings

CONFIG, GLOBAL_BATCH = "config", "global_batch"  # keys of a checkpoint

# What may differ without asking: patterns of keys -> why no step is another one for it.
MAY_DIFFER = {
    "config, ckpt_path, weights_only, allow_changed_config": "they say what to go on from",
    "seed_everything": "it follows model.seed",
    "data.batch_size, trainer.accumulate_grad_batches, trainer.devices, trainer.num_nodes": "their product is compared",
    "trainer.accelerator, trainer.strategy*, trainer.benchmark, trainer.deterministic, model.compile, "
    "model.adapter.gradient_checkpointing, trainer.use_distributed_sampler": "the same sums on other hardware",
    "data.num_workers, data.backend": "where a sample is made, not how",
    "data.train_root, data.train_url, data.train_lq_root, data.cache_*, model.prior": (
        "a place; what lies there is compared by its fingerprint when it is loaded"
    ),
    "model.init": "the checkpoint holds what came of it",
    "model.sampler.*, model.objective.validation_timesteps, data.eval_*, evaluation.*, monitor.*, export.*, "
    "trainer.limit_val_batches, trainer.limit_test_batches, trainer.limit_predict_batches, trainer.val_check_interval, "
    "trainer.check_val_every_n_epoch, trainer.num_sanity_val_steps, trainer.inference_mode": (
        "how the result is measured"
    ),
    "trainer.logger*, trainer.log_every_n_steps, trainer.default_root_dir, trainer.enable_*, trainer.profiler*, "
    "trainer.detect_anomaly, trainer.barebones, trainer.model_registry": "what is written down",
    "trainer.callbacks.*Checkpoint.*, trainer.callbacks.*Monitor.*, trainer.callbacks.*ProgressBar.*, "
    "trainer.callbacks.*Summary.*, trainer.callbacks.Timer.*, trainer.plugins.*CheckpointFiles.*": "they only look on",
    "trainer.min_*, trainer.max_*": "when it ends; compared where the learning rate falls towards the end",
}
_LENGTH, _DECAY = "trainer.max_*", "model.*decay_share"
_ABSENT = "not set"


def refuse_changes(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Compare a configuration with the one that a checkpoint was made with. The difference is printed.

    Args:
        checkpoint: a file, or a folder of several processes.
        config: the resolved configuration of the training that is to go on, as plain data.

    Raises:
        UsageError: it would change the steps, and allow_changed_config is not set.
        MegaSRError: the checkpoint cannot be read.
    """
    held = read_settings(checkpoint)
    before = held.get(CONFIG) or {"model": held.get("hyper_parameters", {})}
    _refuse(checkpoint, changes(before, {name: config[name] for name in before if name in config}), config)


def refuse_changed_batch(checkpoint: Path, batch: int | None, config: Mapping[str, Any]) -> None:
    """Compare images per optimizer step (None: not known) with those of a checkpoint; see refuse_changes.

    Raises:
        UsageError: they differ, and allow_changed_config is not set.
        MegaSRError: the checkpoint cannot be read.
    """
    before = read_settings(checkpoint).get(GLOBAL_BATCH)
    if None not in (batch, before) and batch != before:
        parts = "data.batch_size x devices x trainer.accumulate_grad_batches"
        _refuse(checkpoint, [f"global batch ({parts}): {before} -> {batch}"], config)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs and matters: "key: old -> new", in the order of the keys, which are those of the command line."""
    old, new = dict(_leaves(plain(before))), dict(_leaves(plain(now)))
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    decays = any(value for leaves in (old, new) for key, value in leaves.items() if fnmatchcase(key, _DECAY))
    return [
        f"{key}: {old.get(key, _ABSENT)} -> {new.get(key, _ABSENT)}"
        for key in differing
        if not _may_differ(key) or (decays and fnmatchcase(key, _LENGTH))
    ]


def plain(config: Any) -> Any:
    """Numbers, strings, lists and dictionaries: what a checkpoint may hold, and what compares equal after reading."""
    return json.loads(json.dumps(config, default=str))


def _refuse(checkpoint: Path, lines: list[str], config: Mapping[str, Any]) -> None:
    for line in lines:
        rank_zero_info(f"changed configuration: {line}")
    if lines and not config.get("allow_changed_config"):
        keys = ", ".join(line.partition(":")[0] for line in lines)
        raise UsageError(
            f"{checkpoint} was trained with another {keys}: set what it was, start anew in another folder, "
            "or go on all the same with --allow_changed_config true"
        )


def _may_differ(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for patterns in MAY_DIFFER for pattern in patterns.split(", "))


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Keys as the command line has them, without init_args, and values but None. Callbacks go by their class."""
    if path in (("trainer", "callbacks"), ("trainer", "plugins")):
        listed = value if isinstance(value, list) else [value] if value else []
        value = {one["class_path"].rpartition(".")[2]: one for one in listed if isinstance(one, dict)} or value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, path if key == "init_args" else (*path, key))
    elif value is not None:
        yield ".".join(path), value
