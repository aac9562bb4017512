"""Is a file the published one: its sha256, remembered by size and time of change so that gigabytes are read once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megasr.errors import MegaSRError
from megasr.files import file_sha256, write_whole
from megasr.weights.local import (
    fetch_command,
    files_here,
    find_folder,
    find_local,
    folders_with,
    missing_weight,
    weights_folder,
    wrong_size,
)
from megasr.weights.manifest import MANIFEST
from megasr.weights.published import PublishedFile, Weight

RECORDS = ".hashes"


@dataclass(frozen=True)
class Finding:
    """What `verify` says of one file.

    Attributes:
        weight: name of the weight.
        state: ok, wrong, missing, or unknown where no sha256 is published.
        detail: the path and what was found, in words.
    """

    weight: str
    state: Literal["ok", "wrong", "unknown", "missing"]
    detail: str


def require(name: str) -> Path:
    """The local file or folder of a weight. A file with a known sha256 is hashed once, and again when it changes.

    Args:
        name: a name of the manifest, a path, or a hub id.

    Raises:
        MegaSRError: it is not on this machine, or a file is not the published one.
    """
    found = find_local(name)
    if found is None:
        raise missing_weight(name)
    if name in MANIFEST:
        refuse_altered(MANIFEST[name], found if found.is_dir() else _folder_above(MANIFEST[name], found))
    return found


def _folder_above(weight: Weight, path: Path) -> Path:
    depth = weight.files[0].name.count("/")
    return path.parents[depth]


def refuse_altered(weight: Weight, folder: Path) -> None:
    """Compare the known sha256 of the files in a folder.

    Raises:
        MegaSRError: one is not the published file.
    """
    for file, path in files_here(weight, folder):
        if path is not None and file.sha256 and not (found := remembered_sha256(path)).startswith(file.sha256):
            raise MegaSRError(
                f"{weight.name}: {path} is not the published file: its sha256 is {found}, not {file.sha256}; "
                f"run `{fetch_command(weight.name)}`"
            )


def verify(weight: Weight) -> Iterator[Finding]:
    """Hash every file of a weight where it was found, whatever is remembered of it."""
    folder = find_folder(weight) or next(folders_with(weight), None)
    if folder is None:
        yield Finding(weight.name, "missing", "not on this machine")
    else:
        for file, path in files_here(weight, folder):
            yield _verify_file(weight, file, path) if path else Finding(weight.name, "missing", f"{folder / file.name}")


def _verify_file(weight: Weight, file: PublishedFile, path: Path) -> Finding:
    if fault := wrong_size(file, path):
        return Finding(weight.name, "wrong", f"{path} {fault}")
    found = fresh_sha256(path)
    if not file.sha256:
        return Finding(weight.name, "unknown", f"{path}: sha256 {found}, none is published")
    if not found.startswith(file.sha256):
        return Finding(weight.name, "wrong", f"{path}: sha256 expected {file.sha256}, found {found}")
    return Finding(weight.name, "ok", f"{path}")


def remembered_sha256(path: Path) -> str:
    """64 hexadecimal digits of a file's content; read only when its size or time of change is not the remembered one.

    Raises:
        MegaSRError: it cannot be read.
    """
    state = _state(path)
    try:
        record = json.loads(_record_of(path).read_text())
    except (OSError, ValueError):
        return fresh_sha256(path)
    same = isinstance(record, dict) and {key: record.get(key) for key in state} == state
    return str(record["sha256"]) if same and record.get("sha256") else fresh_sha256(path)


def fresh_sha256(path: Path) -> str:
    """Read a file, and remember its sha256 if the folder for weights can be written to.

    Raises:
        MegaSRError: it cannot be read.
    """
    state = _state(path)
    sha256 = file_sha256(path)
    with suppress(MegaSRError):  # a cache that others own: hash again next time
        write_whole(_record_of(path), json.dumps({**state, "sha256": sha256}).encode())
    return sha256


def _state(path: Path) -> dict[str, str | int]:
    try:
        about = os.stat(path)
    except OSError as error:
        raise MegaSRError(f"cannot read {path}: {error.strerror or error}") from error
    return {"path": str(path.resolve()), "size": about.st_size, "mtime_ns": about.st_mtime_ns}


def _record_of(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    return weights_folder() / RECORDS / f"{name}.json"
