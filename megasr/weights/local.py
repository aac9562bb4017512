"""Weights on this machine: where they lie, and whether they are what they should be."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.files import file_sha256, home_folder, write_whole
from megasr.weights.manifest import MANIFEST, PublishedFile, Weight

FOLDER_VARIABLE = "MEGASR_WEIGHTS"


def weights_folder() -> Path:
    """The folder for weights: `$MEGASR_WEIGHTS`, or `~/.cache/megasr/weights`."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(os.path.expanduser(chosen)) if chosen else home_folder() / ".cache" / "megasr" / "weights"


def folder_of(weight: Weight, root: Path | None = None) -> Path:
    """Where the files of a weight lie below the folder for weights (or below `root`)."""
    return (root or weights_folder()) / weight.name.replace("/", "--")


def known_weight(name: str) -> Weight:
    """The weight of that name.

    Raises:
        UsageError: the manifest has none; says the nearest names.
    """
    if name not in MANIFEST:
        raise unknown_name("weight", name, MANIFEST)
    return MANIFEST[name]


def mirrors_of(name: str) -> tuple[str, ...]:
    """Where a weight of the manifest is hosted; a hub id stands for itself; anything else has no mirror."""
    if name in MANIFEST:
        return MANIFEST[name].mirrors
    return (name,) if name.count("/") == 1 and not name.startswith((".", "/", "~")) else ()


def files_here(weight: Weight, folder: Path) -> Iterator[tuple[PublishedFile, Path | None]]:
    """Every file of a weight in the form that is in a folder, and its path; None for a file that is not there."""
    for file in weight.files:
        there = [form for form in file.forms if (folder / form.name).is_file()]
        yield (there[0], folder / there[0].name) if there else (file, None)


def folders_with(weight: Weight, hub_cache: Path | None = None) -> Iterator[Path]:
    """The folders that hold at least a part of a weight, in the order in which they are looked at."""
    for folder in _places(weight, hub_cache):
        if any(path for _, path in files_here(weight, folder)):
            yield folder


def _places(weight: Weight, hub_cache: Path | None) -> Iterator[Path]:
    if weight.place != "hub":
        yield folder_of(weight)
    if weight.place not in ("", "hub"):
        yield _torch_cache() / weight.place
    for hub_id in weight.hub_ids:
        # No patterns: which files are needed is known here, and whoever put them there took what it needed.
        if (snapshot := _snapshot(hub_id, hub_cache, allow_patterns=[])) is not None:
            yield snapshot


def _torch_cache() -> Path:
    """`torch.hub.get_dir()`, but torch is not imported for it: that takes seconds."""
    if "torch" in sys.modules:
        from torch.hub import get_dir

        return Path(get_dir())
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache", "torch")
    return Path(os.path.expanduser(home)) / "hub"


def _snapshot(hub_id: str, hub_cache: Path | None, allow_patterns: list[str] | None = None) -> Path | None:
    """The snapshot of a repository in the cache; None when it lacks files that match the patterns (None: any file)."""
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(hub_id, cache_dir=hub_cache, local_files_only=True, allow_patterns=allow_patterns)
        return Path(found)
    except (OSError, ValueError):
        return None


def find_folder(weight: Weight, hub_cache: Path | None = None) -> Path | None:
    """The first folder that holds every file of a weight, whatever is in them; None when there is none."""
    for folder in folders_with(weight, hub_cache):
        if all(path for _, path in files_here(weight, folder)):
            return folder
    return None


def find_local(name: str, cache_folder: Path | None = None) -> Path | None:
    """Look for a weight on this machine, without network. Only the sizes of its files are checked.

    Args:
        name: a name of the manifest, a path, or a hub id (`owner/name`).
        cache_folder: another Hugging Face cache than the user's own.

    Returns:
        The file of a weight that is one file, the folder of any other; None when it is not here, or not all of it.

    Raises:
        MegaSRError: a file has another size than the published one.
    """
    weight = MANIFEST.get(name)
    if weight is None:
        given = Path(os.path.expanduser(name))
        if name and given.exists():
            return given
        return _snapshot(name, cache_folder) if mirrors_of(name) else None
    folder = find_folder(weight, cache_folder)
    if folder is None:
        return None
    for file, path in files_here(weight, folder):
        if path is not None and (fault := wrong_size(file, path)):
            raise MegaSRError(f"{name}: {path} {fault}; run `{fetch_command(name)}`")
    return target_of(weight, folder)


def target_of(weight: Weight, folder: Path) -> Path:
    """What is given to whoever loads a weight: its only file, or the folder of several."""
    paths = [path for _, path in files_here(weight, folder) if path]
    return paths[0] if len(weight.files) == 1 and paths else folder


def wrong_size(file: PublishedFile, path: Path) -> str:
    """What is wrong with the size of a file, in words; empty when it is the published one or that is not known."""
    size = path.stat().st_size
    if file.size is None or size == file.size:
        return ""
    return f"is {'truncated: has' if size < file.size else 'another file: has'} {size} of {file.size} bytes"


def fetch_command(name: str) -> str:
    """The shell command that puts a weight on this machine."""
    return f"megasr weights fetch {name}" if name in MANIFEST else f"hf download {name}"


def missing_weight(name: str) -> MegaSRError:
    """The one error for a weight that is not here: names what lacks, the command, the mirrors and the licence."""
    if not mirrors_of(name):
        models = [known for known, weight in MANIFEST.items() if not weight.place]
        near = difflib.get_close_matches(name, ["tiny", *MANIFEST], n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: tiny, {', '.join(models)}"
        return MegaSRError(f"no file, folder, hub id or known weight is called {name!r}; {hint}")
    weight = MANIFEST.get(name)
    places = ", ".join(mirrors_of(name)) + (f" ({weight.elsewhere})" if weight and weight.elsewhere else "")
    return MegaSRError(
        f"{name} is not on this machine{_partly(weight)}. Fetch it with `{fetch_command(name)}`, or give the path of a "
        f"copy. Hosted as: {places}{f'; licence: {weight.terms}' if weight else ''}"
    )


def _partly(weight: Weight | None) -> str:
    if weight is None:
        return ""
    for folder in folders_with(weight):
        lacks = [file.name for file, path in files_here(weight, folder) if path is None]
        return f" ({folder} lacks {', '.join(lacks)})" if lacks else ""
    return ""


def named_weights(names: Sequence[str]) -> list[Weight]:
    """The weights of these names, or all that are at least partly here when none is named.

    Raises:
        UsageError: the manifest does not know a name, or it is given twice.
    """
    if len(set(names)) < len(names):
        raise UsageError(f"weights {', '.join(names)}: a name occurs twice")
    if names:
        return [known_weight(name) for name in names]
    return [weight for weight in MANIFEST.values() if next(folders_with(weight), None) is not None]


TINY_FOLDER = Path(__file__).parents[1] / "assets" / "tiny_prior"


def find_prior(source: str) -> Path:
    """The folder of a prior: `tiny`, a local diffusers folder, `sd21-base`, or a hub id in the local cache.

    Raises:
        MegaSRError: it is not on this machine; says where it can be had and with which command.
    """
    if source == "tiny":
        return TINY_FOLDER
    if Path(source).is_dir():
        return Path(source)
    folder = find_local(source)
    if folder is None:
        raise missing_weight(source)
    return folder


def downsampling(vae: Mapping[str, Any]) -> int:
    """f of an autoencoder's configuration: image pixels per latent pixel and axis."""
    return 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)


def size_multiple(vae: Mapping[str, Any], unet: Mapping[str, Any]) -> int:
    """hq height and width must be multiples of this many pixels: VAE down-sampling times the U-Net's."""
    return downsampling(vae) * 2 ** (len(unet["block_out_channels"]) - 1)


def read_size_multiple(folder: Path) -> int | None:
    """size_multiple of the prior in a folder; None when its configuration cannot be read."""
    try:
        vae, unet = (json.loads((folder / part / "config.json").read_text()) for part in ("vae", "unet"))
        return size_multiple(vae, unet)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # whoever loads it says what is wrong with it


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
