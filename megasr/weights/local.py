"""Weights on this machine: where they lie, whether they are whole, and how they are fetched."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from megasr.errors import MegaSRError, UsageError, first_line, unknown_name
from megasr.files import file_sha256, home_folder, locked_folder
from megasr.weights.manifest import MANIFEST, PublishedFile, Weight

FOLDER_VARIABLE = "MEGASR_WEIGHTS"
TINY_FOLDER = Path(__file__).parents[1] / "assets" / "tiny_prior"


def weights_folder() -> Path:
    """The folder for weights: `$MEGASR_WEIGHTS`, or `~/.cache/megasr/weights`."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(os.path.expanduser(chosen)) if chosen else home_folder() / ".cache" / "megasr" / "weights"


def folder_of(weight: Weight, root: Path | None = None) -> Path:
    """Where the files of a weight lie below the folder for weights (or below `root`)."""
    return (root or weights_folder()) / weight.name.replace("/", "--")


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
    """The folders that hold at least a part of a weight, in the order in which they are searched."""
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
    """`torch.hub.get_dir()` without importing torch, which takes seconds."""
    if "torch" in sys.modules:
        from torch.hub import get_dir

        return Path(get_dir())
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache", "torch")
    return Path(os.path.expanduser(home)) / "hub"


def _snapshot(hub_id: str, hub_cache: Path | None, allow_patterns: list[str] | None = None) -> Path | None:
    """The snapshot of a repository in the cache; None when it lacks files that match the patterns (None: any file)."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(hub_id, cache_dir=hub_cache, local_files_only=True, allow_patterns=allow_patterns)
        )
    except (OSError, ValueError):
        return None


def find_folder(weight: Weight, hub_cache: Path | None = None) -> Path | None:
    """The first folder that holds every file of a weight, whatever is in them; None when there is none."""
    folders = folders_with(weight, hub_cache)
    return next((f for f in folders if all(path for _, path in files_here(weight, f))), None)


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


def require(name: str) -> Path:
    """The local file or folder of a weight: a name of the manifest, a path, or a hub id.

    Raises:
        MegaSRError: it is not on this machine, or a file has another size than the published one.
    """
    path = find_local(name)
    if path is None:
        raise missing_weight(name)
    return path


def wrong_size(file: PublishedFile, path: Path) -> str:
    """What is wrong with the size of a file, in words; empty when it is the published one or that is not known."""
    size = path.stat().st_size
    if file.size is None or size == file.size:
        return ""
    return f"is {'truncated: has' if size < file.size else 'another file: has'} {size} of {file.size} bytes"


def check_file(file: PublishedFile, path: Path) -> str:
    """What is wrong with the size or the sha256 of a file, in words; empty when nothing is."""
    if fault := wrong_size(file, path):
        return fault
    sha256 = file_sha256(path) if file.sha256 else ""
    return "" if sha256.startswith(file.sha256) else f"sha256 expected {file.sha256}, found {sha256}"


def verify(weight: Weight) -> Iterator[tuple[str, str]]:
    """Hash every file of a weight that is here.

    Yields:
        (`ok`, `wrong`, `missing`, or `unknown` where no sha256 is published; the path and what is wrong with it).
    """
    folder = find_folder(weight) or next(folders_with(weight), None)
    if folder is None:
        yield "missing", "not on this machine"
        return
    for file, path in files_here(weight, folder):
        if path is None:
            yield "missing", str(folder / file.name)
        elif fault := check_file(file, path):
            yield "wrong", f"{path}: {fault}"
        elif file.sha256:
            yield "ok", str(path)
        else:
            yield "unknown", f"{path}: sha256 {file_sha256(path)}, none is published"


def named_weights(names: Sequence[str]) -> list[Weight]:
    """The weights of these names, or all that are at least partly here when none is named.

    Raises:
        UsageError: the manifest does not know a name.
    """
    for name in names:
        if name not in MANIFEST:
            raise unknown_name("weight", name, MANIFEST)
    if names:
        return [MANIFEST[name] for name in names]
    return [weight for weight in MANIFEST.values() if next(folders_with(weight), None) is not None]


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
    places, lacks, terms = ", ".join(mirrors_of(name)), "", ""
    if weight is not None:
        places += f" ({weight.elsewhere})" if weight.elsewhere else ""
        terms = f"; licence: {weight.terms}"
        if folder := next(folders_with(weight), None):
            absent = [file.name for file, path in files_here(weight, folder) if path is None]
            lacks = f" ({folder} lacks {', '.join(absent)})"
    return MegaSRError(
        f"{name} is not on this machine{lacks}. Fetch it with `{fetch_command(name)}`, or give the path of a copy. "
        f"Hosted as: {places}{terms}"
    )


def find_prior(source: str) -> Path:
    """The folder of a prior: `tiny`, a local diffusers folder, `sd21-base`, or a hub id in the local cache.

    Raises:
        MegaSRError: it is not on this machine; says where it can be had and with which command.
    """
    if source == "tiny":
        return TINY_FOLDER
    if source.count("/") > 1 and not Path(source).is_dir():  # no hub id
        raise MegaSRError(
            f"prior {source}: there is no such folder, seen from {Path.cwd()}; --prior (model.prior in a recipe) names "
            "another place"
        )
    return Path(source) if Path(source).is_dir() else require(source)


def downsampling(vae: Mapping[str, Any]) -> int:
    """f of an autoencoder's configuration: image pixels per latent pixel and axis."""
    return 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)


def latent_multiple(denoiser: Mapping[str, Any]) -> int:
    """Height and width of latents must be multiples of this: a DiT's patch, a U-Net's down-sampling."""
    return denoiser.get("patch_size") or 2 ** (len(denoiser["block_out_channels"]) - 1)


def size_multiple(vae: Mapping[str, Any], denoiser: Mapping[str, Any]) -> int:
    """hq height and width must be multiples of this many pixels."""
    return downsampling(vae) * latent_multiple(denoiser)


def native_px(vae: Mapping[str, Any], denoiser: Mapping[str, Any]) -> int | None:
    """Height and width of the images that a prior was trained on; None when its configuration does not say."""
    sides = denoiser["sample_size"]
    return None if sides is None else downsampling(vae) * (sides if isinstance(sides, int) else max(sides))


def denoiser_folder(prior: Path) -> str:
    """Where diffusers keeps the denoiser of a prior in its folder: `transformer` or `unet`."""
    return "transformer" if (prior / "transformer").is_dir() else "unet"


def is_sdxl(prior: Path) -> bool:
    """Whether the U-Net in a prior's folder reads pooled text and sizes, as Stable Diffusion XL's does."""
    try:
        config = json.loads((prior / "unet" / "config.json").read_text())
        return bool(config.get("addition_embed_type") == "text_time")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False  # whoever loads it says what is wrong with it


def text_library(prior: Path) -> str:
    """Whose text encoder a prior's folder has, as its model_index.json says: transformers or open_clip."""
    try:
        return str(json.loads((prior / "model_index.json").read_text())["text_encoder"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return ""  # whoever loads it says what is wrong with it


class Sizes(NamedTuple):
    """Of hq in px: height and width must be multiples of the first, and were the second when the prior was trained."""

    multiple: int
    native_px: int | None


def read_sizes(folder: Path) -> Sizes | None:
    """The sizes of the prior in a folder; None when its configuration cannot be read."""
    try:
        parts = ("vae", denoiser_folder(folder))
        vae, denoiser = (json.loads((folder / part / "config.json").read_text()) for part in parts)
        return Sizes(size_multiple(vae, denoiser), native_px(vae, {"sample_size": None} | denoiser))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # whoever loads it says what is wrong with it


_HUB = re.compile(r"(?:https://huggingface\.co/)?(spaces/)?([^/:]+/[^/:]+)(?:/resolve/main/.*)?")
_TIMEOUT_S = 30.0


def fetch(name: str, root: Path | None = None) -> Path:
    """Download what lacks of a weight; published files that are here are left alone.

    Args:
        name: of the manifest.
        root: folder for weights; None is `$MEGASR_WEIGHTS`. The files lie in a folder of the weight's name below it.

    Returns:
        The file of a weight that is one file, the folder of any other.

    Raises:
        UsageError: there is no such weight, or it cannot be put into another folder.
        MegaSRError: this machine is offline, no mirror gives a file, the disk fails, or another process is fetching.
    """
    (weight,) = named_weights([name])
    refuse_offline()
    if weight.place == "hub":
        return _fetch_repository(weight, root)
    folder = folder_of(weight, root)
    with locked_folder(folder):
        for file in weight.files:
            paths = ((form, folder / form.name) for form in file.forms)
            if not any(path.is_file() and not check_file(form, path) for form, path in paths):
                _fetch_file(weight, file, folder)
    return target_of(weight, folder)


def refuse_offline() -> None:
    """Raise MegaSRError when this machine was told to stay offline."""
    for variable in ("MEGASR_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise MegaSRError(f"{variable} is set: nothing is fetched. Unset it, or copy the files by hand")


def _fetch_file(weight: Weight, file: PublishedFile, folder: Path) -> None:
    """Try the mirrors in order, and the forms of the file at each."""
    faults = []
    for mirror in weight.mirrors:
        for form in file.forms:
            path = folder / form.name
            try:
                path.unlink(missing_ok=True)  # it is not the published one
                _download(mirror, form.name, folder)
                fault = check_file(form, path)
            except Exception as error:  # of the HTTP libraries, of the hub's client and of the disk
                faults.append(f"{mirror}: {first_line(error).rstrip('.')}")
                continue
            if not fault:
                return
            path.unlink()
            faults.append(f"{mirror} gives another file: {fault}")
    others = f"; also hosted as {weight.elsewhere}" if weight.elsewhere else ""
    raise MegaSRError(
        f"cannot fetch {weight.name}, {file.name}: {'; '.join(faults)}{others}. Run it again; whole files are kept"
    )


def _download(mirror: str, name: str, folder: Path) -> None:
    if repository := _HUB.fullmatch(mirror):
        from huggingface_hub import hf_hub_download

        repo_type = "space" if repository[1] else None
        hf_hub_download(repository[2], name, repo_type=repo_type, local_dir=folder, endpoint=_endpoint())
        return
    import pooch

    pooch.get_logger().setLevel("WARNING")
    url = f"{mirror}{quote(name)}" if mirror.endswith("/") else mirror
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=_TIMEOUT_S)
    pooch.retrieve(url, known_hash=None, fname=name, path=folder, downloader=downloader)


def _endpoint() -> str | None:
    """Another host of the hub; its library reads the variable only when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _fetch_repository(weight: Weight, root: Path | None) -> Path:
    """A weight that its library reads in the Hugging Face cache only."""
    from huggingface_hub import snapshot_download

    if root is not None:
        raise UsageError(f"{weight.name} is read in the Hugging Face cache only: leave out --to")
    names = [file.name for file in weight.files]
    try:
        return Path(snapshot_download(weight.mirrors[0], endpoint=_endpoint(), allow_patterns=names))
    except Exception as error:  # of the HTTP library that this version of huggingface_hub uses
        raise MegaSRError(f"cannot fetch {weight.name} from {weight.mirrors[0]}: {first_line(error)}") from error
