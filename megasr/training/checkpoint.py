"""Adapter checkpoints: they hold what was trained and the prior's fingerprint, never the prior itself."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import torch
from torch import nn

from megasr.errors import MegaSRError
from megasr.training.sharded_checkpoint import is_sharded, read_sharded

if TYPE_CHECKING:
    import lightning

Module = TypeVar("Module", bound="lightning.LightningModule")
SHIPPED = {"tiny": Path(__file__).parent.parent / "assets" / "tiny_adapter" / "adapter.ckpt"}


def find_adapter(source: str | Path) -> Path:
    """The file or folder of a checkpoint: `tiny` is the shipped ControlNet of the tiny prior, anything else a path.

    Raises:
        MegaSRError: there is no such file.
    """
    path = SHIPPED.get(str(source), Path(source))
    if not path.is_file() and not is_sharded(path):
        raise MegaSRError(
            f"no checkpoint {source}: give the path of one that `megasr fit` wrote, or {', '.join(SHIPPED)}"
        )
    return path


def trained_state(module: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The part of a state dict whose parameters are trained."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    return {name: value for name, value in state.items() if name in trained}


def check_trained_state(module: nn.Module, checkpoint: dict[str, Any], fingerprint: str) -> None:
    """Refuse a checkpoint that was trained on another prior, or for another adapter.

    Raises:
        MegaSRError: names both fingerprints, or the parameters that are missing or unexpected.
    """
    found = checkpoint.get("prior_fingerprint")
    if found is None:
        raise MegaSRError("checkpoint: not one of a MegaSR adapter (it has no prior_fingerprint)")
    if found != fingerprint:
        raise MegaSRError(
            f"checkpoint: trained on the prior {found}, but the loaded prior is {fingerprint}; "
            "give the prior that it was trained on with --prior"
        )
    trained = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
    held = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    if trained != held:
        differing = sorted(name for name in trained.keys() | held.keys() if trained.get(name) != held.get(name))
        raise MegaSRError(
            f"checkpoint: made for another adapter; {len(differing)} parameters differ, the first are "
            f"{', '.join(differing[:3])}; compare model.adapter with the run's config"
        )


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint safely (tensors and plain data only); see find_adapter.

    Args:
        path: a file, or a folder that several processes have written.
        mmap: leave the tensors of a file on the disk until they are used.

    Raises:
        MegaSRError: it is missing, damaged, or holds other objects.
    """
    path = find_adapter(path)
    try:
        if is_sharded(path):
            return read_sharded(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["the file is empty or cut off"])[0]
        raise MegaSRError(f"cannot read checkpoint {path}: {reason}") from error


def build_from_checkpoint(cls: type[Module], path: str | Path, prior: str | None, changes: dict[str, Any]) -> Module:
    """See MegaSRModule.from_checkpoint."""
    return build_from_state(cls, read_checkpoint(path), path, prior, changes)


def build_from_state(
    cls: type[Module], checkpoint: dict[str, Any], path: str | Path, prior: str | None, changes: dict[str, Any]
) -> Module:
    """Rebuild a module from what a checkpoint holds; path is what errors call it. See MegaSRModule.from_checkpoint."""
    if "prior_fingerprint" not in checkpoint:
        raise MegaSRError(f"{path}: not a checkpoint of a MegaSR adapter (it has no prior_fingerprint)")
    settings = typed_arguments(cls, checkpoint["hyper_parameters"])
    settings["init"] = None  # the checkpoint holds what came of it
    settings["frozen_dtype"] = settings["compile"] = None  # how it was trained; what it restores does not depend on it
    module = cls(**settings | ({"prior": prior} if prior else {}) | changes)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(final_weights(checkpoint), strict=False)
    return module.eval()


def typed_arguments(cls: type[Module], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data -> arguments of the module's constructor, whose types say which are configurations."""
    arguments = dict(plain)
    for name, hint in get_type_hints(cls.__init__).items():
        config = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        if config is not None and isinstance(arguments.get(name), Mapping):
            arguments[name] = config(**arguments[name])  # type: ignore[operator]
    return arguments


def final_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The averaged weights when EMA was on, else the last ones."""
    averaged = next((s["shadow"] for name, s in checkpoint["callbacks"].items() if name.startswith("EMA")), None)
    return averaged or checkpoint["state_dict"]


def initialise(module: nn.Module, path: str | Path, fingerprint: str) -> None:
    """Start the parts that a trained adapter shares with this one from its weights; further parts stay as they are.

    Raises:
        MegaSRError: the file cannot be read, is of another prior, or has a part that this adapter lacks.
    """
    checkpoint = read_checkpoint(path)
    found = checkpoint.get("prior_fingerprint")
    if found != fingerprint:
        raise MegaSRError(f"model.init {path}: trained on the prior {found}, the loaded prior is {fingerprint}")
    weights, trained = final_weights(checkpoint), {n: p for n, p in module.named_parameters() if p.requires_grad}
    foreign = sorted(n for n, value in weights.items() if n not in trained or trained[n].shape != value.shape)
    if foreign:
        raise MegaSRError(
            f"model.init {path}: {len(foreign)} of its parameters have no place in this adapter, the first are "
            f"{', '.join(foreign[:3])}; compare model.adapter with the run's config"
        )
    module.load_state_dict(weights, strict=False)
