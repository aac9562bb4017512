"""Checkpoints whose tensors are sharded over processes: gathered into one file, or written as a folder (DCP).

A folder holds what torch.distributed.checkpoint writes, every process its own shard, and `plain.pt` with all the rest.
It is written beside its place and renamed when it is whole.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from megasr.errors import MegaSRError
from megasr.files import damaged_record, part_of, read_saved, write_whole_folder
from megasr.tracking import first_line

PLAIN = "plain.pt"
_SEPARATOR = "\x1f"  # joins the keys of nested dictionaries; in no key


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint is a folder that several processes wrote."""
    return (path / PLAIN).is_file()


def gather(checkpoint: dict[str, Any], keep: bool) -> dict[str, Any]:
    """The checkpoint with sharded tensors whole and on the CPU, or None in their places if not `keep`; a collective."""

    def gathered(value: DTensor) -> torch.Tensor | None:
        tensor = value.full_tensor()
        return tensor.cpu() if keep else None

    return _replaced(checkpoint, gathered)


def write_sharded(checkpoint: dict[str, Any], folder: Path, keep: Path | None = None) -> None:
    """Write a checkpoint as a folder; a collective.

    Args:
        checkpoint: nested dictionaries and lists.
        folder: where it appears when it is whole.
        keep: where the earlier one is moved to; None removes it.

    Raises:
        MegaSRError: it cannot be written; what was there before is still there.
    """
    import torch.distributed.checkpoint as dcp

    first = not dist.is_initialized() or dist.get_rank() == 0
    sharded = {_SEPARATOR.join(path): value for path, value in named_tensors(checkpoint) if isinstance(value, DTensor)}
    place, problem = part_of(folder), None
    with ExitStack() as stack:
        try:
            if first:
                stack.enter_context(write_whole_folder(folder, keep))
        except OSError as error:
            problem = str(error)
        _raise_together(folder, problem)
        try:
            dcp.save(sharded, checkpoint_id=place)
            if first:
                torch.save(_replaced(checkpoint, lambda _: None), place / PLAIN)
        except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
            problem = str(error)
        _raise_together(folder, problem)


def _raise_together(folder: Path, problem: str | None) -> None:
    """Raise in all processes when one failed: the others would wait for it."""
    problems: list[str | None] = [problem]
    if dist.is_initialized():
        problems = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
    if any(problems):
        raise MegaSRError(f"checkpoint {folder} was not written: {next(filter(None, problems))}")


def read_sharded(folder: Path) -> dict[str, Any]:
    """The checkpoint of a folder, with whole tensors on the CPU; needs no other process.

    Raises:
        OSError: it is damaged, or holds other things than tensors and plain data.
    """
    import torch.distributed.checkpoint as dcp

    checkpoint: dict[str, Any] = read_saved(folder / PLAIN)
    metadata, reader = _read_metadata(folder), dcp.FileSystemReader(folder)
    reader.read_metadata = lambda *_, **__: metadata  # type: ignore[method-assign]  # its own unpickles anything
    try:
        tensors = {
            name: torch.empty(one.size, dtype=one.properties.dtype)
            for name, one in metadata.state_dict_metadata.items()
        }
        dcp.load(tensors, storage_reader=reader, no_dist=True)
        for name, tensor in tensors.items():
            *path, last = name.split(_SEPARATOR)
            node: Any = checkpoint
            for key in path:
                node = node[_key(node, key)]
            node[_key(node, last)] = tensor
    except (Exception, dcp.api.CheckpointException) as error:  # the latter is no Exception
        raise OSError(f"its tensors cannot be put together: {first_line(error)}") from error
    return checkpoint


def _read_metadata(folder: Path) -> Any:
    """torch.distributed.checkpoint's .metadata: where each part of each tensor lies.

    Raises:
        OSError: it is damaged, or names files elsewhere or something else than tensors, which torch would unpickle.
    """
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

    try:
        with (folder / ".metadata").open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        tensors, places = metadata.state_dict_metadata.values(), metadata.storage_data.values()
        plain = type(metadata) is Metadata and all(type(one) is TensorStorageMetadata for one in tensors)
        inside = all(Path(place.relative_path).name == place.relative_path for place in places)
    except OSError:
        raise
    except Exception as error:  # whatever pickle makes of damaged bytes
        raise OSError(f".metadata is damaged: {first_line(error)}") from error
    if not plain or not inside:
        raise OSError(".metadata names files outside of the folder, or something else than tensors")
    return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickle only what torch.distributed.checkpoint writes into .metadata."""

    def find_class(self, module: str, name: str) -> Any:
        """A class of torch's metadata.

        Raises:
            OSError: it is none.
        """
        if name in _METADATA.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        if (module, name) == ("torch.serialization", "_get_layout") or module.startswith("pathlib"):
            return lambda *_: None  # every layout is dense; the path is where the folder was written
        raise OSError(f".metadata holds {module}.{name}; only places of tensors are read, other objects could run code")


_METADATA = {
    "torch": ("Size",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex", "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
}  # fmt: skip


def _key(node: Any, text: str) -> Any:
    """The key of a dictionary or list that was written as text."""
    if isinstance(node, list):
        return int(text)
    return text if text in node else int(text)


def named_tensors(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """The tensors of nested dictionaries and lists, and the keys that lead to each."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from named_tensors(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from named_tensors(inner, (*path, str(index)))


def _replaced(value: Any, change: Any) -> Any:
    """A copy of nested dictionaries and lists in which every sharded tensor is changed."""
    if isinstance(value, DTensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _replaced(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, change) for inner in value]
    return value


def damage_of_folder(folder: Path) -> str | None:
    """What is wrong with a folder; None when every CRC fits."""
    try:
        if damaged_record(folder / PLAIN) is not None:
            return f"{PLAIN} was changed or cut off after it was written"
        parts = _read_metadata(folder).storage_data
        for index, place in parts.items():
            with (folder / place.relative_path).open("rb") as file:
                file.seek(place.offset)
                part = file.read(place.length)
            if damaged_record(io.BytesIO(part)) is not None:
                return f"{index.fqn.replace(_SEPARATOR, '.')} was changed or cut off after it was written"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # places that are none
        return f".metadata is damaged: {first_line(error)}"
    return None
