"""Where the weights of this machine are, and the one error for those that are not here.

A weight is looked for in `$MEGASR_WEIGHTS/NAME/` (default `~/.cache/megasr/weights/NAME/`; a / in a name becomes --),
then where its library would put it: the Hugging Face cache, or torch's for the weights of metrics. Nothing is hashed
here: that is what `checks` does.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from megasr.errors import MegaSRError, UsageError, unknown_name
from megasr.files import home_folder
from megasr.weights.manifest import MANIFEST
from megasr.weights.published import PublishedFile, Weight

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
