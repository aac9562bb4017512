"""Checkpoints whose tensors are spread over processes: gathered into one file, or written as a folder (DCP).

A folder holds what torch.distributed.checkpoint writes, every process its own share, and `plain.pt` with all the rest.
It is written beside its place and renamed when it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from megasr.errors import MegaSRError
from megasr.files import part_of, write_whole_folder

PLAIN = "plain.pt"
_SEPARATOR = "\x1f"  # joins the keys of nested dictionaries; in no key


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint is a folder that processes have written together."""
    return (path / PLAIN).is_file()


def gather(checkpoint: dict[str, Any], keep: bool) -> dict[str, Any]:
    """The checkpoint with every spread tensor whole and on the CPU. All processes must call it together.

    Args:
        checkpoint: nested dictionaries and lists.
        keep: whether this process wants the result; others give their shares and get None in the tensors' places.
    """

    def whole(value: DTensor) -> torch.Tensor | None:
        tensor = value.full_tensor()
        return tensor.cpu() if keep else None

    return _replaced(checkpoint, whole)


def write_sharded(checkpoint: dict[str, Any], folder: Path, keep: Path | None = None) -> None:
    """Write a checkpoint as a folder. All processes must call it together.

    Args:
        checkpoint: nested dictionaries and lists.
        folder: where it appears when it is whole.
        keep: where the one goes that was there; None removes it.

    Raises:
        MegaSRError: it cannot be written; what was there before is still there.
    """
    import torch.distributed.checkpoint as dcp

    first = not dist.is_initialized() or dist.get_rank() == 0
    spread = {_SEPARATOR.join(path): value for path, value in _spread(checkpoint, ())}
    place, problem = part_of(folder), None
    with ExitStack() as stack:
        try:
            if first:
                stack.enter_context(write_whole_folder(folder, keep))
        except OSError as error:
            problem = str(error)
        _raise_together(folder, problem)
        try:
            dcp.save(spread, checkpoint_id=place)
            if first:
                torch.save(_replaced(checkpoint, lambda _: None), place / PLAIN)
        except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
            problem = str(error)
        _raise_together(folder, problem)


def _raise_together(folder: Path, problem: str | None) -> None:
    """Raise in all processes when one has failed: the others would wait for it."""
    problems: list[str | None] = [problem]
    if dist.is_initialized():
        problems = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
    if any(problems):
        raise MegaSRError(f"checkpoint {folder} was not written: {next(filter(None, problems))}")


def read_sharded(folder: Path) -> dict[str, Any]:
    """The checkpoint of a folder with whole tensors on the CPU. Needs no other process.

    Raises:
        OSError, RuntimeError, ...: as torch.load and DCP do when it is damaged.
    """
    import torch.distributed.checkpoint as dcp

    checkpoint: dict[str, Any] = torch.load(folder / PLAIN, map_location="cpu", weights_only=True)
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in metadata.items()}
    dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    for name, tensor in tensors.items():
        *path, last = name.split(_SEPARATOR)
        node: Any = checkpoint
        for key in path:
            node = node[_key(node, key)]
        node[_key(node, last)] = tensor
    return checkpoint


def _key(node: Any, text: str) -> Any:
    """The key of a dictionary or list that was written as text."""
    if isinstance(node, list):
        return int(text)
    return text if text in node else int(text)


def _spread(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], DTensor]]:
    if isinstance(value, DTensor):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _spread(inner, (*path, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _spread(inner, (*path, str(index)))


def _replaced(value: Any, change: Any) -> Any:
    """A copy of nested dictionaries and lists in which every spread tensor is changed."""
    if isinstance(value, DTensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _replaced(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, change) for inner in value]
    return value


def damage_of_folder(folder: Path) -> str | None:
    """What is wrong with a folder, None when every share is there in full length."""
    import torch.distributed.checkpoint as dcp

    try:
        torch.load(folder / PLAIN, map_location="cpu", weights_only=True)
        shares = dcp.FileSystemReader(folder).read_metadata().storage_data
        for share in shares.values():
            if (folder / share.relative_path).stat().st_size < share.offset + share.length:
                return f"{share.relative_path} is cut off"
    except Exception as error:  # whatever torch or pickle make of damaged bytes
        return str(error) or type(error).__name__
    return None
