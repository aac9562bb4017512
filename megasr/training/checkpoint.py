"""What a checkpoint holds, what it must fit, how a model is built from it, and which recipes go on from it."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from torch import nn

from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.files import damaged_record, read_saved
from megasr.networks.config import AdapterConfig
from megasr.tracking import first_line
from megasr.training.config import SAMPLED
from megasr.training.folders import find_checkpoint, no_checkpoint
from megasr.training.sharded_checkpoint import PLAIN, damage_of_folder, is_sharded, named_tensors, read_sharded

Module = TypeVar("Module", bound=nn.Module)
CONFIG, GLOBAL_BATCH, CRITICS = "config", "global_batch", "critics"  # keys of a checkpoint
_CRITIC = "restoration_loss."  # begins the names of what is trained beside the adapter and never used after
_FOREIGN = "not a checkpoint of a MegaSR adapter"


def find_adapter(source: str | Path) -> Path:
    """The file or sharded folder of a checkpoint; see find_checkpoint.

    Raises:
        UsageError: it is an address.
        MegaSRError: there is none.
    """
    path = find_checkpoint(source)
    if not path.is_file() and not is_sharded(path):
        raise no_checkpoint(source)
    return path


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain data only, none of which has changed since it was written.

    Args:
        path: a file, or the folder of a sharded one; `tiny` is the shipped one.
        mmap: leave the tensors of a file on the disk until they are used.

    Raises:
        MegaSRError: it is missing, damaged, or holds other objects.
    """
    path = find_adapter(path)
    if problem := damage(path):
        raise MegaSRError(f"cannot read checkpoint {path}: {problem}")
    content = _read(path, mmap)
    for name in ("state_dict", "pytorch-lightning_version"):
        if name not in content:
            raise MegaSRError(f"{path}: not a checkpoint of `megasr fit` (it has no {name})")
    return content


def read_settings(path: Path) -> dict[str, Any]:
    """Content of a checkpoint, whose tensors stay on the disk. Raises as read_checkpoint."""
    return _read(path / PLAIN if is_sharded(path) else path, mmap=True)


def _read(path: Path, mmap: bool) -> dict[str, Any]:
    try:
        content = read_sharded(path) if is_sharded(path) else read_saved(path, mmap=mmap)
    except OSError as error:
        raise MegaSRError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    if not isinstance(content, dict):
        raise MegaSRError(f"{path}: not a checkpoint of `megasr fit` (it holds a {type(content).__name__})")
    return content


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None when every byte is as it was written."""
    if is_sharded(path):
        return damage_of_folder(path)
    try:
        record = damaged_record(path)
        return record and f"{record} was changed after it was written"
    except OSError as error:
        return error.strerror or str(error)


def adapter_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name, without those of critics."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad and not n.startswith(_CRITIC)}


def critic_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of critics by name: they exist in training alone."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad and n.startswith(_CRITIC)}


def split_state(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Leave the adapter's weights in `state_dict`, and put those of critics beside it."""
    state, critics = checkpoint["state_dict"], critic_parameters(module)
    checkpoint["state_dict"] = {name: state[name] for name in adapter_parameters(module)}
    if critics:
        checkpoint[CRITICS] = {name: state[name] for name in critics}


def join_critics(module: nn.Module, checkpoint: dict[str, Any], source: Any) -> None:
    """Put the weights of critics back into `state_dict`, for a training that goes on.

    Raises:
        MegaSRError: they do not fit what is trained.
    """
    wanted, held = critic_parameters(module), checkpoint.get(CRITICS) or {}
    if wanted.keys() != held.keys() or any(_problem(held[name], wanted[name].shape) for name in wanted):
        raise MegaSRError(f"{source}: its critics are not those of model.objective; compare it with the run's config")
    checkpoint["state_dict"] = {**checkpoint["state_dict"], **held}


def check_trained_state(
    module: nn.Module, checkpoint: dict[str, Any], fingerprint: str, source: Any, exact: bool = True
) -> None:
    """Refuse a checkpoint of another prior, or whose weights do not fit what the module trains.

    Args:
        module: is to be restored.
        checkpoint: its content.
        fingerprint: of the prior that is loaded.
        source: name of the checkpoint for errors.
        exact: every trained parameter must have a weight.

    Raises:
        MegaSRError: names both fingerprints, or the parameters that are missing, unexpected or unusable.
    """
    trained_on = checkpoint.get("prior_fingerprint")
    if trained_on is None:
        raise MegaSRError(f"{source}: {_FOREIGN} (it has no prior_fingerprint)")
    if trained_on != fingerprint:
        raise MegaSRError(
            f"{source}: trained on the prior {trained_on}, but the loaded prior is {fingerprint}; "
            "give the prior that it was trained on with --prior"
        )
    trained = adapter_parameters(module)
    remedy = "" if exact else ", or start parts of it alone with model.init_parts"
    for kind, weights in _weights(checkpoint, source).items():
        for name in trained.keys() & weights.keys():
            if problem := _problem(weights[name], trained[name].shape):
                raise MegaSRError(f"{source}: {kind}: {name} {problem}{remedy * ('shape' in problem)}")
        missing = sorted(trained.keys() - weights.keys()) if exact else []
        foreign = sorted(map(str, weights.keys() - trained.keys()))
        problems = (("it lacks", missing), ("this adapter does not train", foreign))
        if missing or foreign:
            problem = ", ".join(f"{what} {_some(names)}" for what, names in problems if names)
            raise MegaSRError(
                f"{source}: made for another adapter; {problem} ({kind}); compare model.adapter with the run's "
                f"config{remedy}"
            )


def _problem(value: Any, shape: torch.Size) -> str | None:
    """Why a value cannot be the weight of a parameter, None when it can."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        return f"is no dense tensor but {type(value).__name__}"
    if value.shape != shape:
        return f"has shape {tuple(value.shape)} instead of {tuple(shape)}; compare model.adapter with the run's config"
    if not value.is_floating_point():
        return f"holds {str(value.dtype).removeprefix('torch.')} instead of floating-point numbers"
    return None if torch.isfinite(value).all() else "holds numbers that are not finite"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _weights(checkpoint: dict[str, Any], source: Any) -> dict[str, dict[str, Any]]:
    """`state_dict`, and `EMA` when averages were kept."""
    weights: dict[str, Any] = {"state_dict": checkpoint.get("state_dict")}
    callbacks = checkpoint.get("callbacks")
    for name, state in callbacks.items() if isinstance(callbacks, dict) else ():
        if str(name).startswith("EMA"):
            weights["EMA"] = state.get("shadow") if isinstance(state, dict) else None
    for kind, named in weights.items():
        if not isinstance(named, dict) or not named:
            raise MegaSRError(f"{source}: {_FOREIGN} (it has no weights in {kind})")
    return weights


def final_weights(checkpoint: dict[str, Any], source: Any) -> dict[str, torch.Tensor]:
    """The averaged weights when EMA was on, else the last ones; `source` names the checkpoint in errors."""
    return list(_weights(checkpoint, source).values())[-1]


def check_training_state(checkpoint: dict[str, Any], source: Any) -> None:
    """Refuse a checkpoint that a training cannot go on from.

    Raises:
        MegaSRError: it holds weights alone, or its optimizer's state holds no finite numbers.
    """
    absent = [name for name in ("optimizer_states", "lr_schedulers", "loops") if name not in checkpoint]
    if absent:
        raise MegaSRError(
            f"{source}: no training can go on from it, it lacks {', '.join(absent)}; start one with --model.init"
        )
    for keys, value in named_tensors(checkpoint["optimizer_states"]):
        if value.layout != torch.strided or value.is_complex() or not torch.isfinite(value).all():
            raise MegaSRError(f"{source}: optimizer_states.{'.'.join(keys)} holds no finite real numbers")


def initialise(module: nn.Module, path: str | Path, fingerprint: str, parts: Sequence[str] = ()) -> None:
    """Start the parts that a trained adapter shares with this one from its weights; further parts stay as they are.

    Args:
        module: whose weights they become.
        path: checkpoint of the trained adapter.
        fingerprint: of the module's prior.
        parts: of megasr.networks.parameters.PARTS, to take these alone; none takes all.

    Raises:
        UsageError: a part is unknown, or the trained adapter has none of its weights.
        MegaSRError: the file cannot be read, is of another prior, or has a part that this adapter lacks.
    """
    checkpoint, source = read_checkpoint(path), f"model.init {path}"
    if parts:
        kept = _of_parts(final_weights(checkpoint, source), parts, source)
        checkpoint = {"prior_fingerprint": checkpoint.get("prior_fingerprint"), "state_dict": kept}
    check_trained_state(module, checkpoint, fingerprint, source, exact=False)
    module.load_state_dict(final_weights(checkpoint, source), strict=False)


def _of_parts(weights: Mapping[str, Any], parts: Sequence[str], source: str) -> dict[str, Any]:
    """The weights of these parts. Raises UsageError when one is unknown or has none."""
    from megasr.networks.parameters import PARTS, part_of

    of = {name: part_of(name) for name in weights}
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of model.init_parts", part, PARTS)
        if part not in of.values():
            raise UsageError(f"model.init_parts: {source} has no {part}; it has {', '.join(sorted(set(of.values())))}")
    return {name: weight for name, weight in weights.items() if of[name] in parts}


# Arguments of MegaSRModule alone.
_OF_TRAINING = ("objective", "optimizer", "frozen_dtype", "compile", "init", "init_parts")


def build_from_state(
    cls: type[Module], checkpoint: dict[str, Any], path: str | Path, prior: str | None, changes: dict[str, Any]
) -> Module:
    """Build a MegaSR or MegaSRModule from the content of a checkpoint, which errors call `path`.

    Args and errors as MegaSR.from_checkpoint's.
    """
    for name in ("prior_fingerprint", "hyper_parameters"):
        if name not in checkpoint:
            raise MegaSRError(f"{path}: {_FOREIGN} (it has no {name})")
    held, parameters = checkpoint["hyper_parameters"], inspect.signature(cls).parameters
    try:
        if held.get("extractors"):  # version 0.1 had a cache of maps
            held = {**held, "extractors": {**held["extractors"], "cache": None}}
        settings = typed_arguments(cls, held)
        # How the training started and ran: the checkpoint holds what came of it.
        settings |= {"init": None, "init_parts": (), "frozen_dtype": None, "compile": None, "text_states": None}
        settings = {n: v for n, v in settings.items() if n in parameters or n not in _OF_TRAINING}
        module = cls(**settings | ({"prior": prior} if prior else {}) | changes)
    except UsageError as error:
        if needed := _needs_import(checkpoint, path):
            raise needed from error
        raise
    except MegaSRError:
        raise
    except Exception as error:  # whatever comes of arguments of other kinds
        raise MegaSRError(f"{path}: its hyper_parameters are not those of an adapter: {first_line(error)}") from error
    module.settings = {**held, **module.settings}  # type: ignore[assignment, dict-item]
    check_trained_state(module, checkpoint, module.prior_fingerprint, path)  # type: ignore[arg-type]
    module.load_state_dict(final_weights(checkpoint, path), strict=False)
    return module.eval()


def _needs_import(checkpoint: Mapping[str, Any], path: str | Path) -> UsageError | None:
    """Which users' modules are to be named, where some that the adapter was trained with are not imported."""
    own = checkpoint.get("own_modules")
    absent = {part: name for part, name in own.items() if name not in sys.modules} if isinstance(own, Mapping) else {}
    if not absent:
        return None
    modules = ",".join(sorted(set(absent.values())))
    return UsageError(f"{path} uses {', '.join(absent)}: needs megasr --import {modules}, or the path of its file")


def typed_arguments(cls: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data -> constructor arguments: the types of the constructor say which are configurations."""
    arguments = dict(plain)
    for name, hint in get_type_hints(cls.__init__).items():  # type: ignore[misc]
        config = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        if config is not None and isinstance(arguments.get(name), Mapping):
            arguments[name] = config(**arguments[name])  # type: ignore[operator]
    return arguments


# Patterns of keys that may change when a training goes on.
MAY_DIFFER = (
    *("config", "ckpt_path", "weights_only", "allow_changed_config", "seed_everything"),
    # Their product is compared, as the global batch.
    *("data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes"),
    # The same sums on other hardware, or made in another place.
    *("trainer.accelerator", "trainer.strategy*", "trainer.benchmark", "trainer.deterministic", "model.compile"),
    *("model.adapter.gradient_checkpointing", "trainer.use_distributed_sampler", "data.num_workers", "data.backend"),
    # Places; their content is compared by its fingerprint when it is loaded. The checkpoint holds what came of init.
    *("data.train_root", "data.train_url", "data.train_lq_root", "data.cache_*", "model.prior", "model.init"),
    "model.text_states",  # the same prior; states are rounded to float16
    # Evaluation.
    *("model.sampler.*", "model.objective.validation_timesteps", "data.eval_*", "evaluation.*", "monitor.*"),
    *("export.*", "trainer.limit_val_batches", "trainer.limit_test_batches", "trainer.limit_predict_batches"),
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps"),
    "trainer.inference_mode",
    # Logs, and callbacks that only watch.
    *("trainer.logger*", "trainer.log_every_n_steps", "trainer.default_root_dir", "trainer.enable_*"),
    *("trainer.profiler*", "trainer.detect_anomaly", "trainer.barebones", "trainer.model_registry"),
    *("trainer.callbacks.*Checkpoint.*", "trainer.callbacks.*Monitor.*", "trainer.callbacks.*ProgressBar.*"),
    *("trainer.callbacks.*Summary.*", "trainer.callbacks.Timer.*", "trainer.plugins.*CheckpointFiles.*"),
    # The length; compared where the learning rate falls towards the end.
    *("trainer.min_*", "trainer.max_*"),
)
_LENGTH, _DECAY = "trainer.max_*", "model.*decay_share"
_ABSENT = "not set"
# Fields that newer versions have added: older checkpoints were trained with their defaults.
_NEW_FIELDS = {f"model.adapter.{name}": getattr(AdapterConfig(), name) for name in ("msfm", "csm", "lq_encoder")}


def refuse_changes(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Compare a recipe with the one that a checkpoint was made with. The difference is printed.

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
    """Compare images per optimizer step (None: not known) with those of a checkpoint; raises as refuse_changes."""
    before = read_settings(checkpoint).get(GLOBAL_BATCH)
    if None not in (batch, before) and batch != before:
        parts = "data.batch_size x devices x trainer.accumulate_grad_batches"
        _refuse(checkpoint, [f"global batch ({parts}): {before} -> {batch}"], config)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs and matters: "key: old -> new", in the order of the keys, which are those of the command line."""
    old, new = ({**_NEW_FIELDS, **dict(_leaves(plain(config)))} for config in (before, now))
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    decays = any(value for leaves in (old, new) for key, value in leaves.items() if fnmatchcase(key, _DECAY))
    samples = new.get("model.objective.kind") is not None
    strict = {_LENGTH: decays, **{f"model.sampler.{name}": samples for name in SAMPLED}}
    return [
        f"{key}: {old.get(key, _ABSENT)} -> {new.get(key, _ABSENT)}"
        for key in differing
        if not _may_differ(key) or any(asked and fnmatchcase(key, pattern) for pattern, asked in strict.items())
    ]


def plain(config: Any) -> Any:
    """Numbers, strings, lists and dictionaries: what a checkpoint may hold, and what compares equal after reading."""
    return json.loads(json.dumps(config, default=str))


def _refuse(checkpoint: Path, lines: list[str], config: Mapping[str, Any]) -> None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_info  # what restores imports no lightning

    for line in lines:
        rank_zero_info(f"changed configuration: {line}")
    if lines and not config.get("allow_changed_config"):
        keys = ", ".join(line.partition(":")[0] for line in lines)
        raise UsageError(
            f"{checkpoint} was trained with another {keys}: set what it was, start anew in another folder, "
            "or go on all the same with --allow_changed_config true"
        )


def _may_differ(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in MAY_DIFFER)


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
